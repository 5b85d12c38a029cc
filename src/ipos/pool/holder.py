"""holder: a lease as the node that does the work sees it; the other half of `lease`.

The holder never decides that a lease is over: it pauses itself when it has not heard its coordinator for half the grace (the
coordinator will not have given the task away before the whole of it, so two nodes never run one lease's task at once), goes on when it
hears it again, and keeps a result until the coordinator has said that it has it. Work that waits is not begun while unheard.

Two people may pause it besides: the job's owner, through the coordinator, and the owner of this machine. It goes on when neither wants it to
rest; the lease is not touched by that, for the holder is heard all the while.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ipos.pool.machine import Answer, Event, Instruction, Machine, State

KEEP_S = 24 * 3600.0  # a result that nobody fetches for so long is forgotten
JOB: Final = "job"  # who pauses: the job's owner, by way of the coordinator
OWNER: Final = "owner"  # the owner of this machine


class Hold(State, frozen=True):
    """`heard`: when the coordinator last spoke, in seconds of this machine's boot clock; `resting`: who wants it to be paused, sorted."""

    id: str
    grace_s: float
    heard: float
    resting: tuple[str, ...] = ()


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


class Rest(Event, frozen=True):
    """`by` wants it to be paused."""

    by: str


class Rouse(Event, frozen=True):
    """`by` does not want it to be paused any more."""

    by: str
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


def _as(kind: type[Hold], state: Hold, **changes: Any) -> Hold:
    """The same lease in a state of this kind."""
    return kind(**{**msgspec.structs.asdict(state), **changes})


@holder.on(Queued, Turn, to=(Queued, Busy))
def _turn(state: Queued, event: Turn) -> Answer:
    if state.resting or _unheard(state, event.at):
        return state, []
    return _as(Busy, state), [Start(state.id)]


@holder.on((Queued, Busy, Kept), Heard)
def _heard(state: Hold, event: Heard) -> Answer:
    return _as(type(state), state, heard=event.at), []


@holder.on(Paused, Heard, to=(Paused, Busy))
def _heard_again(state: Paused, event: Heard) -> Answer:
    if state.resting:
        return _as(Paused, state, heard=event.at), []
    return _as(Busy, state, heard=event.at), [Continue(state.id)]


@holder.on((Queued, Busy, Paused), Rest, to=(Queued, Paused))
def _rest(state: Hold, event: Rest) -> Answer:
    resting = tuple(sorted({*state.resting, event.by}))
    if isinstance(state, Busy):
        return _as(Paused, state, resting=resting), [Pause(state.id)]
    return _as(type(state), state, resting=resting), []


@holder.on((Queued, Paused), Rouse, to=(Queued, Paused, Busy))
def _rouse(state: Hold, event: Rouse) -> Answer:
    resting = tuple(by for by in state.resting if by != event.by)
    if isinstance(state, Paused) and not resting and not _unheard(state, event.at):
        return _as(Busy, state, resting=()), [Continue(state.id)]
    return _as(type(state), state, resting=resting), []


@holder.on(Busy, Ticked, to=(Busy, Paused))
def _ticked(state: Busy, event: Ticked) -> Answer:
    if _unheard(state, event.at):
        return _as(Paused, state), [Pause(state.id)]
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
    return _as(Kept, state, resting=()), [Report(state.id)]


@holder.on(Kept, Released, to=Gone)
@holder.on((Queued, Kept), Dropped, to=Gone)
def _released(state: Hold, event: Released | Dropped) -> Answer:
    return Gone(state.id), [Forget(state.id)]


@holder.on((Busy, Paused), Dropped, to=Gone)
def _dropped(state: Hold, event: Dropped) -> Answer:
    return Gone(state.id), [Kill(state.id), Forget(state.id)]
