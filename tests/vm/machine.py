"""A small runtime of the instrumented module, for tests: runs an export in slices, stops it, moves it into a fresh instance."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wasmtime

ENOUGH = 1 << 55
REAL_STACK = 128 << 20
WASM_TOOLS = Path(sysconfig.get_path("scripts")) / "wasm-tools"


def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    config.wasm_relaxed_simd = False
    config.wasm_threads = False
    config.wasm_tail_call = False
    wasmtime._bindings.wasmtime_config_async_stack_size_set(config.ptr(), 2 * REAL_STACK)  # pyright: ignore
    config.max_wasm_stack = REAL_STACK
    return wasmtime.Engine(config)


ENGINE = engine()


@dataclass
class Frozen:
    """All that makes up a stopped program."""

    memory: bytes
    frames: bytes
    globals: bytes
    wasi: bytes
    used: int


class Machine:
    def __init__(self, module: wasmtime.Module, imports: dict[str, Any] | None = None, size_limit: int = -1) -> None:
        """`imports`: "module.name" to a Python function or to any extern. `ipos.trap` is always there."""
        self.store = wasmtime.Store(ENGINE)
        self.store.set_limits(memory_size=size_limit)
        self.module = module
        self.traps: list[int] = []
        externs: list[Any] = []
        given = {"ipos.trap": self._trap, **(imports or {})}
        for wanted in module.imports:
            value = given[f"{wanted.module}.{wanted.name}"]
            externs.append(
                wasmtime.Func(self.store, wanted.type, value)
                if callable(value) and not isinstance(value, wasmtime.Func)
                else value
            )
        self.instance = wasmtime.Instance(self.store, module, externs)
        self.exports = self.instance.exports(self.store)
        self.granted = 0
        self.stops = 0

    def _trap(self, code: int) -> None:
        self.traps.append(code)
        raise RuntimeError(f"trap {code}")

    def __call__(self, name: str, *args: Any) -> Any:
        return self.exports[name](self.store, *args)

    def enter(self, grant: int) -> None:
        self("ipos_enter", grant)
        self.granted += grant

    @property
    def left(self) -> int:
        return self("ipos_left")

    @property
    def used(self) -> int:
        return self.granted - self.left

    def zeros(self, name: str) -> list[Any]:
        kinds = [str(p) for p in self.exports[name].type(self.store).params]
        return [0.0 if kind in ("f32", "f64") else None if "ref" in kind else 0 for kind in kinds]

    def run(self, name: str, args: Sequence[Any] = (), slice_: int | None = None) -> Any:
        """Calls an export to its end. `slice_`: None = at once; 0 = stopped at every safepoint; n = n units at a time."""
        for _ in self.steps(name, args, slice_):
            pass
        return self.result

    def steps(self, name: str, args: Sequence[Any] = (), slice_: int | None = None) -> Iterator[None]:
        grant = ENOUGH if slice_ is None else slice_
        self.enter(grant - self.left)
        self.result = self(name, *args)
        zeros = None
        while self("ipos_state") == 1:
            self.stops += 1
            yield
            self.enter(max(grant, -self.left) if slice_ else -self.left)
            zeros = zeros if zeros is not None else self.zeros(name)
            self.result = self(name, *zeros)

    # ---- moving ----
    def memory(self, name: str) -> wasmtime.Memory:
        return self.exports[name]

    def _pair(self, name: str) -> tuple[int, int]:
        value = self(name) & (1 << 64) - 1
        return value >> 32, value & 0xFFFFFFFF

    def freeze(self) -> Frozen:
        stack = self.memory("ipos_stack")
        self("ipos_globals_out")
        at, n = self._pair("ipos_frames")
        frames = bytes(stack.read(self.store, at, at + n))
        at, n = self._pair("ipos_globals_at")
        state = bytes(stack.read(self.store, at, at + n))
        wasi = (
            bytes(self.memory("ipos_wasi").read(self.store))
            if "ipos_wasi" in [e.name for e in self.module.exports]
            else b""
        )
        return Frozen(bytes(self.memory("ipos_mem").read(self.store)), frames, state, wasi, self.used)

    def thaw(self, frozen: Frozen) -> None:
        """Into a fresh instance."""
        for name, content in (("ipos_mem", frozen.memory), ("ipos_wasi", frozen.wasi)):
            if name == "ipos_wasi" and not content:
                continue
            memory = self.memory(name)
            if len(content) > memory.data_len(self.store):
                memory.grow(self.store, (len(content) - memory.data_len(self.store)) >> 16)
            memory.write(self.store, content, 0)
        stack = self.memory("ipos_stack")
        stack.write(self.store, frozen.frames, self("ipos_frames_at"))
        self("ipos_restore", len(frozen.frames))
        stack.write(self.store, frozen.globals, self._pair("ipos_globals_at")[0])
        self("ipos_set", frozen.used)
        self("ipos_globals_in")
        self.granted = frozen.used


def run_moving(
    module: wasmtime.Module, name: str, args: Sequence[Any], slice_: int, imports: dict[str, Any] | None = None
) -> tuple[Any, int, int]:
    """The result, the work and the number of moves of a run whose every slice ends in a move to a fresh instance."""
    machine = Machine(module, imports)
    machine.enter(slice_)
    result, moves = machine(name, *args), 0
    while machine("ipos_state") == 1:
        frozen = machine.freeze()
        machine.store.close()
        machine, moves = Machine(module, imports), moves + 1
        machine.thaw(frozen)
        machine.enter(max(slice_ - machine.left, 0))
        result = machine(name, *machine.zeros(name))
    return result, machine.used, moves
