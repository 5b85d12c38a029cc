"""Three workers, one liar: the same Python task three times, in three processes with a store and a key each. One worker is killed with kill -9 in the
middle, and a fourth goes on from its save; another flips one bit of the program's memory. The majority's result is taken, the liar's first
wrong mark is named, that interval is re-executed, and the verdict is printed. Every step that did not happen is a failure.

`run` is what `make demo` calls; `python examples/replicas.py` does it alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ipos.identity import keys
from ipos.identity.typed import RunKey
from ipos.pool import data, quorum, replicate, verdict
from ipos.pool import handover as h
from ipos.pool.image import python_image
from ipos.pool.records import EngineRun, Task
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.testing import cheats
from ipos.vm.version import platform
from ipos.wire.record import decode, encode

SCRIPT = Path(__file__).with_name("bootstrap.py")
ROUNDS = "1400"
MARK_EVERY = 50_000_000
SAVE_S = 0.5
VICTIM, LIAR = 2, 3  # workers, by number; the others are honest
MOST_S = 120.0
PRINTED = "precipitation: mean"

Say = Callable[[str], None]


class Failed(Exception):
    pass


def need(happened: object, what: str) -> None:
    if not happened:
        raise Failed(what)


def table() -> bytes:
    """Real data that the PyPI package vega_datasets ships."""
    import vega_datasets

    return (Path(vega_datasets.__file__).parent / "_data" / "seattle-weather.csv").read_bytes()


def task(store: MemoryStore, image: Path, rounds: str = ROUNDS) -> bytes:
    """CID of the task: bootstrap.py over the table, on CPython in the engine; all that it names is in the store."""
    run = EngineRun(engine=platform()[5:], mark_every=MARK_EVERY)
    env, body = data.record_block(run)
    script = unixfs.add_bytes(store, SCRIPT.read_bytes())
    record = Task(
        program=unixfs.add_file(store, image)[0], name=image.name, args=(SCRIPT.name, rounds), environment=env,
        stdin=unixfs.add_bytes(store, table()), files={SCRIPT.name: script}, platform=platform(),
    )  # fmt: skip
    cid, block = data.record_block(record)
    store.put([(env, body), (cid, block)])
    return cid


async def strike(replication: replicate.Replication, say: Say) -> None:
    """kill -9 of one worker, when a keeper has a save of it."""
    book = replication.book
    while True:
        await asyncio.sleep(0.02)
        node = next((node for node, number in book.workers.items() if number == VICTIM), "")
        chain = next((each for each in book.chains.values() if getattr(each, "node", "") == node), None)
        if chain is None or chain.signed is None or chain.signed.work < 2 * MARK_EVERY:
            continue
        seat = book.quorum.seat(chain.seat)
        need(seat is not None and not seat.commitment, "the worker had finished before it could be killed")
        os.kill(replication.bench.seated[node].pid, signal.SIGKILL)
        say(f"kill -9 of worker {VICTIM} in mid-run; a keeper has its save at {chain.signed.work / 1e9:.2f} Gop")
        return


async def replicas(scratch: Path, say: Say) -> replicate.Agreement:
    store = MemoryStore()
    image = await python_image(scratch / "images", say)
    key = RunKey(keys.create(scratch / "run.key"))
    seed = random.randrange(1 << 32)
    replication = replicate.Replication(
        directory=scratch / "replicas", task=task(store, image), store=store, key=key,
        policy=quorum.Policy(seats=3, most=3, apart=replicate.LOCAL), command=cheats.among({LIAR: ("flip", seed)}), every_s=SAVE_S,
        say=say,
    )  # fmt: skip
    say(f"three workers run {SCRIPT.name} on CPython in the engine; one of them lies (seed {seed})")
    killing = asyncio.create_task(strike(replication, say))
    try:
        async with asyncio.timeout(MOST_S):
            agreed = await replication.run()
    finally:
        killing.cancel()
        outcome = (await asyncio.gather(killing, return_exceptions=True))[0]
    need(outcome is None, f"no worker was killed: {outcome}")
    check(agreed, replication, key.address)
    printed = unixfs.read(store, agreed.ending.stdout).decode()
    need(PRINTED in printed, f"the program printed {printed[:200]!r}")
    say(
        f"two of three agree: {agreed.ending.work / 1e9:.2f} Gop, {len(agreed.marks)} marks, root {agreed.ending.root[:16]}"
    )
    say(printed.splitlines()[0])
    return agreed


def check(agreed: replicate.Agreement, replication: replicate.Replication, address: str) -> None:
    """That each step happened."""
    chains: dict[str, h.Chain] = dict(replication.book.chains)
    need(agreed.ending.exit == 0 and not agreed.ending.killed, f"the program ended with {agreed.ending.exit}")
    number = {node: int(name.split()[-1]) for node, name in agreed.names.items() if name.startswith("worker")}
    moved = [chain for chain in chains.values() if len({part.node for part in chain.segments}) > 1]
    need(len(moved) == 1, f"{len(moved)} seats changed hands, one should have")
    first = moved[0].segments[0]
    second = next(part for part in moved[0].segments if part.node != first.node)
    need(number[first.node] == VICTIM, "another worker's save was gone on from")
    need(replication.began.get(second.node) == second.begin > 0, "the fourth worker began again")
    need(agreed.credits.get(first.node, 0) > 0, "the killed worker is not credited for what a keeper signed for")
    need(
        sum(part.end - part.begin for part in moved[0].segments) == agreed.ending.work,
        "the segments do not sum to the whole",
    )
    need(moved[0].seat in agreed.winners, "the seat that moved does not agree")
    need(len(agreed.winners) == 2, f"{len(agreed.winners)} of three agree")
    need(len(agreed.verdicts) == 1, f"{len(agreed.verdicts)} verdicts")
    found = agreed.verdicts[0]
    verdict.check(found, address)
    need(decode(verdict.Verdict, encode(found)) == found, "the verdict is no record")
    need([number[lie.node] for lie in found.liars] == [LIAR], "the verdict names somebody else")
    need(
        found.mark > 1 and found.right.root == agreed.marks[found.mark - 1][1],
        "the verdict's mark is not the majority's",
    )
    need(found.liars[0].claimed.root != found.right.root, "the liar said what is right")
    need(found.work < agreed.ending.work / 2, "the judge re-executed more than an interval")


def ipos(home: Path, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("ipos")), *arguments]
    environment = {**os.environ, "IPOS_HOME": str(home)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=MOST_S, stdin=subprocess.DEVNULL, check=False
    )
    need(done.returncode == 0, f"ipos {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def receipt(scratch: Path, root: str, say: Say) -> None:
    """The same task on a node, which has to come to the same root and signs for it; a home in which nothing is judges that."""
    home, file, stdin = scratch / "home", scratch / "receipt.car", scratch / "weather.csv"
    stdin.write_bytes(table())
    image, script = scratch / "images" / "python-3.12.wasm", scratch / "script"
    script.mkdir()
    shutil.copy(SCRIPT, script)
    ipos(home, "up", "--listen", "local")
    try:
        every = f"{MARK_EVERY / 1e9:g}"
        asked = ("--mark-every", every, "--stdin", str(stdin), "--root", str(script), str(image), SCRIPT.name, ROUNDS)
        ran = json.loads(ipos(home, "run", "--wasm", "--json", *asked))
        need(ran["root"] == root, f"a node came to root {ran['root']}, the replicas to {root}")
        ipos(home, "receipt", str(ran["job"]), "-o", str(file))
    finally:
        ipos(home, "down")
    said = ipos(scratch / "nothing", "verify", str(file))
    say(
        f"a node came to the same root and signed a receipt ({file.stat().st_size / (1 << 20):.1f} MiB); in an empty home:"
    )
    say(f"ipos verify: {said.strip().splitlines()[-1][:200]}")


def run(scratch: Path, say: Say) -> None:
    """Raises if any step did not happen. `scratch`: an empty directory."""
    agreed = asyncio.run(replicas(scratch, say))
    found = agreed.verdicts[0]
    say(f"verdict {c.text(verdict.cid_of(found))}:")
    for sentence in agreed.told():
        say(sentence)
    seats, winners = agreed.seats, len(agreed.winners)
    say(f"extra work {agreed.extra:.0%}; {verdict.assumed(seats, winners)}: {verdict.left(seats, winners):.2%}")
    receipt(scratch, agreed.ending.root, say)


def main() -> int:
    scratch = Path(tempfile.mkdtemp(prefix="ipos-replicas-"))
    try:
        run(scratch, lambda words: print(f"  {words}", flush=True))
    except (Failed, OSError, TimeoutError) as error:
        print(f"replicas failed: {error or type(error).__name__}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
