"""Runs ipwasi.wasm beside a program without the pass: for tests of the WASI alone.

What the pass does by merging is done here by hand: calls of "x" functions become instructions in the text of the module, and
trampolines through a table break the circle that the program needs the WASI and the WASI needs the program's memory.
Nothing is metered but explicit charges, and a program cannot wait.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import wasmtime

from ipos.vm.wasi import boot, output

from .wasi_native import PAGE_BYTES, REPOSITORY, SIGNATURES

WASM_TOOLS = Path(sys.executable).parent / "wasm-tools"
INSTRUCTIONS = {
    "l8": "i32.load8_u $P", "l16": "i32.load16_u $P align=1", "l32": "i32.load $P align=1", "l64": "i64.load $P align=1",
    "s8": "i32.store8 $P", "s16": "i32.store16 $P align=1", "s32": "i32.store $P align=1", "s64": "i64.store $P align=1",
    "in": "memory.copy $M $P", "out": "memory.copy $P $M", "fill": "memory.fill $P", "size": "memory.size $P",
    "cin": "memory.copy $M $C", "cout": "memory.copy $P $C", "cl64": "i64.load $C", "cs64": "i64.store $C", "csize": "memory.size $C",
    "work": "global.get $work", "charge": "global.get $work i64.add global.set $work", "stop": "i32.const 1 global.set $stopped",
}  # fmt: skip


def module_text(module: bytes) -> str:
    command = [WASM_TOOLS, "print", "--name-unnamed", "-"]
    return subprocess.run(command, input=module, capture_output=True, check=True).stdout.decode()


def weave(module: bytes) -> bytes:
    text = module_text(module)
    names: dict[str, str] = {}

    def note(match: re.Match[str]) -> str:
        names[match[2]] = INSTRUCTIONS[match[1]]
        return ""

    text = re.sub(r'\n\s*\(import "x" "(\w+)" \(func (\$\S+)[^\n]*\)\)', note, text)
    text = re.sub(r"\bcall (\$\S+)", lambda match: names.get(match[1], match[0]), text)
    (least,) = re.findall(r"\n\s*\(memory \S+ \(;0;\) (\d+)\)", text)
    text = re.sub(r"\n\s*\(memory \S+ \(;0;\) \d+\)", "", text)
    text = re.sub(r'\n\s*\(export "memory" [^\n]*', "", text)
    memories = "".join(
        f'(import "env" "{letter}" (memory ${letter} {pages}))\n'
        for letter, pages in (("M", least), ("P", 0), ("C", 1))
    )
    cells = '(global $work (export "work") (mut i64) i64.const 0)\n(global $stopped (export "stopped") (mut i32) i32.const 0)\n'
    text = re.sub(r"\n(\s*\(import )", lambda match: "\n" + memories + match[1], text, count=1)
    text = re.sub(r"\n(\s*\(global )", lambda match: "\n" + cells + match[1], text, count=1)
    return bytes(wasmtime.wat2wasm(text))


def trampolines() -> bytes:
    types = {"i": "i32", "l": "i64"}
    lines = [f'(module (table (export "t") {len(SIGNATURES)} {len(SIGNATURES)} funcref)']
    for slot, (name, signature) in enumerate(SIGNATURES.items()):
        kind = "".join(f"(param {types[letter]})" for letter in signature) + (
            "" if name == "proc_exit" else "(result i32)"
        )
        get = " ".join(f"local.get {i}" for i in range(len(signature)))
        end = "unreachable" if name == "proc_exit" else ""
        lines.append(f'(func (export "{name}") {kind} {get} i32.const {slot} call_indirect {kind} {end})')
    return bytes(wasmtime.wat2wasm("\n".join(lines) + ")"))


@functools.cache
def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    return wasmtime.Engine(config)


@functools.cache
def _kit() -> tuple[wasmtime.Module, wasmtime.Module]:
    built = REPOSITORY / "src/ipos/vm/ipwasi.wasm"
    return wasmtime.Module(_engine(), weave(built.read_bytes())), wasmtime.Module(_engine(), trampolines())


@functools.cache
def compiled(source: str, *flags: str) -> bytes:
    """A command program from C, by zig's wasi-libc."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "program.wasm")
        command = [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-target",
            "wasm32-wasi",
            "-O2",
            *flags,
            "-x",
            "c",
            "-",
            "-o",
            target,
        ]
        subprocess.run(command, input=source.encode(), check=True)
        return target.read_bytes()


class Plain:
    """The WASI in wasmtime, with a program or, without one, called from outside. `stdin(n)`: bytes, b"" at the end, None to wait."""

    def __init__(
        self,
        task: boot.Boot,
        files: dict[int, bytes] | None = None,
        program: bytes | None = None,
        stdin: Callable[[int], bytes | None] = lambda _: b"",
        cache_slots: int = 4,
    ) -> None:
        self.files, self.stdin, self.log = files or {}, stdin, b""
        self.at_hand: set[tuple[int, int]] | None = None
        woven, middle = _kit()
        self.store = store = wasmtime.Store(_engine())
        inner = wasmtime.Instance(store, middle, []).exports(store)
        if program is None:
            self.program_memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(4, 4)))
        else:
            module = wasmtime.Module(_engine(), program)
            self.program = wasmtime.Instance(store, module, [inner[i.name or ""] for i in module.imports]).exports(
                store
            )
            self.program_memory = self.program["memory"]
        least = next(i.type.limits.min for i in woven.imports if i.name == "M")  # pyright: ignore
        self.memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(least, 65536)))
        self.cache = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(cache_slots + 1, cache_slots + 1)))
        memories = {"M": self.memory, "P": self.program_memory, "C": self.cache}
        i32, i64 = wasmtime.ValType.i32(), wasmtime.ValType.i64()
        host = {
            "need": ([i32, i64, i32], [i32], self._need),
            "fetch": ([i32, i32, i32], [], self._fetch),
            "flush": ([i32, i32], [], self._flush),
            "stdin": ([i32, i32], [i32], self._stdin),
            "fault": ([i32], [], self._fault),
        }
        imports = [
            memories[i.name or ""]
            if i.module == "env"
            else wasmtime.Func(store, wasmtime.FuncType(*host[i.name or ""][:2]), host[i.name or ""][2])
            for i in woven.imports
        ]
        self.wasi = wasmtime.Instance(store, woven, imports).exports(store)
        for slot, name in enumerate(SIGNATURES):
            inner["t"].set(store, slot, self.wasi[name])  # pyright: ignore
        blob = boot.encode(task)
        at = self.call("wasi_boot_space", len(blob))
        self.memory.write(store, blob, at)
        assert self.call("wasi_boot", at, len(blob)) == 0

    def _need(self, file: int, offset: int, length: int) -> int:
        blocks = {(file, block) for block in range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1)}
        return int(self.at_hand is not None and not blocks <= self.at_hand)

    def _fetch(self, file: int, block: int, to: int) -> None:
        self.cache.write(self.store, self.files[file][block * PAGE_BYTES :][:PAGE_BYTES].ljust(PAGE_BYTES, b"\0"), to)

    def _flush(self, at: int, length: int) -> None:
        self.log += self.read(at, length) + bytes(-length % 4)

    def _stdin(self, to: int, length: int) -> int:
        given = self.stdin(length)
        if given is None:
            return -1
        self.memory.write(self.store, given, to)
        return len(given)

    def _fault(self, code: int) -> None:
        raise MemoryError(f"fault {code}")

    def call(self, name: str, *arguments: int) -> int:
        return self.wasi[name](self.store, *arguments)  # pyright: ignore

    def __call__(self, name: str, *arguments: int) -> int | None:
        self.wasi["stopped"].set_value(self.store, 0)  # pyright: ignore
        result = self.call(
            name, *(argument - (argument >> 63 << 64) if argument >> 63 else argument for argument in arguments)
        )
        return None if self.wasi["stopped"].value(self.store) else result  # pyright: ignore

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.memory.read(self.store, address, address + length))

    def state(self) -> bytes:
        """All of M: what is saved and hashed."""
        at = ctypes.addressof(self.memory.data_ptr(self.store).contents)
        return ctypes.string_at(at, self.memory.data_len(self.store))

    def run(self) -> tuple[int, bytes, bytes]:
        """Exit status, stdout, stderr."""
        status = 0
        try:
            self.program["_start"](self.store)  # pyright: ignore
        except wasmtime.Trap:
            exited = output.exit_status(self)
            if exited is None:
                raise
            status = exited
        self._flush(self.call("wasi_log"), self.call("wasi_log_bytes"))
        self.call("wasi_log_drained")
        streams: Sequence[bytearray] = bytearray(), bytearray()
        for stream, content in output.output_records(self.log):
            streams[stream].extend(content)
        return status, bytes(streams[0]), bytes(streams[1])

    def close(self) -> None:
        self.store.close()
