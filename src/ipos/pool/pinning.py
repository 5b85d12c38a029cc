"""pinning: what jobs and leases keep in the store, and show to the machines of the account.

A job pins its program and inputs, its tasks' results and all that they name, for as long as the journal names it (the newest
`limits.jobs_kept` jobs). A lease pins its result on the node that did the work, until the coordinator has it. All of it happens off the
loop, one after the other, before anybody is told to fetch it (`settled`); after a crash the jobs' pins are made anew from the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from ipos.pool import data, evidence
from ipos.pool import task as t
from ipos.pool.jobs import Job
from ipos.pool.journal import Offload
from ipos.pool.records import Result, Task
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.store.pins import Pins, Visibility
from ipos.wire.errors import Refused
from ipos.wire.record import decode

log = logging.getLogger("ipos.pinning")

JOB = "job "


class Pinning:
    """Of one node."""

    def __init__(self, pins: Pins, store: BlockStore, offload: Offload) -> None:
        self._pins = pins
        self._store = store
        self._offload = offload
        self._todo: list[Callable[[], object]] = []
        self._task: asyncio.Task[None] | None = None

    def later(self, work: Callable[[], object]) -> None:
        """Off the loop, after all that was asked before."""
        self._todo.append(work)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())

    async def settled(self) -> None:
        """All that was asked so far is done."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _drain(self) -> None:
        while self._todo:
            todo, self._todo = self._todo, []
            await self._offload(lambda todo=todo: _all(todo))

    # ---- jobs

    def inputs(self, job: int, tasks: Iterable[Task]) -> None:
        """All that the tasks of a job read."""
        roots = list(dict.fromkeys(root for task in tasks for root in data.roots(task)))
        self._pin(f"{JOB}{job}", roots)

    def result(self, job: int, cid: bytes, result: Result, receipt: bytes | None) -> None:
        """A result's record and what it names; its receipt and what proves whose that is."""
        self._pin(f"{JOB}{job}", [cid, *data.results(result)])
        if receipt is not None:
            self.receipt(job, receipt)

    def receipt(self, job: int, receipt: bytes) -> None:
        """With those before it, and what they name."""
        self.later(lambda: self._pin_signed(f"{JOB}{job}", receipt))

    def _pin_signed(self, why: str, receipt: bytes) -> None:
        records = [cid for cid in evidence.reach(self._store, receipt, files=False) if cid[:4] == c.DAG_CBOR]
        self._pins.pin(why, [cid for cid in records if self._store.has(cid)], Visibility.POOL)

    def load(self, jobs: Mapping[int, Job]) -> None:
        """After a restart: what the journal names is pinned, what it does not name any more is let go."""
        self.later(lambda: self._forget(set(jobs)))
        for job in list(jobs.values()):
            self.later(lambda job=job: self._again(job))

    def _forget(self, jobs: set[int]) -> None:
        for why in self._pins.reasons():
            number = why.removeprefix(JOB)
            if why.startswith(JOB) and number.isdigit() and int(number) not in jobs:
                self._pins.unpin(why)

    def _again(self, job: Job) -> None:
        why = f"{JOB}{job.id}"
        there = self._pins.roots(why)
        roots: dict[bytes, None] = {}
        for row in job.rows:
            roots.update(dict.fromkeys(data.roots(row.task)))
            if isinstance(row.state, t.Done) and row.state.receipt and self._store.has(c.parse(row.state.receipt)):
                self._pin_signed(why, c.parse(row.state.receipt))
            if isinstance(row.state, t.Done) and (cid := c.parse(row.state.result)) not in there:
                roots[cid] = None
                if self._store.has(cid):
                    roots.update(dict.fromkeys(data.results(decode(Result, self._store.get(cid)))))
        new = [root for root in roots if root not in there]
        try:
            self._pins.pin(why, new, Visibility.POOL)
        except Refused:  # something of it is gone: the rest is kept all the same
            for root in new:
                if data.complete(self._store, root):
                    self._pins.pin(why, [root], Visibility.POOL)

    # ---- leases

    def lease(self, owner: str, result: Result) -> None:
        """What the coordinator of a lease will fetch."""
        self.later(lambda: self._pins.pin(owner, data.results(result), Visibility.POOL, passing=True))

    def let_go(self, owner: str) -> None:
        """The coordinator has it; here it is a memory of the cache, until the disk is needed."""
        self.later(lambda: self._pins.unpin(owner))

    def _pin(self, why: str, roots: list[bytes]) -> None:
        self.later(lambda: self._pins.pin(why, roots, Visibility.POOL))


def _all(todo: list[Callable[[], object]]) -> None:
    for work in todo:
        try:
            work()
        except Refused as refused:
            log.warning("not pinned: %s", refused)
        except Exception:  # one pin is missing then, not all that come after it
            log.exception("not pinned")
