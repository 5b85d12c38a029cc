"""lease: one node's hold on one task, as its coordinator sees it.

Silence alone never ends a lease: the coordinator's clock does, `grace_s` after it last heard the holder, because a laptop that sleeps
for a minute is not a cheat and a cable that was moved is not a death. Until then the lease is *Silent*: unknown, not gone. The one
thing that ends it sooner is word from the holder itself: that it has finished, that it gives the task back, or, after a restart, that
it has never heard of the lease (`Missing`). The holder's half of the bargain is `holder`: it stops by itself after half the grace.

A lease ends as *Finished* (there is a result), *Returned* (the holder could not or would not), *Lost* (silence, or a holder that
forgot), or *Withdrawn* (we changed our mind). A coordinator that starts again grants every lease its full grace anew.
"""

from __future__ import annotations

from ipos.pool.machine import Answer, Event, Instruction, Machine, State


class Lease(State, frozen=True):
    """`id`: unique at the holder; `node`: the holder's peer id; times in seconds of the coordinator's boot clock."""

    id: str
    node: str
    grace_s: float
    since: float
    heard: float


class Offered(Lease, frozen=True):
    """Dealt; the holder has not said that it has it."""


class Waiting(Lease, frozen=True):
    """The holder has it and has not begun."""


class Running(Lease, frozen=True):
    """`began`: when the coordinator heard that the task started, or had its newest save: what came before need not be repeated."""

    began: float


class Silent(Lease, frozen=True):
    """No connection to the holder. `began` is None if it never said that it started."""

    began: float | None


class Finished(State, frozen=True):
    id: str
    node: str


class Returned(State, frozen=True):
    id: str
    node: str
    reason: str
    fault: bool  # True: the node tried and could not; False: it declined, nothing speaks against asking it again


class Lost(State, frozen=True):
    id: str
    node: str
    reason: str
    wasted_s: float  # seconds of running that somebody has to repeat


class Withdrawn(State, frozen=True):
    id: str
    node: str


Open = (Offered, Waiting, Running, Silent)


class Accepted(Event, frozen=True):
    at: float


class Started(Event, frozen=True):
    at: float


class Saved(Event, frozen=True):
    """The coordinator has a save of the task, on disk."""

    at: float


class Heard(Event, frozen=True):
    """Any sign of life of the holder that names no lease."""

    at: float


class Hushed(Event, frozen=True):
    """The connection to the holder ended."""

    at: float


class Ticked(Event, frozen=True):
    at: float


class Ended(Event, frozen=True):
    """The holder has a result."""

    at: float


class GivenBack(Event, frozen=True):
    at: float
    reason: str
    fault: bool


class Missing(Event, frozen=True):
    """The holder answers, and does not know this lease."""

    at: float


class Recalled(Event, frozen=True):
    """The coordinator does not want it any more (cancelled, or done elsewhere)."""

    at: float


class Restarted(Event, frozen=True):
    """The coordinator has just read this lease from its journal."""

    at: float


class Requeue(Instruction, frozen=True):
    """Give the task to somebody. `fault`: not to this node again."""

    node: str
    reason: str
    fault: bool
    wasted_s: float


class Take(Instruction, frozen=True):
    """Journal the result, then tell the holder that it may forget it."""

    id: str
    node: str


class Drop(Instruction, frozen=True):
    """Tell the holder to stop and forget."""

    id: str
    node: str


lease = Machine("lease", Offered)


def _since_start(state: Lease) -> float | None:
    return state.began if isinstance(state, (Running, Silent)) else None


def _lost(state: Lease, at: float, reason: str) -> Answer:
    began = _since_start(state)
    wasted = max(0.0, at - began) if began is not None else 0.0
    return Lost(state.id, state.node, reason, wasted), [Requeue(state.node, reason, False, wasted)]


@lease.on((Offered, Silent), Accepted, to=Waiting)
def _accepted(state: Lease, event: Accepted) -> Answer:
    return Waiting(state.id, state.node, state.grace_s, state.since, event.at), []


@lease.on(Open, Started, to=Running)
def _started(state: Lease, event: Started) -> Answer:
    began = _since_start(state)
    return Running(state.id, state.node, state.grace_s, state.since, event.at, event.at if began is None else began), []


@lease.on(Running, Saved)
def _saved(state: Running, event: Saved) -> Answer:
    return Running(state.id, state.node, state.grace_s, state.since, event.at, event.at), []


@lease.on((Waiting, Running), Heard)
def _heard(state: Lease, event: Heard) -> Answer:
    if isinstance(state, Running):
        return Running(state.id, state.node, state.grace_s, state.since, event.at, state.began), []
    return Waiting(state.id, state.node, state.grace_s, state.since, event.at), []


@lease.on((Offered, Waiting, Running), Hushed, to=Silent)
def _hushed(state: Lease, event: Hushed) -> Answer:
    return Silent(state.id, state.node, state.grace_s, state.since, state.heard, _since_start(state)), []


@lease.on(Offered, Ticked, to=(Offered, Lost))
@lease.on(Waiting, Ticked, to=(Waiting, Lost))
@lease.on(Running, Ticked, to=(Running, Lost))
@lease.on(Silent, Ticked, to=(Silent, Lost))
def _ticked(state: Lease, event: Ticked) -> Answer:
    silence = event.at - state.heard
    if silence < state.grace_s:
        return state, []
    return _lost(state, event.at, f"silent for {silence:.1f} s, the lease allows {state.grace_s:g} s")


@lease.on(Open, Ended, to=Finished)
def _ended(state: Lease, event: Ended) -> Answer:
    return Finished(state.id, state.node), [Take(state.id, state.node)]


@lease.on(Open, GivenBack, to=Returned)
def _given_back(state: Lease, event: GivenBack) -> Answer:
    began = _since_start(state)
    wasted = max(0.0, event.at - began) if began is not None else 0.0
    return Returned(state.id, state.node, event.reason, event.fault), [
        Requeue(state.node, event.reason, event.fault, wasted)
    ]


@lease.on((Waiting, Running, Silent), Missing, to=Lost)
def _missing(state: Lease, event: Missing) -> Answer:
    return _lost(state, event.at, "the node was started again and has forgotten it")


@lease.on(Open, Recalled, to=Withdrawn)
def _recalled(state: Lease, event: Recalled) -> Answer:
    return Withdrawn(state.id, state.node), [Drop(state.id, state.node)]


@lease.on(Open, Restarted, to=Silent)
def _restarted(state: Lease, event: Restarted) -> Answer:
    return Silent(state.id, state.node, state.grace_s, state.since, event.at, _since_start(state)), []
