"""Every store keeps every promise; and each promise can be broken, and is then missed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conformance import block, conforms

from ipos.store import cid as c
from ipos.store.blocks import Block, BlockStore, MemoryStore, Missing
from ipos.store.cache import CacheStore
from ipos.store.pack import PackStore
from ipos.store.quota import QuotaStore
from ipos.store.spool import SpoolStore
from ipos.wire.errors import Refused

STORES: dict[str, Callable[[Path], BlockStore]] = {
    "memory": lambda _: MemoryStore(),
    "pack": lambda path: PackStore(path, sync=False),
    "small packs": lambda path: PackStore(path, sync=False, pack_bytes=10_000),
    "cache": lambda _: CacheStore(MemoryStore(), lambda _: None),
    "quota": lambda _: QuotaStore(MemoryStore(), 1 << 30),
    "quota over packs": lambda path: QuotaStore(inner := PackStore(path, sync=False), 1 << 30, inner.used),
}


@pytest.mark.parametrize("kind", STORES)
def test_conformance(kind: str, tmp_path: Path) -> None:
    conforms(STORES[kind](tmp_path))


@pytest.mark.parametrize("with_a_node", [False, True])
def test_spools_conform(with_a_node: bool, tmp_path: Path) -> None:
    node = PackStore(tmp_path, sync=False) if with_a_node else None
    spool = SpoolStore(tmp_path, sync=False)
    conforms(spool, deletes=False)
    node = node or PackStore(tmp_path, sync=False)
    node.take_in()
    assert set(node) == set(spool)
    assert len(set(node)) > 2400


class Gullible(MemoryStore):
    """Believes what it is told."""

    def put(self, blocks: Iterable[Block]) -> None:
        self._blocks.update(dict(blocks))


class Piecemeal(MemoryStore):
    """Keeps what came before a bad block."""

    def put(self, blocks: Iterable[Block]) -> None:
        for each in blocks:
            super().put([each])


class Elephant(MemoryStore):
    """Forgets nothing."""

    def delete(self, cids: Iterable[bytes]) -> None:
        pass


class ByDigest(MemoryStore):
    """Takes the hash alone for the name."""

    def has(self, cid: bytes) -> bool:
        return any(each[4:] == cid[4:] for each in self._blocks)

    def get(self, cid: bytes) -> bytes:
        return next((body for each, body in self._blocks.items() if each[4:] == cid[4:]), None) or super().get(cid)


class Absent(MemoryStore):
    """Gives nothing where it should say that there is nothing."""

    def get(self, cid: bytes) -> bytes:
        return self._blocks.get(cid, b"")


class Unsized(MemoryStore):
    def size(self, cid: bytes) -> int:
        self.get(cid)
        return 0


class Short(MemoryStore):
    """Lists one page."""

    def __iter__(self) -> Any:
        return iter(list(self._blocks)[:1000])


class Lazy(MemoryStore):
    """Has lost half of what was put without checks."""

    def put_hashed(self, blocks: Sequence[Block]) -> None:
        self.put(blocks[::2])


class Tardy(MemoryStore):
    """Has only after it has settled what was put soon."""

    def put_soon(self, blocks: Iterable[Block]) -> None:
        self._soon = list(blocks)

    def settle(self) -> None:
        self.put(self._soon)


@pytest.mark.parametrize("kind", [Gullible, Piecemeal, Elephant, ByDigest, Absent, Unsized, Short, Lazy, Tardy])
def test_broken_stores_are_caught(kind: type[MemoryStore]) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, Missing)):
        conforms(kind())


def test_a_broken_pack_store_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places in a pack that are off by one."""
    store = PackStore(tmp_path, sync=False)
    append = store._spool.append
    monkeypatch.setattr(store._spool, "append", lambda records, soon: [at + 1 for at in append(records, soon)])
    with pytest.raises((AssertionError, pytest.fail.Exception, Missing)):
        conforms(store)


# ---- what each has of its own


def test_a_cache_fetches_and_keeps(tmp_path: Path) -> None:
    one, two = block(1), block(2)
    asked: list[bytes] = []

    def fetch(cid: bytes) -> bytes | None:
        asked.append(cid)
        return {one[0]: one[1], two[0]: b"a lie"}.get(cid)

    store = CacheStore(MemoryStore(), fetch)
    assert not store.has(one[0])
    assert store.get(one[0]) == one[1]
    assert store.size(one[0]) == len(one[1])
    assert store.has(one[0])
    assert asked == [one[0]]
    for cid in (two[0], block(3)[0]):
        with pytest.raises(Missing):
            store.get(cid)
        assert not store.has(cid)


def test_a_quota_refuses_with_the_number() -> None:
    store = QuotaStore(MemoryStore(), 250)
    one, two, three = block(1), block(2), block(3)
    store.put([one, two])
    with pytest.raises(Refused, match=r"100 bytes more are 50 over the .* \(250 bytes\) of this store: delete some"):
        store.put([three])
    store.put([one, two])  # what is there already costs nothing
    store.delete([one[0]])
    store.put([three])
    with pytest.raises(Refused, match="150 over"):
        store.put([block(4), block(5)])
    assert sorted(store) == sorted([two[0], three[0]])


def test_a_spool_does_not_delete(tmp_path: Path) -> None:
    store = SpoolStore(tmp_path, sync=False)
    store.put([block(1)])
    store.delete([c.of_raw(b"unknown")])
    with pytest.raises(Refused, match="deleted by the node"):
        store.delete([block(1)[0]])
