"""Random modules (`wasm-tools smith`), and what `wasm-tools mutate` makes of them: plain against instrumented, at once and stopped at every
safepoint.

`python -m tests.vm.fuzz FIRST COUNT [mutated]` prints the seeds whose module differs and keeps the module.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import wasmtime

from ipos.vm.instrument import ALL_STOP, OPEN, instrument
from ipos.wire.errors import Refused

from .machine import ENGINE, ENOUGH, WASM_TOOLS
from .wast import KINDS, Failed, Signature, raw_call, signatures, zero

WIDTHS = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}
# Many small modules find other things than a few large ones, and what never traps runs longer.
MUTATIONS = 8
MUTANT_BYTES = 1 << 18
SHAPES = (
    "--max-funcs 6 --max-instructions 60",
    "--max-funcs 30 --max-instructions 2000",
    "--max-funcs 10 --max-instructions 300 --disallow-traps true",
    "--max-funcs 30 --max-instructions 2000 --disallow-traps true",
)


def smith(seed: int) -> bytes:
    rng = random.Random(seed)
    options = (
        "--ensure-termination -f 400 --canonicalize-nans true --max-imports 0 --export-everything true --max-memories 1 --max-tables 3 "
        "--gc-enabled false --exceptions-enabled false --tail-call-enabled false --threads-enabled false --relaxed-simd-enabled false "
        "--memory64-enabled false --custom-page-sizes-enabled false --wide-arithmetic-enabled false --simd-enabled true "
        "--bulk-memory-enabled true --reference-types-enabled true --multi-value-enabled true --allow-start-export true "
        "--min-exports 2 --min-types 4 --min-funcs 3 --max-memory32-bytes 1048576 --max-table-elements 100 --table-max-size-required true --memory-max-size-required true "
        f"--shared-everything-threads-enabled false --custom-descriptors-enabled false --compact-imports-enabled false {SHAPES[seed % 4]}"
    ).split()
    done = subprocess.run(
        [WASM_TOOLS, "smith", *options],
        input=rng.randbytes(rng.randrange(200, 20000)),
        capture_output=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else b""


def mutated(seed: int) -> bytes:
    """A random module after some changes that keep what it means, and so that it ends: other shapes of code than a generator thinks of."""
    module = smith(seed)
    for step in range(MUTATIONS if module else 0):
        command = [WASM_TOOLS, "mutate", "-", "--preserve-semantics", "--seed", str(seed * MUTATIONS + step)]
        done = subprocess.run(command, input=module, capture_output=True, check=False)
        if done.returncode == 0 and len(done.stdout) < MUTANT_BYTES:
            module = done.stdout
    return module


def arguments(signature: Signature, rng: random.Random) -> list[Any]:
    return [(kind, rng.choice([bytes(WIDTHS[kind]), b"\1" + bytes(WIDTHS[kind] - 1), rng.randbytes(WIDTHS[kind])])) if kind in KINDS else None
            for kind in signature[0]]  # fmt: skip


class World:
    def __init__(self, module: bytes, stopping: bool | None, closed: bool = False) -> None:
        """`stopping`: None = plain. `closed`: references are numbers, and every stop is a move."""
        self.stopping = stopping
        self.closed = closed
        self.store = wasmtime.Store(ENGINE)
        self.compiled = compiled = wasmtime.Module(ENGINE, module)
        self.imports = imports = [wasmtime.Func(self.store, wanted.type, self.trap) for wanted in compiled.imports]
        self.stops = 0
        self.log: list[Any] = []
        self.used = 0
        try:
            self.exports = wasmtime.Instance(self.store, compiled, imports).exports(self.store)
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            self.exports = None
            self.log.append("no instance")
            return
        if stopping is not None and "ipos_begin" in self.exports and self.call("ipos_begin", ([], []), []) == "trap":
            self.log[-1:] = ["no instance"]
            self.exports = None
        elif self.log:
            self.log.pop()

    def trap(self, code: int) -> None:
        raise RuntimeError(str(code))

    def call(self, name: str, signature: Signature, args: list[Any]) -> Any:
        self.log.append(self._call(name, signature, args))
        return self.log[-1]

    def _call(self, name: str, signature: Signature, args: list[Any]) -> Any:
        exports = self.exports
        assert exports is not None
        try:
            if self.stopping is None:
                return self.plain(raw_call(self.store, exports[name], signature, args), signature[1])
            null = ("i32", bytes(4)) if self.closed else None
            args = [null if arg is None else arg for arg in args]
            enter, left, state = (exports["ipos_" + n] for n in ("enter", "left", "state"))
            granted = (0 if self.stopping else ENOUGH) - left(self.store)
            before = left(self.store)
            enter(self.store, granted)
            out = raw_call(self.store, exports[name], signature, args)
            while state(self.store) == 1:
                self.stops += 1
                if self.closed and self.stopping and self.stops < 200:
                    granted += self.move()
                    assert self.exports is not None
                    exports = self.exports
                    enter, left, state = (exports["ipos_" + n] for n in ("enter", "left", "state"))
                more = -left(self.store)
                granted += more
                enter(self.store, more)
                out = raw_call(self.store, exports[name], signature, [zero(kind) or null for kind in signature[0]])
            self.used += before + granted - left(self.store)
            return self.plain(out, signature[1])
        except Failed:
            return "trap"

    @staticmethod
    def plain(values: list[Any], kinds: list[str]) -> list[Any]:
        """References only as null or not: in a closed module they are numbers."""
        return [
            value if kind in KINDS else "null" if value in (None, ("i32", bytes(4))) else "reference"
            for value, kind in zip(values, kinds, strict=True)
        ]

    def move(self) -> int:
        """Into a fresh instance: memory, frames, globals, tables. What that grants: its meter begins at 0."""
        old = self.exports
        assert old is not None
        fresh = wasmtime.Instance(self.store, self.compiled, self.imports).exports(self.store)

        def area(exports: Any, name: str) -> tuple[int, int]:
            value = exports[name](self.store) & (1 << 64) - 1
            return value >> 32, value & 0xFFFFFFFF

        old["ipos_globals_out"](self.store)
        memory, target = old["ipos_mem"], fresh["ipos_mem"]
        if more := memory.size(self.store) - target.size(self.store):
            target.grow(self.store, more)
        if memory.data_len(self.store):
            target.write(self.store, memory.read(self.store), 0)
        at, n = area(old, "ipos_frames")
        fresh["ipos_stack"].write(
            self.store, old["ipos_stack"].read(self.store, at, at + n), fresh["ipos_frames_at"](self.store)
        )
        fresh["ipos_restore"](self.store, n)
        at, n = area(old, "ipos_globals_at")
        if n:
            fresh["ipos_stack"].write(self.store, old["ipos_stack"].read(self.store, at, at + n), at)
        fresh["ipos_set"](self.store, old["ipos_used"](self.store))
        fresh["ipos_globals_in"](self.store)
        self.exports = fresh
        return -old["ipos_left"](self.store)

    def state(self) -> str:
        """Of all that is exported: memories."""
        assert self.exports is not None
        digest = hashlib.sha256()
        for name in self.exports:
            item = self.exports[name]
            if name.startswith("ipos_"):
                continue
            if isinstance(item, wasmtime.Memory):
                digest.update(bytes(item.read(self.store)))
        return digest.hexdigest()


def difference(module: bytes, seed: int) -> tuple[str, int]:
    """What differs ("" = nothing, a refusal counts as nothing), and how often the module was stopped."""
    try:
        instrumented = instrument(module, flags=OPEN | (seed & 4) * 2)
    except Refused as refusal:
        return (
            "" if "not supported" in str(refusal) or "compiler can take" in str(refusal) else f"refused: {refusal}"
        ), 0
    try:
        closed = instrument(module, flags=ALL_STOP)
    except Refused as refusal:
        if "does not fit into its table" in str(refusal) and World(module, None).exports is None:
            return "", 0  # known when it is prepared, not only when it is instantiated
        return (
            "" if "not supported" in str(refusal) or "compiler can take" in str(refusal) else f"refused: {refusal}"
        ), 0
    worlds = [
        World(module, None),
        World(instrumented, False),
        World(instrumented, True),
        World(closed, False, True),
        World(closed, True, True),
    ]
    found = signatures(module)
    if all(world.exports is not None for world in worlds):
        for name, signature in found.items():
            args = arguments(signature, random.Random(f"{seed} {name}"))
            results = [world.call(name, signature, args) for world in worlds]
            if results[0] == "trap" or any(result != results[0] for result in results):
                break
        for world in worlds:
            world.log.append(world.state())
    logs = [world.log for world in worlds]
    stops = worlds[2].stops + worlds[4].stops
    used = [(world.used, world.exports and world.exports["ipos_pages_work"](world.store)) for world in worlds[1:]]
    for world in worlds:
        world.store.close()
    for what, log in zip(("instrumented", "stopped", "closed", "closed and moved"), logs[1:], strict=True):
        if log != logs[0]:
            return f"plain {logs[0]}, {what} {log}", stops
    for first, second in ((used[0], used[1]), (used[2], used[3])):
        if first != second and "trap" not in logs[0]:
            return f"work {first} at once, {second} stopped", stops
    return "", stops


def main() -> int:
    first, count = int(sys.argv[1]), int(sys.argv[2])
    make = mutated if "mutated" in sys.argv[3:] else smith
    bad = stops = modules = 0
    for seed in range(first, first + count):
        module = make(seed)
        if not module:
            continue
        modules += 1
        try:
            why, n = difference(module, seed)
        except Exception as error:
            why, n = f"{type(error).__name__}: {error}", 0
        stops += n
        if why:
            bad += 1
            Path(f"find-{seed}.wasm").write_bytes(module)
            print(f"seed {seed}: {why[:600]}", flush=True)
    print(f"{modules} modules, {stops} stops, {bad} differ")
    return bad != 0


if __name__ == "__main__":
    raise SystemExit(main())
