"""CAR v1 (https://ipld.io/specs/transport/car/carv1/): blocks in a file, with the CIDs of their roots in front."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, Never

import libipld

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import Block, BlockStore, Missing
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import plain_value

HEADER_BYTES = 1 << 16
BATCH_BYTES = 8 << 20


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def write(stream: IO[bytes], root: bytes, cids: Iterable[bytes], store: BlockStore) -> int:
    """The blocks of `cids`, each once; how many bytes. `Missing` if the store has not all of them."""
    header = libipld.encode_dag_cbor({"roots": [root], "version": 1})
    count = stream.write(_varint(len(header)) + header)
    for cid in dict.fromkeys(cids):
        block = store.get(cid)
        count += stream.write(_varint(len(cid) + len(block)) + cid + block)
    return count


def write_all(
    stream: IO[bytes], roots: Sequence[bytes], store: BlockStore, stop: Callable[[], bool] = lambda: False
) -> int:
    """All that the roots reach, each block once; how many bytes. `Missing` if the store has not all of it."""
    header = libipld.encode_dag_cbor({"roots": list(roots), "version": 1})
    count = stream.write(_varint(len(header)) + header)
    seen: set[bytes] = set()
    for root in roots:
        for cid in unixfs.reach(store, root):
            if cid in seen:
                continue
            if stop():
                raise Refused("the export was interrupted: no file was written", errno.EINTR)
            seen.add(cid)
            block = store.get(cid)
            count += stream.write(_varint(len(cid) + len(block)) + cid + block)
    return count


def write_file(path: Path, root: bytes, cids: Iterable[bytes], store: BlockStore) -> int:
    """The same to a file, all of it or nothing; how many bytes. `Refused` if it cannot be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".ipos-", delete=False) as out:
            try:
                count = write(out, root, cids, store)
                out.flush()
                os.fsync(out.fileno())
                os.replace(out.name, path)
            except BaseException:
                os.unlink(out.name)
                raise
    except OSError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path} cannot be written: {os.strerror(error.errno or 0)}") from None
    return count


class Took(NamedTuple):
    """What came out of a CAR. `tops`: its roots, and whatever else no other block of it reaches; pinned, they keep all of it."""

    roots: tuple[bytes, ...]
    tops: tuple[bytes, ...]
    blocks: int
    bytes: int


def take(path: Path, store: BlockStore, stop: Callable[[], bool] = lambda: False) -> Took:
    """All blocks of a CAR into the store, if nothing is wrong with any of them and no block that it needs is missing; otherwise
    `Refused`, and none of it was stored. Reads the file twice: it must be one, not a pipe."""
    try:
        with open(path, "rb") as stream:
            reader = Reader(stream, str(path), many=True)
            cids, linked, size = set[bytes](), dict[bytes, None](), 0
            for cid, block in reader.blocks():
                cids.add(cid)
                size += len(block)
                if cid[:4] == c.DAG_PB:
                    linked.update((link.cid, None) for link in _links(str(path), cid, block))
                if stop():
                    raise Refused("the import was interrupted: nothing was stored", errno.EINTR)
            for cid in (*reader.roots, *linked):
                if cid not in cids and not store.has(cid):
                    raise Refused(f"{path} is not whole: block {c.text(cid)} is not in it, nor in this store")
            stream.seek(0)
            batch, held = list[Block](), 0
            for cid, block in Reader(stream, str(path), many=True).blocks():
                batch.append((cid, block))
                held += len(block)
                if held >= BATCH_BYTES:
                    store.put(batch)
                    batch, held = [], 0
            store.put(batch)
    except OSError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None
    tops = dict.fromkeys((*reader.roots, *(cid for cid in cids if cid not in linked)))
    return Took(reader.roots, tuple(tops), len(cids), size)


def _links(name: str, cid: bytes, block: bytes) -> tuple[unixfs.Link, ...]:
    try:
        return unixfs.parse(block).links
    except BadRecord as bad:
        raise Refused(f"{name}: the block {c.text(cid)} is no UnixFS node: {bad}") from None


class Reader:
    """`root` of a CAR, and its blocks; `many`: there may be several `roots`, or none. `Refused` names the file and the place of what
    is wrong in it."""

    def __init__(self, stream: BinaryIO, name: str, many: bool = False) -> None:
        self._stream = stream
        self._name = name
        self._at = 0
        length = self._length()
        if not length or length > HEADER_BYTES:
            raise Refused(f"{name} is not a CAR file: its header would have {length} bytes")
        try:
            header = plain_value(self._take(length))
            roots, version = header["roots"], header["version"]
        except (Refused, KeyError, TypeError):
            raise Refused(f"{name} is not a CAR file: its header is not DAG-CBOR with roots and version") from None
        if version != 1 or not isinstance(roots, list) or (not many and len(roots) != 1):
            raise Refused(f"{name}: a CAR of version 1 with one root was expected")
        for root in roots:
            if not isinstance(root, bytes) or not c.valid(root):
                raise Refused(f"{name}: one of its roots is no CID that IPOS knows")
        self.roots: tuple[bytes, ...] = tuple(roots)

    @property
    def root(self) -> bytes:
        """Of a CAR that has one."""
        return self.roots[0]

    @property
    def at(self) -> int:
        """How many bytes have been read."""
        return self._at

    def _take(self, count: int) -> bytes:
        body = self._stream.read(count)
        if len(body) != count:
            raise Refused(f"{self._name} ends in the middle of a block, at byte {self._at}: it is not whole")
        self._at += count
        return body

    def _length(self) -> int | None:
        """None at the end."""
        n = shift = 0
        while True:
            byte = self._stream.read(1)
            if not byte and not shift:
                return None
            if not byte or shift > 28:
                raise Refused(f"{self._name}: a broken length at byte {self._at}")
            self._at += 1
            n |= (byte[0] & 127) << shift
            shift += 7
            if byte[0] < 128:
                return n

    def blocks(self) -> Iterator[Block]:
        while (length := self._length()) is not None:
            at = self._at
            if not c.LENGTH <= length <= c.LENGTH + limits.block_bytes:
                raise Refused(f"{self._name}: a block of {length} bytes at byte {at}")
            body = self._take(length)
            cid, block = body[: c.LENGTH], body[c.LENGTH :]
            if not c.valid(cid):
                raise Refused(f"{self._name}: no CID that IPOS knows at byte {at}")
            if not c.matches(cid, block):
                raise Refused(f"{self._name}: the block {c.text(cid)} at byte {at} does not hash to its CID")
            yield cid, block


class CarStore:
    """`BlockStore` over a CAR file, to read: opening it reads all of it once, and every block that does not hash to its CID is refused. To be
    closed."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  (closed by `close`)
        self._places: dict[bytes, tuple[int, int]] = {}
        try:
            reader = Reader(self._file, str(path))
            self.root = reader.root
            for cid, block in reader.blocks():
                self._places[cid] = reader.at - len(block), len(block)
        except BaseException:
            self._file.close()
            raise
        self.bytes = reader.at

    def get(self, cid: bytes) -> bytes:
        if cid not in self._places:
            raise Missing(cid)
        at, length = self._places[cid]
        block = os.pread(self._file.fileno(), length, at)
        if not c.matches(cid, block):
            raise Missing(cid)  # it was changed since it was opened
        return block

    def has(self, cid: bytes) -> bool:
        return cid in self._places

    def size(self, cid: bytes) -> int:
        if cid not in self._places:
            raise Missing(cid)
        return self._places[cid][1]

    def put(self, blocks: Iterable[Block]) -> Never:
        raise Refused("nothing is written into a CAR that is read")

    def delete(self, cids: Iterable[bytes]) -> Never:
        raise Refused("nothing is deleted from a CAR that is read")

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._places))

    def close(self) -> None:
        self._file.close()
