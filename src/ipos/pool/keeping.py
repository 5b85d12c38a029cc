"""keeping: the submitting node keeps the newest save of each of its tasks, so that a machine that is lost costs little of the work."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from ipos.pool import data, saves
from ipos.pool import task as t
from ipos.pool.jobs import Job, Row
from ipos.pool.journal import Journal, Offload
from ipos.pool.pinning import Pinning
from ipos.pool.saves import Save
from ipos.store.blocks import BlockStore, Missing
from ipos.wire.clock import Clock
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.keeping")

TRIES = 3


class Keeping:
    """Of one coordinator; `saved` is called when a newer save of a task is on this machine's disk."""

    def __init__(
        self,
        *,
        store: BlockStore,
        journal: Journal,
        holds: saves.Holds,
        pinning: Pinning,
        fetch: data.Fetch,
        offload: Offload,
        clock: Clock,
        saved: Callable[[Job, Row], None],
    ) -> None:
        self._store = store
        self._journal = journal
        self._holds = holds
        self._pinning = pinning
        self._fetch = fetch
        self._offload = offload
        self._clock = clock
        self._saved = saved

    def load(self, job: Job) -> None:
        """From the journal of an earlier life; a save whose blocks are not all here is none."""
        for i, (cid, work, receipt) in self._journal.saves(job.id).items():
            if i < len(job.rows) and data.complete(self._store, cid):
                job.rows[i].save = save = Save(cid, work, receipt)
                self._hold(job, job.rows[i], save)

    async def keep(self, job: Job, row: Row, save: Save, node: str) -> None:
        """Bring a save here from the node that made it. One that cannot be had is none: the one before stays. Its receipt is here."""
        if row.save is not None and row.save.work >= save.work:
            return
        coming = _owner(job, row) + " coming"
        try:
            for _ in range(TRIES):
                await data.bring(self._store, save.cid, self._fetch, (node,), self._clock)
                with contextlib.suppress(Missing):  # what it shares with another save went while it came
                    await self._offload(lambda: self._holds.hold(coming, save.cid))
                    break
            else:
                raise Refused("parts of it are gone again")
            if not isinstance(row.state, (t.Done, t.Cancelled)):
                await self._offload(lambda: self._hold_now(_owner(job, row), save))
                row.save = save
                self._journal.save(job.id, row.i, *save)
                await self._journal.commit()
                self._saved(job, row)
        except OSError as error:
            log.info("the save of task %s.%d on %s did not come: %s", job.id, row.i, node, error)
        finally:
            await self._offload(lambda: self._holds.release(coming))

    def put(self, job: Job, row: Row, save: Save) -> None:
        """A save that is in the store already."""
        row.save = save
        self._hold(job, row, save)
        self._journal.save(job.id, row.i, *save)

    def _hold(self, job: Job, row: Row, save: Save) -> None:
        owner = _owner(job, row)
        self._pinning.later(lambda: self._hold_now(owner, save))

    def _hold_now(self, owner: str, save: Save) -> None:
        self._holds.hold(owner, save.cid)
        if save.receipt is not None:
            self._holds.hold(_signed(owner), save.receipt)

    def dealt(self, job: Job, save: Save) -> bytes | None:
        """Somebody goes on from it: the receipt of who computed it stays with the job. None if there is none."""
        if save.receipt is None or not self._store.has(save.receipt):
            return None
        self._pinning.receipt(job.id, save.receipt)
        return save.receipt

    def forget(self, job: Job, row: Row) -> None:
        """The task needs none any more."""
        if row.save is not None:
            row.save = None
            self._journal.forget_save(job.id, row.i)
            owner = _owner(job, row)
            self._pinning.later(lambda: self._holds.release(owner))
            self._pinning.later(lambda: self._holds.release(_signed(owner)))


def _owner(job: Job, row: Row) -> str:
    return f"save of task {job.id}.{row.i}"


def _signed(owner: str) -> str:
    return f"receipt of {owner}"
