"""offering: how the saves of what runs here reach the coordinators that keep them, and how far it is.

One save of a lease is on offer at a time: the next is offered when the coordinator has said `kept`, so a slow line gets fewer saves, not a
growing queue of them. What is offered stays in the store until then.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ipos.pool import holder as h
from ipos.pool import saves
from ipos.pool.execute import Run
from ipos.pool.held import Held
from ipos.pool.journal import Offload
from ipos.pool.receipt import Receipts
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.vm.plan import RUNNING, Progress
from ipos.wire.record import encode

Event = dict[str, Any]


class Offering:
    """Of one node's `Holding`: `tell` says something to a lease's coordinator, `spawn` runs something beside."""

    def __init__(
        self,
        store: BlockStore,
        holds: saves.Holds,
        receipts: Receipts,
        offload: Offload,
        tell: Callable[[Held, Event], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._store = store
        self._holds = holds
        self._receipts = receipts
        self._offload = offload
        self._tell = tell
        self._spawn = spawn

    def look(self, held: Held, run: Run) -> None:
        """Say how far a run is, and offer its newest save when its coordinator has the one before."""
        progress = run.progress()
        if progress is None:
            return
        if not isinstance(held.state, h.Paused):
            held.says = "runs" if progress.phase == RUNNING else "is being compiled (once on this machine)"
            self._tell(held, {"event": "progress", "lease": held.deal.id, **figures(progress)})
        if held.offered is None and not held.offering and not held.stopping:
            held.offering = True
            self._spawn(self._offer(held, run))

    async def _offer(self, held: Held, run: Run) -> None:
        try:
            save = await run.saved(again=False)
            if save is not None and not held.off and not held.stopping:
                await self.hold(held, save)
                held.offered = save
                self._tell(held, saved(held, save))
        finally:
            held.offering = False

    async def hold(self, held: Held, save: saves.Save) -> None:
        """Keep it in the store, and sign for what was computed up to it."""
        owner = _owner(held)
        await self._offload(lambda: self._holds.hold(owner, save.cid))
        held.signed = await self._offload(lambda: self._signed(held, save))

    def _signed(self, held: Held, save: saves.Save) -> tuple[bytes, ...]:
        if not held.deal.task.in_engine:
            return ()
        head = saves.head_of(self._store, save.cid)
        receipt = self._receipts.of_segment(held.deal.task, held.segment, head.work, head.root.hex())
        return encode(receipt), self._store.get(receipt.machines)

    async def let_go(self, held: Held) -> None:
        """The lease is over."""
        owner = _owner(held)
        await self._offload(lambda: self._holds.release(owner))


def _owner(held: Held) -> str:
    return f"lease {held.caller} {held.deal.id}"


def figures(progress: Progress) -> Event:
    """How far a run is: work in units, speed in units a second, seconds since the last save."""
    age = round(time.monotonic() - progress.saved, 1) if progress.saved else None
    phase = "runs" if progress.phase == RUNNING else "compiles"
    return {"phase": phase, "work": progress.work, "speed": round(progress.speed), "save_age_s": age}


def saved(held: Held, save: saves.Save) -> Event:
    return {"event": "save", "lease": held.deal.id, "save": c.text(save.cid), "work": save.work, **signed(held.signed)}


def stopped(held: Held, save: saves.Save | None) -> Event:
    """It has ended on its coordinator's word; `save` is where it goes on, None: from the save before, or from its beginning."""
    if save is None:
        return {"event": "stopped", "lease": held.deal.id, "save": None, "work": 0}
    return {**saved(held, save), "event": "stopped"}


def signed(blocks: Sequence[bytes]) -> Event:
    """A receipt and the machine list that it names, as an event has them; nothing of nothing."""
    return dict(zip(("receipt", "machines"), (base64.b64encode(block).decode() for block in blocks), strict=False))
