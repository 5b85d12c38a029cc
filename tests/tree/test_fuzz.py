"""Both ends of 9P before whatever bytes (`fuzz.py`): a little in every run, coverage-guided in `make slow`, and mistakes that it has to find."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.tree.ninep import opened
from ipos.tree.ninep.calls import Connection
from ipos.tree.ninep.session import Session

SECONDS = 60


@pytest.fixture(scope="module")
def fuzzing() -> Iterator[fuzz.Fuzz]:
    made = fuzz.Fuzz()
    yield made
    made.close()


@pytest.mark.parametrize("which", ["server", "client"])
def test_bytes(which: str, fuzzing: fuzz.Fuzz) -> None:
    @settings(max_examples=150)
    @given(st.binary(max_size=200))
    def run(data: bytes) -> None:
        fuzzing.run(getattr(fuzzing, which), data)

    run()


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "finds").glob("*-*")), ids=lambda path: path.name)
def test_what_was_found(path: Path, fuzzing: fuzz.Fuzz) -> None:
    fuzzing.run(getattr(fuzzing, path.name.split("-")[0]), path.read_bytes())


@pytest.mark.parametrize("bug", ["a wrong answer is forgotten", "a session that raises"])
def test_the_finds_find_mistakes(bug: str, monkeypatch: pytest.MonkeyPatch, fuzzing: fuzz.Fuzz) -> None:
    """With the old mistakes back, what found them finds them."""
    monkeypatch.setattr(fuzz, "ENDS_S", 0.2)
    received = Connection._received

    def forgets(self: Connection, message: memoryview) -> None:
        waiting = self._waiting.pop(int.from_bytes(message[5:7], "little"), None)
        if waiting is not None and self.dialect.by_code[message[4]].name != "R" + waiting[1][1:]:
            raise opened.ProtocolError("planted")
        if waiting is not None:
            self._waiting[int.from_bytes(message[5:7], "little")] = waiting
        received(self, message)

    def raises(self: Session, b: memoryview) -> None:
        raise KeyError("planted")

    if bug == "a wrong answer is forgotten":
        monkeypatch.setattr(Connection, "_received", forgets)
        which, data = "client", bytes([0, 150, 111, 0])  # Rwalk answers Tversion
    else:
        monkeypatch.setattr(Session, "message", raises)
        which, data = "server", bytes(8)
    with pytest.raises((fuzz.Escaped, KeyError)):
        fuzzing.run(getattr(fuzzing, which), data)
    for task in fuzz.asyncio.all_tasks(fuzzing.loop):
        task.cancel()


def guided(which: str, tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "corpus").mkdir()
    here = Path(__file__).with_name("fuzz.py")
    command = [
        sys.executable,
        str(here),
        which,
        "--seconds",
        str(SECONDS),
        "--corpus",
        "corpus",
        "--finds",
        str(tmp_path),
        *more,
    ]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=10 * SECONDS, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["server", "client"])
def test_guided(which: str, tmp_path: Path) -> None:
    ran = guided(which, tmp_path)
    assert ran.returncode == 0, ran.stderr[-5000:]
    assert "stat::number_of_executed_units" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("which", ["server", "client"])
def test_guided_can_fail(which: str, tmp_path: Path) -> None:
    ran = guided(which, tmp_path, "--plant")
    assert ran.returncode != 0
    assert "planted" in ran.stderr + ran.stdout
