"""The WASI's C built for this machine as a shared library: to test it without wasm, fast and under sanitizers.

The state of the C is its static variables, so each `Native` loads a copy of the library of its own.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SOURCES = Path(os.environ.get("IPOS_TEST_WASI_SOURCES", REPOSITORY / "instrument/wasi"))
C_FILES = [*sorted(SOURCES.glob("*.c")), Path(__file__).with_name("wasi_host.c")]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
PAGE_BYTES = 65536

# i = 32 bits, l = 64 bits
SIGNATURES = {
    "args_get": "ii", "args_sizes_get": "ii", "environ_get": "ii", "environ_sizes_get": "ii", "clock_res_get": "ii",
    "clock_time_get": "ili", "fd_advise": "illi", "fd_allocate": "ill", "fd_close": "i", "fd_datasync": "i",
    "fd_fdstat_get": "ii", "fd_fdstat_set_flags": "ii", "fd_fdstat_set_rights": "ill", "fd_filestat_get": "ii",
    "fd_filestat_set_size": "il", "fd_filestat_set_times": "illi", "fd_pread": "iiili", "fd_prestat_get": "ii",
    "fd_prestat_dir_name": "iii", "fd_pwrite": "iiili", "fd_read": "iiii", "fd_readdir": "iiili", "fd_renumber": "ii",
    "fd_seek": "ilii", "fd_sync": "i", "fd_tell": "ii", "fd_write": "iiii", "path_create_directory": "iii",
    "path_filestat_get": "iiiii", "path_filestat_set_times": "iiiilli", "path_link": "iiiiiii", "path_open": "iiiiillii",
    "path_readlink": "iiiiii", "path_remove_directory": "iii", "path_rename": "iiiiii", "path_symlink": "iiiii",
    "path_unlink_file": "iii", "poll_oneoff": "iiii", "proc_exit": "i", "proc_raise": "i", "sched_yield": "",
    "random_get": "ii", "sock_accept": "iii", "sock_recv": "iiiiii", "sock_send": "iiiii", "sock_shutdown": "ii",
}  # fmt: skip


@functools.cache
def library(sanitize: bool = False) -> bytes:
    """With `sanitize` by gcc under its address sanitizer (the process must have it preloaded), else by zig with checks of
    undefined behaviour that trap."""
    if sanitize:
        command = ["gcc", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    else:
        command = [sys.executable, "-m", "ziglang", "cc", "-O1", "-fsanitize=undefined", "-fsanitize-trap=undefined"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "wasi.so")
        flags = [
            "-std=gnu11",
            "-shared",
            "-fPIC",
            "-Wl,-Bsymbolic",
            *([] if "IPOS_TEST_WASI_SOURCES" in os.environ else WARNINGS),
        ]
        subprocess.run([*command, *flags, "-o", target, *C_FILES], check=True)
        return target.read_bytes()


NEED = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint32)
FETCH = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
FLUSH = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)
STDIN = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32)


class Native:
    """One WASI. `files` are the input files by number; `stdin(n)` gives bytes, b"" at the end, None to wait."""

    def __init__(
        self,
        blob: bytes,
        files: dict[int, bytes] | None = None,
        stdin: Callable[[int], bytes | None] = lambda _: b"",
        program_pages: int = 2,
    ) -> None:
        self.files = files or {}
        self.stdin = stdin
        self.address = 0
        self.at_hand: set[tuple[int, int]] | None = None  # (file, block) that this node has; None = all
        self.needed: tuple[int, int, int] | None = None
        self.log = b""
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(library(bool(os.environ.get("IPOS_TEST_ASAN"))))
            file.flush()
            self.lib = ctypes.CDLL(file.name)
        me = weakref.proxy(self)  # a cycle would keep 200 MB of addresses until the collector runs
        self.callbacks = [
            NEED(lambda *given: me._need(*given)),  # noqa: PLW0108 (me._need alone would be bound to self)
            FETCH(lambda *given: me._fetch(*given)),  # noqa: PLW0108
            FLUSH(lambda *given: me._flush(*given)),  # noqa: PLW0108
            STDIN(lambda *given: me._stdin(*given)),  # noqa: PLW0108
        ]
        for name, callback in zip(("need", "fetch", "flush", "stdin"), self.callbacks, strict=True):
            ctypes.c_void_p.in_dll(self.lib, f"host_on_{name}").value = ctypes.cast(callback, ctypes.c_void_p).value
        self.lib.host_start(program_pages)
        self.size = program_pages * PAGE_BYTES
        self.address = ctypes.c_void_p.in_dll(self.lib, "host_program").value or 0
        self.memory = memoryview((ctypes.c_ubyte * self.size).from_address(self.address)).cast("B")
        self.work = ctypes.c_int64.in_dll(self.lib, "host_work")
        self.stopped = ctypes.c_uint32.in_dll(self.lib, "host_stopped")
        self.calls = {}
        for name, signature in SIGNATURES.items():
            call = getattr(self.lib, f"ipos_{name}")
            call.argtypes = [ctypes.c_uint32 if letter == "i" else ctypes.c_uint64 for letter in signature]
            call.restype = None if name == "proc_exit" else ctypes.c_uint32
            self.calls[name] = call
        space = self.lib.ipos_wasi_boot_space
        space.restype = ctypes.c_void_p
        at = space(len(blob))
        ctypes.memmove(at, blob, len(blob))
        self.lib.ipos_wasi_boot.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self.booted = self.lib.ipos_wasi_boot(at, len(blob))

    def close(self) -> None:
        """Gives back the addresses below 4 GiB that it has, of which few processes have many."""
        if self.address:
            self.address = 0
            self.memory.release()
            self.lib.host_end()
            _ctypes.dlclose(self.lib._handle)

    __del__ = close

    def _need(self, file: int, offset: int, length: int) -> int:
        blocks = {(file, block) for block in range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1)}
        if self.at_hand is None or blocks <= self.at_hand:
            return 0
        self.needed = (file, offset, length)
        return 1

    def _fetch(self, file: int, block: int, to: int) -> None:
        assert self.at_hand is None or (file, block) in self.at_hand
        ctypes.memmove(to, self.files[file][block * PAGE_BYTES :][:PAGE_BYTES].ljust(PAGE_BYTES, b"\0"), PAGE_BYTES)

    def _flush(self, at: int, length: int) -> None:
        self.log += _padded(ctypes.string_at(at, length))

    def _stdin(self, to: int, length: int) -> int:
        given = self.stdin(length)
        if given is None:
            return -1
        ctypes.memmove(to, given, len(given))
        return len(given)

    def __call__(self, name: str, *arguments: int) -> int | None:
        """The errno; None where the call has to wait (or ended the program)."""
        self.stopped.value = 0
        error = self.calls[name](*arguments)
        return None if self.stopped.value else error

    def drain(self) -> bytes:
        """The log so far, taken."""
        at = self.call("wasi_log")
        self.log += _padded(ctypes.string_at(at, self.call("wasi_log_bytes")))
        self.call("wasi_log_drained")
        log, self.log = self.log, b""
        return log

    # as `output.State`

    def call(self, name: str, *arguments: int) -> int:
        function = getattr(self.lib, f"ipos_{name}")
        function.restype = ctypes.c_uint64 if name not in {"wasi_input", "wasi_log_bytes"} else ctypes.c_uint32
        function.argtypes = [ctypes.c_uint64] * len(arguments)
        return function(*arguments)

    def read(self, address: int, length: int) -> bytes:
        return ctypes.string_at(address, length)


def _padded(log: bytes) -> bytes:
    return log + bytes(-len(log) % 4)


def have_address_sanitizer() -> bool:
    return bool(shutil.which("gcc")) and sys.platform == "linux"
