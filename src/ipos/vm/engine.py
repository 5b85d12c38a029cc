"""engine: wasmtime, configured so that one program does one thing on every machine; and its compiled code, kept per user.

Compilation happens in a process of its own with limits on memory and CPU, one module each: a module that is slow to compile costs the node
nothing but that process. What it gives is machine code, so the cache believes only files that carry this user's MAC: `deserialize` trusts
its input.
"""

from __future__ import annotations

import hmac
import os
import resource
import subprocess
import sys
import tempfile
from functools import cache
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Final

import wasmtime
from blake3 import blake3
from wasmtime import (
    _bindings as bindings,  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue] # the only way to this setting
)

from ipos.vm.instrument import instrument
from ipos.vm.version import version
from ipos.wire.errors import Refused

WASM_STACK_BYTES: Final = 128 << 20  # the pass admits 32 + 8 MiB of frames; machine frames are up to three times that
THREAD_STACK_BYTES: Final = 512 << 20  # of the thread that runs it
COMPILE_MEMORY_BYTES: Final = 6 << 30  # address space, most of it reserved and never touched
COMPILE_CPU_S: Final = 180
MAC_BYTES: Final = 32


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


def _key(root: Path) -> bytes:
    """This user's MAC key; made when it is first needed."""
    path = root / "key"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=root, delete=False) as new:
            new.write(os.urandom(MAC_BYTES))
        try:
            os.link(new.name, path)  # the first of two processes wins
        except FileExistsError:
            pass
        finally:
            os.unlink(new.name)
    return path.read_bytes()


def compiled(program: bytes, root: Path) -> wasmtime.Module:
    """The instrumented program, ready to instantiate; from the cache in `root` if it is there. `Refused`: not admitted, or its limits were
    exceeded while it was compiled."""
    key = _key(root)
    name = blake3(program + version().encode() + metadata.version("wasmtime").encode()).hexdigest()
    path = root / name
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        body = b""
    mac, code = body[:MAC_BYTES], body[MAC_BYTES:]
    if not hmac.compare_digest(mac, blake3(code, key=key).digest()):  # also a torn or a foreign file
        code = _compile(program, root)
        with tempfile.NamedTemporaryFile(dir=root, delete=False) as new:
            new.write(blake3(code, key=key).digest() + code)
        os.replace(new.name, path)
    try:
        return wasmtime.Module.deserialize(engine(), code)
    except wasmtime.WasmtimeError:  # made by another wasmtime or for another processor
        path.unlink(missing_ok=True)
        return wasmtime.Module.deserialize(engine(), _compile(program, root))


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (COMPILE_CPU_S, COMPILE_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (COMPILE_MEMORY_BYTES, COMPILE_MEMORY_BYTES))


def _compile(program: bytes, root: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        source, target = Path(scratch, "program.wasm"), Path(scratch, "code")
        source.write_bytes(program)
        done = subprocess.run(
            [sys.executable, "-I", "-m", "ipos.vm.engine", str(source), str(target)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=_limits, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return target.read_bytes()
    sentence = done.stderr.strip().splitlines()
    if done.returncode == 1 and sentence:
        raise Refused(sentence[-1])
    raise Refused(
        f"the program could not be compiled within {COMPILE_CPU_S} s of CPU and {COMPILE_MEMORY_BYTES >> 30} GiB: "
        + (sentence[-1] if sentence else f"its compiler ended with status {done.returncode}")
    )


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
