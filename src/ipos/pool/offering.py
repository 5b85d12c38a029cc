"""offering: how the saves of what runs here reach the coordinators that keep them, and how far it is.

One save of a lease is on offer at a time: the next is offered when the coordinator has said `kept`, so a slow line gets fewer saves, not a
growing queue of them. What is offered stays in the store until then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from ipos.pool import saves
from ipos.pool.execute import Run
from ipos.pool.held import Held
from ipos.pool.journal import Offload
from ipos.store import cid as c
from ipos.vm.plan import RUNNING, Progress

Event = dict[str, Any]


class Offering:
    """Of one node's `Holding`: `tell` says something to a lease's coordinator, `spawn` runs something beside."""

    def __init__(
        self,
        holds: saves.Holds,
        offload: Offload,
        tell: Callable[[Held, Event], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._holds = holds
        self._offload = offload
        self._tell = tell
        self._spawn = spawn

    def look(self, held: Held, run: Run) -> None:
        """Say how far a run is, and offer its newest save when its coordinator has the one before."""
        progress = run.progress()
        if progress is None:
            return
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
        owner = _owner(held)
        await self._offload(lambda: self._holds.hold(owner, save.cid))

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
    return {"event": "save", "lease": held.deal.id, "save": c.text(save.cid), "work": save.work}


def stopped(held: Held, save: saves.Save | None) -> Event:
    """It has ended on its coordinator's word; `save` is where it goes on, None: from the save before, or from its beginning."""
    named = {"save": c.text(save.cid), "work": save.work} if save is not None else {"save": None, "work": 0}
    return {"event": "stopped", "lease": held.deal.id, **named}
