"""Hand-over: lists of events and the instructions they must give; random stories of holders, keepers and silence; planted bugs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from mutants import planted

from ipos.pool import handover as h
from ipos.pool.machine import Ignored


def save(work: int) -> h.Save:
    return h.Save(f"save{work}", work, f"{work:064x}")


def play(state: Any, *events: Any) -> tuple[Any, list[Any]]:
    said: list[Any] = []
    for event in events:
        state, instructions = h.handover.step(state, event)
        said += instructions
    return state, said


def test_a_graceful_leave_loses_nothing() -> None:
    state, said = play(h.Vacant("0"), h.Taken("a", "desk"), h.Leave(), h.Offered("a", save(40)))
    assert said == [h.Halt("a"), h.Pull("a", save(40), ("desk",))]
    state, said = play(state, h.Signed("k", "attic", save(40)))
    first = h.Segment("a", 0, 40, None, "k", save(40))
    assert said == [h.Credit(first), h.Release("a", True)]
    assert isinstance(state, h.Vacant)
    state, said = play(state, h.Taken("b", "loft"), h.Finished("b", 100))
    last = h.Segment("b", 40, 100, save(40))
    assert said == [h.Credit(last)]
    assert state.segments == (first, last)
    assert h.credits(state) == {"a": 40, "b": 60}


def test_silence_loses_what_came_after_the_last_save_that_was_signed_for() -> None:
    before = [
        h.Taken("a", "desk"),
        h.Offered("a", save(40)),
        h.Signed("k", "attic", save(40)),
        h.Offered("a", save(70)),
    ]
    state, _ = play(h.Vacant("0"), *before, h.Lost("a", "silent"))
    assert isinstance(state, h.Vacant)
    assert state.safe == 40
    assert h.credits(state) == {"a": 40}


def test_nobody_keeps_his_own_save_nor_a_rivals() -> None:
    state, _ = play(h.Vacant("0", ("loft",)), h.Taken("a", "desk"), h.Offered("a", save(40)))
    for machine in ("desk", "loft"):
        same, said = play(state, h.Signed("k", machine, save(40)))
        assert same == state
        assert said[1] == h.Pull("a", save(40), ("loft", "desk"))
    late, _ = play(state, h.Barred("attic"))
    assert play(late, h.Signed("k", "attic", save(40)))[0] == late, "a keeper that became a candidate"


def test_a_save_that_is_not_what_it_says_costs_the_seat() -> None:
    state, said = play(
        h.Vacant("0"), h.Taken("a", "desk"), h.Offered("a", save(40)), h.Failed(save(40), "leaf 3 is damaged", True)
    )
    assert isinstance(state, h.Vacant)
    assert said[-1] == h.Dismiss("a", "its save is not what it says: leaf 3 is damaged")


def test_somebody_elses_save_is_refused() -> None:
    _, said = play(h.Vacant("0"), h.Taken("a", "desk"), h.Offered("b", save(40)))
    assert said == [h.Reject("b does not hold seat 0, a does")]


def test_a_newer_offer_takes_the_place_of_an_older() -> None:
    state, said = play(h.Vacant("0"), h.Taken("a", "desk"), h.Offered("a", save(40)), h.Offered("a", save(50)))
    assert said[-1] == h.Pull("a", save(50), ("desk",))
    assert play(state, h.Signed("k", "attic", save(40)))[1] == [], "the older one is of no interest"


def test_a_restart_pulls_again() -> None:
    state, _ = play(h.Vacant("0"), h.Taken("a", "desk"), h.Offered("a", save(40)))
    assert play(state, h.Restarted())[1] == [h.Pull("a", save(40), ("desk",))]


class Story:
    """Holders compute, save, leave, fall silent; keepers sign, also where they may not. Who computed what is known here."""

    def __init__(self, module: Any = h) -> None:
        m = self.module = module
        self.state: Any = m.Vacant("0", ("rival",))
        self.holder = ""
        self.holders = 0
        self.at = 0  # the work of the holder
        self.truth: dict[int, str] = {}  # unit -> who computed it last
        self.signed: set[int] = {0}
        self.credited: list[Any] = []
        self.offer: Any = None

    def tell(self, event: Any) -> None:
        before = self.state
        self.state, said = self.module.handover.step(before, event)
        if isinstance(before, self.module.Closed):
            assert self.state == before, "it changed after it had ended"
            assert all(isinstance(one, Ignored) for one in said)
        self.credited += [one.segment for one in said if type(one).__name__ == "Credit"]

    def turn(self, dice: random.Random) -> None:
        m = self.module
        if isinstance(self.state, m.Vacant) and dice.random() < 0.6:
            self.holders += 1
            self.holder, self.at = f"node{self.holders}", self.state.safe
            self.tell(m.Taken(self.holder, self.holder))
            return
        actions: list[Any] = [
            self.computes,
            self.computes,
            self.offers,
            self.offers,
            self.signs,
            self.signs,
            self.signs,
        ]
        actions += [self.fails, self.leaves, self.left, self.lost, self.ends, lambda _: self.tell(m.Restarted())]
        dice.choice(actions)(dice)

    def computes(self, dice: random.Random) -> None:
        if self.holder:
            for _ in range(dice.randrange(1, 6)):
                self.truth[self.at] = self.holder
                self.at += 1

    def offers(self, dice: random.Random) -> None:
        who = self.holder if dice.random() < 0.9 else "node0"
        self.offer = self.module.Save(f"save{self.at}", self.at, "")
        self.tell(self.module.Offered(who, self.offer))

    def signs(self, dice: random.Random) -> None:
        if self.offer is None:
            return
        machine = dice.choice(("attic", "attic", "attic", "rival", self.holder))
        was = self.state
        self.tell(self.module.Signed("keeper", machine, self.offer))
        if self.state.safe != was.safe:
            self.signed.add(self.state.safe)
            assert machine == "attic", "a save was kept where it must not be"

    def fails(self, dice: random.Random) -> None:
        if self.offer is not None:
            self.tell(self.module.Failed(self.offer, "no disk", dice.random() < 0.2))

    def leaves(self, dice: random.Random) -> None:
        self.tell(self.module.Leave())

    def left(self, dice: random.Random) -> None:
        """An honest holder stops when all that it did is safe."""
        if self.at == self.state.safe:
            self.tell(self.module.Left(self.holder))

    def lost(self, dice: random.Random) -> None:
        if dice.random() < 0.5:
            self.tell(self.module.Lost(self.holder, "silent"))

    def ends(self, dice: random.Random) -> None:
        if dice.random() < 0.3 and self.holder and self.at > self.state.safe:
            self.tell(self.module.Finished(self.holder, self.at))

    def check(self) -> None:
        state = self.state
        ends = [0]
        for part in state.segments:
            assert part.begin == ends[-1], "a gap, or work counted twice"
            ends.append(part.end)
            assert all(self.truth[unit] == part.node for unit in range(part.begin, part.end)), "credited to another"
        closed = isinstance(state, self.module.Closed)
        assert all(end in self.signed for end in (ends[:-1] if closed else ends)), "work that nobody signed for"
        assert list(state.segments) == self.credited, "credited once too often"
        assert ends[-1] == (state.work if closed else state.safe), "the segments do not sum to the whole"
        assert sum(self.module.credits(state).values()) == ends[-1]


class Stories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.story = Story()

    @rule(seed=st.integers(0, 1 << 20))
    def turn(self, seed: int) -> None:
        self.story.turn(random.Random(seed))

    @invariant()
    def holds(self) -> None:
        self.story.check()


TestStories = Stories.TestCase
TestStories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def told(module: Any, seed: int) -> Story:
    dice, story = random.Random(seed), Story(module)
    for _ in range(60):
        story.turn(dice)
        story.check()
    return story


def test_stories_are_told_to_the_end() -> None:
    stories = [told(h, seed) for seed in range(200)]
    assert sum(isinstance(story.state, h.Closed) and len(story.state.segments) > 1 for story in stories) > 20


BUGS = {
    "a segment is counted twice": (
        "state.offer, (*state.segments, segment))", "state.offer, (*state.segments, segment, segment))"
    ),
    "who holds the seat keeps its own saves": ("    if event.machine in barred:", "    if event.machine in state.barred:"),
    "a rival keeps saves": ("    if event.machine in barred:", "    if event.machine == state.machine:"),
    "the next one begins where the last one was": (
        "    return _vacant(state), []\n\n\n@handover.on(Occupied, Finished",
        "    return Vacant(state.seat, state.barred, getattr(state, 'offer', state.signed), state.segments), []\n\n\n"
        "@handover.on(Occupied, Finished",
    ),
    "anybody's save counts": (
        "def _offered(state: Held | Leaving, event: Offered) -> Answer:\n    if event.node != state.node:",
        "def _offered(state: Held | Leaving, event: Offered) -> Answer:\n    state = _held(state, event.node, 'x')\n    if False:",
    ),
    "the last segment begins at the start": (
        "segment = Segment(state.node, state.safe, event.work, state.signed)",
        "segment = Segment(state.node, 0, event.work, state.signed)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    with planted(h, *BUGS[bug]) as module, pytest.raises(AssertionError):
        for seed in range(500):
            told(module, seed)
