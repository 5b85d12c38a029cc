"""`kill -9` of the engine's worker, also in the middle of a save: started again it goes on from its last save and ends as if nothing had been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from ipos.vm.plan import Plan, Report
from ipos.vm.save import RECORD, Head, Saves
from ipos.vm.version import cache_root

from .programs import HERE
from .programs_tasks import TASKS

LINES = b"".join(b"%d\n" % i for i in range(30))
BATCH = (HERE / "programs/sqlite/batch.sql").read_bytes()
KILLS = 100
NO_HEAD = "after the leaves, before the head"


@dataclass
class Worker:
    """One task in `folder`, as the node starts it: a process, its input root, its streams, its saves."""

    name: str
    folder: Path
    every_s: float

    def __post_init__(self) -> None:
        (self.folder / "cwd").mkdir(parents=True)
        (self.folder / "saves").mkdir()
        given = {"lua": ("lua/bench.lua", "bench.lua"), "python": ("job.py", "job.py")}
        task = TASKS[self.name]
        if self.name in given:
            source, to = given[self.name]
            shutil.copy(HERE / "programs" / source, self.folder / "cwd" / to)
        if self.name == "sqlite":
            (self.folder / "cwd/batch.sql").write_bytes((BATCH + b"drop table t;\n") * 6)
        program = self.folder / "program.wasm"
        program.write_bytes(task.program())
        (self.folder / "stdin").write_bytes(LINES)
        plan = Plan(
            task=self.name, program=str(program), args=(self.name, *(("3000000",) if self.name == "qsort" else task.args)),
            env={}, seed="07" * 32, cwd=str(self.folder / "cwd"), saves=str(self.saves), report=str(self.folder / "report"),
            cache=str(cache_root()), memory_bytes=256 << 20, output_bytes=1 << 20, work=0, mark_every=20_000_000,
            every_s=self.every_s,
        )  # fmt: skip
        (self.folder / "plan.json").write_bytes(msgspec.json.encode(plan))

    @property
    def saves(self) -> Path:
        return self.folder / "saves"

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-m", "ipos.vm.worker", str(self.folder / "plan.json")]
        with (
            (self.folder / "stdin").open("rb") as stdin,
            (self.folder / "stdout").open("wb") as out,
            (self.folder / "stderr").open("wb") as err,
        ):
            return subprocess.Popen(command, stdin=stdin, stdout=out, stderr=err)

    def ended(self) -> tuple[Report, dict[str, bytes]]:
        """The report, and all that it printed and left."""
        report = msgspec.json.decode((self.folder / "report").read_bytes(), type=Report)
        left = {str(path.relative_to(self.folder)): path.read_bytes() for path in (self.folder / "cwd").rglob("*")}
        return report, {**left, **{which: (self.folder / which).read_bytes() for which in ("stdout", "stderr")}}

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


def strike(worker: Worker, process: subprocess.Popen[bytes], among: random.Random, long_s: float) -> bool:
    """Kill it at a random moment, or a little after a save was seen to begin; False: it ended before."""
    leaves = worker.saves / "leaves"

    def grown() -> int:
        return leaves.stat().st_size if leaves.exists() else 0

    def wait(seconds: float, size: int = -1) -> None:
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until and (size < 0 or grown() == size):
            time.sleep(0.0002)

    wait(among.uniform(0.05, 0.9 * long_s))
    if among.random() < 0.6:
        wait(long_s, grown())
        wait(among.uniform(0, 0.004))
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    among = random.Random(seed)
    where: Counter[str] = Counter()
    kills = runs = lives = idle = 0
    names = ("lua", "sqlite", "python", "qsort")
    whole: dict[str, tuple[Report, dict[str, bytes]]] = {}
    long_s: dict[str, float] = {}
    for name in names:
        worker, began = Worker(name, tmp_path / f"{name}-whole", 3600), time.monotonic()
        assert worker.start().wait() == 0
        whole[name], long_s[name] = worker.ended(), time.monotonic() - began
        assert (whole[name][0].fault, whole[name][0].killed, whole[name][0].resumed_at) == ("", "", 0)
        assert whole[name][0].exit == TASKS[name].exit, whole[name]
        assert whole[name][0].marks
        assert whole[name][1]["stdout"]
    while kills < KILLS:
        name, runs = names[runs % len(names)], runs + 1
        worker, last = Worker(name, tmp_path / f"{name}-{runs}", among.choice((0.02, 0.1, 0.3))), 0
        for _ in range(among.randrange(3, 9)):
            process, lives = worker.start(), lives + 1
            if not strike(worker, process, among, long_s[name]):
                break
            kills += 1
            head = worker.newest()
            saved = head.work if head is not None else 0
            assert saved >= last, (seed, name, runs)
            where[worker.struck(head)] += 1
            idle += saved == last
            last = saved
        else:
            process, lives = worker.start(), lives + 1
        assert process.wait() == 0, (seed, (worker.folder / "stderr").read_bytes())
        report, left = worker.ended()
        expected, files = whole[name]
        assert report.resumed_at >= last, (seed, name, runs)
        assert msgspec.structs.replace(report, resumed_at=0) == expected, (seed, name, runs)
        assert left == files, (seed, name, runs)
        shutil.rmtree(worker.folder)
    print(f"{kills} kills in {runs} runs ({lives} processes), all ended with the same bytes, work, root and marks")
    print(f"where they struck: {dict(where)}; {idle} of them before anything new was saved")
    assert kills - where["between saves"] >= 5, "too few struck in the middle of a save to prove anything"
