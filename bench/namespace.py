"""What a namespace costs: walk, open, read and clunk of `/d/f` through sessions without a socket, beside the same tree without one.

    .venv/bin/python bench/namespace.py [--rounds 200] [--json]

Processor time of this process, rounds of the rows alternate, the best of each counts: only the ratio to the first row says anything. A socket
between client and server would add the same to each and make the ratios smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from ipos.tree.file import Caller, File
from ipos.tree.local import local
from ipos.tree.namespace import Table
from ipos.tree.ninep.codec import ALL
from ipos.tree.ninep.messages import NOFID
from ipos.tree.ninep.session import Session
from ipos.tree.union import Namespace

L = ALL["9P2000.L"].by_name
ME = Caller("0x1", "bench", own=True, local=True)
TIMES = 100
TARGET = 1.05
STEPS = [
    memoryview(L["Twalk"].encode(1, 0, 1, ("d", "f"))),
    memoryview(L["Tlopen"].encode(1, 1, os.O_RDONLY)),
    memoryview(L["Tread"].encode(1, 1, 0, 4096)),
    memoryview(L["Tclunk"].encode(1, 1)),
]


async def session(root: File) -> Session:
    async def attach(caller: Caller, aname: str) -> File:
        return root

    made = Session(attach, ME, lambda answer: None)
    made.message(memoryview(L["Tversion"].encode(0xFFFF, 65536, "9P2000.L")))
    made.message(memoryview(L["Tattach"].encode(1, 0, NOFID, "me", "", 0)))
    await over(made)
    await asyncio.sleep(0.01)  # what comes next does not wait behind it any more
    return made


async def over(made: Session) -> None:
    """Until it is done."""
    for _ in range(10_000):
        if not made.busy:
            return
        await asyncio.sleep(0)


async def seconds(made: Session) -> float:
    began = time.process_time()
    for _ in range(TIMES):
        for step in STEPS:
            made.message(step)
            if made.busy:
                await over(made)
    return time.process_time() - began


async def measured(export: Path, rounds: int) -> list[dict[str, object]]:
    bare = local(export)
    spaces = {
        "through an empty table": "",
        "with a mount elsewhere": "bind /d /elsewhere",
        "through a mount": "bind /e /d",
        "through a union, found in its second": "bind -b /elsewhere /d",
    }
    rows = {"without a namespace": await session(bare)}
    for name, text in spaces.items():
        namespace = Namespace(bare, Table())
        await namespace.change(text)
        rows[name] = await session(namespace.root)
    best = dict.fromkeys(rows, 1e9)
    for _ in range(rounds):
        for name, made in rows.items():
            best[name] = min(best[name], await seconds(made))
    first = best["without a namespace"]
    out = list[dict[str, object]]()
    for name, took in best.items():
        row: dict[str, object] = {"row": name, "us": round(took / TIMES * 1e6, 1), "ratio": round(took / first, 3)}
        out.append(row | ({"target": TARGET, "met": took / first <= TARGET} if "empty" in name else {}))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bns") as scratch:
        for name in ("d", "e", "elsewhere"):
            Path(scratch, name).mkdir()
        for name in ("d", "e"):
            Path(scratch, name, "f").write_bytes(b"x" * 1000)
        found = asyncio.run(measured(Path(scratch), arguments.rounds))
    if arguments.json:
        print(json.dumps(found))
        return 0
    for row in found:
        verdict = "" if "met" not in row else f"  target {row['target']}: {'met' if row['met'] else 'MISSED'}"
        print(f"{row['row']:<38} {row['us']:>8} us  {row['ratio']:.3f} x{verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
