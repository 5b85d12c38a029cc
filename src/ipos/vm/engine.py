"""engine: wasmtime, configured so that one program does one thing on every machine. Run as a process it is the compiler (`code`)."""

from __future__ import annotations

import sys
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import wasmtime
from wasmtime import (
    _bindings as bindings,  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue] # the only way to this setting
)

from ipos.vm import code
from ipos.vm.instrument import instrument
from ipos.wire.errors import Refused

WASM_STACK_BYTES: Final = 128 << 20  # the pass admits 32 + 8 MiB of frames; machine frames are up to three times that
THREAD_STACK_BYTES: Final = 512 << 20  # of the thread that runs it


@cache
def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    config.wasm_relaxed_simd = False
    config.wasm_threads = False
    config.wasm_tail_call = False
    config.wasm_memory64 = False
    bindings.wasmtime_config_async_stack_size_set(
        config.ptr(), 2 * WASM_STACK_BYTES
    )  # must exceed the next, or it aborts
    config.max_wasm_stack = WASM_STACK_BYTES
    return wasmtime.Engine(config)


def load(machine_code: bytes) -> wasmtime.Module:
    """Code of `code.compiled`, and of nobody else: it is run as it is."""
    return wasmtime.Module.deserialize(engine(), machine_code)


def compiled(program: bytes, root: Path) -> wasmtime.Module:
    """The instrumented program, ready to instantiate in this process: for tests and tools. `code.compiled` says the rest."""
    return load(code.compiled(program, root))


def main() -> int:
    source, target = sys.argv[1:]
    try:
        made = instrument(Path(source).read_bytes(), (files("ipos.vm") / "ipwasi.wasm").read_bytes())
        Path(target).write_bytes(wasmtime.Module(engine(), made).serialize())
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
