"""job: many tasks of one program, and the policy that holds for all of them.

The job counts; its tasks know (`task`). It is *Preparing* while inputs are read and the environment is resolved (a job whose node is
killed here prepares again, nothing was dealt), *Working* until the last task has ended, and then *Finished*, whatever the tasks ended as.
"""

from __future__ import annotations

from ipos.pool.machine import Answer, Event, Instruction, Machine, State


class Counts(State, frozen=True):
    """Tasks by their end. `total` = `done` + `failed` (ran, exit status not 0) + `given_up` + `cancelled` + those still to end."""

    total: int = 0
    done: int = 0
    failed: int = 0
    given_up: int = 0
    cancelled: int = 0
    from_store: int = 0

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.given_up + self.cancelled


class Preparing(State, frozen=True):
    pass


class Working(State, frozen=True):
    counts: Counts
    began: float  # unix seconds, for people


class Finished(State, frozen=True):
    counts: Counts
    began: float
    ended: float

    @property
    def ok(self) -> bool:
        return self.counts.done == self.counts.total


class Stopped(State, frozen=True):
    """Cancelled by its owner."""

    counts: Counts
    ended: float


class Refused(State, frozen=True):
    """It could not be prepared."""

    sentence: str
    ended: float


class Prepared(Event, frozen=True):
    total: int
    wall: float


class Unprepared(Event, frozen=True):
    sentence: str
    wall: float


class TaskEnded(Event, frozen=True):
    """`how`: "done", "failed", "given_up" or "cancelled" (that one task: it was handed over)."""

    how: str
    from_store: bool
    wall: float


class Cancel(Event, frozen=True):
    wall: float


class Place(Instruction, frozen=True):
    """There are tasks to deal."""


class CancelTasks(Instruction, frozen=True):
    pass


class Close(Instruction, frozen=True):
    """Write what is left to write, tell those who wait."""


job = Machine("job", Preparing)


@job.on(Preparing, Prepared, to=(Working, Finished))
def _prepared(state: Preparing, event: Prepared) -> Answer:
    counts = Counts(event.total)
    if event.total == 0:
        return Finished(counts, event.wall, event.wall), [Close()]
    return Working(counts, event.wall), [Place()]


@job.on(Preparing, Unprepared, to=Refused)
def _unprepared(state: Preparing, event: Unprepared) -> Answer:
    return Refused(event.sentence, event.wall), [Close()]


@job.on(Preparing, Cancel, to=Stopped)
def _cancelled_early(state: Preparing, event: Cancel) -> Answer:
    return Stopped(Counts(), event.wall), [Close()]


@job.on(Working, TaskEnded, to=(Working, Finished))
def _task_ended(state: Working, event: TaskEnded) -> Answer:
    old = state.counts
    counts = Counts(
        old.total,
        old.done + (event.how == "done"),
        old.failed + (event.how == "failed"),
        old.given_up + (event.how == "given_up"),
        old.cancelled + (event.how == "cancelled"),
        old.from_store + event.from_store,
    )
    if counts.ended == counts.total:
        return Finished(counts, state.began, event.wall), [Close()]
    return Working(counts, state.began), []


@job.on(Working, Cancel, to=Stopped)
def _cancelled(state: Working, event: Cancel) -> Answer:
    old = state.counts
    cancelled = old.cancelled + old.total - old.ended
    counts = Counts(old.total, old.done, old.failed, old.given_up, cancelled, old.from_store)
    return Stopped(counts, event.wall), [CancelTasks(), Close()]
