"""Replicas in processes of their own: they agree, they are killed, they lie. Every liar here is a real one (`ipos.testing.cheats`)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipos.identity import keys
from ipos.identity.typed import RunKey
from ipos.pool import handover as h
from ipos.pool import quorum as q
from ipos.pool import replicate, verdict
from ipos.pool.seatrun import Engine
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.testing import cheats, spin
from ipos.vm import engine
from ipos.wire.errors import BadRecord, Refused

pytestmark = pytest.mark.real

ROUNDS, MARK_EVERY = 12_000_000, 5_000_000
LONG = 300_000_000
MOST_S = 120.0
MAIN = Path(__file__).with_name("replicas_main.py")


@cache
def alone(rounds: int, mark_every: int, root: Path) -> tuple[str, int, tuple[Any, ...], str]:
    """Root, work, marks and output of one run that nobody disturbs."""
    found: list[tuple[str, int, tuple[Any, ...], str]] = []

    def run() -> None:
        store = MemoryStore()
        one = Engine(store, spin.task(store, rounds, mark_every), root / "alone")
        while (ending := one.ending()) is None:
            one.runner.step()
        found.append((ending.root, ending.work, one.marks, unixfs.read(store, ending.stdout).decode()))
        one.close()

    threading.stack_size(engine.THREAD_STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    threading.stack_size(0)
    thread.join()
    return found[0]


class Ran:
    """One replication from its start to its end."""

    def __init__(
        self, root: Path, rounds: int = ROUNDS, liars: dict[int, tuple[str, int]] | None = None, **policy: Any
    ) -> None:
        self.root, self.rounds, self.liars = root, rounds, liars or {}
        self.policy = q.Policy(**{"seats": 3, "apart": replicate.LOCAL, **policy})
        self.said: list[str] = []
        self.key = RunKey(keys.create(root / "run.key"))
        self.store = MemoryStore()

    def run(
        self, meddle: Callable[[replicate.Replication], Any] | None = None, every_s: float = 0.1
    ) -> replicate.Agreement:
        async def go() -> replicate.Agreement:
            replication = replicate.Replication(
                directory=self.root / "replicas", task=spin.task(self.store, self.rounds, MARK_EVERY), store=self.store,
                key=self.key, policy=self.policy, command=cheats.among(self.liars), every_s=every_s, say=self.said.append,
                grace_s=15.0,
            )  # fmt: skip
            self.book = replication.book
            meddling = asyncio.create_task(meddle(replication)) if meddle is not None else None
            async with asyncio.timeout(MOST_S):
                agreed = await replication.run()
            if meddling is not None:
                assert meddling.done(), "it ended before it was meddled with"
                meddling.result()
            return agreed

        agreed = asyncio.run(go())
        root, work, marks, printed = alone(self.rounds, MARK_EVERY, self.root)
        assert (agreed.ending.root, agreed.ending.work, agreed.marks) == (root, work, marks)
        assert unixfs.read(self.store, agreed.ending.stdout).decode() == printed
        assert not list((self.root / "replicas").glob("*/*/run.key")), "homes were left behind"
        for id in agreed.winners:
            assert sum(part.end - part.begin for part in self.book.chains[id].segments) == work
        for found in agreed.verdicts:
            verdict.check(found, self.key.address)
        return agreed

    def named(self, agreed: replicate.Agreement) -> dict[int, int]:
        """Liars that a judge found: worker -> mark."""
        return {int(agreed.names[lie.node].split()[-1]): found.mark for found in agreed.verdicts for lie in found.liars}


async def until(condition: Callable[[], Any]) -> Any:
    while not (found := condition()):
        await asyncio.sleep(0.01)
    return found


def chain_of(replication: replicate.Replication, number: int) -> h.Chain | None:
    node = next((node for node, n in replication.book.workers.items() if n == number), "")
    return next((each for each in replication.book.chains.values() if getattr(each, "node", "") == node), None)


def at_work(replication: replicate.Replication, number: int) -> h.Chain | None:
    """The chain of this worker when it has said how far it is."""
    chain = chain_of(replication, number)
    return chain if chain is not None and replication.progress.get(chain.seat, (0, 0))[0] > 0 else None


def safe(replication: replicate.Replication, number: int) -> bool:
    chain = chain_of(replication, number)
    return chain is not None and chain.signed is not None


def test_a_killed_worker_is_followed_by_one_that_goes_on_from_its_save(tmp_path: Path) -> None:
    async def kill(replication: replicate.Replication) -> None:
        await until(lambda: safe(replication, 2))
        node = next(node for node, n in replication.book.workers.items() if n == 2)
        os.kill(replication.bench.seated[node].pid, signal.SIGKILL)

    ran = Ran(tmp_path, LONG)
    agreed = ran.run(kill)
    assert len(agreed.winners) == 3
    assert not agreed.verdicts
    assert len(agreed.moved) == 1
    assert agreed.moved[0].startswith("worker 4 goes on with seat ")
    moved = next(chain for chain in ran.book.chains.values() if len({part.node for part in chain.segments}) > 1)
    assert moved.segments[-1].begin > 0
    assert agreed.extra == pytest.approx(2.0), "what a keeper had signed for was computed again"


def test_who_leaves_gracefully_loses_nothing(tmp_path: Path) -> None:
    at: list[int] = []

    async def leave(replication: replicate.Replication) -> None:
        chain = await until(lambda: at_work(replication, 1))
        replication.leave(chain.seat)
        await until(lambda: any("hands over" in words for words in ran.said))
        at.append(replication.book.chains[chain.seat].safe)

    ran = Ran(tmp_path, LONG)
    agreed = ran.run(leave, every_s=3600.0)
    assert len(agreed.moved) == 1
    assert at[0] > 0, "it had computed nothing yet"
    assert agreed.extra == pytest.approx(2.0)


def test_a_flipped_bit_and_a_forged_mark_are_found(tmp_path: Path) -> None:
    ran = Ran(tmp_path, liars={2: ("flip", 5), 4: ("forge", 6)}, seats=5)
    agreed = ran.run()
    assert len(agreed.winners) == 3
    named = ran.named(agreed)
    assert sorted(named) == [2, 4]
    assert named[2] in range(3, 9), "the flip came after 2 to 5 marks"
    assert all(found.since + found.work == found.right.work for found in agreed.verdicts), "it ran on beyond the step"


def test_who_ends_early_and_who_overstates_is_found(tmp_path: Path) -> None:
    ran = Ran(tmp_path, liars={1: ("end-early", 5), 5: ("overstate", 6)}, seats=5)
    agreed = ran.run()
    named = ran.named(agreed)
    assert sorted(named) == [1, 5]
    assert named[5] == len(agreed.marks) + 1, "all its marks are right, its end is not"
    assert named[1] < named[5]


def test_two_that_plan_together_are_the_majority_and_are_not_believed(tmp_path: Path) -> None:
    ran = Ran(tmp_path, liars={1: ("collude", 5), 3: ("collude", 5)})
    agreed = ran.run()
    assert sorted(ran.named(agreed)) == [1, 3]
    assert agreed.seats == 5
    assert len(agreed.winners) == 3


def test_who_copies_opens_nothing_and_who_is_silent_is_replaced(tmp_path: Path) -> None:
    ran = Ran(tmp_path, liars={1: ("copy", 1), 2: ("mute", 2)}, seats=4, reveal_s=4.0)
    agreed = ran.run()
    copier = next(seat for seat in ran.book.quorum.seats if seat.worker is not None and seat.worker.machine == "1")
    silent = next(seat for seat in ran.book.quorum.seats if seat.worker is not None and seat.worker.machine == "2")
    assert agreed.exposed[copier.id].endswith("lied: what it opened is not what it had committed to")
    assert silent.id not in agreed.exposed, "silence is no lie"
    assert silent.out == "silent: it did not open within 4 s"
    assert not {copier.id, silent.id} & set(agreed.winners)
    known = msgspec.json.encode(ran.book).decode()
    assert not [kind for kind in cheats.KINDS if kind in known], "a coordinator knows what a worker is by its name"
    assert set(agreed.credits) == {
        seat.worker.node for seat in ran.book.quorum.seats if seat.id in agreed.winners and seat.worker
    }


@pytest.mark.slow
def test_who_withholds_its_saves_is_credited_for_nothing_when_it_is_lost(tmp_path: Path) -> None:
    async def kill(replication: replicate.Replication) -> None:
        await until(lambda: safe(replication, 1) and safe(replication, 3))
        node = next(node for node, n in replication.book.workers.items() if n == 2)
        os.kill(replication.bench.seated[node].pid, signal.SIGKILL)

    ran = Ran(tmp_path, LONG, liars={2: ("withhold", 1)})
    agreed = ran.run(kill)
    withholder = next(node for node, name in agreed.names.items() if name == "worker 2")
    assert withholder not in agreed.credits
    assert not agreed.moved


def test_no_majority_is_a_refusal_that_says_so(tmp_path: Path) -> None:
    ran = Ran(tmp_path, liars={1: ("flip", 1), 2: ("flip", 2), 3: ("flip", 3)}, most=3)
    with pytest.raises(Refused, match="3 seats came to 3 results and no majority; the most seats are 3"):
        ran.run()


# ---- kill -9 of anything


def processes(directory: Path) -> list[int]:
    """Of the workers in it."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"ipos.pool.seat" in command and any(str(directory).encode() in word for word in command):
                found.append(int(entry.name))
    return found


def storm(tmp_path: Path, kills: int, seed: int, rounds: int) -> Counter[str]:
    """Kill workers, keepers, judges and coordinators at random until so many were killed; each run must end as if nothing had been."""
    dice, struck = random.Random(seed), Counter[str]()
    root, work, marks, printed = alone(rounds, MARK_EVERY, tmp_path)
    while struck["worker"] + struck["coordinator"] < kills:
        directory = tmp_path / f"run{struck['run']}"
        directory.mkdir()
        struck["run"] += 1
        command = [sys.executable, str(MAIN), str(directory), str(rounds), str(MARK_EVERY), "0.1"]
        left = dice.randrange(*((2, 5) if kills < 20 else (6, 16)))
        while True:
            with (directory / "errors").open("a") as errors:
                main = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            deadline = time.monotonic() + MOST_S
            alive = True
            while alive and left and main.poll() is None:
                time.sleep(dice.uniform(0.05, 0.8))
                workers = processes(directory)
                if not workers and time.monotonic() < deadline:
                    continue  # it has not begun
                if dice.random() < 0.35 and main.poll() is None:
                    main.kill()
                    struck["coordinator"] += 1
                    alive = False
                elif workers:
                    try:
                        os.kill(dice.choice(workers), signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    struck["worker"] += 1
                left -= 1
            out, _ = main.communicate(timeout=max(1.0, deadline - time.monotonic()))
            if alive:
                break
        assert main.returncode == 0, (seed, struck, (directory / "errors").read_text()[-2000:])
        found = json.loads(out)
        assert (found["root"], found["work"], found["stdout"]) == (root, work, printed), (seed, struck)
        assert [tuple(mark) for mark in found["marks"]] == list(marks), (seed, struck)
        assert found["sums"] == [work] * found["winners"], (seed, struck, "work does not add up")
        assert found["liars"] == 0, (seed, struck, "an honest worker was called a liar")
        struck["moved"] += found["moved"]
        print(dict(struck), flush=True)
        for _ in range(200):
            if not processes(directory):
                break
            time.sleep(0.05)
        assert not processes(directory), "workers outlive their coordinator"
    return struck


def test_a_few_kills_of_workers_and_coordinator(tmp_path: Path) -> None:
    storm(tmp_path, 4, 7, LONG)


@pytest.mark.slow
def test_a_hundred_kills_of_workers_and_coordinator(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    struck = storm(tmp_path, 100, seed, 200_000_000)
    print(
        f"{struck['worker']} kills of workers, keepers and judges, {struck['coordinator']} of coordinators, in {struck['run']} runs; "
        f"seats went on {struck['moved']} times from a save of a killed worker; every run ended with the same root, marks, output"
    )
    assert struck["worker"] > 20
    assert struck["coordinator"] > 20
    assert struck["moved"] > 0


# ---- bad input


def test_what_is_no_message_is_refused() -> None:
    from ipos.pool import pipe
    from ipos.store import cid as c

    with pytest.raises(BadRecord, match="not JSON"):
        pipe.parse(b"{")
    with pytest.raises(BadRecord, match="not an object"):
        pipe.parse(b"[]")
    with pytest.raises(BadRecord, match="a size that is not between"):
        pipe.sizes({"blocks": [-1], "cids": ["x"]})
    with pytest.raises(BadRecord, match="not one CID for each"):
        pipe.sizes({"blocks": [1], "cids": []})
    with pytest.raises(BadRecord, match="came with other bytes"):
        pipe.named({"cids": [c.text(c.of_raw(b"a"))]}, [b"b"])
