"""verify: judge a receipt on any machine, with nothing but its file. No node, no network, no home."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipos.store.car import CarStore
from ipos.store.pack import PackStore
from ipos.wire.errors import Refused

TRUE, FALSE, UNDECIDED = 0, 1, 125


class Cannot(Exception):
    """No verdict: this machine or this version failed; the sentence says of what."""


def verify(arguments: argparse.Namespace) -> int:
    """Exit status 0: what was checked is true, or signed by whom it says and nothing can be run again; 1: it is not true; 125: no verdict."""
    answer: dict[str, Any] = {"file": arguments.file, "verdict": "none"}
    try:
        with faults():
            status = _judged(arguments, answer)
    except Refused as lie:
        status = FALSE
        answer |= {"verdict": "false", "sentence": str(lie).removeprefix(arguments.file + ": ")}
    except Cannot as why:
        status = UNDECIDED
        answer["sentence"] = str(why)
    said = {"true": "true", "signed": "signed, not proven", "false": "NOT TRUE", "none": "no verdict"}[
        answer["verdict"]
    ]
    if arguments.json:
        print(json.dumps(answer))
    elif status == TRUE:
        print(f"{arguments.file}: {said}: {answer['sentence']}")
    else:
        print(f"ipos: {arguments.file}: {said}: {answer['sentence']}", file=sys.stderr)
    return status


@contextmanager
def faults() -> Generator[None]:
    """What fails on this machine is no verdict."""
    from ipos.pool.proof import Undecided
    from ipos.vm.host import Fault

    try:
        yield
    except Undecided as why:
        raise Cannot(str(why)) from None
    except (Fault, MemoryError) as fault:
        raise Cannot(f"this machine failed: {fault or 'out of memory'}") from None
    except OSError as error:
        if isinstance(error, Refused) or error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise Cannot(f"this machine failed: {where}{os.strerror(error.errno)}") from None


def _judged(arguments: argparse.Namespace, answer: dict[str, Any]) -> int:
    from ipos.pool import judge, proof
    from ipos.vm.version import cache_root

    store = CarStore(Path(arguments.file))
    try:
        case = proof.examine(store, store.root)
        answer |= facts(case)
        if case.mute:
            answer |= {"verdict": "signed", "sentence": f"{signed(case)}; {case.mute}", "reexecuted": None}
            return TRUE
        seed: int | None = None
        if arguments.full:
            wanted = judge.Wanted(full=True)
        elif arguments.mark is not None:
            wanted = judge.Wanted(n=position(case, arguments.mark))
        else:
            drawn = secrets.randbelow(1 << 32) if arguments.seed is None else int(arguments.seed)
            answer["seed"] = seed = drawn
            wanted = judge.choose(case, drawn)
        last = case.marks[wanted.n - 1].work if not wanted.full and wanted.n <= len(case.marks) else None
        tell = progress(case, arguments.json, last)
        with tempfile.TemporaryDirectory(prefix="ipos-verify-") as scratch:
            seen = judge.judge(case, wanted, Path(scratch), cache_root(), tell)
        clear(arguments.json)
        answer |= {
            "verdict": "true",
            "sentence": f"{signed(case)}; {ran(case, seen, seed)}",
            "reexecuted": shares(case, seen),
        }
        return TRUE
    finally:
        clear(arguments.json)
        store.close()


def position(case: Any, n: int) -> int:
    """Where the mark of index n stands in the list; the one after the last is the end of the task."""
    for i, mark in enumerate(case.marks, 1):
        if mark.index == n:
            return i
    last = case.marks[-1].index if case.marks else 0
    if n == last + 1:
        return len(case.marks) + 1
    raise Cannot(f"there is no mark {n}: this task has {len(case.marks)}" + (f", the last is {last}" if last else ""))


def facts(case: Any) -> dict[str, Any]:
    from ipos.store.cid import text

    receipt = case.receipt
    return {
        "task": text(receipt.task), "account": receipt.account, "node": receipt.node, "run": receipt.run,
        "engine": receipt.engine or None, "exit": case.result.exit, "work": receipt.work, "root": receipt.root or None,
        "marks": len(case.marks), "segments": len(case.chain), "saves": len(case.saves),
    }  # fmt: skip


def signed(case: Any) -> str:
    receipt = case.receipt
    words = f"signed by {case.name} of account {receipt.account}"
    if len(case.chain) > 1:
        words += f" and {len(case.chain) - 1} before it"
    first = case.chain[-1]
    if first.since:
        words += f" (nobody signed for the first {first.since / 1e9:.2f} Gop)"
    return words


def shares(case: Any, seen: Any) -> dict[str, Any]:
    whole = seen.checked >= seen.intervals
    return {
        "after_mark": seen.after, "upto_mark": seen.upto, "to_the_end": seen.end, "intervals": seen.checked,
        "of": seen.intervals, "work": seen.work, "share": 1.0 if whole else round(seen.work / max(1, case.receipt.work), 4),
        "unseen": round(1 - seen.checked / seen.intervals, 4),
    }  # fmt: skip


def ran(case: Any, seen: Any, seed: int | None) -> str:
    """What was run again, and what that leaves open."""
    if seen.checked >= seen.intervals:
        return f"all of it was run again: {len(case.marks)} marks, the end, the output, {seen.work / 1e9:.2f} Gop"
    begin = f"mark {seen.after}" if seen.after else "the start"
    end = "the end" if seen.end else f"mark {seen.upto}"
    share = 100 * seen.work / max(1, case.receipt.work)
    drawn = f" (drawn with --seed {seed})" if seed is not None else ""
    return (
        f"run again from {begin} to {end} of {len(case.marks)} marks{drawn}: {share:.0f} % of the work; a lie in one interval elsewhere "
        f"would not be seen, chance {100 * (1 - seen.checked / seen.intervals):.0f} % (--full leaves none)"
    )


def progress(case: Any, quiet: bool, goal: int | None = None) -> Callable[[int], None]:
    """A line on a terminal, up to `goal` (None: the whole task). The first says what may take long before any work is counted."""
    shown = not quiet and sys.stderr.isatty()
    most = case.receipt.work if goal is None else goal
    if shown:
        sys.stderr.write("\r\x1b[Kreading the file, and compiling the program if this machine has not yet")
        sys.stderr.flush()

    def tell(work: int) -> None:
        if not shown:
            return
        sys.stderr.write(f"\r\x1b[K{work / 1e9:.1f} of {most / 1e9:.1f} Gop run again")
        sys.stderr.flush()

    return tell


def clear(quiet: bool) -> None:
    if not quiet and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def add_saves(path: str, count: int, quiet: bool) -> dict[str, Any]:
    """Run the task of an evidence again, all of it, and add saves at `count` of its marks, evenly spread. `Refused` if it is not true."""
    from ipos.pool import evidence, judge, proof
    from ipos.pool.records import MarkedSave
    from ipos.vm.version import cache_root
    from ipos.wire.record import cid_of

    store = CarStore(Path(path))
    try:
        with faults(), tempfile.TemporaryDirectory(prefix=".ipos-", dir=Path(path).parent) as scratch:
            case = proof.examine(store, store.root)
            if case.mute or not case.marks:
                raise Refused(f"there is no mark to save at: {case.mute or 'the task is shorter than one interval'}")
            n = len(case.marks)
            at = {case.marks[min(n - 1, (i + 1) * n // (count + 1))].index for i in range(min(count, n))}
            new = PackStore(Path(scratch, "store"), sync=False)
            work = Path(scratch, "run")
            work.mkdir()
            packer = judge.Packer(case, work, cache_root(), progress(case, quiet), at, new)
            judge.on_large_stack(lambda: packer.run(judge.Wanted(full=True)))
            clear(quiet)
            both = evidence.Overlay(new, store)
            listed = tuple(MarkedSave(index=index, save=cid) for index, cid in sorted(packer.saves.items()))
            receipt = cid_of(case.receipt)
            bytes_ = evidence.pack(both, receipt, Path(path), listed)
            new.close()
            return {"saves": len(listed), "bytes": bytes_}
    except Cannot as why:
        raise Refused(f"{path} is there, without saves: {why}") from None
    finally:
        store.close()
