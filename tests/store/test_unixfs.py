"""UnixFS as Kubo makes it, there and back; hostile names, sizes and nodes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.store.dagpb import block_of
from ipos.wire.errors import BadRecord, Refused


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
    block = block_of([link, unixfs.Link(leaf, "link", 4)], b"\x08\x01")
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
    block = block_of([unixfs.Link(leaf, "../evil", 4)], b"\x08\x01")
    store.put([(c.of_dag_pb(block), block)])
    with pytest.raises(BadRecord, match="cannot be the name"):
        unixfs.export(store, c.of_dag_pb(block), tmp_path / "c")
    assert not (tmp_path / "evil").exists()


def test_sizes_that_lie() -> None:
    store = MemoryStore()
    leaf = unixfs.add_bytes(store, b"0123456789")
    unix = b"\x08\x02\x18\x03\x20\x03"
    block = block_of([unixfs.Link(leaf, "", 10)], unix)
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
