"""`kill -9` of the engine's worker, or of its warm parent, also in the middle of a save: the next one goes on from the last save and ends as if nothing
had been."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from ipos.vm.client import Workers
from ipos.vm.plan import Plan
from ipos.vm.process import Ended, Places, Worker
from ipos.vm.save import RECORD, Head, Saves

from .programs import HERE
from .programs_tasks import TASKS

pytestmark = pytest.mark.real

LINES = b"".join(b"%d\n" % i for i in range(30))
BATCH = (HERE / "programs/sqlite/batch.sql").read_bytes()
NO_HEAD = "after the leaves, before the head"
Left = dict[str, bytes]


@dataclass
class Run:
    """One task in `folder`: its input root, its streams, its saves, and worker after worker."""

    name: str
    folder: Path
    every_s: float
    sorts: str = "3000000"

    def __post_init__(self) -> None:
        for part in ("root", "saves", "out"):
            (self.folder / part).mkdir(parents=True)
        given = {"lua": ("lua/bench.lua", "bench.lua"), "python": ("job.py", "job.py")}
        if self.name in given:
            source, to = given[self.name]
            shutil.copy(HERE / "programs" / source, self.folder / "root" / to)
        if self.name == "sqlite":
            (self.folder / "root/batch.sql").write_bytes((BATCH + b"drop table t;\n") * 6)
        (self.folder / "program.wasm").write_bytes(TASKS[self.name].program())
        (self.folder / "stdin").write_bytes(LINES)

    @property
    def saves(self) -> Path:
        return self.folder / "saves"

    async def start(self, workers: Workers) -> Worker:
        args = (self.sorts,) if self.name == "qsort" else TASKS[self.name].args
        plan = Plan(
            task=self.name, args=(self.name, *args), seed="07" * 32, output_bytes=1 << 20, mark_every=20_000_000,
            every_s=self.every_s,
        )  # fmt: skip
        at = self.folder
        places = Places(at / "root", at / "out", self.saves, at / "stdout", at / "stderr", at / "stdin")
        return await workers.start(plan, places, at / "program.wasm")

    def left(self) -> Left:
        """All that it printed and made."""
        made = {str(path.relative_to(self.folder)): path.read_bytes() for path in (self.folder / "out").rglob("*")}
        return {**made, **{which: (self.folder / which).read_bytes() for which in ("stdout", "stderr")}}

    def newest(self) -> Head | None:
        """The newest save's head; every leaf of it is verified, and the output that belongs to it is there. Looks at a copy, for who opens
        a save also mends it."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.saves, copy)
        saves = Saves(copy, sync=False)
        try:
            head = saves.head()
            if head is not None:
                assert saves.parts(head).memory
                for which, count in zip(("stdout", "stderr"), head.written, strict=True):
                    assert (copy / which).stat().st_size >= count
            return head
        finally:
            saves.close()

    def struck(self, head: Head | None) -> str:
        """Where the kill struck, by what it left."""
        if (self.saves / "head.new").exists():
            return "before the head was renamed"
        if (self.saves / "leaves.new").exists():
            return "while the leaves were written anew"
        leaves = self.saves / "leaves"
        body, at, name = leaves.read_bytes() if leaves.exists() else b"", 0, b""
        while at + RECORD.size <= len(body):
            name, length = RECORD.unpack_from(body, at)
            at += RECORD.size + length
        if at != len(body):
            return "in the middle of the leaves"
        alive = head.leaves if head is not None else b""
        return "between saves" if name in {alive[i : i + 32] for i in range(0, len(alive), 32)} | {b""} else NO_HEAD


async def strike(run: Run, worker: Worker, parent: int | None, among: random.Random, long_s: float) -> bool:
    """Kill it, or its parent, at a random moment, or a little after a save was seen to begin; False: it ended before."""
    leaves = run.saves / "leaves"

    def grown() -> int:
        return leaves.stat().st_size if leaves.exists() else 0

    async def wait(seconds: float, size: int = -1) -> None:
        until = time.monotonic() + seconds
        while not worker.ended.done() and time.monotonic() < until and (size < 0 or grown() == size):
            await asyncio.sleep(0.0002)

    await wait(among.uniform(0.05, 0.9 * long_s))
    if among.random() < 0.6:
        await wait(long_s, grown())
        await wait(among.uniform(0, 0.004))
    if worker.ended.done() or worker.pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(parent or worker.pid, signal.SIGKILL)
    ended = await worker.ended
    return ended.silent and ended.code == -signal.SIGKILL


def same(ended: Ended, expected: Ended) -> bool:
    return (msgspec.structs.replace(ended.report, resumed_at=0), ended.marks) == (expected.report, expected.marks)


def kill(tmp_path: Path, names: tuple[str, ...], count: int, sorts: str) -> Counter[str]:
    for name in names:
        TASKS[name].program()  # made before, for some have a loop of their own
    return asyncio.run(_kill(tmp_path, names, count, sorts))


async def _kill(tmp_path: Path, names: tuple[str, ...], count: int, sorts: str) -> Counter[str]:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    among = random.Random(seed)
    where: Counter[str] = Counter()
    kills = runs = lives = idle = parents = 0
    async with Workers() as workers:
        whole: dict[str, tuple[Ended, Left]] = {}
        long_s: dict[str, float] = {}
        for name in names:
            run = Run(name, tmp_path / f"{name}-whole", 3600, sorts)
            await workers.compile(run.folder / "program.wasm")
            began = time.monotonic()
            ended = await (await run.start(workers)).ended
            whole[name], long_s[name] = (ended, run.left()), time.monotonic() - began
            assert ended.report == msgspec.structs.replace(
                ended.report, exit=TASKS[name].exit, killed="", fault="", resumed_at=0, note=""
            )
            assert ended.marks
            assert whole[name][1]["stdout"]
        while kills < count:
            name, runs = names[runs % len(names)], runs + 1
            run, last, alive = Run(name, tmp_path / f"{name}-{runs}", among.choice((0.02, 0.1, 0.3)), sorts), 0, True
            for _ in range(among.randrange(3, 9)):
                worker, lives = await run.start(workers), lives + 1
                parent = workers.pid if among.random() < 0.3 else None
                if not await strike(run, worker, parent, among, long_s[name]):
                    alive = False
                    break
                kills, parents = kills + 1, parents + (parent is not None)
                head = run.newest()
                saved = head.work if head is not None else 0
                said = worker.saved.work if worker.saved is not None else 0
                assert saved >= max(last, said), (seed, name, runs)  # what it said is saved, is
                where[run.struck(head)] += 1
                idle += saved == last
                last = saved
            if alive:
                worker, lives = await run.start(workers), lives + 1
            ended, (expected, files) = await worker.ended, whole[name]
            assert ended.code == 0, (seed, ended)
            assert ended.report.resumed_at >= last, (seed, name, runs)
            assert same(ended, expected), (seed, name, runs, ended)
            assert run.left() == files, (seed, name, runs)
            shutil.rmtree(run.folder)
        print(
            f"{kills} kills ({parents} of the parent, started {workers.starts} times) in {runs} runs ({lives} workers)"
        )
        assert workers.starts == parents + 1
    print("all ended with the same bytes, work, root and marks")
    print(f"where they struck: {dict(where)}; {idle} of them before anything new was saved")
    return where


def test_a_few_kills_lose_nothing(tmp_path: Path) -> None:
    kill(tmp_path, ("qsort",), 5, "700000")


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    where = kill(tmp_path, ("lua", "sqlite", "python", "qsort"), 100, "3000000")
    assert where.total() - where["between saves"] >= 5, "too few struck in the middle of a save to prove anything"
