"""CacheStore: blocks that are not here are fetched when they are asked for, and stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ipos.store import cid as c
from ipos.store.blocks import Block, BlockStore, Missing

Fetch = Callable[[bytes], bytes | None]
"""The block of a CID from elsewhere; None: nobody has it, or may give it. May take its time."""


class CacheStore:
    """`BlockStore` over `local`. Only `get` and `size` fetch: `has` and the iterator say what is here."""

    def __init__(self, local: BlockStore, fetch: Fetch) -> None:
        self._local = local
        self._fetch = fetch

    def get(self, cid: bytes) -> bytes:
        try:
            return self._local.get(cid)
        except Missing:
            block = self._fetch(cid)
            if block is None or not c.matches(cid, block):
                raise
            self._local.put([(cid, block)])
            return block

    def put(self, blocks: Iterable[Block]) -> None:
        self._local.put(blocks)

    def has(self, cid: bytes) -> bool:
        return self._local.has(cid)

    def size(self, cid: bytes) -> int:
        try:
            return self._local.size(cid)
        except Missing:
            return len(self.get(cid))

    def delete(self, cids: Iterable[bytes]) -> None:
        self._local.delete(cids)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._local)
