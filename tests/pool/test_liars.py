"""Evidence that is not true, each kind in a real CAR, and the sentence that names it; and a verifier without each check, which lets it pass."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lab import ACCOUNT, EVERY, LIST, OTHER, PEER, Lab, Parts, judged

from ipos.identity import machines
from ipos.identity.machines import Machine
from ipos.pool import evidence, marks, proof
from ipos.pool import receipt as receipts
from ipos.pool.judge import _Judge
from ipos.pool.records import Evidence, MarkedSave, Receipt
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.wire.record import cid_of, decode, encode

ROOT = "ab" * 32
change = msgspec.structs.replace


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab()


def with_mark(parts: Parts, at: int, mark: tuple[int, str]) -> Parts:
    return parts._replace(marks=(*parts.marks[:at], mark, *parts.marks[at + 1 :]))


def resigned(parts: Parts, **fields: Any) -> Parts:
    return parts._replace(receipt=change(parts.receipt, **fields))


def result(parts: Parts, **fields: Any) -> Parts:
    return parts._replace(result=change(parts.result, **fields))


def early(lab: Lab, parts: Parts) -> Parts:
    """It stops after mark 3 and calls that the end."""
    work, root = parts.marks[3]
    return resigned(parts._replace(marks=parts.marks[:3]), work=work, root=root)


def inflated(lab: Lab, parts: Parts) -> Parts:
    more = [(parts.receipt.work // EVERY * EVERY + n * EVERY + 7, ROOT) for n in (1, 2)]
    return resigned(parts._replace(marks=(*parts.marks, *more)), work=more[-1][0] + 5)


def other_content(lab: Lab, body: bytes) -> bytes:
    return unixfs.add_bytes(lab.store, body)


def files_made(lab: Lab, tmp: Path) -> bytes:
    (tmp / "made").mkdir()
    (tmp / "made" / "x").write_text("y")
    return unixfs.add_dir(lab.store, tmp / "made")


def half(lab: Lab, parts: Parts, **fields: Any) -> Receipt:
    """Of an honest segment up to mark 4."""
    work, root = parts.marks[3]
    return change(parts.receipt, task=cid_of(lab.task), result=None, work=work, root=root, marks=None, **fields)


Lie = Callable[[Lab, Parts], Parts]

SIGNED: dict[str, tuple[Lie, str, str]] = {
    # what is said -> (the lie, what is said of it, the check that finds it)
    "a root": (lambda lab, p: with_mark(p, 2, (p.marks[2][0], ROOT)), "mark 3 differs: its root", "marks"),
    "the first root": (lambda lab, p: with_mark(p, 0, (p.marks[0][0], ROOT)), "mark 1 differs: its root", "marks"),
    "where a mark is": (lambda lab, p: with_mark(p, 2, (p.marks[2][0] + 1, p.marks[2][1])), "mark 3 differs: .* at work", "marks"),
    "a mark left out": (lambda lab, p: p._replace(marks=(*p.marks[:2], *p.marks[3:])), "mark 4 differs", "marks"),
    "the last mark left out": (lambda lab, p: p._replace(marks=p.marks[:-1]), "the receipt has none, it ends early", "end"),
    "marks out of order": (lambda lab, p: p._replace(marks=(p.marks[1], p.marks[0], *p.marks[2:])), "line 2: .* out of order", "order"),
    "a mark twice": (lambda lab, p: p._replace(marks=(*p.marks[:2], *p.marks[1:])), "line 3: .* out of order", "order"),
    "a mark before the grid": (lambda lab, p: p._replace(marks=((EVERY, ROOT), *p.marks)), "first point of the grid", "order"),
    "a mark beyond the end": (lambda lab, p: resigned(p, work=p.marks[-1][0] - 1), "is at work .*, the receipt ends at", "beyond"),
    "the final root": (lambda lab, p: resigned(p, root=ROOT), "root differs", "end"),
    "more memory": (lambda lab, p: resigned(p, page_work=p.receipt.page_work + 1), "page_work differs", "end"),
    "a little more work": (lambda lab, p: resigned(p, work=p.receipt.work + 1), "work differs", "end"),
    "work that was not done": (inflated, "before mark .*: the receipt counts work that was not done", "marks"),
    "an early end": (early, "has not ended after|it ends early", "end"),
    "the exit status": (lambda lab, p: result(p, exit=0), "exit differs: it is said to be 0, it is 7", "end"),
    "a trap": (lambda lab, p: result(p, killed="trapped: unreachable"), "killed differs", "end"),
    "the output": (lambda lab, p: result(p, stdout=other_content(lab, b"y" * 16)), "stdout differs", "end"),
    "an output of errors": (lambda lab, p: result(p, stderr=other_content(lab, b"oops")), "stderr differs", "end"),
    "another task's result": (lambda lab, p: result(p, task=lab.put(change(lab.task, args=("other",)))), "do not belong together: task", "agree"),
    "another node's result": (lambda lab, p: result(p, node="12D3KooWother"), "do not belong together: node", "agree"),
    "a result of other work": (lambda lab, p: result(p, ext={"work": "1", "root": p.receipt.root}), "do not belong together: work", "agree"),
    "times that the result has not": (lambda lab, p: resigned(p, cpu_ms=10_000), "do not belong together: cpu_ms", "agree"),
    "another input": (lambda lab, p: p._replace(task=change(p.task, stdin=other_content(lab, b"z"))), "mark 1 differs", "marks"),
    "other arguments": (lambda lab, p: p._replace(task=change(p.task, args=("-x",))), "mark 1 differs", "marks"),
    "another seed": (lambda lab, p: p._replace(run=change(p.run, seed=ROOT)), "mark 1 differs", "marks"),
    "another program": (lambda lab, p: p._replace(task=change(p.task, program=p.task.stdin)), "cannot be run again", "compiles"),
    "used-up work that was not": (
        lambda lab, p: result(p._replace(run=change(p.run, work=1 << 40)), exit=125, killed="used up its 1 Gop of work"),
        "ends by itself", "end",
    ),
    "a program that cannot begin": (
        lambda lab, p: result(resigned(p._replace(marks=()), root="", work=0), exit=125, killed="the program is refused: it is bad"),
        "it does begin", "begins",
    ),
    "a key that signed it not": (lambda lab, p: p._replace(key=OTHER), "not signed by its run key", "signature"),
    "a key that is not on the list": (
        lambda lab, p: resigned(p._replace(key=OTHER), run=OTHER.address), "has no machine", "signature",
    ),
    "somebody else's account": (lambda lab, p: resigned(p, account=OTHER.address), "its machine list of", "signature"),
    "a list that the account has not signed": (
        lambda lab, p: p._replace(machines=change(LIST, version=4)), "has not signed", "signature",
    ),
    "another's node": (
        lambda lab, p: result(resigned(p, node="12D3KooWother"), node="12D3KooWother"), "has no machine", "signature",
    ),
    "a segment before that ended elsewhere": (
        lambda lab, p: resigned(p._replace(before=(half(lab, p, cpu_ms=1),)), since=5, since_root=ROOT),
        "begins at work 5.*ends at work", "joins",
    ),
    "a segment of another task": (
        lambda lab, p: resigned(
            p._replace(before=(change(half(lab, p), task=lab.put(change(lab.task, args=("other",)))),)),
            since=p.marks[3][0], since_root=p.marks[3][1],
        ),
        "the segment of .* is of another task", "same task",
    ),
    "a save of another moment": (
        lambda lab, p: p._replace(saves=tuple(MarkedSave(index=n, save=lab.saved[1]) for n in range(1, 9))),
        "save at mark 8 is of another state", "",
    ),
    "a save at no mark": (
        lambda lab, p: p._replace(saves=(MarkedSave(index=99, save=lab.saved[1]),)), "a save at mark 99, which is not", "",
    ),
}  # fmt: skip


def without(check: str, patch: pytest.MonkeyPatch) -> None:
    """The verifier without one of its checks: the planted bug."""
    counter = itertools.count(1)
    match check:
        case "marks":
            patch.setattr(_Judge, "_marks", lambda self, replay, first, last: last or len(self.case.marks))
            patch.setattr(_Judge, "_end", lambda self, replay, host: None)
        case "end" | "begins":
            patch.setattr(_Judge, "_end", lambda self, replay, host: None)
            patch.setattr(proof.Case, "refused", False)
        case "order":
            patch.setattr(marks, "mark_index", lambda work, every: next(counter))
            without("marks", patch)
        case "agree":
            patch.setattr(proof, "_agree", lambda receipt, result: None)
        case "signature":
            patch.setattr(receipts, "check", lambda receipt, machines: None)
            patch.setattr(proof.Case, "name", "somebody")
        case "joins":
            patch.setattr(evidence, "_joins", lambda after, before: None)
        case "same task":
            patch.setattr(proof, "_same_task", lambda store, chain, task, run: None)
        case _:
            raise AssertionError(check)


def options(name: str) -> dict[str, Any]:
    return {"mark": 9} if name == "a save of another moment" else {"full": True}


def test_the_truth(lab: Lab, tmp_path: Path) -> None:
    car = lab.car(tmp_path / "f.car", lab.evidence(lab.honest))
    status, said = judged(car, full=True)
    assert (status, said["verdict"], said["marks"]) == (0, "true", len(lab.honest.marks)), said
    assert said["reexecuted"]["share"] == 1.0
    assert len(lab.honest.marks) > 8
    for seed in range(3):
        status, said = judged(car, seed=seed)
        assert (status, said["verdict"], said["seed"]) == (0, "true", seed)
        assert said == judged(car, seed=seed)[1]
    kept = tuple(MarkedSave(index=n, save=lab.saved[n]) for n in (3, 6))
    with_saves = lab.car(tmp_path / "s.car", lab.evidence(lab.honest._replace(saves=kept)))
    for mark, begin in ((3, 0), (4, 3), (6, 3), (8, 6), (len(lab.honest.marks) + 1, 6)):
        status, said = judged(with_saves, mark=mark)
        assert (status, said["reexecuted"]["after_mark"]) == (0, begin), said


def test_a_task_that_moved(lab: Lab, tmp_path: Path) -> None:
    work, root = lab.honest.marks[3]
    moved = resigned(lab.honest._replace(before=(half(lab, lab.honest),)), since=work, since_root=root)
    status, said = judged(lab.car(tmp_path / "f.car", lab.evidence(moved)), full=True)
    assert (status, said["segments"]) == (0, 2), said
    assert "and 1 before it" in said["sentence"]
    alone = resigned(lab.honest, since=work, since_root=root)
    status, said = judged(lab.car(tmp_path / "f.car", lab.evidence(alone)), mark=1)
    assert (status, "nobody signed for the first" in said["sentence"]) == (0, True), said


@pytest.mark.parametrize("name", SIGNED)
def test_a_lie_is_named(lab: Lab, tmp_path: Path, name: str) -> None:
    lie, words, _ = SIGNED[name]
    status, said = judged(lab.car(tmp_path / "f.car", lab.evidence(lie(lab, lab.honest))), **options(name))
    assert (status, said["verdict"]) == (1, "false"), said
    assert re.search(words, said["sentence"]), said["sentence"]


@pytest.mark.parametrize(
    "name", [name for name, (_, _, check) in SIGNED.items() if check not in ("", "compiles", "beyond")]
)
def test_a_verifier_without_the_check_is_deceived(
    lab: Lab, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie, words, check = SIGNED[name]
    car = lab.car(tmp_path / "f.car", lab.evidence(lie(lab, lab.honest)))
    without(check, monkeypatch)
    _, said = judged(car, **options(name))
    assert not re.search(words, said.get("sentence", "")), said


def test_a_lie_about_files(lab: Lab, tmp_path: Path) -> None:
    lie = result(lab.honest, dir=files_made(lab, tmp_path))
    status, said = judged(lab.car(tmp_path / "f.car", lab.evidence(lie)), full=True)
    assert (status, "dir differs" in said["sentence"]) == (1, True), said


def test_what_was_not_run_again_is_not_claimed(lab: Lab, tmp_path: Path) -> None:
    """A lie after the interval passes, and the sentence says how likely that was."""
    car = lab.car(tmp_path / "f.car", lab.evidence(with_mark(lab.honest, 5, (lab.honest.marks[5][0], ROOT))))
    status, said = judged(car, mark=4)
    assert (status, said["verdict"]) == (0, "true")
    n = len(lab.honest.marks) + 1
    assert said["reexecuted"]["unseen"] == pytest.approx(1 - 4 / n, abs=1e-4)
    assert "would not be seen, chance" in said["sentence"]
    assert judged(car, mark=6)[0] == 1


def receipt_of(lab: Lab, root: bytes) -> Receipt:
    return decode(Receipt, lab.store.get(decode(Evidence, lab.store.get(root)).receipt))


def test_a_changed_receipt_is_not_signed(lab: Lab, tmp_path: Path) -> None:
    """Each field, and each byte: nothing of it can be changed without the key."""
    honest = receipt_of(lab, lab.evidence(lab.honest))
    others: dict[str, Any] = {
        "account": OTHER.address, "run": OTHER.address, "node": PEER + "x", "engine": "00" * 8, "since": 1, "since_root": ROOT,
        "work": honest.work + 1, "root": ROOT, "page_work": honest.page_work + 1, "cpu_ms": 6, "wall_ms": 1, "task": c.of_dag_cbor(b"x"),
        "result": None, "marks": None, "machines": c.of_dag_cbor(b"y"), "before": c.of_dag_cbor(b"z"), "signature": "00" * 65,
    }  # fmt: skip
    assert set(others) | {"v", "ext"} == set(Receipt.__struct_fields__)
    for field, value in others.items():
        with pytest.raises(OSError, match=r"signed|list|signature|receipt"):
            receipts.check(change(honest, **{field: value}), LIST)
    with pytest.raises(OSError, match="would not be signed"):
        receipts.check(change(honest, ext={"paid": "twice"}), LIST)
    body, dice, accepted = encode(honest), random.Random(5), 0
    for at in range(len(body)):
        spoiled = bytes([*body[:at], body[at] ^ 1 << dice.randrange(8), *body[at + 1 :]])
        try:
            receipts.check(decode(Receipt, spoiled), LIST)
        except OSError:
            continue
        accepted += 1
    assert accepted == 0


def test_a_changed_file(lab: Lab, tmp_path: Path) -> None:
    root = lab.evidence(lab.honest)
    car = lab.car(tmp_path / "f.car", root)
    good, dice = car.read_bytes(), random.Random(6)
    for at in [*range(12), *(dice.randrange(len(good)) for _ in range(60))]:
        car.write_bytes(bytes([*good[:at], good[at] ^ 1 << dice.randrange(8), *good[at + 1 :]]))
        status, said = judged(car, mark=1)
        assert (status, said["verdict"]) == (1, "false"), (at, said)
    for cut in (0, 1, len(good) // 2, len(good) - 1):
        car.write_bytes(good[:cut])
        assert judged(car, mark=1)[0] == 1
    for body in (b"no car at all", b"\x05hello"):
        car.write_bytes(body)
        assert "is not a CAR file" in judged(car, mark=1)[1]["sentence"]


def test_a_missing_and_a_wrong_block(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lab.evidence(lab.honest)
    path = tmp_path / "f.car"
    for cid in list(evidence.reach(lab.store, root)):
        status, said = judged(lab.car(path, root, lambda one, cid=cid: one == cid), mark=1)
        assert (status, f"{c.text(cid)} is missing" in said["sentence"]) == (1, True), said
    stdout = lab.honest.result.stdout
    good = lab.car(path, root).read_bytes()
    at = good.index(stdout + lab.store.get(stdout)) + len(stdout)
    path.write_bytes(bytes([*good[:at], good[at] ^ 1, *good[at + 1 :]]))
    assert "does not hash to its CID" in judged(path, mark=1)[1]["sentence"]
    with monkeypatch.context() as patch:  # the planted bugs: nobody hashes, nobody counts
        patch.setattr(c, "matches", lambda cid, block: True)
        assert judged(path, mark=1)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "missing", lambda store, root: [])
        assert judged(lab.car(path, root, lambda one: one == stdout), mark=1)[0] == 0


def test_no_verdict_without_the_engine_or_the_means(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = lab.honest._replace(
        task=change(lab.task, platform="wasm:0011223344556677"), run=change(lab.run, engine="0011223344556677")
    )
    car = lab.car(tmp_path / "f.car", lab.evidence(resigned(other, engine="0011223344556677")))
    status, said = judged(car, full=True)
    assert (status, said["verdict"]) == (125, "none")
    assert "for engine 0011223344556677, this IPOS has" in said["sentence"]
    assert judged(tmp_path / "none.car")[0] == 125
    honest = lab.car(tmp_path / "f.car", lab.evidence(lab.honest))
    status, said = judged(honest, mark=99)
    assert (status, "there is no mark 99" in said["sentence"]) == (125, True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    status, said = judged(honest, full=True)
    assert (status, said["verdict"], "this machine failed" in said["sentence"]) == (125, "none", True), said


def test_a_node_believes_only_receipts_of_its_account(lab: Lab) -> None:
    signed = receipt_of(lab, lab.evidence(lab.honest))
    assert signed.result is not None
    mine = receipts.Receipts(None, "here", lambda: LIST, MemoryStore())  # type: ignore[arg-type]
    body, lst = encode(signed), encode(LIST)
    blocks = mine.accept(body, lst, signed.task, signed.result, PEER)
    assert [cid for cid, _ in blocks] == [cid_of(signed), cid_of(LIST)]
    with pytest.raises(OSError, match="another task or another result"):
        mine.accept(body, lst, signed.task, None, PEER)
    with pytest.raises(OSError, match="the work of somebody"):
        mine.accept(body, lst, signed.task, signed.result, "somebody")
    other = machines.sign(OTHER, 1, (Machine(name="x", peer=PEER, run="0x" + "1" * 40, machine="a"),))
    with pytest.raises(OSError, match="not of this one"):
        receipts.Receipts(None, "here", lambda: other, MemoryStore()).accept(  # type: ignore[arg-type]
            body, lst, signed.task, signed.result, PEER
        )
    assert ACCOUNT.address == LIST.account
