"""The act of three workers and one liar fails when a part of it is a stub. A small program stands for the Python task; all else is real."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipos.pool import bench, quorum, workers
from ipos.store.blocks import MemoryStore
from ipos.testing import cheats, spin
from ipos.wire.errors import Refused

pytestmark = pytest.mark.real

EXAMPLE = Path(__file__).parents[2] / "examples" / "replicas.py"


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("replicas_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["replicas_example"] = module
    spec.loader.exec_module(module)

    async def image(images: Path, say: Any) -> Path:
        return images

    def task(store: MemoryStore, image: Path) -> bytes:
        return spin.task(store, 200_000_000, module.MARK_EVERY)

    monkeypatch.setattr(module, "MARK_EVERY", 50_000_000)
    monkeypatch.setattr(module, "SAVE_S", 0.05)
    monkeypatch.setattr(module, "PRINTED", "\n")
    monkeypatch.setattr(module, "python_image", image)
    monkeypatch.setattr(module, "task", task)
    monkeypatch.setattr(module, "receipt", lambda scratch, root, say: None)
    yield module
    del sys.modules["replicas_example"]


def said(act: Any, scratch: Path) -> list[str]:
    words: list[str] = []
    act.run(scratch, words.append)
    return words


def test_every_step_happens(act: Any, tmp_path: Path) -> None:
    words = "\n".join(said(act, tmp_path))
    assert "kill -9 of worker 2 in mid-run" in words
    assert "worker 4 goes on with seat " in words
    assert "worker 3 (seat 2) lied at mark " in words
    assert "extra work 2" in words


def test_a_judge_that_believes_the_accused_fails_it(act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def believes(self: bench.Bench, *asked: Any) -> bench.Judged:
        case = next(iter(self._book.cases.values()))
        said = [party.entry for party in case.parties]
        return bench.Judged(case.before, min(said, key=said.count), 0, 0)

    monkeypatch.setattr(bench.Bench, "judged", believes)
    with pytest.raises(Refused, match="3 seats came to 1 result and no majority"):
        said(act, tmp_path)


def test_a_quorum_that_does_not_compare_fails_it(act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quorum, "_disputes", lambda state, top: [])
    with pytest.raises(act.Failed, match="0 verdicts"):
        said(act, tmp_path)


def test_a_worker_that_begins_again_fails_it(act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = workers.Worker.ask

    async def ask(self: workers.Worker, op: str, blocks: Any = (), **words: Any) -> Any:
        return await real(self, op, blocks, **{**words, **({"save": None} if op == "start" else {})})

    monkeypatch.setattr(workers.Worker, "ask", ask)
    with pytest.raises(act.Failed, match="the fourth worker began again"):
        said(act, tmp_path)


def test_a_cheat_that_does_not_cheat_fails_it(act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cheats, "among", lambda liars: workers.seat)
    with pytest.raises(act.Failed, match="3 of three agree"):
        said(act, tmp_path)


def test_a_kill_that_kills_nobody_fails_it(act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act.os, "kill", lambda pid, number: None)
    with pytest.raises(act.Failed, match="0 seats changed hands"):
        said(act, tmp_path)
