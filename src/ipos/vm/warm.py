"""warm: what the parent of the workers keeps ready, so that a task begins without it: its children inherit all of it when they are forked.

So far compiled programs. A restored instance of an image belongs here too, by (program, image): made once in the parent, taken over by
the child as it is, for a fork copies it.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from typing import Final, NamedTuple

import wasmtime

from ipos.vm import engine
from ipos.vm.instance import Instance
from ipos.wire.errors import Refused

PROGRAMS: Final = 16
CODE_BYTES: Final = 512 << 20
ALL_MEMORY: Final = 4 << 30


class Program(NamedTuple):
    """`fds`: those that the engine opened for it (its data, from which memories begin): a child must not close them."""

    module: wasmtime.Module
    fds: frozenset[int]
    size: int


class Nothing:
    """`host.FileHost` of an instance that is never run."""

    def ready(self, file: int, first: int, last: int) -> bool:
        return False

    def block(self, file: int, n: int) -> bytes:
        return b""

    def stdin(self, count: int) -> bytes | None:
        return None

    def output(self, stream: int, content: bytes) -> None:
        pass


class Warm:
    """`cpython` is 41 MB of code, a small program some 100 kB. What was used longest ago goes first."""

    def __init__(self) -> None:
        self._programs: OrderedDict[str, Program] = OrderedDict()

    def program(self, name: str, code: int) -> Program:
        """By its name (`code.name`); `code`: a descriptor of what the node compiled, read if it is not here. ValueError: not for this engine."""
        if name not in self._programs:
            self._programs[name] = self._load(code)
            while len(self._programs) > PROGRAMS or (self._bytes() > CODE_BYTES and len(self._programs) > 1):
                self._programs.popitem(last=False)[1].module.close()
        self._programs.move_to_end(name)
        return self._programs[name]

    def _load(self, code: int) -> Program:
        size, before = os.fstat(code).st_size, _open_fds()
        try:
            module = engine.load(os.pread(code, size, 0))
        except wasmtime.WasmtimeError as error:
            raise ValueError(f"its compiled code does not fit this engine: {error}") from None
        with contextlib.suppress(
            Refused, wasmtime.WasmtimeError, wasmtime.Trap
        ):  # the task says so, with its own limits
            Instance(module, Nothing(), ALL_MEMORY).close()  # a first one makes what all the others share
        return Program(module, frozenset(_open_fds() - before), size)

    def _bytes(self) -> int:
        return sum(one.size for one in self._programs.values())


def _open_fds() -> set[int]:
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in listed if os.path.islink(f"/proc/self/fd/{fd}")}  # the listing had one of its own
