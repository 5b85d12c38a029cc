"""CAR v1 (https://ipld.io/specs/transport/car/carv1/): blocks in a file, with the CIDs of their roots in front."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO

import libipld

from ipos.store import cid as c
from ipos.store.blocks import Block, BlockStore
from ipos.wire import limits
from ipos.wire.errors import Refused

HEADER_BYTES = 1 << 16


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


class Reader:
    """`root` of a CAR, and its blocks. `Refused` names the file and the place of what is wrong in it."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._at = 0
        length = self._length()
        if not length or length > HEADER_BYTES:
            raise Refused(f"{name} is not a CAR file: its header would have {length} bytes")
        try:
            header = libipld.decode_dag_cbor(self._take(length))
            roots, version = header["roots"], header["version"]
        except Exception:  # libipld raises ValueError, and others on hostile nesting
            raise Refused(f"{name} is not a CAR file: its header is not DAG-CBOR with roots and version") from None
        if version != 1 or len(roots) != 1 or not isinstance(roots[0], bytes) or not c.valid(roots[0]):
            raise Refused(f"{name}: a CAR of version 1 with one root was expected")
        self.root = roots[0]

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
