"""Replicas on this machine, as a run of the executor: `pool.replicate` behind `execute.Run`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from ipos.pool import marks as lines
from ipos.pool import replicate
from ipos.pool.data import record_block
from ipos.pool.execute import Memory, Ran
from ipos.pool.quorum import Policy
from ipos.pool.records import Task
from ipos.pool.replicate import Agreement, Replication
from ipos.pool.saves import Save
from ipos.pool.signing import Signer
from ipos.pool.verdict import Verification
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm.plan import RUNNING, Progress
from ipos.wire.errors import Refused
from ipos.wire.record import cid_of

SEATS: Final = 9  # the most that one machine is asked for


class Replicas:
    """Of one home. What a killed node had begun is gone on with."""

    def __init__(self, home: Path, store: BlockStore, key: Signer) -> None:
        self._root = home / "env" / "replicas"
        self._store = store
        self._key = key

    def start(self, task: Task, seats: int, every_s: float) -> ReplicaRun:
        if not task.in_engine:
            raise Refused(f"{task.name} is a native program: replicas can be compared only in the engine (--wasm)")
        if seats > SEATS:
            raise Refused(f"{seats} replicas on one machine, the most is {SEATS}")
        cid, body = record_block(task)
        self._store.put([(cid, body)])
        directory = self._root / f"{c.text(cid)}-{seats}"
        replication = Replication(
            directory=directory, task=cid, store=self._store, key=self._key,
            policy=Policy(seats=seats, most=2 * seats + 1, spares=seats, apart=replicate.LOCAL), every_s=every_s,
        )  # fmt: skip
        return ReplicaRun(self._store, cid_of(task), directory, replication, seats)


class ReplicaRun:
    """`execute.Run`. It makes no save of its own: stopped, it goes on in this home, and elsewhere from the start."""

    def __init__(self, store: BlockStore, task: bytes, directory: Path, replication: Replication, seats: int) -> None:
        self._store = store
        self._task = task
        self._directory = directory
        self._replication = replication
        self._seats = seats
        self._stopping = False
        self._over = False
        self._began = time.monotonic()
        self._run = asyncio.create_task(replication.run())

    async def exited(self) -> None:
        await asyncio.wait((self._run,))

    async def wait(self) -> Ran:
        await self.exited()
        if self._stopping and self._run.cancelled():
            return Ran(stopped=True)
        if self._run.cancelled():
            return Ran(fault="it was stopped")
        if (error := self._run.exception()) is not None:
            self._over = isinstance(error, Refused)
            if not isinstance(error, OSError):
                raise error
            return Ran(fault=f"no result that can be believed: {error}")
        return await asyncio.to_thread(self._collect, self._run.result(), time.monotonic() - self._began)

    def _collect(self, agreed: Agreement, wall: float) -> Ran:
        ending = agreed.ending
        record = Verification(
            task=self._task, seats=agreed.seats, agreed=len(agreed.winners), root=ending.root, work=ending.work,
            total=agreed.work, told=(*agreed.told(), *agreed.moved), verdicts=agreed.verdicts,
        )  # fmt: skip
        block = record_block(record)
        self._store.put([block])
        ext = [
            ("work", str(ending.work)),
            ("page_work", str(ending.page_work)),
            ("root", ending.root),
            ("resumed_at", "0"),
        ]
        ext += [("verified", f"quorum {self._seats}"), ("verification", c.text(block[0]))]
        if agreed.marks:
            ext.append(("marks", c.text(unixfs.add_bytes(self._store, lines.text(agreed.marks)))))
        self._over = True
        return Ran(
            ending.exit, ending.killed, ending.stdout, ending.stderr, ending.dir, agreed.use.cpu_ms / 1000, wall,
            agreed.use.rss_bytes, ext=tuple(ext),
        )  # fmt: skip

    def pause(self) -> None:
        self._replication.pause()

    def resume(self) -> None:
        self._replication.resume()

    def stop(self) -> None:
        self._stopping = True
        self._run.cancel()

    async def saved(self, again: bool) -> Save | None:
        return None

    async def save(self) -> int:
        raise Refused("replicas save by themselves, for their keepers: there is no save of them all")

    def limit(self, wall_s: float) -> None:
        raise Refused("replicas have no limit of time: they end when they agree, or are given up")

    def memory(self) -> Memory | None:
        return None

    def progress(self) -> Progress:
        """The slowest seat's work; the speed of all."""
        known = self._replication.progress.values()
        return Progress(RUNNING, min((w for w, _ in known), default=0), float(sum(s for _, s in known)), 0.0)

    def marks(self) -> list[tuple[int, str]]:
        done = self._run.done() and not self._run.cancelled() and self._run.exception() is None
        return list(self._run.result().marks) if done else []

    async def kill(self) -> None:
        if not self._run.done():
            self._run.cancel()
            await asyncio.wait((self._run,), timeout=10)

    def peek(self, which: str, offset: int, count: int) -> bytes:
        """Nothing that one worker prints is shown before most have printed it."""
        return b""

    def close(self) -> None:
        """In a thread: the lease has ended."""
        if self._over:
            replicate.forget(self._directory)
