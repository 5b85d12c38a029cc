"""holder: a lease as the node that does the work sees it; the other half of `lease`.

The holder never decides that a lease is over: it pauses itself when it has not heard its coordinator for half the grace (the
coordinator will not have given the task away before the whole of it, so two nodes never run one lease's task at once), goes on when it
hears it again, and keeps a result until the coordinator has said that it has it. Work that waits is not begun while unheard.
"""

from __future__ import annotations

from ipos.pool.machine import Answer, Event, Instruction, Machine, State

KEEP_S = 24 * 3600.0  # a result that nobody fetches for so long is forgotten


class Hold(State, frozen=True):
    """`heard`: when the coordinator last spoke, in seconds of this machine's boot clock."""

    id: str
    grace_s: float
    heard: float


class Queued(Hold, frozen=True):
    """Waits for a free slot."""


class Busy(Hold, frozen=True):
    """Has a slot: its data is fetched, its environment built, its process runs."""


class Paused(Hold, frozen=True):
    """Keeps its slot and its memory, uses no processor."""


class Kept(Hold, frozen=True):
    """Ended, one way or the other; the coordinator has not confirmed that it knows."""


class Gone(State, frozen=True):
    id: str


class Turn(Event, frozen=True):
    """A slot is free for it."""

    at: float


class Heard(Event, frozen=True):
    at: float


class Ticked(Event, frozen=True):
    at: float


class Exited(Event, frozen=True):
    """There is an outcome: a result, or a fault of this node."""

    at: float


class Released(Event, frozen=True):
    """The coordinator has the outcome on disk."""


class Dropped(Event, frozen=True):
    """The coordinator does not want it any more."""


class Start(Instruction, frozen=True):
    id: str


class Pause(Instruction, frozen=True):
    id: str


class Continue(Instruction, frozen=True):
    id: str


class Kill(Instruction, frozen=True):
    id: str


class Report(Instruction, frozen=True):
    id: str


class Forget(Instruction, frozen=True):
    """Remove the working directory and the outcome."""

    id: str


holder = Machine("holder", Queued)


def _unheard(state: Hold, at: float) -> bool:
    return at - state.heard >= state.grace_s / 2


@holder.on(Queued, Turn, to=(Queued, Busy))
def _turn(state: Queued, event: Turn) -> Answer:
    if _unheard(state, event.at):
        return state, []
    return Busy(state.id, state.grace_s, state.heard), [Start(state.id)]


@holder.on((Queued, Busy, Kept), Heard)
def _heard(state: Hold, event: Heard) -> Answer:
    return type(state)(state.id, state.grace_s, event.at), []


@holder.on(Paused, Heard, to=Busy)
def _heard_again(state: Paused, event: Heard) -> Answer:
    return Busy(state.id, state.grace_s, event.at), [Continue(state.id)]


@holder.on(Busy, Ticked, to=(Busy, Paused))
def _ticked(state: Busy, event: Ticked) -> Answer:
    if _unheard(state, event.at):
        return Paused(state.id, state.grace_s, state.heard), [Pause(state.id)]
    return state, []


@holder.on(Queued, Ticked, to=(Queued, Gone))
@holder.on(Paused, Ticked, to=(Paused, Gone))
@holder.on(Kept, Ticked, to=(Kept, Gone))
def _aged(state: Hold, event: Ticked) -> Answer:
    if event.at - state.heard < KEEP_S:
        return state, []
    stop = [Kill(state.id)] if isinstance(state, Paused) else []
    return Gone(state.id), [*stop, Forget(state.id)]


@holder.on((Queued, Busy, Paused), Exited, to=Kept)
def _exited(state: Hold, event: Exited) -> Answer:
    return Kept(state.id, state.grace_s, state.heard), [Report(state.id)]


@holder.on(Kept, Released, to=Gone)
@holder.on((Queued, Kept), Dropped, to=Gone)
def _released(state: Hold, event: Released | Dropped) -> Answer:
    return Gone(state.id), [Forget(state.id)]


@holder.on((Busy, Paused), Dropped, to=Gone)
def _dropped(state: Hold, event: Dropped) -> Answer:
    return Gone(state.id), [Kill(state.id), Forget(state.id)]
