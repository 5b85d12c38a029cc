"""SpoolStore: a store's directory as a process sees it that is not the node: it reads what the node has indexed, and appends to a pack of
its own, which the node takes into the index (`PackStore.take_in`). What it put itself it sees at once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ipos.store import cid as c
from ipos.store.blocks import Block, Missing, checked
from ipos.store.index import Index, Place
from ipos.store.pack import read_block
from ipos.store.packfile import PACK_BYTES, PackFiles, Reference, Spool, read_reference
from ipos.wire.errors import Refused

FORGET: Final = (
    10_000  # so many blocks of its own that the index does not have yet are remembered before it is looked at again
)


class SpoolStore:
    """`BlockStore` beside a node's `PackStore`, without `delete`. Thread-safe."""

    def __init__(self, directory: Path, sync: bool = True, pack_bytes: int = PACK_BYTES) -> None:
        self._packs = directory / "packs"
        self._packs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / "index.sqlite"
        self._files = PackFiles(self._packs)
        self._spool = Spool(self._packs, sync, pack_bytes)
        self._own: dict[bytes, tuple[str, Place]] = {}
        self._lock = threading.Lock()
        self.written = 0  # bytes of blocks that it has put
        self._opened: Index | None = None

    @property
    def _index(self) -> Index | None:
        """None before there has been a node."""
        if self._opened is None and self._path.exists():
            index = Index(self._path, write=False)
            try:
                index.packs()
            except sqlite3.OperationalError:  # it is being made
                index.close()
                return None
            self._opened = index
        return self._opened

    def get(self, cid: bytes) -> bytes:
        own = self._own.get(cid)
        if own is not None:
            name, place = own
            try:
                body = self._files.read(name, place.at, place.reference or place.length)
                block = read_reference(Reference.decode(body)) if place.reference else body
                if c.matches(cid, block):
                    return block
            except FileNotFoundError:
                pass  # indexed, and compacted into another pack since
        if self._index is None:
            raise Missing(cid)
        block, _ = read_block(self._index, self._files, cid)
        if not c.matches(cid, block):
            raise Missing(cid)
        return block

    def put(self, blocks: Iterable[Block]) -> None:
        self.put_hashed(checked(blocks))

    def put_hashed(self, blocks: Sequence[Block]) -> None:
        """See `blocks.Hashed`."""
        self._append([(cid, block, False) for cid, block in blocks], [len(block) for _, block in blocks])

    def put_references(self, references: Sequence[tuple[bytes, Reference]]) -> None:
        """Blocks that stay in files of the user. The caller has just computed the CIDs from what is there."""
        self._append(
            [(cid, reference.encode(), True) for cid, reference in references],
            [reference.length for _, reference in references],
        )

    def _append(self, records: list[tuple[bytes, bytes, bool]], lengths: list[int]) -> None:
        with self._lock:
            new = {record[0]: (record, length) for record, length in zip(records, lengths, strict=True)}
            for cid in [cid for cid in new if self.has(cid)]:
                del new[cid]
            self.written += sum(len(record[1]) for record, _ in new.values())
            if not new:
                return
            ats = self._spool.append([record for record, _ in new.values()])
            for (cid, (record, length)), at in zip(new.items(), ats, strict=True):
                self._own[cid] = self._spool.name, Place(0, at, length, len(record[1]) if record[2] else 0)
            if len(self._own) >= FORGET and (index := self._index) is not None:
                self._own = {cid: own for cid, own in self._own.items() if index.find(cid) is None}

    def has(self, cid: bytes) -> bool:
        return cid in self._own or (self._index is not None and self._index.find(cid) is not None)

    def size(self, cid: bytes) -> int:
        if (own := self._own.get(cid)) is not None:
            return own[1].length
        place = self._index.find(cid) if self._index is not None else None
        if place is None:
            raise Missing(cid)
        return place.length

    def delete(self, cids: Iterable[bytes]) -> None:
        if any(self.has(cid) for cid in cids):
            raise Refused("blocks are deleted by the node of this home, not by another process")

    def __iter__(self) -> Iterator[bytes]:
        own = dict(self._own)
        yield from own
        if self._index is not None:
            yield from (cid for cid in self._index.cids() if cid not in own)

    def close(self) -> None:
        with self._lock:
            self._spool.close()
            self._files.close()
            if self._opened is not None:
                self._opened.close()
