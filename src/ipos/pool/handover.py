"""handover: who computed what of one seat's work, from save to save, whoever holds the seat.

A save counts when a *keeper* has signed for it: a store on a machine that is neither the holder's nor that of any candidate of the same
quorum, which has pulled the save, seen that every byte is as its root says, and keeps it. Between two saves that were signed for lies a
*segment*; it belongs to the node that held the seat. A holder that is told to leave makes a last save and is let go when that one is
signed for, so nothing is lost; a holder that falls silent loses what came after the last save signed for, and the next one begins there.
Nobody is credited for what nobody signed for; the last segment is closed by the end of the task, which a commitment stands for.
"""

from __future__ import annotations

import msgspec

from ipos.pool.machine import Answer, Event, Instruction, Machine, State


class Save(msgspec.Struct, frozen=True):
    """`cid` of the packed save, as text; made after `work` units; `root` of its state (64 hexadecimal digits)."""

    cid: str
    work: int
    root: str


class Segment(msgspec.Struct, frozen=True):
    """`node` computed the work from `begin` to `end` (units), from the save `opening` (None: the start). `keeper` signed for the save
    `closing`; "" and None for the last segment, which the task's end closes."""

    node: str
    begin: int
    end: int
    opening: Save | None
    keeper: str = ""
    closing: Save | None = None


class Chain(State, frozen=True):
    """`barred`: machines that may keep nothing here: those of the quorum's candidates. `signed`: the newest save that is safe."""

    seat: str
    barred: tuple[str, ...] = ()
    signed: Save | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def safe(self) -> int:
        """Work that no silence can lose."""
        return self.signed.work if self.signed is not None else 0


class Vacant(Chain, frozen=True):
    """Nobody holds it."""


class Held(Chain, frozen=True, kw_only=True):
    """`machine`: the computer that `node` is on."""

    node: str
    machine: str


class Pulling(Chain, frozen=True, kw_only=True):
    """The holder offers a save; a keeper is fetching it. `leaving`: the holder goes when it is signed for."""

    node: str
    machine: str
    offer: Save
    leaving: bool


class Leaving(Chain, frozen=True, kw_only=True):
    """The holder was told to save and to stop; its last save has not come."""

    node: str
    machine: str


class Closed(Chain, frozen=True, kw_only=True):
    """The task has ended in this seat after `work` units: the segments sum to that."""

    node: str
    work: int


Occupied = (Held, Pulling, Leaving)


class Taken(Event, frozen=True):
    """A node has the seat; it goes on from `signed`."""

    node: str
    machine: str


class Offered(Event, frozen=True):
    """The holder has made a save."""

    node: str
    save: Save


class Signed(Event, frozen=True):
    """A keeper, on `machine`, has the save, verified, on disk."""

    keeper: str
    machine: str
    save: Save


class Failed(Event, frozen=True):
    """The save could not be kept. `bad`: it came, and is not what it says."""

    save: Save
    reason: str
    bad: bool


class Leave(Event, frozen=True):
    """The holder shall hand over."""


class Left(Event, frozen=True):
    """The holder has stopped. What it had to offer it has offered before."""

    node: str


class Lost(Event, frozen=True):
    """Its lease was lost, or given back."""

    node: str
    reason: str


class Finished(Event, frozen=True):
    """The holder says that the task has ended."""

    node: str
    work: int


class Barred(Event, frozen=True):
    """The quorum has another candidate, on this machine: it may keep nothing here any more."""

    machine: str


class Restarted(Event, frozen=True):
    """The coordinator has just read this chain from its journal."""


class Pull(Instruction, frozen=True):
    """Let a keeper whose machine is not in `barred` fetch the save from `node`."""

    node: str
    save: Save
    barred: tuple[str, ...]


class Halt(Instruction, frozen=True):
    """Tell the holder to save and to stop."""

    node: str


class Credit(Instruction, frozen=True):
    segment: Segment


class Release(Instruction, frozen=True):
    """The holder is free: everything that it did is safe. `last`: it may forget the task."""

    node: str
    last: bool


class Dismiss(Instruction, frozen=True):
    """Take the seat from the holder."""

    node: str
    reason: str


class Reject(Instruction, frozen=True):
    """Answer the event's sender with a refusal."""

    sentence: str


handover = Machine("handover", Vacant)


def _held(state: Chain, node: str, machine: str) -> Held:
    return Held(state.seat, state.barred, state.signed, state.segments, node=node, machine=machine)


def _vacant(state: Chain) -> Vacant:
    return Vacant(state.seat, state.barred, state.signed, state.segments)


def _not_holder(state: Held | Pulling | Leaving, node: str) -> Answer:
    return state, [Reject(f"{node} does not hold seat {state.seat}, {state.node} does")]


@handover.on(Vacant, Taken, to=Held)
def _taken(state: Vacant, event: Taken) -> Answer:
    return _held(state, event.node, event.machine), []


@handover.on((Held, Leaving), Offered, to=(Held, Leaving, Pulling))
def _offered(state: Held | Leaving, event: Offered) -> Answer:
    if event.node != state.node:
        return _not_holder(state, event.node)
    if event.save.work <= state.safe:
        return state, [Reject(f"a save at {event.save.work} units; one at {state.safe} is kept already")]
    return _pull(state, event.save, isinstance(state, Leaving))


def _pull(state: Held | Leaving | Pulling, save: Save, leaving: bool) -> Answer:
    pulling = Pulling(
        state.seat, state.barred, state.signed, state.segments, node=state.node, machine=state.machine, offer=save,
        leaving=leaving,
    )  # fmt: skip
    return pulling, [Pull(state.node, save, (*state.barred, state.machine))]


@handover.on(Pulling, Offered)
def _offered_newer(state: Pulling, event: Offered) -> Answer:
    """Instead of the one that is being fetched."""
    if event.node != state.node:
        return _not_holder(state, event.node)
    if event.save.work <= state.offer.work:
        return state, []
    return _pull(state, event.save, state.leaving)


@handover.on(Pulling, Signed, to=(Pulling, Held, Vacant))
def _signed(state: Pulling, event: Signed) -> Answer:
    if event.save != state.offer:
        return state, []  # of an offer that a newer one replaced
    barred = (*state.barred, state.machine)
    if event.machine in barred:
        why = f"{event.keeper} is on {event.machine}, whose word about its own quorum counts for nothing"
        return state, [Reject(why), Pull(state.node, state.offer, barred)]
    segment = Segment(state.node, state.safe, state.offer.work, state.signed, event.keeper, state.offer)
    kept = Vacant(state.seat, state.barred, state.offer, (*state.segments, segment))
    if state.leaving:
        return kept, [Credit(segment), Release(state.node, True)]
    return _held(kept, state.node, state.machine), [Credit(segment), Release(state.node, False)]


@handover.on(Pulling, Failed, to=(Pulling, Held, Leaving, Vacant))
def _failed(state: Pulling, event: Failed) -> Answer:
    if event.save != state.offer:
        return state, []
    if event.bad:
        return _vacant(state), [Dismiss(state.node, f"its save is not what it says: {event.reason}")]
    if state.leaving:
        return _leaving(state), [Halt(state.node)]
    return _held(state, state.node, state.machine), []


def _leaving(state: Held | Pulling) -> Leaving:
    return Leaving(state.seat, state.barred, state.signed, state.segments, node=state.node, machine=state.machine)


@handover.on(Held, Leave, to=Leaving)
def _leave(state: Held, event: Leave) -> Answer:
    return _leaving(state), [Halt(state.node)]


@handover.on(Pulling, Leave, to=Leaving)
def _leave_pulling(state: Pulling, event: Leave) -> Answer:
    """What is being fetched is older than what the holder will save now."""
    return _leaving(state), [Halt(state.node)]


@handover.on(Leaving, Left, to=(Leaving, Vacant))
def _left(state: Leaving, event: Left) -> Answer:
    if event.node != state.node:
        return _not_holder(state, event.node)
    return _vacant(state), [Release(state.node, True)]


@handover.on(Occupied, Lost, to=(*Occupied, Vacant))
def _lost(state: Held | Pulling | Leaving, event: Lost) -> Answer:
    if event.node != state.node:
        return _not_holder(state, event.node)
    return _vacant(state), []


@handover.on(Occupied, Finished, to=(*Occupied, Closed))
def _finished(state: Held | Pulling | Leaving, event: Finished) -> Answer:
    if event.node != state.node:
        return _not_holder(state, event.node)
    if event.work < state.safe:
        return state, [Dismiss(state.node, f"it ended at {event.work} units; a save of it at {state.safe} is kept")]
    segment = Segment(state.node, state.safe, event.work, state.signed)
    segments = (*state.segments, segment)
    return Closed(state.seat, state.barred, state.signed, segments, node=state.node, work=event.work), [Credit(segment)]


@handover.on((Vacant, *Occupied), Barred)
def _barred(state: Chain, event: Barred) -> Answer:
    if event.machine in state.barred:
        return state, []
    return msgspec.structs.replace(state, barred=(*state.barred, event.machine)), []


@handover.on(Pulling, Restarted)
def _restarted(state: Pulling, event: Restarted) -> Answer:
    return state, [Pull(state.node, state.offer, (*state.barred, state.machine))]


@handover.on(Leaving, Restarted)
def _restarted_leaving(state: Leaving, event: Restarted) -> Answer:
    return state, [Halt(state.node)]


def credits(chain: Chain) -> dict[str, int]:
    """Units of work by node."""
    out: dict[str, int] = {}
    for segment in chain.segments:
        out[segment.node] = out.get(segment.node, 0) + segment.end - segment.begin
    return out


def holders(chain: Chain, begin: int, end: int) -> tuple[Segment, ...]:
    """The segments in which the work after `begin`, up to `end`, was done, in order."""
    return tuple(s for s in chain.segments if s.begin < end and s.end > begin)
