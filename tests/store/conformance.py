"""What every BlockStore promises. `conforms(store)` on an empty store; each implementation runs it, in `test_conformance.py`."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import Block, BlockStore, Missing, put_hashed, put_soon, settle
from ipos.wire import limits
from ipos.wire.errors import BadRecord


def block(i: int, size: int = 100) -> Block:
    body = random.Random(i).randbytes(size)
    return c.of_raw(body), body


def holds(store: BlockStore, *blocks: Block) -> None:
    for cid, body in blocks:
        assert store.has(cid)
        assert store.get(cid) == body
        assert store.size(cid) == len(body)


def lacks(store: BlockStore, *cids: bytes) -> None:
    for cid in cids:
        assert not store.has(cid)
        for ask in (store.get, store.size):
            with pytest.raises(Missing):
                ask(cid)


def _puts_and_gets(store: BlockStore) -> None:
    one, cbor = block(1), (c.of_dag_cbor(b"x"), b"x")
    lacks(store, one[0])
    store.put([one, cbor])
    store.put([one])
    store.put([])
    holds(store, one, cbor)
    assert sorted(store) == sorted([one[0], cbor[0]]), "each once"
    same = c.of_dag_pb(b"x")
    lacks(store, same)  # the codec is part of the name
    empty = (c.of_raw(b""), b"")
    store.put([empty, empty])
    holds(store, empty)


def _refuses_a_batch_as_a_whole(store: BlockStore) -> None:
    good, other = block(2), block(3)
    for bad in (
        (c.of_raw(b"lie"), b"truth"),
        (c.of_raw(bytes(limits.block_bytes + 1)), bytes(limits.block_bytes + 1)),
        (b"no CID", b"x"),
    ):
        with pytest.raises(BadRecord):
            store.put(iter([good, bad, other]))
        lacks(store, good[0], other[0])


def _takes_the_largest_block(store: BlockStore) -> None:
    large = block(4, limits.block_bytes)
    store.put([large])
    holds(store, large)


def _takes_what_was_hashed(store: BlockStore) -> None:
    one, two = block(5), block(10)
    put_hashed(store, [one, two])
    holds(store, one, two)
    cid = unixfs.add_bytes(store, b"a" * 3_000_000)
    assert unixfs.read(store, cid, 2_999_999, 5) == b"a"


def _takes_what_may_wait(store: BlockStore) -> None:
    one, two = block(11), block(12)
    put_soon(store, [one])
    holds(store, one)
    store.put([two])
    settle(store)
    holds(store, one, two)
    with pytest.raises(BadRecord):
        put_soon(store, [(c.of_raw(b"lie"), b"truth")])
    lacks(store, c.of_raw(b"lie"))


def _many(store: BlockStore) -> None:
    """More than any page of an index, in batches of all sizes, from several threads."""
    blocks = [block(1000 + i, i % 50) for i in range(2500)]
    troubles: list[BaseException] = []

    def work(part: int) -> None:
        try:
            mine, dice = blocks[part::3] + blocks[:300], random.Random(part)
            while mine:
                store.put(mine[: (n := dice.randint(1, 400))])
                cid, body = mine[0]
                assert store.get(cid) == body, "what a put has taken is there"
                mine = mine[n:]
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not troubles
    wanted = {cid for cid, _ in blocks}
    listed = list(store)
    assert wanted <= set(listed)
    assert len(listed) == len(set(listed))
    holds(store, *random.Random(0).sample(blocks, 50))


def _forgets(store: BlockStore) -> None:
    one, two, three = block(6), block(7), block(8)
    store.put([one, two, three])
    store.delete([one[0], block(9)[0], one[0]])
    lacks(store, one[0])
    holds(store, two, three)
    assert one[0] not in set(store)
    store.put([one])
    holds(store, one, two, three)
    listing = iter(store)
    next(listing)
    store.delete([two[0]])  # while somebody reads the list
    assert {one[0], three[0]} - {two[0]} <= set(listing) | set(store)


PROMISES: tuple[Callable[[BlockStore], None], ...] = (
    _puts_and_gets,
    _refuses_a_batch_as_a_whole,
    _takes_the_largest_block,
    _takes_what_was_hashed,
    _takes_what_may_wait,
    _many,
    _forgets,
)


def conforms(store: BlockStore, deletes: bool = True) -> None:
    """`deletes`: whether it is one that may delete."""
    for promise in PROMISES:
        if deletes or promise is not _forgets:
            promise(store)
