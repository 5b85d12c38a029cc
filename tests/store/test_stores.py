"""Stores: one conformance suite for all; what a crash and a bad disk do; UnixFS as Kubo makes it."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore, MemoryStore, Missing, PackStore
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused


def conforms(store: BlockStore) -> None:
    """What every BlockStore promises."""
    block = b"block"
    cid = c.of_raw(block)
    assert not store.has(cid)
    with pytest.raises(Missing):
        store.get(cid)
    store.put([(cid, block), (c.of_dag_cbor(b"x"), b"x")])
    store.put([(cid, block)])
    assert store.get(cid) == block
    assert store.size(cid) == 5
    assert set(store) == {cid, c.of_dag_cbor(b"x")}
    other = c.of_raw(b"good")
    with pytest.raises(BadRecord):
        store.put([(other, b"good"), (c.of_raw(b"lie"), b"truth")])
    assert not store.has(other), "a batch with a bad block is refused as a whole"
    with pytest.raises(BadRecord, match="the most is"):
        store.put([(c.of_raw(bytes(limits.block_bytes + 1)), bytes(limits.block_bytes + 1))])
    store.delete([cid, other])
    assert not store.has(cid)
    with pytest.raises(Missing):
        store.get(cid)
    assert set(store) == {c.of_dag_cbor(b"x")}
    store.put([(cid, block)])
    assert store.get(cid) == block


@pytest.mark.parametrize("make", [lambda _: MemoryStore(), PackStore], ids=["memory", "pack"])
def test_conformance(make: Callable[[Path], BlockStore], tmp_path: Path) -> None:
    conforms(make(tmp_path))


def test_a_store_that_believes_everything_is_caught() -> None:
    class Gullible(MemoryStore):
        def put(self, blocks: object) -> None:
            self._blocks.update(dict(blocks))  # type: ignore[call-overload]

    with pytest.raises(pytest.fail.Exception):
        conforms(Gullible())


def test_a_torn_tail_and_a_flipped_bit(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    blocks = [(c.of_raw(bytes([i]) * 100), bytes([i]) * 100) for i in range(5)]
    store.put(blocks)
    with pytest.raises(Refused, match="in use by another process"):
        PackStore(tmp_path)
    store.close()
    pack = tmp_path / "blocks.pack"
    body = bytearray(pack.read_bytes())
    body[60] ^= 1
    pack.write_bytes(body[:-30])
    store = PackStore(tmp_path)
    assert [store.has(cid) for cid, _ in blocks] == [True, True, True, True, False]
    with pytest.raises(Missing):
        store.get(blocks[0][0])
    store.put([blocks[0], blocks[4]])
    assert [store.get(cid) for cid, _ in blocks] == [block for _, block in blocks]


WRITER = """
import os, sys
from pathlib import Path
from ipos.store import cid as c
from ipos.store.blocks import PackStore
store = PackStore(Path(sys.argv[1]))
for i in range(100000):
    block = i.to_bytes(4, "big") * 2000
    store.put([(c.of_raw(block), block)])
    print(i, flush=True)
"""


@pytest.mark.real
@pytest.mark.parametrize("seed", range(3))
def test_kill_nine(tmp_path: Path, seed: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 0.1))
    os.kill(process.pid, signal.SIGKILL)
    said = [int(line) for line in process.stdout.read().split()]
    process.wait()
    store = PackStore(tmp_path)
    for i in range((said or [0])[-1] + 1):
        block = i.to_bytes(4, "big") * 2000
        assert store.get(c.of_raw(block)) == block


def test_deleted_blocks_give_their_disk_back(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    blocks = [(c.of_raw(body), body) for body in (random.Random(i).randbytes(1 << 20) for i in range(8))]
    store.put(blocks)
    before = (tmp_path / "blocks.pack").stat().st_blocks
    store.delete([cid for cid, _ in blocks[:6]])
    assert (tmp_path / "blocks.pack").stat().st_blocks < before / 2
    store.put([blocks[0]])
    store.close()
    store = PackStore(tmp_path)
    assert [store.has(cid) for cid, _ in blocks] == [True, *[False] * 5, True, True]
    assert all(store.get(cid) == body for cid, body in (blocks[0], *blocks[6:]))
    store.close()


def test_a_deletion_that_a_crash_cut_short_is_a_missing_block(tmp_path: Path) -> None:
    """The mark was not written, the bytes are gone: the block is noticed, not believed."""
    store = PackStore(tmp_path)
    body = bytes(range(256)) * 100
    store.put([(c.of_raw(body), body)])
    where, length = store._index[c.of_raw(body)]
    os.pwrite(store._fd, bytes(length), where)
    store.close()
    store = PackStore(tmp_path)
    with pytest.raises(Missing):
        store.get(c.of_raw(body))
    store.put([(c.of_raw(body), body)])
    assert store.get(c.of_raw(body)) == body
    store.close()


def test_symbolic_links_travel_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    (tmp_path / "a" / "link").symlink_to("x")
    store = MemoryStore()
    unixfs.export(store, unixfs.add_dir(store, tmp_path / "a", links=True), tmp_path / "b")
    assert os.readlink(tmp_path / "b" / "link") == "x"
    # two entries of one name cannot make a file lead out of the directory
    evil, leaf = unixfs.add_dir(store, tmp_path / "a", links=True), unixfs.add_bytes(store, b"evil")
    link = next(one for one in unixfs.entries(store, evil) if one.name == "link")
    block = unixfs._node([link, unixfs.Link(leaf, "link", 4)], b"\x08\x01")
    store.put([(c.of_dag_pb(block), block)])
    with pytest.raises(FileExistsError):
        unixfs.export(store, c.of_dag_pb(block), tmp_path / "c")


def test_known_cids(tmp_path: Path) -> None:
    store = MemoryStore()
    assert c.text(unixfs.add_bytes(store, b"")) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert c.text(unixfs.add_dir(store, tmp_path)) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    assert c.parse(c.text(c.of_raw(b"x"))) == c.of_raw(b"x")
    with pytest.raises(Refused, match="is not a CID"):
        c.parse("Qmnonsense")


@given(st.binary(max_size=3000), st.integers(0, 3100), st.integers(0, 3100))
def test_files(content: bytes, offset: int, count: int) -> None:
    store = MemoryStore()
    cid, size = unixfs.add_stream(store, io.BytesIO(content), chunk=10, width=4)
    assert size == unixfs.size(store, cid) == len(content)
    assert b"".join(unixfs.stream(store, cid)) == content
    assert unixfs.read(store, cid, offset, count) == content[offset : offset + count]
    assert unixfs.missing(store, cid) == []


def test_directories_and_hostile_names(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "x").write_text("x")
    (source / "link").symlink_to("/etc/passwd")
    store = MemoryStore()
    cid = unixfs.add_dir(store, source)
    unixfs.export(store, cid, target)
    assert sorted(path.name for path in target.rglob("*")) == ["sub", "x"]
    leaf = unixfs.add_bytes(store, b"evil")
    block = unixfs._node([unixfs.Link(leaf, "../evil", 4)], b"\x08\x01")
    store.put([(c.of_dag_pb(block), block)])
    with pytest.raises(BadRecord, match="cannot be the name"):
        unixfs.export(store, c.of_dag_pb(block), tmp_path / "c")
    assert not (tmp_path / "evil").exists()


def test_sizes_that_lie() -> None:
    store = MemoryStore()
    leaf = unixfs.add_bytes(store, b"0123456789")
    unix = b"\x08\x02\x18\x03\x20\x03"
    block = unixfs._node([unixfs.Link(leaf, "", 10)], unix)
    store.put([(c.of_dag_pb(block), block)])
    with pytest.raises(BadRecord, match="more bytes than its parent says"):
        unixfs.read(store, c.of_dag_pb(block))


@given(st.binary(max_size=80))
def test_garbage_is_no_node(body: bytes) -> None:
    try:
        unixfs.parse(body)
    except BadRecord:
        return
    assert unixfs.parse(body).kind in (unixfs.FILE, unixfs.DIR, unixfs.SYMLINK)
