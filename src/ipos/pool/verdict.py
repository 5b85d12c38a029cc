"""verdict: what a judge found, as a record that anybody can look at; and what agreeing cost and is worth."""

from __future__ import annotations

from math import comb
from typing import Final

import msgspec

from ipos.pool import signing
from ipos.pool.commitment import Entry
from ipos.pool.signing import Signer
from ipos.store import cid as c
from ipos.wire.record import Link, Record, cid_of, encode

LIE: Final = 0.05  # of the printed figure: how probable it is that a worker's answer is wrong


__all__ = ["LOCAL", "Lie", "Step", "Verdict", "assumed", "chance", "check", "cid_of", "sentences", "signed", "step_of"]


class Step(Record, frozen=True, kw_only=True):
    """A mark (`ending` is None), or the end of a task (CID of its Ending record). `work` in units, `root` in hexadecimal digits."""

    work: int
    root: str
    ending: Link | None = None


class Lie(Record, frozen=True, kw_only=True):
    """`node`: the run address of who computed that part; `claimed`: what the seat said of the step."""

    seat: str
    node: str
    claimed: Step


class Verdict(Record, frozen=True, kw_only=True):
    """Step `mark` of a task (mark 1 is the first; the step after the last mark is its end) was re-executed from `before`, the state that
    all parties agreed on (None: the start), by `judge` (a run address), who found `right`. `since`: the work at which the re-execution
    began, `work`: how many units it took. `signature`: of the coordinator's run key over the record without it (EIP-712, `signing`), hex."""

    v: int = 1
    task: Link
    mark: int
    before: Step | None
    right: Step
    liars: tuple[Lie, ...]
    judge: str
    since: int
    work: int
    signature: str = ""


def step_of(entry: Entry) -> Step:
    return Step(work=entry.work, root=entry.root, ending=c.parse(entry.ending) if entry.ending else None)


def signed(verdict: Verdict, key: Signer) -> Verdict:
    bare = msgspec.structs.replace(verdict, signature="")
    return msgspec.structs.replace(bare, signature=signing.sign(key, signing.VERDICT, record=encode(bare)))


def check(verdict: Verdict, address: str) -> None:
    """`Refused` unless `address` has signed it."""
    bare = msgspec.structs.replace(verdict, signature="")
    signing.check(address, verdict.signature, signing.VERDICT, record=encode(bare))


def sentences(verdict: Verdict, names: dict[str, str]) -> list[str]:
    """For people; `names`: what nodes are called."""
    judge = names.get(verdict.judge, verdict.judge)
    return [
        f"{names.get(lie.node, lie.node)} (seat {lie.seat}) lied at mark {verdict.mark}: it said {_words(lie.claimed)}, right is "
        f"{_words(verdict.right)}; {judge} re-executed it ({verdict.work / 1e9:.2f} Gop)"
        for lie in verdict.liars
    ]


def _words(step: Step) -> str:
    return f"{'the end' if step.ending is not None else 'a mark'} after {step.work} units with root {step.root[:16]}"


def chance(seats: int, lie: float = LIE) -> float:
    """The chance that a wrong item is left: that more than half of `seats` workers lie, each with probability `lie` apart from the others,
    and that all liars say the same. An upper bound for those who do not plan together."""
    return sum(comb(seats, k) * lie**k * (1 - lie) ** (seats - k) for k in range(seats // 2 + 1, seats + 1))


def assumed(seats: int) -> str:
    """The assumption of `chance`, in words that stand before it."""
    return (
        f"chance that a wrong result is left if each of {seats} workers lies once in {round(1 / LIE)} times, apart from the others, "
        "and all liars say the same"
    )


LOCAL: Final = (
    "replicas on one machine of one account guard against faults and bugs only, not against the machine's owner, until they can be spread "
    "over others' machines"
)
