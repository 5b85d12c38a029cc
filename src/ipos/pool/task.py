"""task: one run of a program on one input, from the coordinator's side: who has it, who had it, what came of it.

A task that a node could not even run (a *fault*: no disk, no memory, worker killed) goes to another node, at most
`limits.faults_per_task` times. A program that ran and failed (an exit status other than 0, a signal of its own) is a *result*: it would
fail again, so it is reported, not repeated, unless the job asked for `retries`. A lost lease counts against nobody.

Its owner may suspend a task that can be saved (one of the engine): the holder saves and stops, and nobody has it until it is resumed. A
holder that is lost before it has answered changes nothing of that: the newest save that the coordinator has is what is resumed.

A task is *Held* when its owner has yet to say that it may begin: it was handed in so, its standard input is still being written, or it was
paused before anybody had it. A task that is paused keeps its lease, and its process where it is; if that lease is lost, it is held.
"""

from __future__ import annotations

import msgspec

from ipos.pool import lease as l
from ipos.pool.machine import Answer, Event, Instruction, Machine, State
from ipos.wire import limits

TAKEN_BACK = "taken back before it began: another node was free sooner"
TRIED_AGAIN = "the program failed, the job asked to try again"


class Past(State, frozen=True):
    """A lease that ended without a result: on `node`, for `reason`, after `wasted_s` seconds of running."""

    node: str
    reason: str
    fault: bool
    wasted_s: float


class Task(State, frozen=True):
    """`attempt`: leases so far; `past`: those that ended without a result, in order."""

    attempt: int = 0
    past: tuple[Past, ...] = ()

    @property
    def faults(self) -> int:
        return sum(p.fault for p in self.past)


class Pending(Task, frozen=True):
    pass


class Held(Task, frozen=True):
    """Nobody is given it before its owner says so."""


class Leased(Task, frozen=True, kw_only=True):
    lease: l.Offered | l.Waiting | l.Running | l.Silent
    why: str = ""
    stopping: bool = False  # its owner has suspended it, the holder has not answered yet
    paused: bool = False  # its owner wants it to rest where it is


class Suspended(Task, frozen=True):
    """Nobody has it, on its owner's word."""


class Done(Task, frozen=True, kw_only=True):
    """`node` is empty for a result that was there before; `ok`: the program ended with status 0; `resumed`: from which save, in words;
    `receipt`: CID of who computed it, "" = nobody signed; `verified`: how sure it is (`pool.verified`)."""

    result: str  # CID of the Result record, text
    ok: bool
    node: str = ""
    wall_s: float = 0.0
    why: str = ""
    resumed: str = ""
    receipt: str = ""
    verified: str = ""


class GivenUp(Task, frozen=True, kw_only=True):
    reason: str


class Cancelled(Task, frozen=True):
    pass


class Dealt(Event, frozen=True):
    """The placement chose: `why` is its explanation, in a sentence."""

    id: str
    node: str
    grace_s: float
    at: float
    why: str = ""


class OfLease(Event, frozen=True):
    """Something happened to the lease `id`."""

    id: str
    event: (
        l.Accepted
        | l.Started
        | l.Saved
        | l.Heard
        | l.Hushed
        | l.Ticked
        | l.GivenBack
        | l.Missing
        | l.Recalled
        | l.Restarted
    )


class Resulted(Event, frozen=True):
    """There is a result, from lease `id` of `node`, or ("", "") from the store. `retry`: the job wants a failed program run again."""

    id: str
    node: str
    result: str
    ok: bool
    at: float
    wall_s: float = 0.0
    retry: bool = False
    resumed: str = ""
    receipt: str = ""
    verified: str = ""


class Impossible(Event, frozen=True):
    """No node of the pool can ever have it."""

    reason: str


class Cancel(Event, frozen=True):
    at: float


class Suspend(Event, frozen=True):
    at: float


class Pause(Event, frozen=True):
    """Rest where it is; what has not begun does not begin."""

    at: float


class Resume(Event, frozen=True):
    """Begin, or go on: after `Suspend`, after `Pause`, or after it was held."""

    at: float


class Deal(Instruction, frozen=True):
    id: str
    node: str


class Halt(Instruction, frozen=True):
    """Tell `node` to save the task and to stop it."""

    id: str
    node: str


class Rest(Instruction, frozen=True):
    """Tell `node` to pause the process."""

    id: str
    node: str


class Rouse(Instruction, frozen=True):
    """Tell `node` to let it go on."""

    id: str
    node: str


class Queue(Instruction, frozen=True):
    """The task wants a node again. `reason` says why it lost the last one."""

    node: str
    reason: str
    wasted_s: float


class Confirm(Instruction, frozen=True):
    """Tell `node` that lease `id` may be forgotten."""

    id: str
    node: str


class Recall(Instruction, frozen=True):
    id: str
    node: str


class Deliver(Instruction, frozen=True):
    """The task has ended with this result."""

    result: str
    ok: bool


class Abandon(Instruction, frozen=True):
    reason: str


task = Machine("task", Pending)


@task.on(Pending, Dealt, to=Leased)
def _dealt(state: Pending, event: Dealt) -> Answer:
    offered = l.Offered(event.id, event.node, event.grace_s, event.at, event.at)
    return Leased(state.attempt + 1, state.past, lease=offered, why=event.why), [Deal(event.id, event.node)]


@task.on(Leased, OfLease, to=(Leased, Pending, GivenUp, Suspended, Held))
def _of_lease(state: Leased, event: OfLease) -> Answer:
    if event.id != state.lease.id:
        return state, []  # an earlier lease of the same task: it was given away, what becomes of it changes nothing
    new, instructions = l.lease.step(state.lease, event.event)
    if isinstance(new, l.Open):
        return msgspec.structs.replace(state, lease=new), []
    for each in instructions:
        if isinstance(each, l.Requeue):
            return _again(state, Past(each.node, each.reason, each.fault, each.wasted_s))
    if isinstance(new, l.Withdrawn):
        return _again(state, Past(new.node, TAKEN_BACK, False, 0.0))
    raise AssertionError(f"a lease ended as {type(new).__name__} without saying what becomes of its task")


def _again(state: Leased, past: Past) -> Answer:
    history = (*state.past, past)
    if state.stopping:
        return Suspended(state.attempt, history), [Recall(state.lease.id, past.node)]
    if sum(p.fault for p in history) >= limits.faults_per_task:
        reason = f"{limits.faults_per_task} nodes could not run it, the last one: {past.reason}"
        return GivenUp(state.attempt, history, reason=reason), [Recall(state.lease.id, past.node), Abandon(reason)]
    rest = [Recall(state.lease.id, past.node), Queue(past.node, past.reason, past.wasted_s)]
    return Held(state.attempt, history) if state.paused else Pending(state.attempt, history), rest


@task.on(Leased, Resulted, to=(Done, Pending))
def _resulted(state: Leased, event: Resulted) -> Answer:
    """First result wins, also from a lease that was given up for lost: equal tasks give equal results."""
    rest: list[Instruction] = [Confirm(event.id, event.node)] if event.id else []
    if event.id != state.lease.id:
        rest.append(Recall(state.lease.id, state.lease.node))
    elif event.retry:
        past = Past(event.node, TRIED_AGAIN, False, event.wall_s)
        return Pending(state.attempt, (*state.past, past)), [*rest, Queue(past.node, past.reason, past.wasted_s)]
    return _done(state, event), [*rest, Deliver(event.result, event.ok)]


@task.on(Pending, Resulted, to=Done)
@task.on(Suspended, Resulted, to=Done)
@task.on(Held, Resulted, to=Done)
def _resulted_late(state: Pending | Suspended | Held, event: Resulted) -> Answer:
    rest = [Confirm(event.id, event.node)] if event.id else []
    return _done(state, event), [*rest, Deliver(event.result, event.ok)]


def _done(state: Task, event: Resulted) -> Done:
    why = (
        state.why
        if isinstance(state, Leased) and event.id == state.lease.id
        else ""
        if event.id
        else "answered from the store"
    )
    return Done(
        state.attempt, state.past, result=event.result, ok=event.ok, node=event.node, wall_s=event.wall_s, why=why,
        resumed=event.resumed, receipt=event.receipt, verified=event.verified,
    )  # fmt: skip


@task.on((Done, GivenUp, Cancelled), Resulted)
def _resulted_again(state: Done | GivenUp | Cancelled, event: Resulted) -> Answer:
    return state, [Confirm(event.id, event.node)]


@task.on(Pending, Impossible, to=GivenUp)
def _impossible(state: Pending, event: Impossible) -> Answer:
    return GivenUp(state.attempt, state.past, reason=event.reason), [Abandon(event.reason)]


@task.on((Pending, Held), Suspend, to=Suspended)
def _suspended(state: Pending | Held, event: Suspend) -> Answer:
    return Suspended(state.attempt, state.past), []


@task.on(Leased, Suspend)
def _suspended_leased(state: Leased, event: Suspend) -> Answer:
    return msgspec.structs.replace(state, stopping=True), [Halt(state.lease.id, state.lease.node)]


@task.on((Suspended, Held), Resume, to=Pending)
def _resumed(state: Suspended | Held, event: Resume) -> Answer:
    return Pending(state.attempt, state.past), []


@task.on(Pending, Pause, to=Held)
def _held(state: Pending, event: Pause) -> Answer:
    return Held(state.attempt, state.past), []


@task.on(Leased, Pause)
def _paused(state: Leased, event: Pause) -> Answer:
    return msgspec.structs.replace(state, paused=True), [Rest(state.lease.id, state.lease.node)]


@task.on(Leased, Resume)
def _goes_on(state: Leased, event: Resume) -> Answer:
    return msgspec.structs.replace(state, paused=False), [Rouse(state.lease.id, state.lease.node)]


@task.on((Pending, Suspended, Held), Cancel, to=Cancelled)
def _cancelled(state: Pending | Suspended | Held, event: Cancel) -> Answer:
    return Cancelled(state.attempt, state.past), []


@task.on(Leased, Cancel, to=Cancelled)
def _cancelled_leased(state: Leased, event: Cancel) -> Answer:
    return Cancelled(state.attempt, state.past), [Recall(state.lease.id, state.lease.node)]
