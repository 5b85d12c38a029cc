"""save: a state on disk, from which a program goes on; only leaves that changed are written.

A directory holds `leaves` (appended: hash, length, zstd of one leaf) and `head` (replaced whole, when the leaves it names are on disk). A
crash at any moment leaves the save before it: a torn tail of `leaves` is cut off, and no head names it. A save is believed only when every
leaf hashes to its name and all of them to the root.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import zstandard

from ipos.vm.instance import Parts
from ipos.vm.root import LEAF_BYTES, ZEROS, Header, leaf_hash, leaves, root
from ipos.wire.errors import BadRecord, Refused

RECORD: Final = struct.Struct("<32sI")
HEAD_BYTES: Final = 8 << 20  # of the largest head: 4 memories of 4 GiB have fewer leaves
SLACK: Final = 4  # `leaves` is written anew when it is so many times what is alive


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


class Saves:
    """The one save of one task, replaced again and again. `sync=False`: for tests of other things."""

    def __init__(self, directory: Path, sync: bool = True) -> None:
        self.path = directory
        self._sync = sync
        self._at: dict[bytes, tuple[int, int]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = (directory / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another run of this task is under way on this machine ({directory})") from None
        self._file = self._open()
        self._size = self._scan()
        self._pack = zstandard.ZstdCompressor(level=1)

    def _open(self) -> BinaryIO:
        return open(self.path / "leaves", "a+b")  # closed by `close`

    def close(self) -> None:
        self._file.close()
        self._lock.close()

    def _scan(self) -> int:
        """Index what is whole; cut off what is not."""
        end, size = 0, os.fstat(self._file.fileno()).st_size
        while end + RECORD.size <= size:
            self._file.seek(end)
            name, length = RECORD.unpack(self._file.read(RECORD.size))
            if length > 2 * LEAF_BYTES or end + RECORD.size + length > size:
                break
            self._at[name] = (end + RECORD.size, length)
            end += RECORD.size + length
        if end < size:
            self._file.truncate(end)
        return end

    def put(self, head: Head, hashes: list[bytes], parts: Parts) -> int:
        """Returns the bytes written when it is on disk. `hashes`: of the leaves of `parts`. `Refused` if the disk is full: then the save
        before is still there."""
        begin = self._size
        try:
            if begin > SLACK * max(1 << 20, sum(self._at[h][1] for h in set(hashes) if h in self._at)):
                self._anew(set(hashes))
                begin = self._size
            chunks: list[bytes] = []
            for name, leaf in zip(hashes, leaves(parts), strict=True):
                if name not in self._at and leaf != ZEROS:
                    packed = self._pack.compress(leaf)
                    self._at[name] = (self._size + RECORD.size, len(packed))
                    self._size += RECORD.size + len(packed)
                    chunks += RECORD.pack(name, len(packed)), packed
            self._file.write(b"".join(chunks))
            self._flush(self._file)
            body = msgspec.msgpack.encode(head)
            new = self.path / "head.new"
            with open(new, "wb") as stream:
                stream.write(body)
                self._flush(stream)
            new.rename(self.path / "head")
        except OSError as error:
            self._file = self._open()
            self._at.clear()
            self._size = self._scan()
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
            alive |= {head.leaves[i : i + 32] for i in range(0, len(head.leaves), 32)}
        new = self.path / "leaves.new"
        with open(new, "wb") as stream:
            for name in alive & self._at.keys():
                body = self._raw(name)
                stream.write(RECORD.pack(name, len(body)) + body)
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(self.path / "leaves")
        self._file.close()
        self._file = self._open()
        self._at.clear()
        self._size = self._scan()

    def _raw(self, name: bytes) -> bytes:
        at, length = self._at[name]
        self._file.seek(at)
        return self._file.read(length)

    def head(self) -> Head | None:
        """The newest save's head; None if there is none yet. `BadRecord` if it is damaged."""
        try:
            body = (self.path / "head").read_bytes()
        except FileNotFoundError:
            return None
        if len(body) > HEAD_BYTES:
            raise BadRecord("head", f"{len(body)} bytes, the most is {HEAD_BYTES}")
        try:
            return msgspec.msgpack.decode(body, type=Head)
        except msgspec.DecodeError as error:
            raise BadRecord("head", f"damaged: {error}") from None

    def parts(self, head: Head) -> Parts:
        """The state that `head` names, verified: `BadRecord` says which leaf is damaged or missing."""
        hashes = [head.leaves[i : i + 32] for i in range(0, len(head.leaves), 32)]
        counts = [-(-length // LEAF_BYTES) for length in head.lengths]
        if sum(counts) != len(hashes) or root(head.header(), hashes) != head.root:
            raise BadRecord("save", "its leaves do not hash to its root")
        zero, unpack, at = leaf_hash(ZEROS), zstandard.ZstdDecompressor(), 0
        made: list[bytes] = []
        for length, count in zip(head.lengths, counts, strict=True):
            pieces: list[bytes] = []
            for name in hashes[at : at + count]:
                pieces.append(ZEROS if name == zero else self._leaf(name, unpack))
            at += count
            whole = b"".join(pieces)
            if any(whole[length:]):
                raise BadRecord("save", "its padding is not zero")
            made.append(whole[:length])
        return Parts(*made)

    def _leaf(self, name: bytes, unpack: zstandard.ZstdDecompressor) -> bytes:
        if name not in self._at:
            raise BadRecord("save", f"leaf {name.hex()[:16]} is missing")
        try:
            leaf = unpack.decompress(self._raw(name), max_output_size=LEAF_BYTES)
        except zstandard.ZstdError as error:
            raise BadRecord("save", f"leaf {name.hex()[:16]} is damaged: {error}") from None
        if leaf_hash(leaf) != name:
            raise BadRecord("save", f"leaf {name.hex()[:16]} is damaged: it hashes to something else")
        return leaf
