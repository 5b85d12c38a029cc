"""The engine's worker: from asking for a task to its first instruction, tasks a second on one core, what saving costs. No node."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import wasmtime

from ipos.vm import plan
from ipos.vm.client import Workers
from ipos.vm.plan import Plan
from ipos.vm.process import Places

TASKS = 60
NOTHING = """(module (memory (export "memory") 1) (func (export "_start")))"""
DIRTY = """(module (memory (export "memory") 1024) (func (export "_start") (local $i i32) (local $x i32)
  (loop (local.set $x (i32.add (i32.mul (local.get $x) (i32.const 1664525)) (i32.const 1013904223)))
    (i32.store (i32.and (local.get $x) (i32.const {mask})) (local.get $x))
    (br_if 0 (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 2000000000))))))"""


def places(at: Path, name: str) -> Places:
    where = at / name
    for part in ("root", "out", "saves"):
        (where / part).mkdir(parents=True)
    return Places(where / "root", where / "out", where / "saves", where / "stdout", where / "stderr")


def interpreter() -> float:
    """Seconds that a process of its own, which loads the engine, would take before it can begin."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-c", "import wasmtime, ipos.vm.worker"], check=True)
    return time.perf_counter() - began


async def starts(workers: Workers, at: Path) -> None:
    program = at / "nothing.wasm"
    program.write_bytes(bytes(wasmtime.wat2wasm(NOTHING)))
    await (await workers.start(Plan(task="first"), places(at, "first"), program)).ended  # compiled, parent warm
    begins: list[float] = []
    wholes: list[float] = []
    cpu: list[float] = []
    for i in range(TASKS):
        where = places(at, f"t{i}")
        began = time.perf_counter()

        def on(event: plan.Event, began: float = began) -> None:
            if isinstance(event, plan.Began):
                begins.append(time.perf_counter() - began)

        ended = await (await workers.start(Plan(task=f"t{i}"), where, program, on)).ended
        assert (ended.report.exit, ended.report.fault) == (0, "")
        wholes.append(time.perf_counter() - began)
        cpu.append(ended.cpu_s)
    print(f"worker: start of a task to its first instruction {1000 * statistics.median(begins):.1f} ms (a new interpreter that loads the engine: {1000 * await asyncio.to_thread(interpreter):.0f} ms)")  # fmt: skip
    print(f"worker: whole task that does nothing {1000 * statistics.median(wholes):.1f} ms, {1 / statistics.mean(wholes):.0f} tasks a second, one after the other; its process used {1000 * statistics.median(cpu):.1f} ms of CPU")  # fmt: skip


async def saves(workers: Workers, at: Path, dirty: int) -> None:
    program = at / f"dirty{dirty}.wasm"
    program.write_bytes(bytes(wasmtime.wat2wasm(DIRTY.format(mask=dirty - 4))))
    said: list[plan.Saved] = []
    enough = asyncio.Event()

    def on(event: plan.Event) -> None:
        if isinstance(event, plan.Saved):
            said.append(event)
        if len(said) == 3 or isinstance(event, plan.Over):
            enough.set()

    worker = await workers.start(Plan(task=f"d{dirty}", every_s=0.5), places(at, f"d{dirty}"), program, on)
    await enough.wait()
    worker.kill()
    await worker.ended
    last = said[-1]
    print(f"worker: {dirty >> 20} MiB dirty of 64: a save writes {last.bytes / 1e6:.1f} MB in {1000 * last.took_s:.0f} ms; with 0.5 s asked the next comes after {last.next_s:.1f} s")  # fmt: skip


async def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        async with Workers(cache=at / "cache") as workers:
            await starts(workers, at)
            for dirty in (1 << 20, 16 << 20, 64 << 20):
                await saves(workers, at, dirty)


if __name__ == "__main__":
    asyncio.run(main())
