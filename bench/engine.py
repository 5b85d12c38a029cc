"""The engine's table of docs/performance.md: every program plain, in the engine and native; stops, saves, calls of the WASI.

    .venv/bin/python -m bench.engine [NAME...]     (some ten minutes, most of them compiling; NAME: only these programs)

Variants take turns, the CPU time of the thread counts, the best of each is taken: other work on the machine slows all of them.
"""

from __future__ import annotations

import datetime
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import wasmtime

from bench.workloads import HERE, Workload, in_engine, on_large_stack, plain, started, workloads
from ipos.vm import engine
from ipos.vm.instrument import NO_DEPTH, NO_NAN, instrument
from ipos.vm.runner import Runner, Spec
from ipos.vm.save import Saves
from ipos.vm.wasi.boot import Boot
from tests.vm.programs import wat

ROUNDS = 4
MIB = 1 << 20
WASI = (files("ipos.vm") / "ipwasi.wasm").read_bytes()


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


# ---- programs


class Built:
    """A program compiled in its variants, with what each took; made once for all workloads that share it."""

    def __init__(self, program: bytes) -> None:
        began = time.thread_time()
        made = instrument(program, WASI)
        self.pass_s = time.thread_time() - began
        self.growth = len(made) / len(program)
        self.plain, self.plain_s = self._compiled(program)
        self.full, self.full_s = self._compiled(made)
        self.code_growth = len(self.full.serialize()) / len(self.plain.serialize())

    @staticmethod
    def _compiled(program: bytes) -> tuple[wasmtime.Module, float]:
        before = resource.getrusage(resource.RUSAGE_SELF)
        module = wasmtime.Module(engine.engine(), program)
        after = resource.getrusage(resource.RUSAGE_SELF)
        return module, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def native(workload: Workload, folder: Path) -> Path | None:
    if not workload.native or not shutil.which("gcc"):
        return None
    target = folder / workload.name
    source = HERE / "tests/vm/programs" / workload.native
    subprocess.run(["gcc", "-O2", "-w", "-o", target, source, "-lm"], check=True)
    return target


def native_s(path: Path, workload: Workload) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([path, *workload.args], stdout=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def programs(names: list[str]) -> None:
    print(
        "| program | engine / plain wasmtime | engine / gcc -O2 | work per ns | pass s | compile s (plain) | wasm, machine code grow |"
    )
    print("|---|---|---|---|---|---|---|")
    built: dict[bytes, Built] = {}
    ratios: dict[str, float] = {}
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for workload in workloads():
            if names and workload.name not in names:
                continue
            program = workload.program()
            shared = built.get(program) or built.setdefault(program, Built(program))
            binary = native(workload, Path(folder))
            full, bare, own = math.inf, math.inf, math.inf
            work = 0
            for _ in range(ROUNDS):
                run = in_engine(workload, shared.full)
                full, work = min(full, run.cpu_s), run.work
                bare = min(bare, plain(workload, shared.plain).cpu_s)
                own = min(own, native_s(binary, workload)) if binary else own
            ratios[workload.name] = full / bare
            rates.append(work / full / 1e9)
            print(
                f"| {workload.name} | {full / bare:.2f} | {f'{full / own:.2f}' if binary else '-'} | {rates[-1]:.2f} | {shared.pass_s:.2f} | "
                f"{shared.full_s:.2f} ({shared.plain_s:.2f}) | {shared.growth:.1f}, {shared.code_growth:.1f} |",
                flush=True,
            )
    small = [ratio for name, ratio in ratios.items() if name in ("fib", "qsort", "core", "nbody", "matmul", "sha256")]
    python = [ratio for name, ratio in ratios.items() if name.startswith("python")]
    print("\n| what | target | measured |\n|---|---|---|")
    if small:
        print(f"| engine / plain wasmtime, C programs, geomean | 1.25 | {geomean(small):.2f} |")
    if python:
        print(f"| engine / plain wasmtime, CPython, geomean | 1.03 | {geomean(python):.2f} |")
    print(
        f"| work per ns, geomean (least to most) | 1 | {geomean(rates):.2f} ({min(rates):.2f} to {max(rates):.2f}) |",
        flush=True,
    )


def parts_of_the_price() -> None:
    """What canonical NaNs and the counted depth cost."""
    chosen = [workload for workload in workloads() if workload.name in ("fib", "nbody", "matmul")]
    for workload in chosen:
        program = workload.program()
        variants = {
            "plain": wasmtime.Module(engine.engine(), program),
            **{name: wasmtime.Module(engine.engine(), instrument(program, WASI, flags))
               for name, flags in (("full", 0), ("without NaNs", NO_NAN), ("without depth", NO_DEPTH))},
        }  # fmt: skip
        best = dict.fromkeys(variants, math.inf)
        for _ in range(ROUNDS):
            for name, module in variants.items():
                run = plain(workload, module) if name == "plain" else in_engine(workload, module)
                best[name] = min(best[name], run.cpu_s)
        words = ", ".join(f"{name} {best[name] / best['plain']:.2f}" for name in variants if name != "plain")
        print(f"| {workload.name}: what is in its price | - | {words} |", flush=True)


# ---- stops, saves, marks

HEAP = """(module (memory (export "memory") 240) (func (export "_start") (local i32 i32)
  (local.set 1 (i32.const 12345))
  (loop $fill (i32.store (local.get 0) (local.tee 1 (i32.add (i32.mul (local.get 1) (i32.const 1103515245)) (i32.const 12345))))
    (br_if $fill (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 4))) (i32.const 15728640))))
  (loop $on (local.set 0 (i32.const 0))
    (loop $little (i32.store (local.get 0) (local.tee 1 (i32.add (local.get 1) (i32.const 7))))
      (br_if $little (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 64))) (i32.const 196608))))
    (br $on))))"""


def stops() -> None:
    workload = next(workload for workload in workloads() if workload.name == "lua")
    instance, _ = started(workload, wasmtime.Module(engine.engine(), instrument(workload.program(), WASI)))
    instance.run("_start", 20_000_000)
    best = math.inf
    for _ in range(20):
        began = time.thread_time()
        for _ in range(50):
            instance.run("_start", instance.used)
        best = min(best, (time.thread_time() - began) / 50)
    frames = len(instance.parts().frames)
    print(f"| a stop and going on, Lua, {frames} bytes of frames | 60 us | {best * 1e6:.0f} us |", flush=True)
    instance.close()


class _Nothing:
    def ready(self, file: int, first: int, last: int) -> bool:
        return True

    def block(self, file: int, n: int) -> bytes:
        return b""

    def stdin(self, count: int) -> bytes:
        return b""

    def output(self, stream: int, content: bytes) -> None:
        pass


def saves() -> None:
    module = wasmtime.Module(engine.engine(), instrument(wat(HEAP), WASI))
    spec = Spec("heap", Boot(("heap",)), 256 << 20, mark_every=1 << 50)
    best = {"save": math.inf, "restore": math.inf, "increment": math.inf, "root": math.inf}

    def timed(name: str, began: float) -> None:
        best[name] = min(best[name], time.thread_time() - began)

    increment = 0
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            runner, kept = Runner.start(module, spec, _Nothing()), Saves(Path(folder, "s"), sync=False)
            runner.step(60_000_000)
            began = time.thread_time()
            runner.root()
            timed("root", began)
            began = time.thread_time()
            runner.save(kept)
            timed("save", began)
            runner.step(100_000)
            began = time.thread_time()
            _, increment = runner.save(kept)
            timed("increment", began)
            runner.close()
            kept.close()
            kept = Saves(Path(folder, "s"), sync=False)
            began = time.thread_time()
            runner = Runner.resume(module, spec, _Nothing(), kept, (b"", b""))
            timed("restore", began)
            runner.close()
            kept.close()
    print(f"| save of a 15 MB heap of noise, CPU | 40 ms | {best['save'] * 1e3:.0f} ms |")
    print(f"| restore of it | 25 ms | {best['restore'] * 1e3:.0f} ms |")
    print(f"| a save 192 KiB later ({increment / 1024:.0f} KiB written) | - | {best['increment'] * 1e3:.0f} ms |")
    print(
        f"| a mark of it (its root) | - | {best['root'] * 1e3:.1f} ms, {best['root'] * 100:.1f} % of the second between two |",
        flush=True,
    )


# ---- calls of the WASI

CALLS = """(module (import "wasi_snapshot_preview1" "{name}" (func $f {type}))
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 2) (data (i32.const 0) "\\40\\00\\00\\00\\28\\00\\00\\00") (data (i32.const 32) "kept")
  (func (export "_start") (local i32 i32)
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 4) (i32.const 1) (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 16))
      (then (if (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 4) (i32.const 1) (i64.const 0x1fffffff) (i64.const 0) (i32.const 0) (i32.const 16)) (then unreachable))))
    (local.set 1 (i32.load (i32.const 16)))
    (loop $l (if (call $f {arguments}) (then unreachable))
      (br_if $l (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 1))) (i32.const 300000))))))"""
EACH = (
    ("sched_yield", "(result i32)", "", "yield"),
    ("clock_time_get", "(param i32 i64 i32) (result i32)", "(i32.const 1) (i64.const 1) (i32.const 24)", "the clock"),
    ("fd_write", "(param i32 i32 i32 i32) (result i32)", "(local.get 1) (i32.const 0) (i32.const 1) (i32.const 12)", "write 40 B to a file"),
    ("fd_write", "(param i32 i32 i32 i32) (result i32)", "(i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)", "write 40 B to stdout"),
    ("random_get", "(param i32 i32) (result i32)", "(i32.const 256) (i32.const 32)", "32 random bytes"),
)  # fmt: skip


def calls() -> None:
    for name, type_, arguments, words in EACH:
        text = CALLS.replace("{name}", name).replace("{type}", type_).replace("{arguments}", arguments)
        workload = Workload(name, lambda text=text: wat(text))
        module = wasmtime.Module(engine.engine(), instrument(workload.program(), WASI))
        runs = [in_engine(workload, module) for _ in range(ROUNDS)]
        best = min(run.cpu_s for run in runs) / 300_000 * 1e9
        target = "60 ns" if name == "fd_write" else "-"
        print(
            f"| WASI: {words} | {target} | {best:.0f} ns ({1e3 / best:.1f} M/s), {runs[0].work / 300_000:.0f} units of work |",
            flush=True,
        )


def main() -> None:
    print(f"Measured {datetime.date.today()} by `python -m bench.engine`.\n")
    programs(sys.argv[1:])
    parts_of_the_price()
    stops()
    saves()
    calls()


if __name__ == "__main__":
    on_large_stack(main)
