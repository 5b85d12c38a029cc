"""A coordinator of replicas in a process of its own, to be killed: `python replicas_main.py DIRECTORY ROUNDS MARK_EVERY EVERY_S`. Started
again with the same directory it goes on. Prints what was agreed on, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from ipos.identity import keys
from ipos.identity.typed import RunKey
from ipos.pool import quorum, replicate
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.testing import spin


async def main() -> None:
    directory, rounds, mark_every, every_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    store = MemoryStore()
    key = RunKey(keys.load(directory / "run.key") or keys.create(directory / "run.key"))
    replication = replicate.Replication(
        directory=directory / "replicas", task=spin.task(store, rounds, mark_every), store=store, key=key, every_s=every_s,
        policy=quorum.Policy(seats=3, faults=1000, spares=1000, apart=replicate.LOCAL),
    )  # fmt: skip
    agreed = await replication.run()
    segments = [len(chain.segments) for chain in replication.book.chains.values()]
    sums = [sum(part.end - part.begin for part in replication.book.chains[id].segments) for id in agreed.winners]
    found = {
        "root": agreed.ending.root, "work": agreed.ending.work, "marks": agreed.marks, "sums": sums, "segments": segments,
        "stdout": unixfs.read(store, agreed.ending.stdout).decode(), "moved": len(agreed.moved),
        "winners": len(agreed.winners), "liars": len(agreed.exposed) + len(agreed.verdicts),
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
