"""Disputes: lists of events and the instructions they must give; random stories of judges that fail, lie or are parties; planted bugs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from mutants import planted

from ipos.pool import dispute as d
from ipos.pool.commitment import Entry
from ipos.pool.machine import Ignored

BEFORE, RIGHT, WRONG, OTHER = Entry(10, "aa"), Entry(20, "bb"), Entry(20, "cc"), Entry(21, "dd")


def case(*parties: d.Party) -> d.Open:
    honest = d.Party("0", RIGHT, (d.Suspect("a"),))
    return d.Open("task", 1, BEFORE, (honest, *(parties or (d.Party("1", WRONG, (d.Suspect("b"),)),))))


def play(state: Any, *events: Any) -> tuple[Any, list[Any]]:
    said: list[Any] = []
    for event in events:
        state, instructions = d.dispute.step(state, event)
        said += instructions
    return state, said


def test_the_judge_names_the_liar() -> None:
    state, said = play(case(), d.Restarted(), d.Appointed("j"), d.Found("j", BEFORE, RIGHT))
    lie = d.Liar("1", "b", WRONG)
    assert said == [d.Appoint(("a", "b")), d.Reexecute("j", 1, BEFORE), d.Proclaim(RIGHT, (lie,), "j")]
    assert state.liars == (lie,)


def test_the_accuser_may_be_the_liar() -> None:
    _, said = play(case(), d.Appointed("j"), d.Found("j", BEFORE, WRONG))
    assert said[-1] == d.Proclaim(WRONG, (d.Liar("0", "a", RIGHT),), "j")


def test_a_party_cannot_judge() -> None:
    state, said = play(case(), d.Appointed("b"))
    assert isinstance(state, d.Open)
    assert said[0] == d.Reject("b cannot judge this: it is a party, or was asked")


def test_a_judge_that_does_not_reach_the_agreed_state_has_failed() -> None:
    state, said = play(case(), d.Appointed("j"), d.Found("j", OTHER, RIGHT))
    assert isinstance(state, d.Open)
    assert said[-1] == d.Appoint(("a", "b", "j"))


def test_faults_are_no_verdict() -> None:
    events = [e for j in ("j", "k", "l") for e in (d.Appointed(j), d.Failed(j, "no disk"))]
    state, said = play(case(), *events)
    assert isinstance(state, d.Stuck)
    assert said[-1] == d.GiveUp("3 judges could not settle it, the last one: no disk")


def test_who_contradicts_everybody_needs_a_second() -> None:
    state, said = play(case(), d.Appointed("j"), d.Found("j", BEFORE, OTHER))
    assert isinstance(state, d.Open)
    state, said = play(state, d.Appointed("k"), d.Found("k", BEFORE, OTHER))
    assert [liar.seat for liar in said[-1].liars] == ["0", "1"]


def test_who_held_the_seat_when_it_went_wrong() -> None:
    """b began, c went on from s1, e from s2; what was said is wrong."""
    held = (d.Suspect("b"), d.Suspect("c", "s1"), d.Suspect("e", "s2"))
    state, said = play(case(d.Party("1", WRONG, held)), d.Appointed("j"), d.Found("j", BEFORE, RIGHT))
    assert said[-1] == d.Trace("j", "1", 2, "s2")
    assert play(state, d.Traced("j", "1", 2, RIGHT))[1][-1].liars == (d.Liar("1", "e", WRONG),), "its part was wrong"
    state, said = play(state, d.Traced("j", "1", 2, WRONG))
    assert said[-1] == d.Trace("j", "1", 1, "s1"), "it computed well from a state that was wrong"
    assert play(state, d.Traced("j", "1", 1, OTHER))[1][-1].liars == (d.Liar("1", "c", WRONG),)
    assert play(state, d.Traced("j", "1", 1, WRONG))[1][-1].liars == (d.Liar("1", "b", WRONG),)


class Story:
    """Some parties, one of the holders of each wrong one guilty; judges that are honest, fail, are lost, or (at most one) lie."""

    def __init__(self, module: Any, dice: random.Random) -> None:
        m = self.module = module
        self.guilty: dict[str, int] = {}
        parties: list[Any] = []
        for n in range(dice.randrange(2, 5)):
            entry = dice.choice((RIGHT, RIGHT, WRONG, OTHER)) if n else WRONG
            held = [m.Suspect(f"node{n}")]
            held += [m.Suspect(f"node{n}.{k}", f"save{n}.{k}") for k in range(1, dice.randrange(1, 4))]
            if entry != RIGHT:
                self.guilty[str(n)] = dice.randrange(len(held))
            parties.append(m.Party(str(n), entry, tuple(held)))
        self.parties = {party.seat: party for party in parties}
        self.state: Any = m.Open("task", 1, BEFORE, tuple(parties))
        self.asked: Any = None
        self.liar = ""
        self.judges = 0
        self.verdicts: list[Any] = []
        self.ends = 0
        self.tell(m.Restarted())

    def tell(self, event: Any) -> None:
        m, before = self.module, self.state
        self.state, said = m.dispute.step(before, event)
        over = isinstance(before, (m.Decided, m.Stuck))
        if over and not isinstance(event, m.Restarted):
            assert self.state == before
            assert all(isinstance(one, Ignored) for one in said)
        for one in said:
            match type(one).__name__:
                case "Appoint" | "Reexecute" | "Trace":
                    self.asked = one
                case "Proclaim":
                    self.verdicts.append(one)
                    self.ends += not over
                case "GiveUp":
                    self.ends += not over

    def turn(self, dice: random.Random) -> None:
        m, asked = self.module, self.asked
        if dice.random() < 0.1:
            self.asked = None
            self.tell(m.Restarted())
            return
        match type(asked).__name__:
            case "Appoint":
                self.judges += 1
                party = dice.choice(list(self.parties.values()))
                judge = f"judge{self.judges}" if dice.random() < 0.9 else party.suspects[0].node
                if not self.liar and dice.random() < 0.15:
                    self.liar = judge
                self.tell(m.Appointed(judge))
            case "Reexecute":
                if asked.judge == self.liar:  # it makes something up
                    self.tell(m.Found(asked.judge, BEFORE, Entry(22, "ee")))
                elif dice.random() < 0.2:
                    self.tell(m.Failed(asked.judge, "no disk"))
                elif dice.random() < 0.2:  # it began from something else, and does not know
                    self.tell(m.Found(asked.judge, OTHER, dice.choice((WRONG, OTHER))))
                else:
                    self.tell(m.Found(asked.judge, BEFORE, RIGHT))
            case "Trace":
                party = self.parties[asked.seat]
                inherited = asked.suspect > self.guilty.get(asked.seat, 0)
                entry = party.entry if inherited else Entry(20, "right from there") if asked.suspect else RIGHT
                self.tell(m.Traced(asked.judge, asked.seat, asked.suspect, entry))
            case _:
                self.tell(m.Failed("judge0", "it was never asked"))

    def check(self) -> None:
        m = self.module
        assert self.ends == isinstance(self.state, (m.Decided, m.Stuck))
        for verdict in self.verdicts:
            assert verdict.right == RIGHT, "a wrong verdict"
            assert not any(verdict.judge == s.node for p in self.parties.values() for s in p.suspects), "a party judged"
            named = {liar.seat: liar.node for liar in verdict.liars}
            assert named == {seat: self.parties[seat].suspects[k].node for seat, k in self.guilty.items()}


class Stories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.story: Story | None = None

    @rule(seed=st.integers(0, 1 << 20))
    def turn(self, seed: int) -> None:
        dice = random.Random(seed)
        if self.story is None:
            self.story = Story(d, dice)
        else:
            self.story.turn(dice)

    @invariant()
    def holds(self) -> None:
        if self.story is not None:
            self.story.check()


TestStories = Stories.TestCase
TestStories.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def told(module: Any, seed: int) -> Story:
    dice = random.Random(seed)
    story = Story(module, dice)
    for _ in range(25):
        story.turn(dice)
        story.check()
    return story


def test_stories_end_in_a_verdict_and_without() -> None:
    stories = [told(d, seed) for seed in range(200)]
    assert sum(bool(story.verdicts) for story in stories) > 100
    assert sum(isinstance(story.state, d.Stuck) for story in stories) > 5


BUGS = {
    "the accuser is believed": ("    return _trace(state, event.entry)", "    return _trace(state, state.parties[-1].entry)"),
    "a fault is a verdict": ("    if event.before != state.before:", "    if False:"),
    "one judge against all is believed": ("    if not confirmed and all(", "    if False and all("),
    "a party may judge": ("    if event.judge in _barred(state):", "    if False:"),
    "whoever held it last is guilty": ("    if event.entry == party.entry and earlier > 0:", "    if False:"),
    "who inherits is guilty": (
        "earlier if event.entry == party.entry else event.suspect", "event.suspect"
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    with planted(d, *BUGS[bug]) as module, pytest.raises(AssertionError):
        for seed in range(500):
            told(module, seed)
