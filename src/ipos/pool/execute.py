"""Executor: what a holder needs of something that can run a task. `native.executor` is the real one, `ipos.testing` has one of virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ipos.pool.records import Task


class Ran(NamedTuple):
    """How a run ended. `fault` is the node's failure in a sentence ("" = none, then the rest counts); CIDs are in the node's store."""

    exit: int = 0
    killed: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    dir: bytes | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    rss_bytes: int = 0
    fault: str = ""
    ext: tuple[tuple[str, str], ...] = ()


class Run(Protocol):
    """One running task."""

    async def exited(self) -> None:
        """Return when it uses the machine no more: its slot is free."""
        ...

    async def wait(self) -> Ran:
        """What it came to, when its outputs are in the store."""
        ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def kill(self) -> None:
        """Returns when nothing of it runs any more. `wait` then gives some `Ran` that nobody reads."""
        ...

    def peek(self, which: str, offset: int, count: int) -> bytes:
        """What it has written so far to "stdout" or "stderr"."""
        ...


class Executor(Protocol):
    async def prepare(self, key: str, task: Task, say: Callable[[str], None]) -> None:
        """Lay out all that `start` needs; may take its time. Everything the task names is in the store. `say` gets progress lines
        ("installing numpy"). `Refused` is a fault of the node."""
        ...

    async def start(self, key: str, task: Task) -> Run:
        """Run what was prepared under this key. `Refused` is a fault of the node."""
        ...

    async def discard(self, key: str) -> None:
        """Remove what preparation and run left on disk."""
        ...
