"""packfile: the bytes of a pack, and the one end that is written to.

A pack is records one after the other: `u32 length and flags, 36 bytes of CID, body`, little endian. Nothing is ever moved in it. A deleted
record keeps its head, marked, and its body goes back to the file system (a hole). A *reference* has in the place of a block where it lies
in a file of the user: `u64 offset, u64 mtime in ns, u64 size of the file, u32 length of the block, path`.

A pack has one writer at a time, which holds its lock (flock); the writer of a pack that a crash left half written goes on behind its last
whole record.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ipos.store import cid as c
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused

HEAD: Final = struct.Struct(f"<I{c.LENGTH}s")
LENGTH: Final = struct.Struct("<I")
REFERENCE_HEAD: Final = struct.Struct("<QQQI")
DELETED: Final = 1 << 31  # in a head's length
REFERENCE: Final = 1 << 30
PUNCH_HOLE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
PACK_BYTES: Final = 256 * limits.MiB  # a pack that has so many is not written to any more
GO_ON_BYTES: Final = PACK_BYTES // 8  # one that has less is gone on with by the next writer
HOLE_BYTES: Final = 8192  # smaller holes free no page; compaction sees to them
VECTORS: Final = 512  # buffers in one write; Linux takes 1024
_libc = ctypes.CDLL(None, use_errno=True)


class Reference(NamedTuple):
    """`length` bytes of a block at `offset` of the file `path`, which had this size and this time of change."""

    path: str
    offset: int
    length: int
    mtime_ns: int
    size: int

    def encode(self) -> bytes:
        head = REFERENCE_HEAD.pack(self.offset, self.mtime_ns, self.size, self.length)
        return head + os.fsencode(self.path)

    @staticmethod
    def decode(body: bytes) -> Reference:
        if len(body) <= REFERENCE_HEAD.size:
            raise BadRecord("reference", f"{len(body)} bytes are too short")
        offset, mtime_ns, size, length = REFERENCE_HEAD.unpack_from(body)
        return Reference(os.fsdecode(body[REFERENCE_HEAD.size :]), offset, length, mtime_ns, size)


class Found(NamedTuple):
    """A record: its body is `length` bytes at `at`."""

    cid: bytes
    at: int
    length: int
    reference: bool
    deleted: bool


class Scan:
    """The records of a pack from `start`, a record's beginning; `end` is where the last whole one ends."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self.end = start

    def __iter__(self) -> Iterator[Found]:
        while self.end + HEAD.size <= self._size:
            marked, cid = HEAD.unpack(os.pread(self._fd, HEAD.size, self.end))
            length = marked & ~(DELETED | REFERENCE)
            at = self.end + HEAD.size
            if length > limits.block_bytes or not c.valid(cid) or at + length > self._size:
                return
            self.end = at + length
            yield Found(cid, at, length, bool(marked & REFERENCE), bool(marked & DELETED))


def locked(fd: int) -> bool:
    """Whether this descriptor now has the pack's lock; it goes with the descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def mark_deleted(fd: int, at: int, length: int, reference: bool) -> None:
    """The record whose body is at `at` is none any more."""
    os.pwrite(fd, LENGTH.pack(length | DELETED | (REFERENCE if reference else 0)), at - HEAD.size)
    if length >= HOLE_BYTES:  # a file system without holes keeps the bytes: nothing is wrong but the disk that they use
        _libc.fallocate(fd, PUNCH_HOLE, ctypes.c_longlong(at), ctypes.c_longlong(length))


def _write(fd: int, parts: Sequence[bytes], at: int) -> int:
    """All of the parts from `at`; where they end."""
    for first in range(0, len(parts), VECTORS):
        some = [memoryview(part) for part in parts[first : first + VECTORS]]
        while some:
            written = os.pwritev(fd, some, at)
            at += written
            while some and written >= len(some[0]):
                written -= len(some.pop(0))
            if some and written:
                some[0] = some[0][written:]
    return at


class Spool:
    """The pack that this process appends to. Not thread-safe: its store has a lock. `sync=False` only for tests of other things."""

    def __init__(self, directory: Path, sync: bool = True, pack_bytes: int = PACK_BYTES) -> None:
        self._directory = directory
        self._sync = sync
        self._most = pack_bytes
        self._fd = -1
        self._end = 0
        self._unsettled = False
        self.name = ""

    def append(self, records: Sequence[tuple[bytes, bytes, bool]], soon: bool = False) -> list[int]:
        """(CID, body, whether it is a reference) on disk when this returns, or, `soon`, when `settle` does; where each body is in the pack `name`.

        `Refused` if the disk is full or cannot be written; then none of them is there.
        """
        try:
            if self._fd < 0 or self._end >= self._most:
                self._open()
            return self._append(records, soon)
        except OSError as error:
            if isinstance(error, Refused):
                raise
            why = os.strerror(error.errno or 0)
            raise Refused(f"{self._directory / self.name} cannot be written: {why}", error.errno or errno.EIO) from None

    def _append(self, records: Sequence[tuple[bytes, bytes, bool]], soon: bool) -> list[int]:
        start = at = self._end
        parts: list[bytes] = []
        places: list[int] = []
        for cid, body, reference in records:
            parts += (HEAD.pack(len(body) | (REFERENCE if reference else 0), cid), body)
            places.append(at + HEAD.size)
            at += HEAD.size + len(body)
        try:
            self._end = _write(self._fd, parts, start)
            if soon:
                self._unsettled = True
            elif self._sync:
                os.fdatasync(self._fd)
                self._unsettled = False
        except BaseException:
            self._end = start
            os.ftruncate(self._fd, start)
            raise
        return places

    def settle(self) -> None:
        """All that was appended is on disk when this returns."""
        if self._unsettled and self._sync and self._fd >= 0:
            os.fdatasync(self._fd)
        self._unsettled = False

    def take_back(self, at: int) -> None:
        """Cut off what was appended from the record whose body is at `at`."""
        self._end = at - HEAD.size
        os.ftruncate(self._fd, self._end)

    @property
    def end(self) -> int:
        return self._end

    def _open(self) -> None:
        self.close()
        for path in sorted(self._directory.glob("*.pack")):
            if self._goes_on(path):
                return
        self.name = f"{secrets.token_hex(8)}.pack"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(self._directory / self.name, flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._end = 0
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # the name, too, is there after a crash
        finally:
            os.close(directory)

    def _goes_on(self, path: Path) -> bool:
        """Whether that pack has room, and is this process's now."""
        try:
            if path.stat().st_size >= min(GO_ON_BYTES, self._most):
                return False
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        st = os.fstat(fd)
        if not locked(fd) or not st.st_nlink:
            os.close(fd)
            return False
        scan = Scan(fd, 0, os.fstat(fd).st_size)
        for _ in scan:
            pass
        os.ftruncate(fd, scan.end)
        self._fd, self._end, self.name = fd, scan.end, path.name
        return True

    def close(self) -> None:
        if self._fd >= 0:
            self.settle()
            os.close(self._fd)
            self._fd = -1


class PackFiles:
    """Reads packs by name; keeps a bounded number of them open. Thread-safe."""

    def __init__(self, directory: Path, most: int = 64) -> None:
        self._directory = directory
        self._most = most
        self._open: dict[str, _Descriptor] = {}

    def read(self, name: str, at: int, length: int) -> bytes:
        """Shorter where the pack ends; `FileNotFoundError` if it has been compacted away."""
        descriptor = self._open.get(name)
        if descriptor is None:
            descriptor = _Descriptor(os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC))
            while len(self._open) >= self._most:
                self._open.pop(next(iter(self._open), ""), None)
            self._open[name] = descriptor
        return os.pread(descriptor.fd, length, at)  # held by this frame: nobody closes it under the read

    def forget(self, name: str) -> None:
        self._open.pop(name, None)

    def close(self) -> None:
        self._open.clear()


class _Descriptor:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def read_reference(reference: Reference) -> bytes:
    """The bytes it names, whatever they are now; `Refused` if the file cannot be read."""
    try:
        fd = os.open(reference.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(fd, reference.length, reference.offset)
        finally:
            os.close(fd)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise Refused(
            f"{reference.path}, which was added without copying, cannot be read ({why}): put it back, or add it again",
            errno.ESTALE,
        ) from None
