"""Real nodes: homes in a temporary directory, on loopback only, ended by their own `ipos down`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

IPOS = Path(sys.executable).with_name("ipos")


class Machine:
    """One home and its command line. `inside`: a command that runs another one where the machine is."""

    def __init__(self, home: Path, inside: Sequence[str] = ()) -> None:
        self.home = home
        self.inside = inside

    def run(
        self, *arguments: str, timeout: float = 60, stdin: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "IPOS_HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home.parent / "run"),
            **env,
        }
        return subprocess.run(
            [*self.inside, str(IPOS), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin or "",
            cwd=self.home.parent,
            check=False,
        )

    def ok(self, *arguments: str, **options: Any) -> str:
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str, status: int = 1, **options: Any) -> str:
        """The one sentence on stderr."""
        done = self.run(*arguments, **options)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("ipos: ")]
        assert lines, done.stderr
        assert "Traceback" not in done.stderr
        return lines[0]

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.ok(*arguments, "--json", **options).splitlines()[-1])

    def pid(self, key: str = "pid") -> int:
        return int(self.json("status")[key])


def wait_for(what: str, condition: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.02)


@pytest.fixture
def machines() -> Iterator[Callable[[str], Machine]]:
    """`machines("desk")`: a node that is up."""
    scratch = Path(tempfile.mkdtemp(prefix="ipt"))
    (scratch / "run").mkdir(mode=0o700)
    made: list[Machine] = []

    def make(name: str, up: bool = True) -> Machine:
        machine = Machine(scratch / name)
        made.append(machine)
        if up:
            machine.ok("up", "--name", name, "--listen", "local", "--cores", "1")
        return machine

    yield make
    for machine in made:
        machine.run("down")
    shutil.rmtree(scratch, ignore_errors=True)


def join(inviter: Machine, *others: Machine) -> None:
    for other in others:
        code = inviter.json("invite")["code"]
        other.ok("join", code, "--yes")
    wait_for("the pool", lambda: inviter.json("pool")["nodes"] == 1 + len(others))
