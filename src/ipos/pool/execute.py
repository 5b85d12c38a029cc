"""Executor: what a holder needs of something that can run a task. `native.executor` is the real one, `ipos.testing` has one of virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ipos.pool.records import Task
from ipos.pool.saves import Save
from ipos.vm.plan import Progress


class Ran(NamedTuple):
    """How a run ended. `fault` is the node's failure in a sentence ("" = none, then the rest counts); CIDs are in the node's store.

    `stopped`: it was told to stop, and `save` is where it goes on (None: from the beginning); nothing else counts then. A `save` besides
    a result is that of a task that used up its work. `note`: what its owner should know.
    """

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
    stopped: bool = False
    save: Save | None = None


class Memory(NamedTuple):
    """Bytes of memory that the processes of a run have, and the most that each of those that live has had."""

    now: int
    peak: int


class Run(Protocol):
    """One running task. Time is counted without pauses."""

    async def exited(self) -> None:
        """Return when it uses the machine no more: its slot is free."""
        ...

    async def wait(self) -> Ran:
        """What it came to, when its outputs are in the store."""
        ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def limit(self, wall_s: float) -> None:
        """From now on it may take so long in all, 0 = as long as it likes. `Refused` if that cannot be changed."""
        ...

    def memory(self) -> Memory | None:
        """What it has of the machine's memory, where that is known."""
        ...

    async def save(self) -> int:
        """Save now; the work that is saved, when it is on disk. `Refused`: it cannot be saved, or it has ended."""
        ...

    def stop(self) -> None:
        """Save, and end soon; `wait` says `stopped`. Not for native tasks."""
        ...

    async def saved(self, again: bool) -> Save | None:
        """The newest save, in the store, if it is newer than what this gave before, or `again`. The store does not keep it by itself."""
        ...

    def progress(self) -> Progress | None:
        """How far it is, where that is known."""
        ...

    def marks(self) -> list[tuple[int, str]]:
        """(work, root) of its marks so far."""
        ...

    async def kill(self) -> None:
        """Returns when nothing of it runs any more. `wait` then gives some `Ran` that nobody reads."""
        ...

    def peek(self, which: str, offset: int, count: int) -> bytes:
        """What it has written so far to "stdout" or "stderr"."""
        ...


class Executor(Protocol):
    async def prepare(self, key: str, task: Task, say: Callable[[str], None], save_every_s: float) -> None:
        """Lay out all that `start` needs; may take its time. Everything the task names is in the store. `say` gets progress lines
        ("installing numpy"). `Refused` is a fault of the node."""
        ...

    async def start(self, key: str, task: Task, save: bytes | None, replicas: int = 0) -> Run:
        """Run what was prepared under this key, from this save, which is in the store, unless a later one is at hand; or, with `replicas`, on
        so many workers from the start. `Refused` is a fault of the node."""
        ...

    async def discard(self, key: str) -> None:
        """Remove what preparation and run left on disk."""
        ...
