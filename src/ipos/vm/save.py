"""save: a state on disk, from which a program goes on; only leaves that changed are written.

A directory holds `leaves` (appended: hash, length, zstd of one leaf) and `head` (replaced whole, when the leaves it names are on disk). A
crash at any moment leaves the save before it: a torn tail of `leaves` is cut off, and no head names it. A save is believed only when every
leaf hashes to its name and all of them to the root.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import zstandard

from ipos.vm.root import LEAF_BYTES, ZEROS, Header, Parts, leaf_hash, leaves, root
from ipos.wire.errors import BadRecord, Refused

RECORD: Final = struct.Struct("<32sI")
HEAD_BYTES: Final = 64 << 20  # of the largest head: 4 memories of 4 GiB, and a million marks
SLACK: Final = 4  # `leaves` is written anew when it is so many times what is alive
TRIES: Final = 5  # to see a save whole while its run replaces it

Places = dict[bytes, tuple[int, int]]
"""Hash of a leaf -> where its compressed bytes are in `leaves`, and how many."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """`leaves`: hashes in order, one after the other; `marks`: (work, root) so far; `export`: what to call to go on."""

    v: int = 1
    engine: str
    task: str
    export: str
    work: int
    lengths: tuple[int, int, int, int]
    stdout: bytes
    stderr: bytes
    written: tuple[int, int]
    marks: list[tuple[int, bytes]]
    leaves: bytes
    root: bytes

    def header(self) -> Header:
        return Header(self.work, self.lengths, self.stdout, self.stderr)

    def names(self) -> list[bytes]:
        """The hashes of the leaves in order."""
        return [self.leaves[i : i + 32] for i in range(0, len(self.leaves), 32)]


def nofollow(path: Path) -> int:
    """A descriptor, to read. Whoever writes a save need not be believed: a name in its directory is not taken for another file. (Not as an
    `opener`: Python then makes a call that a worker may not make.)"""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_head(directory: Path) -> Head | None:
    """The newest save's head; None if there is none yet. `BadRecord` if it is damaged."""
    try:
        with open(nofollow(directory / "head"), "rb") as stream:
            body = stream.read(HEAD_BYTES + 1)
    except FileNotFoundError:
        return None
    return parse_head(body)


def parse_head(body: bytes) -> Head:
    if len(body) > HEAD_BYTES:
        raise BadRecord("head", f"{len(body)} bytes, the most is {HEAD_BYTES}")
    try:
        head = msgspec.msgpack.decode(body, type=Head)
    except msgspec.DecodeError as error:
        raise BadRecord("head", f"damaged: {error}") from None
    if len(head.leaves) % 32 or min(head.lengths) < 0 or min(head.written) < 0 or head.work < 0:
        raise BadRecord("head", "damaged: a length that cannot be")
    return head


def scan(file: BinaryIO) -> tuple[Places, int]:
    """What is whole in `leaves`, and where the whole ends."""
    places: Places = {}
    end, size = 0, os.fstat(file.fileno()).st_size
    while end + RECORD.size <= size:
        file.seek(end)
        name, length = RECORD.unpack(file.read(RECORD.size))
        if length > 2 * LEAF_BYTES or end + RECORD.size + length > size:
            break
        places[name] = (end + RECORD.size, length)
        end += RECORD.size + length
    return places, end


class Leaves:
    """The leaves of one `leaves` file, by hash."""

    def __init__(self, file: BinaryIO, places: Places) -> None:
        self.file = file
        self.places = places
        self._unpack = zstandard.ZstdDecompressor()

    def packed(self, name: bytes) -> bytes:
        at, length = self.places[name]
        self.file.seek(at)
        return self.file.read(length)

    def leaf(self, name: bytes) -> bytes:
        """`BadRecord` says what is wrong with it."""
        if name not in self.places:
            raise BadRecord("save", f"leaf {name.hex()[:16]} is missing")
        try:
            leaf = self._unpack.decompress(self.packed(name), max_output_size=LEAF_BYTES)
        except zstandard.ZstdError as error:
            raise BadRecord("save", f"leaf {name.hex()[:16]} is damaged: {error}") from None
        if leaf_hash(leaf) != name:
            raise BadRecord("save", f"leaf {name.hex()[:16]} is damaged: it hashes to something else")
        return leaf

    def parts(self, head: Head) -> Parts:
        """The state that `head` names, verified: `BadRecord` says which leaf is damaged or missing."""
        hashes = head.names()
        counts = [-(-length // LEAF_BYTES) for length in head.lengths]
        if sum(counts) != len(hashes) or root(head.header(), hashes) != head.root:
            raise BadRecord("save", "its leaves do not hash to its root")
        zero, at = leaf_hash(ZEROS), 0
        made: list[bytes] = []
        for length, count in zip(head.lengths, counts, strict=True):
            whole = b"".join(ZEROS if name == zero else self.leaf(name) for name in hashes[at : at + count])
            at += count
            if any(whole[length:]):
                raise BadRecord("save", "its padding is not zero")
            made.append(whole[:length])
        return Parts(*made)


class Saves:
    """The one save of one task, replaced again and again. `sync=False`: for tests of other things. `patience_s`: for a run before this one,
    which was killed, to be gone."""

    def __init__(self, directory: Path, sync: bool = True, patience_s: float = 0.0) -> None:
        self.path = directory
        self._sync = sync
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = (directory / "lock").open("wb")
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Refused(f"another run of this task is under way on this machine ({directory})") from None
                time.sleep(0.01)
        self._pack = zstandard.ZstdCompressor(level=1)
        self._open()

    def _open(self) -> None:
        """Index what is whole; cut off what is not."""
        file = open(self.path / "leaves", "a+b")  # noqa: SIM115  (closed by `close`)
        places, self._size = scan(file)
        file.truncate(self._size)
        self._leaves = Leaves(file, places)

    def close(self) -> None:
        self._leaves.file.close()
        self._lock.close()

    def put(self, head: Head, hashes: list[bytes], parts: Parts) -> int:
        """Returns the bytes written when it is on disk. `hashes`: of the leaves of `parts`. `Refused` if the disk is full: then the save
        before is still there."""
        try:
            places = self._leaves.places
            if self._size > SLACK * max(1 << 20, sum(places[h][1] for h in set(hashes) if h in places)):
                self._anew(set(hashes))
                places = self._leaves.places
            begin = self._size
            chunks: list[bytes] = []
            for name, leaf in zip(hashes, leaves(parts), strict=True):
                if name not in places and leaf != ZEROS:
                    packed = self._pack.compress(leaf)
                    places[name] = (self._size + RECORD.size, len(packed))
                    self._size += RECORD.size + len(packed)
                    chunks += RECORD.pack(name, len(packed)), packed
            self._leaves.file.write(b"".join(chunks))
            self._flush(self._leaves.file)
            body = msgspec.msgpack.encode(head)
            new = self.path / "head.new"
            with open(new, "wb") as stream:
                stream.write(body)
                self._flush(stream)
            new.rename(self.path / "head")
        except OSError as error:
            self._open()
            raise Refused(f"the save cannot be written to {self.path}: {os.strerror(error.errno or 0)}") from None
        return self._size - begin + len(body)

    def _flush(self, stream: BinaryIO) -> None:
        stream.flush()
        if self._sync:
            os.fsync(stream.fileno())

    def _anew(self, alive: set[bytes]) -> None:
        """Leaves that no head needs any more go; those of the head on disk stay until the next one is there."""
        head = self.head()
        if head is not None:
            alive |= set(head.names())
        new = self.path / "leaves.new"
        with open(new, "wb") as stream:
            for name in alive & self._leaves.places.keys():
                body = self._leaves.packed(name)
                stream.write(RECORD.pack(name, len(body)) + body)
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(self.path / "leaves")
        self._leaves.file.close()
        self._open()

    def head(self) -> Head | None:
        """The newest save's head; None if there is none yet. `BadRecord` if it is damaged."""
        return read_head(self.path)

    def parts(self, head: Head) -> Parts:
        """The state that `head` names, verified: `BadRecord` says which leaf is damaged or missing."""
        return self._leaves.parts(head)


class View:
    """The newest save of a directory as it is now, while its run may be replacing it. To be closed."""

    def __init__(self, directory: Path) -> None:
        """`BadRecord` if there is none, or if leaves are missing."""
        missing: bytes | None = b""
        for _ in range(TRIES):
            file = self._file(
                directory
            )  # before the head: then it has the head's leaves, unless both were replaced in between
            head = read_head(directory)
            if head is None:
                file.close()
                raise BadRecord("save", f"there is none in {directory}")
            places, _end = scan(file)
            self.head, self.leaves = head, Leaves(file, places)
            self.directory = directory
            zero = leaf_hash(ZEROS)
            missing = next((name for name in head.names() if name not in places and name != zero), None)
            if missing is None:
                return
            file.close()
        raise BadRecord("save", f"leaf {(missing or b'').hex()[:16]} is missing")

    @staticmethod
    def _file(directory: Path) -> BinaryIO:
        try:
            return open(nofollow(directory / "leaves"), "rb")
        except FileNotFoundError:
            raise BadRecord("save", f"there is none in {directory}") from None

    def close(self) -> None:
        self.leaves.file.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
