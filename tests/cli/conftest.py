"""Real nodes: homes in a temporary directory, on loopback only, ended by their own `ipos down`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

IPOS = Path(sys.executable).with_name("ipos")


class Machine:
    """One home and its command line. `inside`: a command that runs another one where the machine is."""

    def __init__(self, home: Path, inside: Sequence[str] = ()) -> None:
        self.home = home
        self.inside = inside

    @property
    def environment(self) -> dict[str, str]:
        own = {"IPOS_HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home.parent / "run")}
        return {**os.environ, **own, "PYTHONUNBUFFERED": ""}  # as a person has it

    def run(
        self, *arguments: str, timeout: float = 60, stdin: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.inside, str(IPOS), *arguments],
            env={**self.environment, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin or "",
            cwd=self.home.parent,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The command, not waited for; what it prints is lost."""
        return subprocess.Popen(
            [*self.inside, str(IPOS), *arguments], env=self.environment, cwd=self.home.parent, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

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


class Terminal:
    """A command that runs on a terminal, or (`plain`) with pipes for input and output; `says` waits for its words."""

    def __init__(self, machine: Machine, *arguments: str, plain: bool = False) -> None:
        self.text = ""
        self._seen = 0
        if plain:
            (theirs_in, self._in), (self._out, theirs_out) = os.pipe(), os.pipe()
        else:
            self._out, theirs_out = pty.openpty()
            self._in, theirs_in = os.dup(self._out), os.dup(theirs_out)
        self.process = subprocess.Popen(
            [*machine.inside, str(IPOS), *arguments], env=machine.environment, cwd=machine.home.parent,
            stdin=theirs_in, stdout=theirs_out, stderr=theirs_out, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)

    def _more(self, timeout: float) -> bool:
        """Whether there was something; False at the end."""
        ready, _, _ = select.select([self._out], [], [], timeout)
        assert ready, f"nothing more within {timeout:.0f} s: {self.text}"
        try:
            data = os.read(self._out, 1 << 16)
        except OSError:  # what a terminal gives when its last program has gone
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)

    def says(self, pattern: str, timeout: float = 20) -> str:
        """Wait for it, after what it said before; its group, or all of it."""
        deadline = time.monotonic() + timeout
        while (found := re.compile(pattern).search(self.text, self._seen)) is None:
            assert self._more(max(0, deadline - time.monotonic())), f"it ended without {pattern!r}: {self.text}"
        self._seen = found.end()
        return found[found.lastindex or 0]

    def answer(self, words: str) -> None:
        os.write(self._in, words.encode() + b"\n")

    def taken(self) -> None:
        """Wait until it has read all that it was answered."""
        unread = bytearray(4)
        wait_for("the reading", lambda: not fcntl.ioctl(self._in, termios.FIONREAD, unread) and not any(unread))

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to all that the command has started and not sent away."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self, timeout: float = 20) -> int:
        """Its exit status."""
        deadline = time.monotonic() + timeout
        while self._more(max(0, deadline - time.monotonic())):
            pass
        return self.process.wait(timeout)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for sockets in it, however many tests ran here before."""
    with tempfile.TemporaryDirectory(prefix="ipt") as directory:
        yield Path(directory)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """`terminal(machine, "join", code)`: the command, on a terminal."""
    with ExitStack() as stack:

        def make(machine: Machine, *arguments: str, plain: bool = False) -> Terminal:
            made = Terminal(machine, *arguments, plain=plain)
            stack.callback(made.close)
            return made

        yield make


def wait_for(what: str, condition: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.02)


@contextmanager
def several() -> Iterator[Callable[..., Machine]]:
    """Makes nodes, and ends them."""
    scratch = Path(tempfile.mkdtemp(prefix="ipt"))
    (scratch / "run").mkdir(mode=0o700)
    made: list[Machine] = []

    def make(name: str, up: bool = True) -> Machine:
        machine = Machine(scratch / name)
        made.append(machine)
        if up:
            machine.ok("up", "--name", name, "--listen", "local", "--cores", "1")
        return machine

    try:
        yield make
    finally:
        for machine in made:
            machine.run("down")
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def machines() -> Iterator[Callable[..., Machine]]:
    """`machines("desk")`: a node that is up."""
    with several() as make:
        yield make


def join(inviter: Machine, *others: Machine) -> None:
    for other in others:
        code = inviter.json("invite")["code"]
        other.ok("join", code, "--yes")
    wait_for("the pool", lambda: inviter.json("pool")["nodes"] == 1 + len(others))
