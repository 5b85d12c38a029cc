"""instance: one program in one wasmtime store: calls, stops, and its state as bytes (docs/protocols/engine.md)."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import wasmtime

from ipos.vm import engine
from ipos.vm.host import Fault, FileHost
from ipos.vm.root import Parts
from ipos.vm.wasi.boot import Boot, encode
from ipos.vm.wasi.output import Metric, exit_status, output_records
from ipos.wire.errors import Refused

PAGE_BYTES = 65536
CACHE_PAGES = 1 + 256  # 16 MiB of clean blocks
U64 = (1 << 64) - 1
TOO_DEEP = 1


class TooDeep(Exception):
    """The program called deeper than the deterministic limit."""


class Instance:
    """`waiting` after a call: the program asked for something that is not there, and will ask again. `Refused` if what it begins with, or
    what the engine needs for its frames, is more than `memory_bytes`."""

    def __init__(self, module: wasmtime.Module, host: FileHost, memory_bytes: int) -> None:
        self.waiting = False
        self._host = host
        self._total = 0
        memories = [export.type for export in module.exports if isinstance(export.type, wasmtime.MemoryType)]
        least = max((memory.limits.min for memory in memories), default=0) * PAGE_BYTES
        if least > memory_bytes:
            raise Refused(
                f"the program needs {least / (1 << 20):.0f} MiB of memory to begin; the task has {memory_bytes >> 20} MiB (allow more with --memory)"
            )
        self._store = wasmtime.Store(engine.engine())
        self._store.set_limits(memory_size=memory_bytes, instances=1)
        calls = {
            "need": self._need, "fetch": self._fetch, "flush": self._flush, "stdin": self._stdin, "fault": self._fault,
            "trap": self._trap,
        }  # fmt: skip
        imports = [
            wasmtime.Func(self._store, cast("wasmtime.FuncType", wanted.type), calls[wanted.name or ""])
            for wanted in module.imports
        ]
        self._exports = wasmtime.Instance(self._store, module, imports).exports(self._store)
        self._names = {export.name for export in module.exports}
        if "ipos_cache" in self._names:
            self._grow("ipos_cache", CACHE_PAGES * PAGE_BYTES)

    def close(self) -> None:
        """Every instance holds some 16 GiB of address space, and its callbacks a cycle: end it by hand."""
        self._store.close()

    # ---- calls

    def call(self, name: str, *arguments: int) -> int:
        function = cast("wasmtime.Func", self._exports[name])
        return function(self._store, *arguments)

    def boot(self, boot: Boot) -> None:
        blob = encode(boot)
        at = self.call("wasi_boot_space", len(blob))
        if not at:
            raise Fault("the node has no memory to start the program in")
        self.write("ipos_wasi", at, blob)
        if self.call("wasi_boot", at, len(blob)):
            raise Fault("the program's input does not fit its memory")
        self.set_used(0)

    def run(self, export: str, until: int) -> bool:
        """Call `export`, or go on with it, until the used work exceeds `until`. True if it returned."""
        self.waiting = False
        left = self.call("ipos_left")
        grant = until - (self._total - left) - left
        self.call("ipos_enter", grant)
        self._total += grant
        function = cast("wasmtime.Func", self._exports[export])
        kinds = [str(kind) for kind in function.type(self._store).params]
        function(self._store, *[0.0 if kind[0] == "f" else 0 for kind in kinds])
        self.drain()
        return self.call("ipos_state") == 0

    @property
    def used(self) -> int:
        return self._total - self.call("ipos_left")

    def set_used(self, used: int) -> None:
        self.call("ipos_set", used)
        self._total = used

    @property
    def page_work(self) -> int:
        """The memory integral: pages of 64 KiB, the program's and its files', times the work they were held for."""
        return self.call("ipos_pages_work")

    @property
    def exit(self) -> int | None:
        return exit_status(self)

    def written(self) -> tuple[int, int]:
        """Bytes of stdout and stderr so far."""
        return self.call("wasi_metric", Metric.STDOUT_BYTES), self.call("wasi_metric", Metric.STDERR_BYTES)

    def drain(self) -> None:
        count = self.call("wasi_log_bytes")
        if count:
            self._records(self.read(self.call("wasi_log"), count))
            self.call("wasi_log_drained")

    # ---- host calls

    def _need(self, file: int, offset: int, length: int) -> int:
        if self._host.ready(file, offset // PAGE_BYTES, (offset + max(length, 1) - 1) // PAGE_BYTES):
            return 0
        self.waiting = True
        return 1

    def _fetch(self, file: int, block: int, at: int) -> None:
        self.write("ipos_cache", at, self._host.block(file & 0xFFFFFFFF, block & 0xFFFFFFFF).ljust(PAGE_BYTES, b"\0"))

    def _flush(self, at: int, length: int) -> None:
        self._records(self.read(at, length))

    def _records(self, log: bytes) -> None:
        for stream, content in output_records(log):
            self._host.output(int(stream), content)

    def _stdin(self, at: int, count: int) -> int:
        given = self._host.stdin(count)
        if given is None:
            self.waiting = True
            return -1
        self.write("ipos_wasi", at, given)
        return len(given)

    def _fault(self, code: int) -> None:
        raise Fault({1: "the node has no memory left for the program's files"}.get(code, f"the WASI failed ({code})"))

    def _trap(self, code: int) -> None:
        raise TooDeep if code == TOO_DEEP else Fault(f"unknown trap {code}")

    # ---- memories

    def _memory(self, name: str) -> tuple[int, int]:
        """Address and bytes; both change when it grows."""
        memory = cast("wasmtime.Memory", self._exports[name])
        pointer: Any = memory.data_ptr(self._store)
        return ctypes.addressof(pointer.contents) if memory.data_len(self._store) else 0, memory.data_len(self._store)

    def _grow(self, name: str, size: int) -> None:
        memory = cast("wasmtime.Memory", self._exports[name])
        missing = size - memory.data_len(self._store)
        if missing > 0:
            try:
                memory.grow(self._store, (missing + PAGE_BYTES - 1) // PAGE_BYTES)
            except wasmtime.WasmtimeError as error:
                raise Fault(f"the node has no {size} bytes of memory for the program") from error

    def write(self, name: str, at: int, content: bytes) -> None:
        base, size = self._memory(name)
        at &= 0xFFFFFFFF
        if at + len(content) > size:
            raise Fault(f"{len(content)} bytes at {at} do not fit {name}")
        ctypes.memmove(base + at, content, len(content))

    def read(self, address: int, length: int) -> bytes:
        return self._bytes("ipos_wasi", address & 0xFFFFFFFF, length)

    def _bytes(self, name: str, at: int, count: int) -> bytes:
        base, size = self._memory(name)
        if at + count > size:
            raise Fault(f"{count} bytes at {at} are beyond {name}")
        return ctypes.string_at(base + at, count)

    def _span(self, name: str) -> tuple[int, int]:
        value = self.call(name) & U64
        return value >> 32, value & 0xFFFFFFFF

    def parts(self) -> Parts:
        """Of a stopped program."""
        self.call("ipos_globals_out")
        area = self._bytes("ipos_stack", *self._span("ipos_globals_at"))
        frames = self._bytes("ipos_stack", *self._span("ipos_frames"))
        return Parts(area, frames, *(self._bytes(name, 0, self._memory(name)[1]) for name in ("ipos_mem", "ipos_wasi")))

    def restore(self, parts: Parts, used: int) -> None:
        """Into a fresh instance: it is then as the one was that `parts` came from."""
        self._fill("ipos_wasi", parts.wasi)
        self.set_used(used)
        self.place(parts)

    def _fill(self, name: str, content: bytes) -> None:
        self._grow(name, len(content))
        if self._memory(name)[1] != len(content):
            raise Fault(f"the save has {len(content)} bytes of {name}, fewer than the program begins with")
        self.write(name, 0, content)

    def hold(self, memory: bytes) -> None:
        """The program's memory of an image, into a fresh instance that will be another process's: `adopt` and `place` do the rest there."""
        self._fill("ipos_mem", memory)

    def adopt(self, host: FileHost, memory_bytes: int) -> None:
        """In a process that was forked: what another one held is this one's."""
        self._host = host
        self._store.set_limits(memory_size=memory_bytes, instances=1)

    def place(self, parts: Parts) -> None:
        """The program's own part of a state, into a fresh instance: all but the WASI and the work used. No memory: it is there already."""
        if parts.memory:
            self._fill("ipos_mem", parts.memory)
        at = self.call("ipos_frames_at") & 0xFFFFFFFF
        self._grow("ipos_stack", at + len(parts.frames))
        self.write("ipos_stack", at, parts.frames)
        self.call("ipos_restore", len(parts.frames))
        at, count = self._span("ipos_globals_at")
        if count != len(parts.globals):
            raise Fault(f"the save has {len(parts.globals)} bytes of globals, the program {count}")
        self.write("ipos_stack", at, parts.globals)
        self.call("ipos_globals_in")
