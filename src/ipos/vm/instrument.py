"""instrument: a program becomes one that can be stopped anywhere and moved anywhere.

The pass itself (`instrument/pass`, C) runs inside the engine's sandbox: whatever a hostile module does to it, it has no more than its memory
and its fuel, and the same module gives the same bytes, or the same sentence, on every machine.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

import wasmtime

from ipos.wire.errors import Refused

OPEN: Final = 1  # any imports; the specification's tests and fuzzing
NO_NAN: Final = 2  # benchmarks: NaNs stay as the machine makes them
NO_DEPTH: Final = 4  # benchmarks: the depth of calls is not counted
ALL_STOP: Final = 8  # fuzzing: no function is too short to stop in

MEMORY_BYTES: Final = 1 << 30
FUEL: Final = 3_000_000_000  # about a second ...
FUEL_PER_BYTE: Final = 800  # ... and more for a module whose size is honest


@cache
def _pass() -> tuple[wasmtime.Engine, wasmtime.Module]:
    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    return engine, wasmtime.Module(engine, (files("ipos.vm") / "ipinst.wasm").read_bytes())


@cache
def _validator() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = False
    config.wasm_relaxed_simd = False
    config.wasm_threads = False
    config.wasm_tail_call = False
    return wasmtime.Engine(config)


def instrument(program: bytes, wasi: bytes = b"", flags: int = 0) -> bytes:
    """The instrumented module (docs/protocols/engine.md), not yet compiled; the compiler validates it.

    `wasi` is the module that is merged into it and answers its imports. Raises `Refused` with one sentence that names what is not
    supported, or not a valid module, and its byte offset.
    """
    engine, module = _pass()
    store = wasmtime.Store(engine)
    store.set_limits(memory_size=MEMORY_BYTES, instances=1, memories=1, tables=1)
    store.set_fuel(FUEL + FUEL_PER_BYTE * len(program))
    try:
        exports = wasmtime.Instance(store, module, []).exports(store)
        memory = exports["memory"]
        assert isinstance(memory, wasmtime.Memory)

        def call(name: str, *args: int) -> int:
            function = exports[name]
            assert isinstance(function, wasmtime.Func)
            return function(store, *args) & 0xFFFFFFFF

        def put(data: bytes) -> int:
            at = call("alloc", len(data))
            memory.write(store, data, at)
            return at

        def result() -> bytes:
            at, n = call("result"), call("result_len")
            return bytes(memory.read(store, at, at + n))

        try:
            at, wasi_at = put(program), put(wasi)
            call("instrument", at, len(program), wasi_at, len(wasi), flags)
        except wasmtime.Trap as trap:
            if trap.trap_code == wasmtime.TrapCode.OUT_OF_FUEL:
                raise Refused(
                    "the program takes more work to prepare than its size allows: it is built to be slow to compile"
                ) from None
            if call("refused"):
                raise Refused(f"the program is refused: {result().decode()}") from None
            raise Refused("the program is refused: it is not a valid WebAssembly module") from trap
        try:
            wasmtime.Module.validate(_validator(), program)
        except wasmtime.WasmtimeError as error:
            raise Refused(
                f"the program is refused: it is not a valid WebAssembly module: {' '.join(str(error).split())}"
            ) from None
        return result()
    finally:
        store.close()
