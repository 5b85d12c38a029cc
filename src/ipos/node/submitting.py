"""Jobs of this node: handed in, made into tasks, and their outputs written where they were asked for."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipos.node.home import Home
from ipos.pool import prepare
from ipos.pool import task as t
from ipos.pool.job import Preparing
from ipos.pool.jobs import Job, Row
from ipos.pool.pinning import Pinning
from ipos.pool.records import Result
from ipos.pool.saves import Save
from ipos.pool.spec import parse as parse_spec
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.wire.record import decode

if TYPE_CHECKING:
    from ipos.node.daemon import Node

log = logging.getLogger("ipos.node")


class Submissions:
    """Made for one node."""

    def __init__(self, node: Node, pinning: Pinning) -> None:
        self._node = node
        self._pinning = pinning
        self._names = _Names(node)

    def load(self) -> None:
        """The jobs of the journal, and on with those that were not yet made into tasks."""
        self._node.coordinator.load()
        for job in self._node.coordinator.jobs.values():
            job.names = self._names
            if isinstance(job.state, Preparing):
                self._node.spawn(self.prepare(job))

    async def submit(self, spec: bytes, number: int = 0) -> Job:
        """`number`: one that the coordinator gave for it."""
        parse_spec(spec)
        job = Job(number or self._node.coordinator.number(), spec, Preparing())
        job.names = self._names
        self._node.coordinator.add(job)
        await self._node.journal.commit()
        self._node.spawn(self.prepare(job))
        return job

    def _callable(self) -> set[str]:
        """What --nodes may name: my machines, friends, and their machines."""
        theirs = [name for name, _, _ in self._node.friends.members().values()]
        return {*self._node.names().values(), *theirs, *(name.split(":")[0] for name in theirs)}

    async def prepare(self, job: Job) -> None:
        try:
            rows, known = await prepare.prepare(
                job, store=self._node.store, journal=self._node.journal, offload=self._node.offload, names=self._callable(),
                account=self._node.mine.account, images=self._node.images, say=lambda text: job.say(None, text),
            )  # fmt: skip
        except OSError as error:
            self._node.coordinator.unprepared(job, str(error))
        except Exception as error:
            log.exception("job %d", job.id)
            self._node.coordinator.unprepared(job, f"a mistake in IPOS: {type(error).__name__}: {error}")
        else:
            offers = [member.offer(0) for member in self._node.coordinator.members.values() if not member.account]
            job.info.estimate_s = await self._node.offload(lambda: prepare.foretell(job, rows, known, offers))
            job.say(None, "")
            resume = job.spec.resume
            if resume is not None and resume.save is not None and 0 not in known:
                receipt = c.parse(resume.receipt) if resume.receipt is not None else None
                self._node.coordinator.keeping.put(job, rows[0], Save(c.parse(resume.save), resume.work, receipt))
            self._pinning.inputs(job.id, (row.task for row in rows))
            await self._pinning.settled()  # before anybody is told to fetch them
            self._node.coordinator.prepared(job, rows, known)
        handed = job.spec.stdin
        if handed is not None and Path(handed).parent == Home(self._node.home).handed:
            await self._node.journal.commit()
            await self._node.offload(lambda: Path(handed).unlink(missing_ok=True))

    async def deliver(self, job: Job, row: Row) -> None:
        state = row.state
        if job.spec.out is None or not isinstance(state, t.Done) or not (state.ok or job.spec.over is None):
            return
        result = decode(Result, self._node.store.get(c.parse(state.result)))
        target = Path(job.spec.out) / row.name
        try:
            if job.spec.over is not None:
                await self._node.offload(lambda: _write_out(self._node.store, result.stdout, target))
            elif (made := result.dir) is not None:
                await self._node.offload(lambda: _write_dir(self._node.store, made, target))
        except OSError as error:
            job.info.trouble = f"{target} could not be written ({os.strerror(error.errno or 0)}); it is in /job/{job.id}/{row.i}/stdout"
            job.say(row, job.info.trouble)


class _Names(dict[str, str]):
    """Peer id -> name, as the machine list is now."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    def get(self, key: str, default: Any = None) -> Any:
        found = self._node.names().get(key)
        if found is None and (member := self._node.coordinator.members.get(key)) is not None:
            found = member.name
        return found if found is not None else default


def _write_out(store: BlockStore, cid: bytes, target: Path) -> None:
    """Atomically, so that nobody meets half an output."""
    new = target.with_name(f".{target.name}.ipos-new")
    try:
        with open(new, "wb") as out:
            for piece in unixfs.stream(store, cid):
                out.write(piece)
        new.replace(target)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _write_dir(store: BlockStore, cid: bytes, target: Path) -> None:
    """The files that a program made, into a directory that may have others; those of the same name are replaced."""
    with tempfile.TemporaryDirectory(dir=target, prefix=".ipos-") as scratch:
        whole = Path(scratch, "made")
        unixfs.export(store, cid, whole)
        for directory, _, names in os.walk(whole):
            to = target / Path(directory).relative_to(whole)
            to.mkdir(exist_ok=True)
            for name in names:
                os.replace(Path(directory, name), to / name)
