"""What the numbers of `instrument/pass/weights.h` ought to be: ns of each operation alone, and a fit to real programs.

    .venv/bin/python -m bench.weights [--fit]        (a minute; --fit: some minutes more)

Alone: a loop of 64 of them in a chain (each waits for the one before), and in four chains (none waits); real code lies between, so the
suggestion is the geometric mean, in ticks. With --fit the pass is built once for each kind of operation, so that it counts that kind alone,
and what the C programs and Lua execute is set against what they take; the factor by which a kind costs more or less there than
alone is printed. Folding and bounded functions charge for what is not run; the common scale is set by `bench/engine.py` ("ns per unit").
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import wasmtime

from bench.workloads import HERE, Workload, in_engine, on_large_stack, workloads
from ipos.vm import engine, instrument
from tests.vm.machine import ENGINE, WASM_TOOLS, Machine

PASS = HERE / "instrument/pass"
TICKS_PER_NS = 32
ROUNDS, UNROLLED = 20_000, 64

# kind -> type of the accumulator, what makes a new one of it; $b, $m are other values
ALONE: dict[str, tuple[str, str]] = {
    "WEIGHT_PLAIN (i32.add, xor)": ("i32", "(i32.xor (i32.add {0} (local.get $b)) (local.get $m))/2"),
    "i64.add, rotl": ("i64", "(i64.rotl (i64.add {0} (local.get $l)) (local.get $l))/2"),
    "i32.eqz": ("i32", "(i32.eqz {0})"),
    "loads": ("i32", "(i32.load {0})"),
    "stores": ("i32", "(i32.store offset=8 {0} (local.get $b)) {0}"),
    "global.get, set": ("i32", "(global.set $g {0}) (global.get $g)/2"),
    "select": ("i32", "(select {0} (local.get $b) (i32.and {0} (local.get $m)))"),
    "i32.mul": ("i32", "(i32.mul {0} (local.get $b))"),
    "i64.mul": ("i64", "(i64.mul {0} (local.get $l))"),
    "i32 division": ("i32", "(i32.or (i32.div_u {0} (local.get $b)) (local.get $m))"),
    "i64 division": ("i64", "(i64.or (i64.div_u {0} (local.get $l)) (local.get $n))"),
    "f64: add, mul": ("f64", "(f64.mul (f64.add {0} (local.get $d)) (local.get $d))/2"),
    "f64.div": ("f64", "(f64.div (local.get $d) {0})"),
    "f64.sqrt": ("f64", "(f64.sqrt {0})"),
    "f64: rounding": ("f64", "(f64.floor {0})"),
    "f64: min, max": ("f64", "(f64.min {0} (local.get $d))"),
    "f64 to i32 and back": ("f64", "(f64.convert_i32_s (i32.trunc_f64_s {0}))/2"),
    "saturating, and back": ("f64", "(f64.convert_i64_s (i64.trunc_sat_f64_s {0}))/2"),
    "vectors: integers": ("v128", "(i32x4.add {0} (local.get $v))"),
    "vectors: f64x2.add": ("v128", "(f64x2.add {0} (local.get $v))"),
    "vectors: f64x2.div": ("v128", "(f64x2.div {0} (local.get $v))"),
    "vectors: f64x2.sqrt": ("v128", "(f64x2.sqrt {0})"),
    "vectors: lane of": ("v128", "(i32x4.replace_lane 1 {0} (local.get $b))"),
    "br_if": ("i32", "(block (br_if 0 (i32.eq {0} (local.get $m))))  (i32.add {0} (local.get $b))"),
    "br_table": ("i32", "(call $switch {0})"),
    "call, entering": ("i32", "(call $stops {0})"),
    "call of a bounded function": ("i32", "(call $short {0})"),
    "call_indirect, entering": ("i32", "(call_indirect (type $u) {0} (i32.const 0))"),
    "memory.fill 16": ("i32", "(memory.fill (i32.const 4096) {0} (i32.const 16)) {0}"),
    "memory.fill 4096": ("i32", "(memory.fill (i32.const 4096) {0} (i32.const 4096)) {0}"),
    "memory.copy 4096": ("i32", "(memory.copy (i32.const 4096) (i32.const 16384) (i32.const 4096)) {0}"),
    "memory.grow 0": ("i32", "(drop (memory.grow (i32.const 0))) {0}"),
}
ZERO = {"i32": "i32.const 0", "i64": "i64.const 1000001", "f64": "f64.const 1.25", "v128": "v128.const f64x2 1.25 1.5"}

# kind -> the entries of the table and the constants that are counted as one; what a real program shows of it
KINDS: dict[str, tuple[list[str], list[str]]] = {
    "plain": (["0xfc00"], ["WEIGHT_PLAIN"]), "set": (["0x21"], ["WEIGHT_MOVE"]), "load": (["0x28"], []), "store": (["0x36"], []),
    "global": (["0x23"], []), "branch": (["0x04", "0x0c"], []), "select": (["0x1b"], []), "switch": (["0x0e"], []), "call": (["0x10"], []),
    "indirect": (["0x11"], []), "loop": ([], ["WEIGHT_LOOP"]), "mul": (["0x6c", "0x7e"], []), "divide": (["0x6d", "0x7f"], []),
    "float": (["0x5b", "0x8b", "0x92", "0x99", "0xa0", "0xa8", "0xae", "0xb2"], []), "root": (["0x95", "0x9f", "0xa3"], []),
    "byte": ([], ["WEIGHT_BULK_BYTE"]),
}  # fmt: skip


def wat(text: str) -> bytes:
    return subprocess.run([WASM_TOOLS, "parse", "-"], input=text.encode(), capture_output=True, check=True).stdout


def body(kind: str, effect: str, chains: int, count: int) -> str:
    text, _, _ = effect.partition("/")
    names = [f"(local.get $a{k})" for k in range(chains)]
    steps = "\n".join(f"{text.format(names[i % chains])} local.set $a{i % chains}" for i in range(count))
    first = "\n".join(f"({ZERO[kind]}) local.set $a{k}" for k in range(chains))
    keep = "\n".join(
        f"(global.set $k_{kind} (local.get $a{k}))"
        if kind != "v128"
        else f"(v128.store (i32.const 64) (local.get $a{k}))"
        for k in range(chains)
    )
    accumulators = "".join(f"(local $a{k} {kind})" for k in range(chains))
    return f"""(module (type $u (func (param i32) (result i32))) (memory (export "memory") 2) (table 1 funcref) (elem (i32.const 0) $stops)
(global $g (mut i32) (i32.const 0)) (global $k_i32 (mut i32) (i32.const 0)) (global $k_i64 (mut i64) (i64.const 0)) (global $k_f64 (mut f64) (f64.const 0))
(func $short (param i32) (result i32) (i32.xor (local.get 0) (i32.const 0)))
(func $stops (param i32) (result i32) (if (i32.eq (local.get 0) (i32.const 77)) (then (loop $l (br_if $l (local.get 0))))) (local.get 0))
(func $switch (param i32) (result i32) (block (block (block (br_table 0 1 2 (local.get 0))) (return (i32.const 0))) (return (i32.const 1))) (i32.const 2))
(func (export "run") (param $n i32) (param $b i32) (param $m i32) (param $l i64) (param $n2 i64) (param $d f64) (local $v v128) (local $n i64)
{accumulators}
(local.set $v (f64x2.splat (local.get $d))) (local.set $n (local.get $n2)) {first}
(loop $again {steps} (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
{keep}))""".replace("(param $n i32)", "(param i32)")


def ns_alone(kind: str, effect: str, chains: int) -> float:
    rounds = ROUNDS // 20 if "4096)" in effect or "grow" in effect else ROUNDS

    def best(count: int) -> float:
        module = wasmtime.Module(ENGINE, instrument.instrument(wat(body(kind, effect, chains, count))))
        machine = Machine(module)
        times: list[float] = []
        for _ in range(7):
            began = time.thread_time()
            machine.run("run", [rounds, 3, 0, 3, 0, 1.0000001])
            times.append(time.thread_time() - began)
        machine.store.close()
        return min(times)

    _, _, parts = effect.partition("/")
    return (best(UNROLLED) - best(UNROLLED // 2)) / rounds / (UNROLLED // 2) * 1e9 / int(parts or 1)


def alone() -> None:
    print(f"{'alone':32} {'chain ns':>9} {'four ns':>9} {'ticks':>7}")
    for name, (kind, effect) in ALONE.items():
        chain, four = (max(ns_alone(kind, effect, chains), 0.02) for chains in (1, 4))
        print(f"{name:32} {chain:9.2f} {four:9.2f} {TICKS_PER_NS * math.sqrt(chain * four):7.0f}", flush=True)
    began = time.thread_time()
    machine = Machine(wasmtime.Module(ENGINE, instrument.instrument(wat(body("i32", "{0}", 1, 1)))))
    machine.run("run", [20_000_000, 3, 0, 3, 0, 1.0])
    took = (time.thread_time() - began) / 20_000_000 * 1e9
    print(f"{'a turn of an empty loop':32} {took:9.2f} {'':9} {TICKS_PER_NS * took:7.0f}")
    pages = wat('(module (memory (export "memory") 1) (func (export "run") (param i32) (local i32) (drop (memory.grow (i32.const 4096)))'
                " (loop $l (i32.store (local.get 1) (i32.const 1)) (br_if $l (i32.lt_u (local.tee 1 (i32.add (local.get 1) (i32.const 4096)))"
                " (i32.const 0x10000000))))))")  # fmt: skip
    machine = Machine(wasmtime.Module(ENGINE, instrument.instrument(pages)))
    began = time.thread_time()
    machine.run("run", [0])
    took = (time.thread_time() - began) / 4096 * 1e9
    print(f"{'a new page, touched':32} {took:9.0f} {'':9} {TICKS_PER_NS * took:7.0f}", flush=True)


# ---- the fit


SHORT = {
    "fib": "31",
    "qsort": "300000",
    "core": "800",
    "nbody": "200000",
    "matmul": "200",
    "sha256": "300000",
    "lua": "bench.lua",
}


def short() -> list[Workload]:
    """They are run once for each kind: with less to do."""
    return [
        replace(workload, args=(SHORT[workload.name],), stdin=workload.stdin[:10])
        for workload in workloads()
        if workload.name in SHORT
    ]


def counting(kind: str, folder: Path) -> bytes:
    """The pass that counts operations of one kind: one unit each, all else free, no block folded."""
    entries, constants = KINDS[kind]
    text = (PASS / "weights.h").read_text()

    def entry(found: re.Match[str]) -> str:
        return f"{{{found[1]}, {found[2]}, {32 if found[1] in entries else 0}}}"

    text = re.sub(r"\{(0x\w+), (0x\w+), \d+\}", entry, text)
    text = re.sub(r"(WEIGHT_\w+|FOLD_\w+) = \d+", lambda m: f"{m[1]} = {32 if m[1] in constants else 0}", text)
    for source in PASS.iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "weights.h").write_text(text)
    from instrument.build import build

    build(folder, folder / "counting.wasm")
    return (folder / "counting.wasm").read_bytes()


def counts(kind: str) -> dict[str, int]:
    wasi = (HERE / "src/ipos/vm/ipwasi.wasm").read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        config = wasmtime.Config()
        config.consume_fuel = True
        metered = wasmtime.Engine(config)
        made = metered, wasmtime.Module(metered, counting(kind, Path(scratch)))
    real, instrument._pass = instrument._pass, cast("Any", lambda: made)  # pyright: ignore
    try:
        found: dict[str, int] = {}
        for workload in short():
            text = instrument.instrument(workload.program(), wasi, instrument.ALL_STOP)
            found[workload.name] = in_engine(workload, wasmtime.Module(engine.engine(), text)).work
        return found
    finally:
        instrument._pass = real  # pyright: ignore


PRIOR_NS = {
    "plain": 0.15, "set": 0.05, "load": 0.4, "store": 0.3, "global": 0.4, "branch": 0.4, "select": 0.3, "switch": 2.0, "call": 2.5, "indirect": 3.5,
    "loop": 0.8, "mul": 0.5, "divide": 2.5, "float": 0.6, "root": 4.0, "byte": 0.06,
}  # fmt: skip


def fit() -> None:
    names = list(SHORT)
    wasi = (HERE / "src/ipos/vm/ipwasi.wasm").read_bytes()
    took: dict[str, float] = {}
    for workload in short():
        module = wasmtime.Module(engine.engine(), instrument.instrument(workload.program(), wasi))
        took[workload.name] = min(in_engine(workload, module).cpu_s for _ in range(5)) * 1e9
    table = {kind: counts(kind) for kind in KINDS}
    print("\nper ns:  " + "".join(f"{kind:>9}" for kind in KINDS))
    for name in names:
        print(f"{name:9}" + "".join(f"{table[kind][name] / took[name]:9.3f}" for kind in KINDS))

    def misfit(factors: dict[str, float]) -> float:
        off = 0.0
        for name in names:
            ns = sum(table[kind][name] * PRIOR_NS[kind] * factors[kind] for kind in KINDS)
            off += math.log(ns / took[name]) ** 2
        return off + 0.03 * sum(math.log(factor) ** 2 for factor in factors.values())

    factors = dict.fromkeys(KINDS, 1.0)
    step = 1.5
    while step > 1.01:
        better = False
        for kind in KINDS:
            for way in (step, 1 / step):
                tried = {**factors, kind: factors[kind] * way}
                if misfit(tried) < misfit(factors):
                    factors, better = tried, True
        step = step if better else math.sqrt(step)
    print(f"\n{'fitted':10} {'alone ns':>9} {'in programs':>12} {'ticks':>7}")
    for kind in KINDS:
        ns = PRIOR_NS[kind] * factors[kind]
        print(f"{kind:10} {PRIOR_NS[kind]:9.2f} {ns:12.3f} {TICKS_PER_NS * ns:7.1f}")
    for name in names:
        ns = sum(table[kind][name] * PRIOR_NS[kind] * factors[kind] for kind in KINDS)
        print(f"{name:9} predicted / taken {ns / took[name]:.2f}")


if __name__ == "__main__":
    on_large_stack(lambda: fit() if "--fit" in sys.argv else alone())
