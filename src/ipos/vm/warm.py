"""warm: what the parent of the workers keeps ready, so that a task begins without it: its children inherit all of it when they are forked.

Compiled programs; and instances with the memory of an image in them, by (program, image): made once in the parent, taken over by the child
as they are, for a fork copies them.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import wasmtime

from ipos.vm import engine
from ipos.vm.host import Fault
from ipos.vm.image import decoded
from ipos.vm.instance import Instance
from ipos.vm.runner import Held
from ipos.wire.errors import Refused

IMAGES: Final = 2  # each is some 16 GiB of address space, and the image's memory
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
        self._held: OrderedDict[tuple[str, str], Held] = OrderedDict()

    def program(self, name: str, code: int) -> Program:
        """By its name (`code.name`); `code`: a descriptor of what the node compiled, read if it is not here. ValueError: not for this engine."""
        if name not in self._programs:
            self._programs[name] = self._load(code)
            while len(self._programs) > PROGRAMS or (self._bytes() > CODE_BYTES and len(self._programs) > 1):
                oldest, program = self._programs.popitem(last=False)
                self._let_go(lambda of: of == oldest)  # noqa: B023  (called at once)
                program.module.close()
        self._programs.move_to_end(name)
        return self._programs[name]

    def image(self, program: str, name: str, body: int) -> Held:
        """An instance of a program that is here with an image in it; `body`: a descriptor of what the node sealed (`vm.image.encoded`).
        ValueError: it does not fit the program."""
        key = program, name
        if key not in self._held:
            try:
                image = decoded(os.pread(body, os.fstat(body).st_size, 0))
                instance = Instance(self._programs[program].module, Nothing(), ALL_MEMORY)
                instance.hold(image.parts.memory)
            except (Fault, Refused, wasmtime.WasmtimeError, wasmtime.Trap) as error:
                raise ValueError(f"its image cannot be held ready: {error}") from None
            bare = image._replace(parts=image.parts._replace(memory=b""))
            self._held[key] = Held(bare, instance, len(image.parts.memory))
            while len(self._held) > IMAGES:
                self._held.popitem(last=False)[1].instance.close()
        self._held.move_to_end(key)
        return self._held[key]

    def only(self, held: Held | None) -> None:
        """In a child: the address space of all others is its own to use."""
        self._let_go(lambda _: True, held)

    def _let_go(self, which: Callable[[str], bool], but: Held | None = None) -> None:
        for key in [key for key, held in self._held.items() if which(key[0]) and held is not but]:
            self._held.pop(key).instance.close()

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
