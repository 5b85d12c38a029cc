"""dispute: seats agree on a task's state up to one step and differ in the next; a judge re-executes that one step.

The judge begins at the last state that all agree on, and says first whether it could reach it: a judge whose state before the step is not
the agreed one has failed, and a failure is no verdict; the next judge is asked. What it finds is compared with what every seat said, the
accuser's word counting no more than the accused's. A judge that contradicts everybody is believed only when a second one finds the same.

Where a seat changed hands within the step, each holder is tried from the save that it began with, the last one first: if its part, from
that save, leads to what the seat said, it computed well from a state that was wrong already, and the holder before it is the next suspect.
The verdict is a record: who lied, at which step, what was said, what is right, and who re-executed it.
"""

from __future__ import annotations

import msgspec

from ipos.pool.commitment import Entry
from ipos.pool.machine import Answer, Event, Instruction, Machine, State


class Suspect(msgspec.Struct, frozen=True):
    """Who held the seat for a part of the step. `save`: CID of the signed save it began from, within the step; "" for the first."""

    node: str
    save: str = ""


class Party(msgspec.Struct, frozen=True):
    """A seat, what it said of the step, and who held it, in order."""

    seat: str
    entry: Entry
    suspects: tuple[Suspect, ...]


class Liar(msgspec.Struct, frozen=True):
    seat: str
    node: str
    claimed: Entry


class Case(State, frozen=True):
    """`index`: of the step, from 0 (step i leads to mark i+1, or to the end); `before`: the state all agree on, None = the start.
    `found`: what judges that contradicted everybody have said. `tries` judges may be asked in all."""

    task: str
    index: int
    before: Entry | None
    parties: tuple[Party, ...]
    tries: int = 3
    failed: tuple[str, ...] = ()
    found: tuple[tuple[str, Entry], ...] = ()


class Open(Case, frozen=True):
    """It wants a judge."""


class Judging(Case, frozen=True, kw_only=True):
    judge: str


class Tracing(Case, frozen=True, kw_only=True):
    """What is right is known; now whose part of the step went wrong. `wanted`: (seat, which of its suspects) still to be tried."""

    judge: str
    right: Entry
    liars: tuple[Liar, ...]
    wanted: tuple[tuple[str, int], ...]


class Decided(Case, frozen=True, kw_only=True):
    judge: str
    right: Entry
    liars: tuple[Liar, ...]


class Stuck(Case, frozen=True, kw_only=True):
    """Nobody could judge it: nothing is proven against anybody."""

    reason: str


class Appointed(Event, frozen=True):
    judge: str


class Found(Event, frozen=True):
    """`before`: the state that the judge had before the step (None: it began at the start)."""

    judge: str
    before: Entry | None
    entry: Entry


class Traced(Event, frozen=True):
    """Where the part of a step leads that begins at a suspect's save."""

    judge: str
    seat: str
    suspect: int
    entry: Entry


class Failed(Event, frozen=True):
    """The judge could not run it, or was lost."""

    judge: str
    reason: str


class Unjudgeable(Event, frozen=True):
    """Nobody is left who may judge."""

    reason: str


class Restarted(Event, frozen=True):
    """The coordinator has just read this dispute from its journal; a judge that was asked may be gone."""


class Appoint(Instruction, frozen=True):
    """Find a judge: none of `barred`."""

    barred: tuple[str, ...]


class Reexecute(Instruction, frozen=True):
    """Let the judge run from `before` one step on."""

    judge: str
    index: int
    before: Entry | None


class Trace(Instruction, frozen=True):
    """Let the judge run from this save to the end of the step."""

    judge: str
    seat: str
    suspect: int
    save: str


class Proclaim(Instruction, frozen=True):
    """The verdict."""

    right: Entry
    liars: tuple[Liar, ...]
    judge: str


class GiveUp(Instruction, frozen=True):
    reason: str


class Reject(Instruction, frozen=True):
    sentence: str


dispute = Machine("dispute", Open)


def _barred(state: Case) -> tuple[str, ...]:
    nodes = [suspect.node for party in state.parties for suspect in party.suspects]
    return tuple(dict.fromkeys((*nodes, *state.failed, *(judge for judge, _ in state.found))))


def _open(state: Case) -> Open:
    return Open(state.task, state.index, state.before, state.parties, state.tries, state.failed, state.found)


def _next(state: Case, reason: str) -> Answer:
    """Another judge, or nobody."""
    if len(state.failed) + len(state.found) >= state.tries:
        sentence = f"{state.tries} judges could not settle it, the last one: {reason}"
        return _stuck(state, sentence), [GiveUp(sentence)]
    return _open(state), [Appoint(_barred(state))]


def _stuck(state: Case, reason: str) -> Stuck:
    return Stuck(
        state.task, state.index, state.before, state.parties, state.tries, state.failed, state.found, reason=reason
    )


@dispute.on(Open, Appointed, to=(Open, Judging))
def _appointed(state: Open, event: Appointed) -> Answer:
    if event.judge in _barred(state):
        return state, [Reject(f"{event.judge} cannot judge this: it is a party, or was asked"), Appoint(_barred(state))]
    judging = Judging(
        state.task, state.index, state.before, state.parties, state.tries, state.failed, state.found, judge=event.judge
    )
    return judging, [Reexecute(event.judge, state.index, state.before)]


@dispute.on(Judging, Found, to=(Judging, Open, Tracing, Decided, Stuck))
def _found(state: Judging, event: Found) -> Answer:
    if event.judge != state.judge:
        return state, [Reject(f"{event.judge} was not asked, {state.judge} was")]
    if event.before != state.before:
        return _failure(state, "it did not reach the state that all agree on")
    confirmed = event.entry in [entry for _, entry in state.found]
    if not confirmed and all(party.entry != event.entry for party in state.parties):
        doubted = msgspec.structs.replace(state, found=(*state.found, (event.judge, event.entry)))
        return _next(doubted, "it contradicts everybody, and no second judge found the same")
    return _trace(state, event.entry)


def _trace(state: Judging, right: Entry) -> Answer:
    wrong = [party for party in state.parties if party.entry != right]
    liars = tuple(Liar(p.seat, p.suspects[0].node, p.entry) for p in wrong if len(p.suspects) == 1)
    wanted = tuple((p.seat, len(p.suspects) - 1) for p in wrong if len(p.suspects) > 1)
    tracing = Tracing(
        state.task, state.index, state.before, state.parties, state.tries, state.failed, state.found,
        judge=state.judge, right=right, liars=liars, wanted=wanted,
    )  # fmt: skip
    return _go_on(tracing)


def _go_on(state: Tracing) -> Answer:
    if not state.wanted:
        decided = Decided(
            state.task, state.index, state.before, state.parties, state.tries, state.failed, state.found,
            judge=state.judge, right=state.right, liars=state.liars,
        )  # fmt: skip
        return decided, [Proclaim(state.right, state.liars, state.judge)]
    seat, which = state.wanted[0]
    return state, [Trace(state.judge, seat, which, _party(state, seat).suspects[which].save)]


def _party(state: Case, seat: str) -> Party:
    return next(party for party in state.parties if party.seat == seat)


@dispute.on(Tracing, Traced, to=(Tracing, Decided))
def _traced(state: Tracing, event: Traced) -> Answer:
    if event.judge != state.judge or not state.wanted or (event.seat, event.suspect) != state.wanted[0]:
        return state, [Reject("that was not asked")]
    party = _party(state, event.seat)
    earlier = event.suspect - 1
    if event.entry == party.entry and earlier > 0:
        return _go_on(msgspec.structs.replace(state, wanted=((event.seat, earlier), *state.wanted[1:])))
    guilty = party.suspects[earlier if event.entry == party.entry else event.suspect].node
    liars = (*state.liars, Liar(party.seat, guilty, party.entry))
    return _go_on(msgspec.structs.replace(state, liars=liars, wanted=state.wanted[1:]))


@dispute.on(Judging, Failed, to=(Judging, Open, Stuck))
@dispute.on(Tracing, Failed, to=(Tracing, Open, Stuck))
def _failed(state: Judging | Tracing, event: Failed) -> Answer:
    if event.judge != state.judge:
        return state, []
    return _failure(state, event.reason)


def _failure(state: Judging | Tracing, reason: str) -> Answer:
    return _next(msgspec.structs.replace(state, failed=(*state.failed, state.judge)), reason)


@dispute.on((Open, Judging, Tracing), Unjudgeable, to=Stuck)
def _unjudgeable(state: Case, event: Unjudgeable) -> Answer:
    return _stuck(state, event.reason), [GiveUp(event.reason)]


@dispute.on((Open, Judging, Tracing), Restarted, to=Open)
def _restarted(state: Case, event: Restarted) -> Answer:
    return _open(state), [Appoint(_barred(state))]


@dispute.on(Decided, Restarted)
def _restarted_decided(state: Decided, event: Restarted) -> Answer:
    return state, [Proclaim(state.right, state.liars, state.judge)]


@dispute.on(Stuck, Restarted)
def _restarted_stuck(state: Stuck, event: Restarted) -> Answer:
    return state, [GiveUp(state.reason)]
