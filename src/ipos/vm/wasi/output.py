"""What a task leaves behind: the log of its output, and its files.

Nothing here knows wasmtime: a `State` calls exported functions and reads the WASI's memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ipos.wire.errors import BadRecord

PAGE_BYTES = 65536
WORD = 4


class Stream(IntEnum):
    STDOUT = 0
    STDERR = 1


class Metric(IntEnum):
    """Argument of `wasi_metric`. All are part of the state: equal on every node."""

    CALLS = 0
    PAGES = 1
    FREE_PAGES = 2
    NODES = 3
    OPEN = 4
    STDOUT_BYTES = 5
    STDERR_BYTES = 6


class State(Protocol):
    """The WASI of one instance, at a moment when the program is not running."""

    def call(self, name: str, *arguments: int) -> int: ...  # an exported wasi_* function; the result signed or not
    def read(self, address: int, length: int) -> bytes: ...  # of the memory `ipos_wasi`


def output_records(log: bytes) -> Iterator[tuple[Stream, bytes]]:
    """The records of `flush`, or of the log between `wasi_log` and `wasi_log_bytes`, in order. How the same output is cut into
    records differs from run to run; only the bytes of each stream, and their order, are the task's."""
    at = 0
    while at < len(log):
        if at + WORD > len(log):
            raise BadRecord("output", f"{len(log) - at} bytes are left where a record should begin")
        (header,) = struct.unpack_from("<I", log, at)
        length = header & 0x7FFFFFFF
        at += WORD
        if at + length > len(log):
            raise BadRecord("output", f"a record of {length} bytes has only {len(log) - at}")
        yield Stream(header >> 31), log[at : at + length]
        at += (length + WORD - 1) // WORD * WORD


def exit_status(state: State) -> int | None:
    """The status of proc_exit; None if it was not called."""
    exited = state.call("wasi_exited") & _U64
    return exited & _U32 if exited else None


_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes that the program wrote."""

    content: bytes

    @property
    def length(self) -> int:
        return len(self.content)


@dataclass(frozen=True, slots=True)
class Shown:
    """Bytes of an input file that still show."""

    number: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Zeros:
    length: int


Piece = Written | Shown | Zeros


@dataclass(frozen=True, slots=True)
class OutputFile:
    state: State
    node: int
    size: int
    changed: bool
    number: int  # of the input file below; 0 = none
    shown: int  # how many of its bytes show where nothing was written

    @property
    def untouched(self) -> int:
        """The number of the input file that this file still is, byte for byte; 0 if it is not known to be one."""
        return self.number if not self.changed and self.shown == self.size else 0

    def pieces(self) -> Iterator[Piece]:
        """All bytes in order; none empty, zeros and input not merged beyond 64 KiB."""
        for start in range(0, self.size, PAGE_BYTES):
            length = min(PAGE_BYTES, self.size - start)
            span = self.state.call("wasi_block", self.node, start // PAGE_BYTES) & _U64
            if span:
                content = _read(self.state, span)[:length]
                yield Written(content)
                length -= len(content)
            elif self.shown > start:
                shown = min(length, self.shown - start)
                yield Shown(self.number, start, shown)
                length -= shown
            if length:
                yield Zeros(length)

    def content(self, read_input: Callable[[int, int, int], bytes]) -> Iterator[bytes]:
        """The bytes; `read_input(number, offset, length)` gives those of input files."""
        for piece in self.pieces():
            match piece:
                case Written(content):
                    yield content
                case Shown(number, offset, length):
                    yield read_input(number, offset, length)
                case Zeros(length):
                    yield bytes(length)


@dataclass(frozen=True, slots=True)
class OutputSymlink:
    target: str


@dataclass(frozen=True, slots=True)
class OutputDirectory:
    state: State
    node: int
    changed: bool  # names were made or removed in it; says nothing of what is below

    def entries(self) -> Iterator[tuple[str, OutputNode]]:
        """Names in order of bytes."""
        entry = self.state.call("wasi_first", self.node) & _U32
        while entry:
            name = _read(self.state, self.state.call("wasi_name", entry)).decode()
            yield name, _node(self.state, self.state.call("wasi_node", entry) & _U32)
            entry = self.state.call("wasi_next", entry) & _U32


OutputNode = OutputDirectory | OutputFile | OutputSymlink


def _read(state: State, span: int) -> bytes:
    return state.read((span & _U64) >> 32, span & _U32)


def _node(state: State, node: int) -> OutputNode:
    described = state.call("wasi_kind", node) & _U64
    kind, changed = described & 0xFF, bool(described >> 8 & 0xFF)
    if kind == 3:
        return OutputDirectory(state, node, changed)
    if kind == 7:
        return OutputSymlink(_read(state, state.call("wasi_target", node)).decode())
    size, shown = state.call("wasi_size", node) & _U64, state.call("wasi_input_size", node) & _U64
    return OutputFile(state, node, size, changed, state.call("wasi_input", node) & _U32, shown)


def root(state: State) -> OutputDirectory:
    """The root of the task's files, input and overlay as one tree."""
    node = _node(state, state.call("wasi_root") & _U32)
    assert isinstance(node, OutputDirectory)
    return node
