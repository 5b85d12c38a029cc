"""verdict: what a judge found, as a record that anybody can look at; and what agreeing cost and is worth."""

from __future__ import annotations

import json
from math import comb
from typing import Any, Final

import msgspec

from ipos.pool import signing
from ipos.pool.commitment import Entry
from ipos.pool.records import Result
from ipos.pool.signing import Signer
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.wire.record import Link, Record, cid_of, decode, encode

LIE: Final = 0.05  # of the printed figure: how probable it is that a worker's answer is wrong


__all__ = [
    "LOCAL",
    "Lie",
    "Step",
    "Verdict",
    "Verification",
    "assumed",
    "chance",
    "check",
    "cid_of",
    "describe_verification",
    "sentences",
    "signed",
    "step_of",
]


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


class Verification(Record, frozen=True, kw_only=True):
    """How several workers came to one result: `seats` opened what they had committed to, `agreed` of them came to `root` after `work` units by
    the same marks. `total`: units that all computed, judges too; `told`: who deviated, and which seats changed hands, in sentences."""

    v: int = 1
    task: Link
    seats: int
    agreed: int
    root: str
    work: int
    total: int
    told: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


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


def left(seats: int, agreed: int, lie: float = LIE) -> float:
    """The same once it is known that `agreed` of `seats` came to this result: either they lied and the others did not, or the other way
    round. Small where all agree, and more than `chance` where a bare majority does."""
    wrong = lie**agreed * (1 - lie) ** (seats - agreed)
    return wrong / (wrong + (1 - lie) ** agreed * lie ** (seats - agreed))


def assumed(seats: int, agreed: int) -> str:
    """The assumption of `chance` and `left`, in words that stand before the second."""
    return (
        f"chance that a wrong result is left, now that {agreed} of {seats} agree, if each of them lies once in {round(1 / LIE)} times, "
        "apart from the others, and all liars say the same"
    )


LOCAL: Final = (
    "replicas on one machine of one account guard against faults and bugs only, not against the machine's owner, until they can be spread "
    "over others' machines"
)


def describe_verification(store: BlockStore, result: Result) -> str:
    """/job/<n>/<i>/verdict: one line of JSON; nothing if the task ran once only."""
    if "verification" not in result.ext:
        return ""
    cid = c.parse(result.ext["verification"])
    found = decode(Verification, store.get(cid))
    said = {
        "record": c.text(cid), "seats": found.seats, "agreed": found.agreed, "root": found.root, "work": found.work,
        "extra_work": round(found.total / max(1, found.work) - 1, 4), "left_wrong": round(left(found.seats, found.agreed), 6), "left_wrong_before": round(chance(found.seats), 6),
        "assuming": assumed(found.seats, found.agreed), "guards": LOCAL, "deviated": [_described(one) for one in found.verdicts],
        "told": found.told,
    }  # fmt: skip
    return json.dumps(said) + "\n"


def _described(verdict: Verdict) -> dict[str, Any]:
    bare = {"mark": verdict.mark, "right": verdict.right.root, "work": verdict.right.work, "judge": verdict.judge}
    lies = [
        {"seat": lie.seat, "node": lie.node, "claimed": lie.claimed.root, "claimed_work": lie.claimed.work}
        for lie in verdict.liars
    ]
    return {**bare, "ended": verdict.right.ending is not None, "reexecuted": verdict.work, "liars": lies}
