"""The pure machines: given events, the instructions they must give; random events, the invariants that must hold; planted bugs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.pool import holder as h
from ipos.pool import job as j
from ipos.pool import lease as l
from ipos.pool import task as t
from ipos.pool.machine import Ignored, Machine
from ipos.wire import limits

GRACE = 10.0


def offered() -> l.Offered:
    return l.Offered("1.0.1", "attic", GRACE, 0.0, 0.0)


def play(machine: Machine, state: Any, *events: Any) -> tuple[Any, list[Any]]:
    said: list[Any] = []
    for event in events:
        state, instructions = machine.step(state, event)
        said += instructions
    return state, said


def test_a_lease_that_finishes() -> None:
    state, said = play(l.lease, offered(), l.Accepted(1), l.Started(2), l.Heard(5), l.Ended(9))
    assert state == l.Finished("1.0.1", "attic")
    assert said == [l.Take("1.0.1", "attic")]


def test_silence_is_not_death_until_the_grace_is_over() -> None:
    state, said = play(l.lease, offered(), l.Started(1), l.Hushed(2), l.Ticked(10.9))
    assert isinstance(state, l.Silent)
    assert said == []
    state, said = play(l.lease, state, l.Ticked(11.0))
    assert isinstance(state, l.Lost)
    assert said == [l.Requeue("attic", "silent for 10.0 s, the lease allows 10 s", False, 10.0)]


def test_a_holder_that_forgot_ends_it_at_once() -> None:
    state, said = play(l.lease, offered(), l.Accepted(1), l.Missing(2))
    assert isinstance(state, l.Lost)
    assert len(said) == 1


def test_a_restarted_coordinator_grants_the_whole_grace() -> None:
    state, said = play(l.lease, offered(), l.Restarted(100), l.Ticked(109.9))
    assert isinstance(state, l.Silent)
    assert not said


LEASE_EVENTS = st.one_of(
    *(
        st.builds(kind, at=st.just(0.0))
        for kind in (l.Accepted, l.Started, l.Heard, l.Hushed, l.Ticked, l.Ended, l.Missing, l.Recalled)
    ),
    st.builds(l.GivenBack, at=st.just(0.0), reason=st.just("full"), fault=st.booleans()),
)


def lease_story(machine: Machine, story: list[tuple[float, Any]]) -> None:
    """Plays events at rising times and checks what must always hold."""
    state: Any = offered()
    now = 0.0
    endings = 0
    for passed, event in story:
        now += passed
        event = msgspec.structs.replace(event, at=now)
        before = state
        state, said = machine.step(state, event)
        if not isinstance(before, l.Open):
            assert state == before, "a lease that ended has changed"
            assert all(isinstance(one, Ignored) for one in said)
            continue
        if isinstance(state, l.Lost) and isinstance(event, l.Ticked):
            assert now - before.heard >= GRACE, "lost before the grace was over"
        if isinstance(state, l.Open):
            assert not [one for one in said if isinstance(one, (l.Requeue, l.Take, l.Drop))]
            assert state.heard >= before.heard
            assert not (isinstance(event, l.Ticked) and now - before.heard >= GRACE), (
                "silent for the grace and still open"
            )
        else:
            endings += 1
            assert len([one for one in said if isinstance(one, (l.Requeue, l.Take, l.Drop))]) == 1
    assert endings <= 1


STORY = st.lists(st.tuples(st.floats(0, 6), LEASE_EVENTS), max_size=30)


@given(STORY)
def test_leases(story: list[tuple[float, Any]]) -> None:
    lease_story(l.lease, story)


def broken(machine: Machine, state: type, event: type, row: Any) -> Machine:
    """The machine with one row replaced."""
    wrong = Machine(machine.name, machine.start)
    wrong.rows = {**machine.rows, (state, event): (row, machine.rows[state, event][1])}
    return wrong


def test_a_lease_that_dies_of_half_its_grace_is_caught() -> None:
    def hasty(state: l.Running, event: l.Ticked) -> Any:
        if event.at - state.heard < GRACE / 2:
            return state, []
        return l.Lost(state.id, state.node, "hasty", 0), [l.Requeue(state.node, "hasty", False, 0)]

    wrong = broken(l.lease, l.Running, l.Ticked, hasty)
    with pytest.raises(AssertionError, match="lost before"):
        lease_story(wrong, [(1, l.Started(0)), (6, l.Ticked(0))])


def test_a_row_that_leads_elsewhere_than_its_table_says_is_caught() -> None:
    wrong = broken(l.lease, l.Offered, l.Accepted, lambda state, event: (l.Withdrawn(state.id, state.node), []))
    with pytest.raises(AssertionError, match="the table says Waiting"):
        wrong.step(offered(), l.Accepted(1))


# ---- the two halves of a lease together


@given(st.lists(st.tuples(st.floats(0.05, 3), st.booleans(), st.booleans()), max_size=60))
@settings(max_examples=200)
def test_the_holder_has_stopped_when_the_lease_is_given_away(story: list[tuple[float, bool, bool]]) -> None:
    """One clock, messages that arrive or do not, both halves ticked: never is the task given away while its holder still works."""
    lease: Any = l.Running("1.0.1", "attic", GRACE, 0.0, 0.0, 0.0)
    holder: Any = h.Busy("1.0.1", GRACE, 0.0)
    now = 0.0
    for passed, up, down in story:
        now += passed
        holder, _ = h.holder.step(holder, h.Ticked(now))
        if down and isinstance(lease, l.Open):  # what a coordinator says is heard at the holder ...
            holder, _ = h.holder.step(holder, h.Heard(now))
            if up:  # ... and it never speaks to a node whose answers it does not get for longer than it hears it
                lease, _ = l.lease.step(lease, l.Heard(now))
        elif up:
            lease, _ = l.lease.step(lease, l.Heard(now))
        if not down:
            lease, _ = l.lease.step(lease, l.Ticked(now))
        if isinstance(lease, l.Lost):
            holder, _ = h.holder.step(holder, h.Ticked(now))
            unheard = now - holder.heard
            assert isinstance(holder, h.Paused) or unheard < GRACE / 2
            return


def test_a_holder() -> None:
    state: Any = h.Queued("1.0.1", GRACE, 0.0)
    state, said = play(h.holder, state, h.Turn(6.0))
    assert (type(state), said) == (h.Queued, []), "work is not begun while unheard"
    state, said = play(
        h.holder, state, h.Heard(7.0), h.Turn(7.1), h.Ticked(12.2), h.Heard(13.0), h.Exited(14.0), h.Released()
    )
    assert isinstance(state, h.Gone)
    assert [type(one).__name__ for one in said] == ["Start", "Pause", "Continue", "Report", "Forget"]
    state, said = play(h.holder, h.Busy("x", GRACE, 0.0), h.Dropped())
    assert [type(one).__name__ for one in said] == ["Kill", "Forget"]


# ---- tasks and jobs

TASK_EVENTS = st.sampled_from(
    ("deal", "result", "late", "fault", "missing", "recall", "cancel", "start", "pause", "resume", "suspend")
)


def task_story(machine: Machine, story: list[str]) -> None:
    """Plays events and checks what must always hold; `wanted`: whether its owner wants it to go on."""
    state: Any = t.Pending()
    delivered = 0
    wanted = True
    for n, word in enumerate(story):
        now = float(n)
        lease = state.lease.id if isinstance(state, t.Leased) else "none"
        event: Any = {
            "deal": t.Dealt(f"1.0.{n}", f"node{n % 3}", GRACE, now),
            "result": t.Resulted(lease, "node0", "cid", True, now),
            "late": t.Resulted("1.0.old", "node1", "cid", True, now),
            "fault": t.OfLease(lease, l.GivenBack(now, "disk full", True)),
            "missing": t.OfLease(lease, l.Missing(now)),
            "recall": t.OfLease(lease, l.Recalled(now)),
            "cancel": t.Cancel(now),
            "start": t.OfLease(lease, l.Started(now)),
            "pause": t.Pause(now),
            "resume": t.Resume(now),
            "suspend": t.Suspend(now),
        }[word]
        before = state
        state, said = machine.step(state, event)
        if word in ("pause", "suspend", "resume") and not any(isinstance(one, Ignored) for one in said):
            wanted = word == "resume"
        if not wanted:
            assert not isinstance(state, t.Pending), "a task that its owner has stopped waits for a node"
            assert not any(isinstance(one, t.Deal) for one in said)
        delivered += sum(isinstance(one, (t.Deliver, t.Abandon)) for one in said)
        assert delivered <= 1, "a task ended twice"
        assert state.faults <= limits.faults_per_task
        if isinstance(before, (t.Done, t.GivenUp, t.Cancelled)):
            assert type(state) is type(before)
        if isinstance(before, t.Leased) and not isinstance(state, t.Leased):
            ended = {one.id for one in said if isinstance(one, (t.Recall, t.Confirm))}
            assert before.lease.id in ended, "a lease was left open"


@given(st.lists(TASK_EVENTS, max_size=40))
def test_tasks(story: list[str]) -> None:
    task_story(t.task, story)


def test_a_paused_task_that_is_dealt_anew_when_its_holder_is_lost_is_caught() -> None:
    def forgetful(state: t.Leased, event: t.OfLease) -> Any:
        return t.task.rows[t.Leased, t.OfLease][0](msgspec.structs.replace(state, paused=False), event)

    with pytest.raises(AssertionError, match="a task that its owner has stopped waits for a node"):
        task_story(broken(t.task, t.Leased, t.OfLease, forgetful), ["deal", "start", "pause", "missing"])


HOLDER_EVENTS = st.sampled_from(("turn", "heard", "tick", "rest job", "rest owner", "rouse job", "rouse owner"))


def holder_story(machine: Machine, story: list[tuple[float, str]]) -> None:
    """A process that somebody has paused computes nothing; one that nobody has and that is heard does."""
    state: Any = h.Queued("1.0.1", GRACE, 0.0)
    now, runs, resting = 0.0, False, set[str]()
    for passed, words in story:
        now += passed
        word, _, by = words.partition(" ")
        event: Any = {
            "turn": h.Turn(now), "heard": h.Heard(now), "tick": h.Ticked(now), "rest": h.Rest(by), "rouse": h.Rouse(by, now),
        }[word]  # fmt: skip
        if by:
            (resting.add if word == "rest" else resting.discard)(by)
        state, said = machine.step(state, event)
        for one in said:
            if isinstance(one, (h.Start, h.Continue)):
                assert not runs, "told to go on while it runs"
                runs = True
            elif isinstance(one, h.Pause):
                assert runs, "told to pause while it rests"
                runs = False
        assert runs == isinstance(state, h.Busy)
        assert not (runs and resting), f"it runs, and {sorted(resting)} wants it to rest"
        if word == "heard" and isinstance(state, h.Paused):
            assert resting, "it was heard, nobody wants it to rest, and it does"


@given(st.lists(st.tuples(st.floats(0, 4), HOLDER_EVENTS), max_size=40))
def test_holders(story: list[tuple[float, str]]) -> None:
    holder_story(h.holder, story)


def test_a_holder_that_runs_when_one_of_two_lets_it_is_caught() -> None:
    def hasty(state: h.Paused, event: h.Rouse) -> Any:
        return h.Busy(state.id, state.grace_s, state.heard), [h.Continue(state.id)]

    story = [(0.1, "turn"), (0.1, "rest job"), (0.1, "rest owner"), (0.1, "rouse job")]
    with pytest.raises(AssertionError, match=r"it runs, and \['owner'\] wants it to rest"):
        holder_story(broken(h.holder, h.Paused, h.Rouse, hasty), story)


def test_first_result_wins() -> None:
    state, said = play(
        t.task, t.Pending(), t.Dealt("a", "x", GRACE, 0), t.OfLease("a", l.Ticked(11)), t.Dealt("b", "y", GRACE, 11)
    )
    state, said = play(t.task, state, t.Resulted("a", "x", "cid", True, 12))
    assert isinstance(state, t.Done)
    assert said == [t.Confirm("a", "x"), t.Recall("b", "y"), t.Deliver("cid", True)]


@given(st.lists(st.sampled_from(("done", "failed", "given_up")), max_size=20), st.integers(0, 20))
def test_jobs(ends: list[str], cancel: int) -> None:
    state, _ = j.job.step(j.Preparing(), j.Prepared(len(ends), 0.0))
    closed = int(isinstance(state, j.Finished))
    for n, how in enumerate(ends):
        if n == cancel:
            state, said = j.job.step(state, j.Cancel(1.0))
            closed += sum(isinstance(one, j.Close) for one in said)
        state, said = j.job.step(state, j.TaskEnded(how, False, 1.0))
        closed += sum(isinstance(one, j.Close) for one in said)
    assert isinstance(state, (j.Finished, j.Stopped))
    counts = state.counts
    assert counts.total == counts.done + counts.failed + counts.given_up + counts.cancelled == len(ends)
    assert closed == 1
