"""held: one lease on the node that does the work: its machine's state, and what the driver knows besides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ipos.pool import holder as h
from ipos.pool import saves
from ipos.pool.execute import Run
from ipos.pool.journal import Answer
from ipos.pool.receipt import Segment
from ipos.pool.records import Deal
from ipos.wire.record import cid_of


def process_name(lease: str, caller: str) -> str:
    """What a lease is called in /proc; `caller`: its coordinator's peer id."""
    return f"{lease}@{caller[-6:]}"


class Held:
    """`holding` has one for each lease."""

    def __init__(self, caller: str, deal: Deal, at: float) -> None:
        self.caller = caller
        self.deal = deal
        self.state: h.State = h.Queued(deal.id, deal.grace_ms / 1000, at)
        self.run: Run | None = None
        self.ready: asyncio.Task[Answer | None] | None = None
        self.work: asyncio.Task[None] | None = None
        self.outcome: dict[str, Any] | None = None
        self.says = "waits for a slot"
        self.offered: saves.Save | None = None  # to the coordinator, which has not said that it has it
        self.offering = False
        self.signed: tuple[bytes, ...] = ()  # the receipt up to what is offered, and the machine list that it names
        self.segment = Segment()
        self.stopping = False
        self.saved_work = 0  # of the newest save that somebody asked for
        self.taken = ""  # why its process was ended by the owner of this machine
        self.wall_s: float | None = float(deal.ext["wall_ms"]) / 1000 if "wall_ms" in deal.ext else None
        self.stirred = asyncio.Event()  # replaced each time that something has changed
        self.began: float | None = None
        self.off = False
        self.task_cid = cid_of(deal.task)

    @property
    def word(self) -> str:
        """As people read it."""
        return "paused" if self.resting else type(self.state).__name__.lower()

    @property
    def resting(self) -> tuple[str, ...]:
        """Who has paused it."""
        return self.state.resting if isinstance(self.state, h.Hold) else ()

    def stir(self) -> None:
        self.stirred.set()
        self.stirred = asyncio.Event()

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self.stirred.wait()
