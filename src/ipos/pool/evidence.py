"""evidence: a receipt with all that it names, in a file: what a stranger needs to judge it (docs/protocols/receipts.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from ipos.identity.machines import MachineList
from ipos.pool import receipt as signed
from ipos.pool.data import record_block
from ipos.pool.records import Evidence, MarkedSave, Receipt
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import Block, BlockStore, MemoryStore
from ipos.store.car import write_file
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import decode, plain_value


def links(block: bytes) -> list[bytes]:
    """All links of a record, whatever record it is: in our records no other bytes parse as a CID."""
    todo: list[Any] = [plain_value(block)]
    found: list[bytes] = []
    while todo:
        value = todo.pop()
        if isinstance(value, bytes) and c.valid(value):
            found.append(value)
        elif isinstance(value, dict):
            todo += cast("dict[str, Any]", value).values()
        elif isinstance(value, list):
            todo += cast("list[Any]", value)
    return found


def reach(store: BlockStore, root: bytes, files: bool = True) -> Iterator[bytes]:
    """Every CID that a record names, directly or through others, once, itself first, as far as the blocks that are here tell; `files`: also
    what is in the files and directories that are named."""
    seen: set[bytes] = set()
    todo = [root]
    while todo:
        cid = todo.pop()
        if cid in seen:
            continue
        seen.add(cid)
        yield cid
        if store.has(cid):
            if cid[:4] == c.DAG_CBOR:
                todo += links(store.get(cid))
            elif files and cid[:4] == c.DAG_PB:
                todo += [link.cid for link in unixfs.parse(store.get(cid)).links]


def missing(store: BlockStore, root: bytes) -> list[bytes]:
    return [cid for cid in reach(store, root) if not store.has(cid)]


def chain(store: BlockStore, receipt: bytes) -> list[Receipt]:
    """A receipt and those before it, the newest first, each signed and each beginning where the one before it ended. `Refused` names what
    is wrong."""
    made: list[Receipt] = []
    cid: bytes | None = receipt
    while cid is not None:
        if len(made) >= limits.segments:
            raise BadRecord("before", f"more than {limits.segments} receipts, one before the other")
        if cid[:4] != c.DAG_CBOR:
            raise BadRecord("before" if made else "receipt", "not the CID of a record")
        one = decode(Receipt, store.get(cid))
        signed.check(one, decode(MachineList, store.get(one.machines)))
        if made:
            _joins(made[-1], one)
        if one.before is None and not one.since and one.since_root:
            raise BadRecord("since_root", "a task's start has none")
        if one.since > one.work:
            raise BadRecord("since", f"the segment begins at work {one.since} and ends before, at {one.work}")
        made.append(one)
        cid = one.before
    return made


def _joins(after: Receipt, before: Receipt) -> None:
    if (after.since, after.since_root, after.engine) != (before.work, before.root, before.engine):
        raise Refused(
            f"the segment of {after.node} begins at work {after.since}, root {after.since_root[:16] or 'none'}; the one before it, "
            f"of {before.node}, ends at work {before.work}, root {before.root[:16] or 'none'}"
        )


def pack(store: BlockStore, receipt: bytes, path: Path, saves: tuple[MarkedSave, ...] = ()) -> int:
    """Write the file, whole or not at all; its bytes. `Refused` if something that the receipt names is not in the store."""
    root = record_block(Evidence(receipt=receipt, saves=saves))
    store = Overlay(MemoryStore(), store)
    store.put([root])
    if lost := missing(store, root[0]):
        raise Refused(f"block {c.text(lost[0])}, which the receipt names, is not on this machine any more")
    return write_file(path, root[0], reach(store, root[0]), store)


class Overlay:
    """A store that is only read, under one that takes what is new."""

    def __init__(self, upper: BlockStore, lower: BlockStore) -> None:
        self._upper, self._lower = upper, lower

    def _of(self, cid: bytes) -> BlockStore:
        return self._upper if self._upper.has(cid) else self._lower

    def get(self, cid: bytes) -> bytes:
        return self._of(cid).get(cid)

    def put(self, blocks: Iterable[Block]) -> None:
        self._upper.put(blocks)

    def has(self, cid: bytes) -> bool:
        return self._of(cid).has(cid)

    def size(self, cid: bytes) -> int:
        return self._of(cid).size(cid)

    def delete(self, cids: Iterable[bytes]) -> None:
        self._upper.delete(cids)

    def __iter__(self) -> Iterator[bytes]:
        return iter({*self._upper, *self._lower})
