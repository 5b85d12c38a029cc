"""reading: ranges of one file, again and again: its inner nodes are parsed once, and the block that was read last is at hand."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, NamedTuple

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.wire.errors import BadRecord, Refused

NODES: Final = 16  # inner nodes at hand; a file of 1 TB has three levels


class _Inner(NamedTuple):
    """`starts`: where each child begins, and at last where the node ends."""

    data: bytes
    links: tuple[bytes, ...]
    starts: tuple[int, ...]


class Reader:
    """Not for two threads at once."""

    def __init__(self, store: BlockStore, cid: bytes) -> None:
        self._store = store
        self._cid = cid
        self._inner: dict[bytes, _Inner] = {}
        self._leaf = (b"", b"")

    def read(self, offset: int, count: int) -> bytes:
        """Shorter at the end of the file. `Missing` if a block of the range cannot be had."""
        return b"".join(self._range(self._cid, offset, offset + count, 0))

    def _range(self, cid: bytes, start: int, end: int, depth: int) -> Iterator[bytes]:
        if depth > unixfs.DEPTH:
            raise BadRecord("", f"a file's tree deeper than {unixfs.DEPTH}")
        if cid[:4] != c.DAG_PB:
            if self._leaf[0] != cid:
                self._leaf = cid, self._store.get(cid)
            yield self._leaf[1][start:end]
            return
        node = self._node(cid)
        if start < len(node.data):
            yield node.data[start:end]
        for i in range(max(0, bisect_right(node.starts, start) - 1), len(node.links)):
            at, after = node.starts[i], node.starts[i + 1]
            if at >= end:
                break
            got = 0
            for piece in self._range(node.links[i], max(0, start - at), min(end, after) - at, depth + 1):
                got += len(piece)
                yield piece
            if got != min(end, after) - max(start, at):
                raise BadRecord("", f"{c.text(node.links[i])} holds another number of bytes than its parent says")

    def _node(self, cid: bytes) -> _Inner:
        found = self._inner.get(cid)
        if found is None:
            node = unixfs.parse(self._store.get(cid))
            if node.kind != unixfs.FILE:
                raise Refused(f"{c.text(cid)} is not a file")
            starts = tuple(accumulate(node.sizes, initial=len(node.data)))
            found = _Inner(node.data, tuple(link.cid for link in node.links), starts)
            while len(self._inner) >= NODES:
                del self._inner[next(iter(self._inner))]
            self._inner[cid] = found
        return found
