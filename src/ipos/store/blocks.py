"""Blocks by CID: the interface, and a store in memory. `pack.py` has the one on disk, `cache.py` and `quota.py` wrap another."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Hashed(Protocol):
    """A store that can be spared hashing a block twice."""

    def put_hashed(self, blocks: Sequence[Block]) -> None:
        """`put` of blocks whose CIDs the caller has just computed from these very bytes."""
        ...


def put_hashed(store: BlockStore, blocks: Sequence[Block]) -> None:
    """See `Hashed`; a store without it checks as always."""
    if isinstance(store, Hashed):
        store.put_hashed(blocks)
    else:
        store.put(blocks)


@runtime_checkable
class Late(Protocol):
    """A store that can be spared a sync for each put: many share one."""

    def put_soon(self, blocks: Iterable[Block]) -> None:
        """`put`, but on disk only when `settle` has returned: before that a crash of the machine (not of the process) may take them."""
        ...

    def settle(self) -> None:
        """Return when all that was put soon is on disk; OSError if it cannot be, then those blocks are not to be counted on."""
        ...


def put_soon(store: BlockStore, blocks: Iterable[Block]) -> None:
    """See `Late`; a store without it puts at once."""
    if isinstance(store, Late):
        store.put_soon(blocks)
    else:
        store.put(blocks)


def settle(store: BlockStore) -> None:
    """See `Late`."""
    if isinstance(store, Late):
        store.settle()


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
