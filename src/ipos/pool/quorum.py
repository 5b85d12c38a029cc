"""quorum: several seats compute one task apart from each other, and what most of them came to is its result.

A seat that has ended sends a salted commitment to what it found, to the coordinator alone; when all are in, all are asked to open them. So
nobody can copy. A seat that does not open in time is silent, and another takes its place; one that opens something else than it
committed to is a proven liar. When all are open the final states are counted: a result needs more than half of all that were opened.
Who deviates is disputed at the first step at which it does (`dispute`), before the result counts; whoever the judge proves wrong is
struck, whichever side it was on. A majority that is wrong is thus not believed either: more seats are opened, up to the cap, and then
the task is refused. Use that only its owner can measure (seconds, bytes) counts at the majority's mean.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipos.pool.commitment import Claim, Ending, Entry, Mark, Use, entries, first_difference, opens
from ipos.pool.machine import Answer, Event, Instruction, Machine, State
from ipos.wire.record import encode


class Worker(msgspec.Struct, frozen=True):
    """Who may take a seat: `node` is its run address; the rest says whose, where and on which computer it is, as far as is known."""

    node: str
    account: str
    zone: str
    machine: str


class Policy(msgspec.Struct, frozen=True):
    """`apart`: the fields of `Worker` that no two seats may have in common. `most`: seats in all whose word counts. `spares`: how many
    silent or lying seats are replaced; `faults`: how many workers may fail. `reveal_s`: time to open a commitment."""

    seats: int = 3
    most: int = 7
    spares: int = 4
    faults: int = 6
    reveal_s: float = 30.0
    apart: tuple[str, ...] = ("node", "account", "zone")


class Seat(msgspec.Struct, frozen=True):
    """`out`: why it counts no more ("" = it does); `struck`: its claim was proven wrong; `unjudged`: why no judge could tell."""

    id: str
    worker: Worker | None = None
    past: tuple[Worker, ...] = ()
    commitment: str = ""
    claim: Claim | None = None
    marks: tuple[Mark, ...] = ()
    out: str = ""
    struck: bool = False
    judged: bool = False
    unjudged: str = ""

    @property
    def entries(self) -> tuple[Entry, ...]:
        return entries(self.marks, self.claim.ending) if self.claim is not None else ()


class Panel(State, frozen=True):
    """`faults`: workers that could not run the task."""

    task: str
    policy: Policy
    seats: tuple[Seat, ...] = ()
    faults: int = 0

    def seat(self, id: str) -> Seat | None:
        return next((seat for seat in self.seats if seat.id == id), None)

    @property
    def counting(self) -> tuple[Seat, ...]:
        return tuple(seat for seat in self.seats if not seat.out)


class New(Panel, frozen=True):
    """No seat is open yet."""


class Gathering(Panel, frozen=True):
    """Seats compute; not all have committed."""


class Revealing(Panel, frozen=True, kw_only=True):
    """All have committed; they have until `until` to open."""

    until: float


class Disputing(Panel, frozen=True):
    """All are open, there is a majority; a judge looks at those who deviate."""


class Agreed(Panel, frozen=True, kw_only=True):
    """`winners`: the seats that agree, which are paid for; `use`: their mean."""

    ending: Ending
    winners: tuple[str, ...]
    use: Use


class Undecided(Panel, frozen=True, kw_only=True):
    """There is no result that can be believed."""

    sentence: str


class Cancelled(Panel, frozen=True):
    pass


Open = (Gathering, Revealing, Disputing)


class Opened(Event, frozen=True):
    """The quorum begins."""


class Seated(Event, frozen=True):
    seat: str
    worker: Worker


class Vacated(Event, frozen=True):
    """The worker of a seat is lost, or gave it back, before it committed. `fault`: it tried and could not."""

    seat: str
    node: str
    reason: str
    fault: bool


class Lapsed(Event, frozen=True):
    """The worker of a seat that has committed is lost."""

    seat: str
    node: str
    reason: str
    at: float


class Unfillable(Event, frozen=True):
    """Nobody may take this seat."""

    seat: str
    reason: str


class Committed(Event, frozen=True):
    seat: str
    node: str
    commitment: str
    at: float


class Revealed(Event, frozen=True):
    seat: str
    node: str
    claim: Claim
    marks: tuple[Mark, ...]
    salt: bytes
    at: float


class Ticked(Event, frozen=True):
    at: float


class Judged(Event, frozen=True):
    """The dispute about seat `seat` ended: what is right at step `index`, where it parts from the majority."""

    seat: str
    index: int
    right: Entry
    at: float


class Unjudged(Event, frozen=True):
    """No judge could re-execute it. That is no verdict."""

    seat: str
    reason: str
    at: float


class Cancel(Event, frozen=True):
    pass


class Restarted(Event, frozen=True):
    """The coordinator has just read this quorum from its journal; every deadline begins anew."""

    at: float


class Fill(Instruction, frozen=True):
    """Find a worker for this seat."""

    seat: str


class AskReveal(Instruction, frozen=True):
    seat: str
    node: str


class Dispute(Instruction, frozen=True):
    """Let step `index` (from 0) be re-executed: the seats in `seats` agree before it and differ in it."""

    seat: str
    index: int
    before: Entry | None
    seats: tuple[str, ...]


class Expose(Instruction, frozen=True):
    """A proven lie."""

    seat: str
    node: str
    sentence: str


class Dismiss(Instruction, frozen=True):
    """The seat is of no use any more: its worker is told to stop. Nothing is paid for it."""

    seat: str
    reason: str


class Accept(Instruction, frozen=True):
    ending: Ending
    winners: tuple[str, ...]
    use: Use


class Abandon(Instruction, frozen=True):
    sentence: str


class Reject(Instruction, frozen=True):
    """Answer the event's sender with a refusal."""

    sentence: str


quorum = Machine("quorum", New)


def _as(kind: type[Panel], state: Panel, **more: Any) -> Panel:
    return kind(state.task, state.policy, state.seats, state.faults, **more)


def _with(state: Panel, seat: Seat) -> Panel:
    return msgspec.structs.replace(state, seats=tuple(seat if s.id == seat.id else s for s in state.seats))


def _more(state: Panel, count: int) -> Panel:
    fresh = tuple(Seat(str(len(state.seats) + i)) for i in range(count))
    return msgspec.structs.replace(state, seats=(*state.seats, *fresh))


def _fills(state: Panel) -> list[Instruction]:
    return [Fill(seat.id) for seat in state.counting if seat.worker is None]


def _give_up(state: Panel, sentence: str) -> Answer:
    dismissed = [Dismiss(seat.id, sentence) for seat in state.counting]
    return _as(Undecided, state, sentence=sentence), [*dismissed, Abandon(sentence)]


def _settle(state: Panel, at: float, said: list[Instruction]) -> Answer:
    """Where a panel is, by its seats; what is due on the way there."""
    counting = state.counting
    if any(not seat.commitment for seat in counting):
        return _as(Gathering, state), said
    if unopened := [seat for seat in counting if seat.claim is None]:
        asks = [AskReveal(seat.id, _node(seat)) for seat in unopened]
        if isinstance(state, Revealing):
            return state, said
        return _as(Revealing, state, until=at + state.policy.reveal_s), [*said, *asks]
    return _count(state, at, said)


def _count(state: Panel, at: float, said: list[Instruction]) -> Answer:
    counting = state.counting
    top = _largest(counting)
    if 2 * len(top) > len(counting):
        if disputes := _disputes(state, top):
            fresh = [] if isinstance(state, Disputing) else disputes  # those that are open stay open
            return _as(Disputing, state), [*said, *fresh]
        return _agree(state, top, said)
    missing = len(counting) - 2 * len(top) + 1
    if len(counting) + missing > state.policy.most:
        groups = len({seat.claim.ending.root for seat in counting if seat.claim is not None and not seat.struck})
        return _refuse(state, groups, said)
    wider = _more(_as(Gathering, state), missing)
    return wider, [*said, *_fills(wider)]


def _refuse(state: Panel, groups: int, said: list[Instruction]) -> Answer:
    results = "no result that is not proven wrong" if not groups else f"{groups} result{'s' * (groups > 1)}"
    new, more = _give_up(
        state,
        f"{len(state.counting)} seats came to {results} and no majority; the most seats are {state.policy.most} "
        "(ask for more with --verify, or look at the verdicts)",
    )
    return new, [*said, *more]


def _largest(seats: tuple[Seat, ...]) -> tuple[Seat, ...]:
    """Those that came to the same end, as most did; the liars that are known left out."""
    groups: dict[bytes, list[Seat]] = {}
    for seat in seats:
        if seat.claim is not None and not seat.struck:
            groups.setdefault(encode(seat.claim.ending), []).append(seat)
    return tuple(max(groups.values(), key=len, default=[]))


def _usual(top: tuple[Seat, ...]) -> tuple[Entry, ...]:
    """The chain of marks that most of them show: a forged mark may stand before a right end."""
    chains = [seat.entries for seat in top]
    return max(chains, key=chains.count)


def _disputes(state: Panel, top: tuple[Seat, ...]) -> list[Dispute]:
    usual = _usual(top)
    out: list[Dispute] = []
    for seat in state.counting:
        index = first_difference(seat.entries, usual)
        if index is not None and not seat.judged:
            parties = tuple(s.id for s in state.counting if s.entries[:index] == usual[:index])
            out.append(Dispute(seat.id, index, usual[index - 1] if index else None, parties))
    return out


def _agree(state: Panel, top: tuple[Seat, ...], said: list[Instruction]) -> Answer:
    usual = _usual(top)
    top = tuple(
        seat for seat in top if seat.entries == usual
    )  # the others are no liars if nobody could judge, nor paid
    claims = [seat.claim for seat in top if seat.claim is not None]
    n = len(claims)
    use = Use(
        cpu_ms=sum(claim.use.cpu_ms for claim in claims) // n,
        wall_ms=sum(claim.use.wall_ms for claim in claims) // n,
        rss_bytes=sum(claim.use.rss_bytes for claim in claims) // n,
    )
    winners, ending = tuple(seat.id for seat in top), claims[0].ending
    losers = [Dismiss(seat.id, "another chain was agreed on") for seat in state.counting if seat not in top]
    return _as(Agreed, state, ending=ending, winners=winners, use=use), [*said, *losers, Accept(ending, winners, use)]


def _node(seat: Seat) -> str:
    return seat.worker.node if seat.worker is not None else ""


def _put_out(state: Panel, seat: Seat, reason: str, at: float, said: list[Instruction]) -> Answer:
    """The seat counts no more; another is opened in its place."""
    state = _with(state, msgspec.structs.replace(seat, out=reason))
    said = [*said, Dismiss(seat.id, reason)]
    if sum(bool(s.out) for s in state.seats) > state.policy.spares:
        new, more = _give_up(state, f"{state.policy.spares + 1} seats were silent or lied, the last one: {reason}")
        return new, [*said, *more]
    wider = _more(state, 1)
    return _settle(wider, at, [*said, Fill(wider.seats[-1].id)])


def _mine(state: Panel, id: str, node: str) -> Seat | str:
    """The seat, if it counts and this node holds it; else the sentence that says why not."""
    seat = state.seat(id)
    if seat is None:
        return f"there is no seat {id}"
    if seat.out:
        return f"seat {id} counts no more: {seat.out}"
    if _node(seat) != node:
        return f"{node} does not hold seat {id}, {_node(seat) or 'nobody'} does"
    return seat


@quorum.on(New, Opened, to=Gathering)
def _opened(state: New, event: Opened) -> Answer:
    wider = _more(_as(Gathering, state), state.policy.seats)
    return wider, _fills(wider)


@quorum.on(Open, Seated)
def _seated(state: Panel, event: Seated) -> Answer:
    seat = state.seat(event.seat)
    if seat is None or seat.out or seat.worker is not None:
        return state, [Reject(f"seat {event.seat} is not free")]
    others = [w for s in state.seats for w in (*s.past, *([s.worker] if s.worker is not None else []))]
    for field in state.policy.apart:
        value = getattr(event.worker, field)
        if value in {getattr(w, field) for w in others if w not in seat.past or field == "node"}:
            return state, [Reject(f"{event.worker.node} has the {field} {value} of another seat"), Fill(seat.id)]
    return _with(state, msgspec.structs.replace(seat, worker=event.worker)), []


@quorum.on(Open, Vacated, to=(*Open, Undecided))
def _vacated(state: Panel, event: Vacated) -> Answer:
    seat = _mine(state, event.seat, event.node)
    if isinstance(seat, str):
        return state, [Reject(seat)]
    if seat.commitment:
        return state, [Reject(f"seat {seat.id} has committed")]
    assert seat.worker is not None
    state = msgspec.structs.replace(
        _with(state, msgspec.structs.replace(seat, worker=None, past=(*seat.past, seat.worker))),
        faults=state.faults + event.fault,
    )
    if state.faults > state.policy.faults:
        return _give_up(state, f"{state.faults} workers could not run it, the last one: {event.reason}")
    return state, [Fill(seat.id)]


@quorum.on((Gathering, Revealing), Lapsed, to=(*Open, Agreed, Undecided))
def _lapsed(state: Panel, event: Lapsed) -> Answer:
    seat = _mine(state, event.seat, event.node)
    if isinstance(seat, str) or seat.claim is not None:
        return state, []
    return _put_out(state, seat, f"silent after it had committed: {event.reason}", event.at, [])


@quorum.on(Open, Unfillable, to=(*Open, Undecided))
def _unfillable(state: Panel, event: Unfillable) -> Answer:
    seat = state.seat(event.seat)
    if seat is None or seat.out or seat.worker is not None:
        return state, []
    return _give_up(state, f"nobody can take seat {seat.id}: {event.reason}")


@quorum.on(Open, Committed, to=(*Open, Agreed, Undecided))
def _committed(state: Panel, event: Committed) -> Answer:
    seat = _mine(state, event.seat, event.node)
    if isinstance(seat, str):
        return state, [Reject(seat)]
    if seat.commitment:
        same = seat.commitment == event.commitment
        return state, [] if same else [Reject(f"seat {seat.id} has committed to something else")]
    return _settle(_with(state, msgspec.structs.replace(seat, commitment=event.commitment)), event.at, [])


@quorum.on(Open, Revealed, to=(*Open, Agreed, Undecided))
def _revealed(state: Panel, event: Revealed) -> Answer:
    seat = _mine(state, event.seat, event.node)
    if isinstance(seat, str):
        return state, [Reject(seat)]
    if not isinstance(state, Revealing):
        return state, [Reject("not all seats have committed: nothing is to be opened yet")] if not seat.claim else []
    if seat.claim is not None:
        return state, []
    if event.at >= state.until:
        return state, [Reject("too late")]
    claim = event.claim
    honest = (claim.task, claim.seat, claim.node) == (state.task, seat.id, event.node)
    if not honest or not opens(seat.commitment, claim, event.marks, event.salt):
        sentence = "what it opened is not what it had committed to"
        return _put_out(state, seat, sentence, event.at, [Expose(seat.id, event.node, sentence)])
    return _settle(_with(state, msgspec.structs.replace(seat, claim=claim, marks=event.marks)), event.at, [])


@quorum.on(Revealing, Ticked, to=(*Open, Agreed, Undecided))
def _ticked(state: Revealing, event: Ticked) -> Answer:
    if event.at < state.until:
        return state, []
    late = [seat for seat in state.counting if seat.claim is None]
    said: list[Instruction] = []
    new: State = state
    for seat in late:
        if isinstance(new, (Undecided, Agreed)):
            break
        new, more = _put_out(new, seat, f"silent: it did not open within {state.policy.reveal_s:g} s", event.at, [])  # pyright: ignore[reportArgumentType]
        said += more
    return new, said


@quorum.on(Disputing, Judged, to=(*Open, Agreed, Undecided))
def _judged(state: Disputing, event: Judged) -> Answer:
    accused = state.seat(event.seat)
    if accused is None or accused.judged or accused.out:
        return state, []
    before = accused.entries[: event.index]
    said: list[Instruction] = []
    new: Panel = _with(state, msgspec.structs.replace(accused, judged=True))
    for seat in new.counting:
        steps = seat.entries
        if steps[: event.index] == before and steps[event.index] != event.right:
            new = _with(new, msgspec.structs.replace(seat, struck=True, judged=True))
            said.append(
                Expose(seat.id, _node(seat), f"it said {steps[event.index].words}; right is {event.right.words}")
            )
    return _settle(new, event.at, said)


@quorum.on(Disputing, Unjudged, to=(*Open, Agreed, Undecided))
def _unjudged(state: Disputing, event: Unjudged) -> Answer:
    seat = state.seat(event.seat)
    if seat is None or seat.judged or seat.out:
        return state, []
    seat = msgspec.structs.replace(seat, judged=True, unjudged=event.reason)
    return _settle(_with(state, seat), event.at, [])


@quorum.on((New, *Open), Cancel, to=Cancelled)
def _cancelled(state: Panel, event: Cancel) -> Answer:
    return _as(Cancelled, state), [Dismiss(seat.id, "cancelled") for seat in state.counting]


@quorum.on(Gathering, Restarted)
def _restarted(state: Gathering, event: Restarted) -> Answer:
    return state, _fills(state)


@quorum.on(Revealing, Restarted)
def _restarted_revealing(state: Revealing, event: Restarted) -> Answer:
    asks = [AskReveal(seat.id, _node(seat)) for seat in state.counting if seat.claim is None]
    return msgspec.structs.replace(state, until=event.at + state.policy.reveal_s), list(asks)


@quorum.on(Disputing, Restarted)
def _restarted_disputing(state: Disputing, event: Restarted) -> Answer:
    return state, [*_disputes(state, _largest(state.counting))]


@quorum.on(Agreed, Restarted)
def _restarted_agreed(state: Agreed, event: Restarted) -> Answer:
    return state, [Accept(state.ending, state.winners, state.use)]
