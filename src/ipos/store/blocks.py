"""Blocks by CID: the interface, a store in memory, and a store on disk.

The disk store is one append-only pack: `u32 length, 36 bytes of CID, block`, again and again. The index is in memory, read from the
headers at start; a torn tail (a crash in the middle of a write) is cut off there. A deleted block keeps its header, marked, and its bytes go
back to the file system (a hole in the file). Issue 3 replaces the index by SQLite and lets several processes write.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from ipos.store import cid as c
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused

Block = tuple[bytes, bytes]
"""(CID, bytes)."""


class Missing(Refused):
    """The block is not here."""

    def __init__(self, cid: bytes) -> None:
        super().__init__(f"block {c.text(cid)} is not in this store", errno.ENOENT)
        self.cid = cid


class BlockStore(Protocol):
    """A `put` that returned is on disk after a crash; a `get` never returns bytes that do not hash to the CID. Thread-safe."""

    def get(self, cid: bytes) -> bytes:
        """`Missing` if unknown."""
        ...

    def put(self, blocks: Iterable[Block]) -> None:
        """`BadRecord` for a block that does not hash to its CID, then nothing of the batch is kept; a known block costs nothing."""
        ...

    def has(self, cid: bytes) -> bool: ...

    def size(self, cid: bytes) -> int:
        """Bytes of the block; `Missing` if unknown."""
        ...

    def delete(self, cids: Iterable[bytes]) -> None:
        """Unknown ones are nothing. After a crash some may be back."""
        ...

    def __iter__(self) -> Iterator[bytes]: ...


def checked(blocks: Iterable[Block]) -> list[Block]:
    batch = list(blocks)
    for cid, block in batch:
        if len(block) > limits.block_bytes:
            raise BadRecord("block", f"{len(block)} bytes, the most is {limits.block_bytes}")
        if not c.matches(cid, block):
            raise BadRecord("block", f"its bytes do not hash to {cid.hex()}")
    return batch


class MemoryStore:
    def __init__(self) -> None:
        self._blocks: dict[bytes, bytes] = {}

    def get(self, cid: bytes) -> bytes:
        try:
            return self._blocks[cid]
        except KeyError:
            raise Missing(cid) from None

    def put(self, blocks: Iterable[Block]) -> None:
        self._blocks.update(checked(blocks))

    def has(self, cid: bytes) -> bool:
        return cid in self._blocks

    def size(self, cid: bytes) -> int:
        return len(self.get(cid))

    def delete(self, cids: Iterable[bytes]) -> None:
        for cid in cids:
            self._blocks.pop(cid, None)

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._blocks))


HEAD = struct.Struct(f"<I{c.LENGTH}s")
LENGTH = struct.Struct("<I")
DELETED = 1 << 31  # in a header's length
PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)


class PackStore:
    """Blocks in `directory`/blocks.pack. One process at a time (a lock says which); `sync=False` only for tests of other things."""

    def __init__(self, directory: Path, sync: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "blocks.pack"
        self._sync = sync
        self._lock = threading.Lock()
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Refused(f"{self._path} is in use by another process") from None
        self._index: dict[bytes, tuple[int, int]] = {}
        self._end = self._scan()

    def _scan(self) -> int:
        """Read the headers; cut off what a crash left half written. The bytes are checked when they are read."""
        size = os.fstat(self._fd).st_size
        at = 0
        while at + HEAD.size <= size:
            marked, cid = HEAD.unpack(os.pread(self._fd, HEAD.size, at))
            length = marked & ~DELETED
            if length > limits.block_bytes or not c.valid(cid) or at + HEAD.size + length > size:
                break
            if marked == length:
                self._index[cid] = (at + HEAD.size, length)
            at += HEAD.size + length
        if at < size:
            os.ftruncate(self._fd, at)
        return at

    def get(self, cid: bytes) -> bytes:
        with self._lock:
            where = self._index.get(cid)
        if where is None:
            raise Missing(cid)
        block = os.pread(self._fd, where[1], where[0])
        if not c.matches(cid, block):
            with self._lock:
                self._index.pop(cid, None)  # a damaged block is a missing one: it will be fetched or computed again
            raise Missing(cid)
        return block

    def put(self, blocks: Iterable[Block]) -> None:
        batch = checked(blocks)
        with self._lock:
            new = {cid: block for cid, block in batch if cid not in self._index}
            if not new:
                return
            start = at = self._end
            places: dict[bytes, tuple[int, int]] = {}
            try:
                for cid, block in new.items():
                    self._write(HEAD.pack(len(block), cid) + block, at)
                    places[cid] = (at + HEAD.size, len(block))
                    at += HEAD.size + len(block)
                if self._sync:
                    os.fdatasync(self._fd)
            except OSError as error:
                os.ftruncate(self._fd, start)
                raise Refused(
                    f"{self._path} cannot be written: {os.strerror(error.errno or 0)}", error.errno or errno.EIO
                ) from None
            self._index.update(places)
            self._end = at

    def delete(self, cids: Iterable[bytes]) -> None:
        with self._lock:
            for cid in cids:
                where = self._index.pop(cid, None)
                if where is not None:
                    at, length = where
                    os.pwrite(self._fd, LENGTH.pack(length | DELETED), at - HEAD.size)
                    # a file system without holes keeps the bytes: nothing is wrong but the disk that they use
                    _libc.fallocate(self._fd, PUNCH_HOLE, ctypes.c_longlong(at), ctypes.c_longlong(length))

    def _write(self, body: bytes, at: int) -> None:
        view = memoryview(body)
        while view:
            written = os.pwrite(self._fd, view, at)
            view = view[written:]
            at += written

    def has(self, cid: bytes) -> bool:
        with self._lock:
            return cid in self._index

    def size(self, cid: bytes) -> int:
        with self._lock:
            where = self._index.get(cid)
        if where is None:
            raise Missing(cid)
        return where[1]

    def __iter__(self) -> Iterator[bytes]:
        with self._lock:
            return iter(list(self._index))

    def close(self) -> None:
        os.close(self._fd)
