"""What is asked of a native process, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ipos.wire import limits


class Program(NamedTuple):
    """`path`: the file, where tasks can see it (`NativeRunner.program`); `python`: an interpreter runs it."""

    name: str
    path: Path
    python: bool


class Limits(NamedTuple):
    """Of one process tree unless said otherwise. 0 or None: none.

    `output_bytes`: of stdout, of stderr, and of each file written; `memory_bytes`: of each process, what it may write to (RLIMIT_DATA);
    `wall_s`: seconds since the start, pauses not counted; `cpu_s`: of each process.
    """

    output_bytes: int = limits.output_bytes
    memory_bytes: int = 0
    wall_s: float | None = None
    cpu_s: int = 0


class Outcome(NamedTuple):
    """How it ended. Exactly one of `exit`, `signal`, `fault` is not None.

    `exit`: the program's status; `signal`: the signal that ended it; `fault`: why it was not the program's doing but this machine's, so
    that it should run again elsewhere; `killed`: the limit that was hit, in a sentence, None if none was. `dir`: the working directory
    with the inputs in it. `max_rss_bytes`: of the largest process, at least what a seat has itself (about 12 MiB: it is inherited).
    """

    exit: int | None
    signal: int | None
    stdout: Path
    stderr: Path
    dir: Path
    cpu_s: float
    wall_s: float
    max_rss_bytes: int
    fault: str | None
    killed: str | None


class Exited(NamedTuple):
    """What a seat reports: `status` as `subprocess` gives it (-N: signal N)."""

    status: int
    cpu_s: float
    rss_bytes: int
