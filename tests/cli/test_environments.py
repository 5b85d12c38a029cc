"""The three ways to say what a script needs. Each machine builds the environment once, and says so."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Machine, Terminal, join, several
from test_bad_input import inputs, script
from uv import find_uv_bin

pytestmark = pytest.mark.real
Run = Callable[..., Terminal]

BODY = """
import importlib.metadata, sys
import iniconfig
print("got", importlib.metadata.version("iniconfig"), "in", sys.prefix, sys.stdin.read().strip())
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Machine, Machine]]:
    with several() as make:
        desk, attic = make("desk"), make("attic")
        join(desk, attic)
        yield desk, attic


def block(desk: Machine) -> list[str]:
    return [script(desk, "block.py", '# /// script\n# dependencies = ["iniconfig==2.0.0"]\n# ///\n' + BODY)]


def named(desk: Machine) -> list[str]:
    return ["--with", "iniconfig==2.1.0", script(desk, "named.py", BODY)]


def project(desk: Machine) -> list[str]:
    root = desk.home.parent / "project"
    (root / "src").mkdir(parents=True)
    (root / "pyproject.toml").write_text(
        '[project]\nname = "p"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = ["iniconfig==1.1.1"]\n'
    )
    subprocess.run([find_uv_bin(), "lock", "--quiet", "--project", str(root)], check=True)
    (root / "src" / "locked.py").write_text(BODY)
    return [str(root / "src" / "locked.py")]


def built(machine: Machine) -> dict[Path, int]:
    """The environments of a machine, and when each was complete."""
    return {stamp.parent: stamp.stat().st_mtime_ns for stamp in (machine.home / "env").glob("*/complete")}


@pytest.mark.parametrize(("ask", "version"), [(block, "2.0.0"), (named, "2.1.0"), (project, "1.1.1")])
def test_built_once_on_each_machine(
    pair: tuple[Machine, Machine], terminal: Run, ask: Callable[[Machine], list[str]], version: str
) -> None:
    desk, _ = pair
    words = ask(desk)
    homes: dict[str, str] = {}
    for machine in pair:
        before = built(machine)
        first = terminal(desk, "run", "--nodes", machine.home.name, "--fresh", *words)
        first.says(rf"{machine.home.name}: building an environment of 1 package\b")
        homes[machine.home.name] = first.says(rf"got {version} in (\S+)")
        assert first.ends() == 0
        assert [str(one) for one in built(machine).keys() - before.keys()] == [homes[machine.home.name]]

    stamps = [built(machine) for machine in pair]
    again = terminal(desk, "map", "--over", inputs(desk, 6), "--fresh", *words)
    assert again.ends() == 0
    assert "buil" not in again.text
    assert "install" not in again.text
    for i in range(6):
        assert any(f"got {version} in {home} line {i}" in again.text for home in homes.values())
    assert [built(machine) for machine in pair] == stamps
