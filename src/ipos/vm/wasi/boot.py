"""The boot blob: everything a task starts with, in the bytes that `wasi_boot` reads (docs/protocols/wasi.md).

A blob is a function of its `Boot` alone: directories are written in order of names, so equal tasks boot equal states.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from ipos.wire.errors import Refused

MAGIC = b"IPOSBW\x01\x00"
SEED_BYTES = 32
PAGE_BYTES = 65536
NAME_BYTES = 255
TARGET_BYTES = 4095
STRINGS_BYTES = 65536  # arguments together, and environment together
FILE_BYTES = 1 << 40
OVERLAY_BYTES = 3 << 30  # of the 4 GiB that the WASI's memory can have
EPOCH_NS = 1_700_000_000_000_000_000
UNLIMITED = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class File:
    """An input file: the number by which `need` and `fetch` ask for its blocks (1 to 2**32 - 1; any if it is empty), and its size."""

    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Symlink:
    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    entries: Mapping[str, Directory | File | Symlink] = field(default_factory=dict[str, "Directory | File | Symlink"])


Entry = Directory | File | Symlink


class StdinKind(IntEnum):
    EMPTY = 0
    STREAM = 1  # the host is asked for bytes; a read may wait
    FILE = 2  # an input file that can be sought in
    TERMINAL = 3  # as STREAM; the three standard descriptors are a terminal for the program


@dataclass(frozen=True, slots=True)
class Stdin:
    kind: StdinKind = StdinKind.EMPTY
    file: File = File(0, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """`overlay_bytes` counts 64 KiB pages in use by all that the program made, contents, names and tables; `files` counts nodes
    (files, directories, symlinks, also removed ones that are still open) beyond those of the input; `output_bytes` is stdout and
    stderr together. At a limit a write is short, then ENOSPC."""

    overlay_bytes: int = 1 << 30
    files: int = 1_000_000
    output_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Boot:
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    epoch_ns: int = EPOCH_NS
    seed: bytes = bytes(SEED_BYTES)
    stdin: Stdin = Stdin()
    limits: Limits = Limits()
    tree: Directory = Directory()


def encode(boot: Boot) -> bytes:
    """The blob. Raises Refused with a sentence if something in `boot` cannot be."""
    if len(boot.seed) != SEED_BYTES:
        raise Refused(f"a seed has {SEED_BYTES} bytes; this one has {len(boot.seed)}")
    limits, stdin = boot.limits, boot.stdin
    if not 0 <= limits.overlay_bytes <= OVERLAY_BYTES:
        raise Refused(f"a task can write at most {OVERLAY_BYTES} bytes to files; {limits.overlay_bytes} were asked for")
    numbers = struct.pack(
        "<QQQIIIQ",
        boot.epoch_ns,
        limits.overlay_bytes,
        min(limits.output_bytes, UNLIMITED),
        min(limits.files, 0xFFFFFFFF),
        stdin.kind,
        _number(stdin.file, "stdin"),
        stdin.file.size,
    )
    parts = [MAGIC, numbers, boot.seed, _strings("arguments", boot.args)]
    parts.append(_strings("environment", [_variable(name, value) for name, value in boot.env.items()]))
    entries = _entries(boot.tree)
    return b"".join([*parts, struct.pack("<I", len(entries)), *entries])


def _variable(name: str, value: str) -> str:
    if not name or "=" in name:
        raise Refused(f"'{name}' cannot be the name of an environment variable")
    return f"{name}={value}"


def _strings(what: str, strings: Sequence[str]) -> bytes:
    for string in strings:
        if "\0" in string:
            raise Refused(f"the {what} hold a NUL byte: {string!r}")
    text = b"".join(string.encode("utf-8", "surrogateescape") + b"\0" for string in strings)
    if len(text) > STRINGS_BYTES:
        raise Refused(f"the {what} have {len(text)} bytes; at most {STRINGS_BYTES} can be given to a program")
    return struct.pack("<II", len(strings), len(text)) + text


def _number(file: File, path: str) -> int:
    if not 0 <= file.size <= FILE_BYTES:
        raise Refused(f"{path} has {file.size} bytes; an input file can have at most {FILE_BYTES}")
    if file.size and not 0 < file.number < 1 << 32:
        raise Refused(f"{path}: {file.number} is not the number of an input file")
    return file.number if file.size else 0


def _name(directory: str, name: str) -> bytes:
    text = name.encode("utf-8", "surrogatepass")
    if name in {"", ".", ".."} or "/" in name or "\0" in name or any(0xD800 <= ord(letter) < 0xE000 for letter in name):
        raise Refused(f"'{directory}' holds the name {name!r}, which no program could open")
    if len(text) > NAME_BYTES:
        raise Refused(f"a name in '{directory}' has {len(text)} bytes; {NAME_BYTES} are the most")
    return text


_Listed = list[tuple[str, int, Directory]]


def _entries(root: Directory) -> list[bytes]:
    """One record each, parents before children: breadth first, names of a directory in order of bytes."""
    records: list[bytes] = []
    todo: _Listed = [("/", 0, root)]  # path, place in the list (0 = the root, which is not in it), directory
    for path, place, directory in todo:
        for text, name in sorted((_name(path, name), name) for name in directory.entries):
            here = f"{path}{name}"
            records.append(_record(here, place, text, directory.entries[name], len(records) + 1, todo))
    return records


def _record(path: str, parent: int, name: bytes, entry: Entry, place: int, todo: _Listed) -> bytes:
    kind, number, size, target = 3, 0, 0, b""
    match entry:
        case Directory():
            todo.append((path + "/", place, entry))
        case File(_, size):
            kind, number = 4, _number(entry, path)
        case Symlink(text):
            kind, target = 7, text.encode()
            if not target or len(target) > TARGET_BYTES or b"\0" in target:
                raise Refused(f"the symlink {path} has a target that no program could make: {text[:80]!r}")
    return struct.pack("<BIIQHH", kind, parent, number, size, len(name), len(target)) + name + target
