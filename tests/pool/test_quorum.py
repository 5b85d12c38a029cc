"""The quorum: lists of events and the instructions they must give; random stories of honest workers and liars; planted bugs.

The stories play every worker, an honest judge and the clock. A worker draws how it behaves when it sits down: it computes, or flips a bit
(its marks differ from some step on, and may become right again), ends early, forges a mark before a right end, opens something else, copies
a commitment, or never opens. Liars of one colour say the same.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from mutants import planted

from ipos.pool import quorum
from ipos.pool.commitment import Claim, Ending, Entry, Mark, Use, commit, entries, first_difference, opens
from ipos.pool.machine import Ignored
from ipos.store import cid as c
from ipos.wire.errors import BadRecord

CID = c.of_raw(b"what it printed")
TASK = c.text(c.of_dag_cbor(b"task"))
SALT = bytes(range(32))


def root(of: object) -> str:
    return (f"{abs(hash(of)) % (1 << 60):x}" * 8)[:64].ljust(64, "0")


def mark(i: int, colour: int = 0) -> Mark:
    return (1000 * (i + 1) + 3, root(("mark", i, colour)))


def end(work: int = 6500, colour: int = 0, exit: int = 0) -> Ending:
    return Ending(
        exit=exit, killed="", work=work, page_work=work, root=root(("end", colour)), stdout=CID, stderr=CID, dir=None
    )


MARKS = tuple(mark(i) for i in range(6))
TRUTH = entries(MARKS, end())
POLICY = quorum.Policy(seats=3, most=5, spares=2, faults=2, reveal_s=10.0)


def claim(seat: str, node: str, ending: Ending | None = None, cpu: int = 10) -> Claim:
    use = Use(cpu_ms=cpu, wall_ms=2 * cpu, rss_bytes=100)
    return Claim(task=TASK, seat=seat, node=node, ending=ending if ending is not None else end(), use=use)


def worker(n: int) -> quorum.Worker:
    return quorum.Worker(f"node{n}", f"account{n}", f"zone{n}", f"machine{n}")


# ---- commitments


def test_a_commitment_opens_only_as_it_was_made() -> None:
    made = commit(claim("0", "a"), MARKS, SALT)
    assert opens(made, claim("0", "a"), MARKS, SALT)
    assert not opens(made, claim("0", "b"), MARKS, SALT), "another node's name opens it"
    assert not opens(made, claim("1", "a"), MARKS, SALT), "another seat opens it"
    assert not opens(made, claim("0", "a"), MARKS[:-1], SALT)
    assert not opens(made, claim("0", "a"), MARKS, bytes(32))
    assert not opens(made, claim("0", "a"), MARKS, SALT[:-1])
    assert not opens(made, claim("0", "a"), (*MARKS[:-1], (MARKS[-1][0], "zz")), SALT)
    with pytest.raises(BadRecord, match="31 bytes, 32 are due"):
        commit(claim("0", "a"), MARKS, SALT[:-1])


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_the_first_difference_is_the_first(one: list[int], other: list[int]) -> None:
    a, b = (entries(tuple((i, root(x)) for i, x in enumerate(xs)), end(99, xs[-1] if xs else 0)) for xs in (one, other))
    found = first_difference(a, b)
    if a == b:
        assert found is None
    else:
        assert found is not None
        assert a[:found] == b[:found]
        assert a[found] != b[found]


# ---- lists of events


def play(state: Any, *events: Any) -> tuple[Any, list[Any]]:
    said: list[Any] = []
    for event in events:
        state, instructions = quorum.quorum.step(state, event)
        said += instructions
    return state, said


def seated(policy: quorum.Policy = POLICY) -> Any:
    seats = [quorum.Seated(str(i), worker(i)) for i in range(policy.seats)]
    return play(quorum.New(TASK, policy), quorum.Opened(), *seats)[0]


def committed(i: int, claimed: Claim | None = None, marks: tuple[Mark, ...] = MARKS) -> quorum.Committed:
    claimed = claimed if claimed is not None else claim(str(i), f"node{i}")
    return quorum.Committed(str(i), f"node{i}", commit(claimed, marks, SALT), 1.0)


def revealed(i: int, claimed: Claim | None = None, marks: tuple[Mark, ...] = MARKS, at: float = 2.0) -> quorum.Revealed:
    claimed = claimed if claimed is not None else claim(str(i), f"node{i}")
    return quorum.Revealed(str(i), f"node{i}", claimed, marks, SALT, at)


def test_three_that_agree() -> None:
    mine = [claim(str(i), f"node{i}", cpu=10 * (i + 1)) for i in range(3)]
    state, said = play(quorum.New(TASK, POLICY), quorum.Opened())
    assert said == [quorum.Fill("0"), quorum.Fill("1"), quorum.Fill("2")]
    state = seated()
    state, said = play(state, *(committed(i, mine[i]) for i in range(2)))
    assert said == []
    state, said = play(state, committed(2, mine[2]))
    assert said == [quorum.AskReveal(str(i), f"node{i}") for i in range(3)]
    assert state.until == 11.0
    state, said = play(state, *(revealed(i, mine[i]) for i in range(3)))
    assert isinstance(state, quorum.Agreed)
    use = Use(cpu_ms=20, wall_ms=40, rss_bytes=100)
    assert said == [quorum.Accept(end(), ("0", "1", "2"), use)], "use counts at the mean"


def test_nothing_is_opened_before_all_are_bound() -> None:
    state, said = play(seated(), committed(0), revealed(0))
    assert isinstance(state, quorum.Gathering)
    assert said == [quorum.Reject("not all seats have committed: nothing is to be opened yet")]


def test_another_account_in_the_same_zone_is_refused() -> None:
    state, _ = play(quorum.New(TASK, POLICY), quorum.Opened(), quorum.Seated("0", worker(0)))
    near = quorum.Worker("node9", "account9", "zone0", "machine9")
    _, said = play(state, quorum.Seated("1", near))
    assert said == [quorum.Reject("node9 has the zone zone0 of another seat"), quorum.Fill("1")]


def test_a_copied_commitment_cannot_be_opened() -> None:
    copied = quorum.Committed("1", "node1", committed(0).commitment, 1.0)
    state, _ = play(seated(), committed(0), copied, committed(2))
    theft = quorum.Revealed("1", "node1", claim("0", "node0"), MARKS, SALT, 2.0)
    own = quorum.Revealed("1", "node1", claim("1", "node1"), MARKS, SALT, 2.0)
    for opened in (theft, own):
        after, said = play(state, opened)
        assert quorum.Expose("1", "node1", "what it opened is not what it had committed to") in said
        assert quorum.Fill("3") in said
        assert after.seat("1").out


def test_a_late_seat_is_replaced_and_never_paid_for() -> None:
    state, _ = play(seated(), *(committed(i) for i in range(3)), revealed(0), revealed(1))
    state, said = play(state, quorum.Ticked(11.0))
    late = "silent: it did not open within 10 s"
    assert said == [quorum.Dismiss("2", late), quorum.Fill("3")]
    state, said = play(state, revealed(2, at=11.5))
    assert said == [quorum.Reject(f"seat 2 counts no more: {late}")]
    state, said = play(state, quorum.Seated("3", worker(3)), committed(3), revealed(3))
    assert said[-1].winners == ("0", "1", "3")


def test_who_deviates_is_disputed_before_anything_counts() -> None:
    wrong = tuple(mark(i, 7 if i >= 3 else 0) for i in range(6))
    lie = claim("1", "node1", end(colour=7))
    state, said = play(
        seated(),
        committed(0),
        committed(1, lie, wrong),
        committed(2),
        revealed(0),
        revealed(1, lie, wrong),
        revealed(2),
    )
    assert isinstance(state, quorum.Disputing)
    assert said[-1] == quorum.Dispute("1", 3, Entry(*MARKS[2]), ("0", "1", "2"))
    state, said = play(state, quorum.Judged("1", 3, Entry(*MARKS[3]), 3.0))
    assert isinstance(said[0], quorum.Expose)
    assert isinstance(state, quorum.Agreed)
    assert state.winners == ("0", "2")


def test_a_fault_of_the_judge_proves_nothing() -> None:
    lie = claim("1", "node1", end(colour=7))
    events = [committed(0), committed(1, lie), committed(2), revealed(0), revealed(1, lie), revealed(2)]
    state, said = play(seated(), *events, quorum.Unjudged("1", "no disk", 3.0))
    assert not [one for one in said if isinstance(one, quorum.Expose)]
    assert state.winners == ("0", "2")
    assert state.seat("1").unjudged == "no disk"


def test_a_majority_that_is_proven_wrong_is_not_believed() -> None:
    wrong = tuple(mark(i, 7 if i >= 3 else 0) for i in range(6))
    lies = {i: claim(str(i), f"node{i}", end(colour=7)) for i in (1, 2)}
    bound = [committed(0), *(committed(i, lies[i], wrong) for i in (1, 2))]
    state, said = play(seated(), *bound, revealed(0), *(revealed(i, lies[i], wrong) for i in (1, 2)))
    assert said[-1] == quorum.Dispute("0", 3, Entry(*MARKS[2]), ("0", "1", "2"))
    state, said = play(state, quorum.Judged("0", 3, Entry(*MARKS[3]), 3.0))
    assert [one.seat for one in said if isinstance(one, quorum.Expose)] == ["1", "2"]
    assert [one for one in said if isinstance(one, quorum.Fill)] == [quorum.Fill("3"), quorum.Fill("4")]
    more = [e for i in (3, 4) for e in (quorum.Seated(str(i), worker(i)), committed(i))]
    state, _ = play(state, *more, revealed(3), revealed(4))
    assert state.winners == ("0", "3", "4")


def test_no_majority_up_to_the_cap_is_a_refusal() -> None:
    policy = msgspec.structs.replace(POLICY, most=3)
    lies = [claim(str(i), f"node{i}", end(colour=i)) for i in range(3)]
    state, said = play(
        seated(policy), *(committed(i, lies[i]) for i in range(3)), *(revealed(i, lies[i]) for i in range(3))
    )
    assert isinstance(state, quorum.Undecided)
    assert said[-1].sentence.startswith("3 seats came to 3 results and no majority; the most seats are 3")


def test_a_restart_says_again_what_is_due() -> None:
    state, _ = play(seated(), *(committed(i) for i in range(3)), revealed(0))
    state, said = play(state, quorum.Restarted(100.0))
    assert said == [quorum.AskReveal("1", "node1"), quorum.AskReveal("2", "node2")]
    assert state.until == 110.0, "a restarted coordinator grants the whole time"


# ---- stories


@dataclass
class Player:
    """A worker that sits in a seat. `kind`: how it behaves."""

    seat: str
    worker: Any
    kind: str
    step: int
    colour: int
    commitment: str = ""
    victim: Player | None = None
    gone: bool = False

    def said(self) -> tuple[tuple[Mark, ...], Ending]:
        i, x = self.step, self.colour
        match self.kind:
            case "flip":
                return tuple(mark(k, x if k >= i else 0) for k in range(6)), end(colour=x)
            case "converge":  # wrong for two marks, then right again, and once more wrong at the end
                return tuple(mark(k, x if i <= k < i + 2 else 0) for k in range(6)), end(colour=x)
            case "forge":
                return tuple(mark(k, x if k == i else 0) for k in range(6)), end()
            case "early":
                return MARKS[:i], end(mark(i)[0] - 500, x)
            case "more":
                return MARKS, end(9000)
            case _:
                return MARKS, end()

    @property
    def honest(self) -> bool:
        return self.kind == "honest"


KINDS = ("honest", "honest", "honest", "honest", "flip", "converge", "forge", "early", "more", "swap", "copy", "mute")


class Story:
    """`turn` lets something happen, mostly what is due; then `check` says whether all that must hold does."""

    def __init__(self, module: Any = quorum, seats: int = 3) -> None:
        m = self.module = module
        self.state: Any = m.New(TASK, m.Policy(**{**msgspec.structs.asdict(POLICY), "seats": seats}))
        self.now = 0.0
        self.players: list[Player] = []
        self.sat = 0
        self.wanted: list[str] = []
        self.disputes: dict[str, Any] = {}
        self.ends = 0
        self.exposed: set[str] = set()
        self.late: set[str] = set()
        self.tell(m.Opened())

    # ---- the driver

    def tell(self, event: Any) -> None:
        m, before = self.module, self.state
        self.state, said = m.quorum.step(before, event)
        over = isinstance(before, (m.Agreed, m.Undecided, m.Cancelled))
        if over and not isinstance(event, m.Restarted):
            assert self.state == before, "it changed after it had ended"
            assert all(isinstance(one, Ignored) for one in said)
        for one in said:
            match type(one).__name__:
                case "Fill":
                    self.wanted.append(one.seat)
                case "Expose":
                    self.exposed.add(one.node)
                case "Dispute":
                    self.heard(one)
                case "Accept" | "Abandon":
                    self.ends += not over

    def heard(self, dispute: Any) -> None:
        steps = [self.state.seat(id).entries for id in dispute.seats]
        accused = self.state.seat(dispute.seat).entries
        assert all(s[: dispute.index] == accused[: dispute.index] for s in steps), "they part earlier than disputed"
        assert len({s[dispute.index] for s in steps}) > 1, "they do not differ where it is disputed"
        self.disputes[dispute.seat] = dispute

    def turn(self, dice: random.Random) -> None:
        m = self.module
        sitting = [p for p in self.players if not p.gone]
        due: list[Any] = [self.sits] * len(self.wanted)
        due += [lambda _, p=p: self.binds(p, dice) for p in sitting if not p.commitment]
        if isinstance(self.state, m.Revealing):
            closed = [p for p in sitting if (seat := self.state.seat(p.seat)) and seat.claim is None]
            due += [lambda _, p=p: self.opens(p, dice) for p in closed]
        due += [lambda dice, id=id: self.judges(id, dice) for id in self.disputes]
        if due and dice.random() < 0.85:
            dice.choice(due)(dice)
            return
        player = dice.choice(self.players) if self.players else None
        noise: list[Any] = [self.waits, self.waits, self.restarts]
        if player is not None:
            noise += [lambda dice: self.goes(player, dice), lambda dice: self.opens(player, dice)]
        dice.choice(noise)(dice)

    # ---- what happens

    def sits(self, dice: random.Random) -> None:
        m, seat = self.module, self.wanted.pop(0)
        self.sat += 1
        n = self.sat
        account = f"account{n - 1}" if dice.random() < 0.1 else f"account{n}"
        who = m.Worker(f"node{n}", account, f"zone{n}", f"machine{n}")
        self.tell(m.Seated(seat, who))
        got = self.state.seat(seat)
        if got is not None and got.worker == who:
            self.players.append(Player(seat, who, dice.choice(KINDS), dice.randrange(6), dice.randrange(1, 3)))

    def binds(self, player: Player, dice: random.Random) -> None:
        marks, ending = player.said()
        player.commitment = commit(claim(player.seat, player.worker.node, ending), marks, SALT)
        if player.kind == "copy":
            others = [p for p in self.players if p.commitment and p is not player]
            player.kind = "copy" if others else "honest"
            player.victim = dice.choice(others) if others else None
            player.commitment = player.victim.commitment if player.victim is not None else player.commitment
        self.tell(self.module.Committed(player.seat, player.worker.node, player.commitment, self.now))

    def opens(self, player: Player, dice: random.Random) -> None:
        m = self.module
        if player.kind == "mute":
            return
        marks, ending = player.said()
        if player.kind == "swap":
            ending = end(exit=1)
        made = claim(player.seat, player.worker.node, ending)
        if player.victim is not None:
            marks, ending = player.victim.said()
            name = dice.choice([player.victim, player])
            made = claim(name.seat, name.worker.node, ending)
        seat = self.state.seat(player.seat)
        if isinstance(self.state, m.Revealing) and seat is not None and seat.claim is None:
            (self.late.add if self.now >= self.state.until else self.late.discard)(player.worker.node)
        self.tell(m.Revealed(player.seat, player.worker.node, made, marks, SALT, self.now))

    def waits(self, dice: random.Random) -> None:
        self.now += dice.choice((0.5, 3.0, 10.0))
        if dice.random() < 0.5:
            self.tell(self.module.Ticked(self.now))

    def goes(self, player: Player, dice: random.Random) -> None:
        m, node = self.module, player.worker.node
        lapsed = m.Lapsed(player.seat, node, "silent", self.now)
        vacated = m.Vacated(player.seat, node, "silent", dice.random() < 0.5)
        self.tell(lapsed if player.commitment else vacated)
        seat = self.state.seat(player.seat)
        player.gone = seat is None or bool(seat.out) or seat.worker != player.worker

    def judges(self, id: str, dice: random.Random) -> None:
        """An honest judge: it finds the truth, or fails."""
        m, dispute = self.module, self.disputes.pop(id)
        reached = dispute.before == (TRUTH[dispute.index - 1] if dispute.index else None)
        if reached and dispute.index < len(TRUTH) and dice.random() < 0.8:
            self.tell(m.Judged(id, dispute.index, TRUTH[dispute.index], self.now))
        else:
            self.tell(m.Unjudged(id, "it could not run it", self.now))

    def restarts(self, dice: random.Random) -> None:
        self.disputes.clear()
        self.wanted.clear()
        self.tell(self.module.Restarted(self.now))

    # ---- what must hold

    def check(self) -> None:
        m, state = self.module, self.state
        assert self.ends == isinstance(state, (m.Agreed, m.Undecided)), "it ended more than once, or not at all"
        for player in self.players:
            assert not (player.honest and player.worker.node in self.exposed), "an honest worker was called a liar"
        held = [s.worker for s in state.seats if s.worker is not None]
        assert len({w.account for w in held}) == len(held), "one account has two seats"
        if isinstance(state, m.Agreed):
            self.accepted(state)

    def accepted(self, state: Any) -> None:
        counted = [s for s in state.seats if not s.out and s.claim is not None]
        players = {p.seat: p for p in self.players if not p.gone}
        assert 2 * len([s for s in counted if s.claim.ending == state.ending]) > len(counted), "no majority"
        if 2 * sum(players[s.id].honest for s in counted) > len(counted):
            assert state.ending == end(), "a wrong result was accepted though most were honest"
        for seat in counted:
            player = players[seat.id]
            assert not player.honest or state.ending == end() or seat.unjudged, "the judge was not heard"
            alone = seat.entries != state.seat(state.winners[0]).entries
            assert not alone or seat.judged, "nobody looked at who deviates"
        winners = [state.seat(id) for id in state.winners]
        for seat in winners:
            player = players[seat.id]
            assert not seat.out
            assert not seat.struck
            assert player.kind not in ("copy", "swap", "mute"), f"a {player.kind} is paid"
            assert player.worker.node not in self.late, "a late seat is paid"
            assert seat.entries == winners[0].entries, "winners show different chains"


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
    dice, story = random.Random(seed), Story(module, 2 + seed % 3)
    for _ in range(60):
        story.turn(dice)
        story.check()
    return story


def test_stories_end_in_every_way() -> None:
    """So that what must hold is asked of something."""
    ends = Counter(type(told(quorum, seed).state).__name__ for seed in range(150))
    assert ends["Agreed"] > 40, ends
    assert ends["Undecided"] > 10, ends


def bisected(one: tuple[Entry, ...], other: tuple[Entry, ...]) -> int | None:
    """Halves the lists, as if states that differ once differed for ever."""
    if one == other:
        return None
    low, high = 0, min(len(one), len(other)) - 1
    while low < high:
        middle = (low + high) // 2
        if one[middle] == other[middle]:
            low = middle + 1
        else:
            high = middle
    return low


BUGS = {
    "one too few is a majority": ("    if 2 * len(top) > len(counting):", "    if 2 * len(top) >= len(counting):", {}),
    "what is opened is not compared": (" or not opens(seat.commitment, claim, event.marks, event.salt)", "", {}),
    "whose claim it is does not matter": ("if not honest or not opens(", "if not opens(", {}),
    "the list is halved": ("quorum = Machine(", "quorum = Machine(", {"first_difference": bisected}),
    "the time to open never ends": ("    if event.at >= state.until:\n        return state, [Reject(\"too late\")]\n", "", {}),
    "accounts are not compared": ("        if value in {getattr", "        if False and value in {getattr", {}),
    "marks are not compared": ("        if index is not None and not seat.judged:", "        if False:", {}),
    "the judge is not heard": ("            new = _with(new, msgspec.structs.replace(seat, struck=True, judged=True))", "            pass", {}),
    "the accused is guilty": ("        if steps[: event.index] == before and steps[event.index] != event.right:", "        if seat.id == event.seat:", {}),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    right, wrong, names = BUGS[bug]
    with planted(quorum, right, wrong, **names) as module, pytest.raises(AssertionError):
        for seed in range(2000):
            told(module, seed)
