"""CAR files in and out of a store, as streams: all of one or nothing; several roots; what is missing, wrong or hostile is refused."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import libipld
import pytest
from conformance import block
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.store import car, unixfs
from ipos.store import cid as c
from ipos.store.blocks import Block, MemoryStore, Missing
from ipos.wire.errors import Refused


def content() -> tuple[MemoryStore, bytes, bytes]:
    store = MemoryStore()
    one = unixfs.add_stream(store, io.BytesIO(random.Random(1).randbytes(30_000)), chunk=1000, width=5)[0]
    two = unixfs.add_stream(store, io.BytesIO(random.Random(2).randbytes(9_000)), chunk=1000, width=5)[0]
    return store, one, two


def made(path: Path, roots: list[bytes], blocks: list[Block]) -> Path:
    header = libipld.encode_dag_cbor({"roots": roots, "version": 1})
    parts = [car._varint(len(header)) + header]
    parts += [car._varint(len(cid) + len(body)) + cid + body for cid, body in blocks]
    path.write_bytes(b"".join(parts))
    return path


def test_out_and_in(tmp_path: Path) -> None:
    store, one, two = content()
    path = tmp_path / "f.car"
    with open(path, "wb") as out:
        count = car.write_all(out, [one, two, one], store)
    assert path.stat().st_size == count
    other = MemoryStore()
    took = car.take(path, other)
    assert took.roots == (one, two, one)
    assert set(took.tops) == {one, two}
    assert took.blocks == len(set(other)) == len(set(store))
    for root in (one, two):
        assert unixfs.read(other, root) == unixfs.read(store, root)
    with open(path, "rb") as stream:
        cids = [cid for cid, _ in car.Reader(stream, "f.car", many=True).blocks()]
    assert len(cids) == len(set(cids)), "each block once"
    with pytest.raises(Missing):
        car.write_all(io.BytesIO(), [c.of_raw(b"unknown")], store)


def test_blocks_that_no_other_reaches_are_kept_too(tmp_path: Path) -> None:
    record = (c.of_dag_cbor(b"\xa0"), b"\xa0")
    store, one, _ = content()
    dag = [(cid, store.get(cid)) for cid in unixfs.reach(store, one)]
    took = car.take(made(tmp_path / "f.car", [record[0]], [record, *dag, block(1)]), MemoryStore())
    assert set(took.tops) == {record[0], one, block(1)[0]}
    took = car.take(made(tmp_path / "g.car", [], [block(1)]), MemoryStore())
    assert took.roots == ()
    assert took.tops == (block(1)[0],)


def _dag(store: MemoryStore, root: bytes) -> list[Block]:
    return [(cid, store.get(cid)) for cid in unixfs.reach(store, root)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda blocks: blocks[:-1], "is not whole: block .* is not in it, nor in this store"),
        (lambda blocks: blocks[1:], "is not whole"),
        (lambda blocks: [*blocks[:-1], (blocks[-1][0], blocks[-1][1][:-1] + b"?")], "does not hash to its CID"),
        (lambda blocks: [*blocks, (c.of_dag_pb(b"\xff\xff"), b"\xff\xff")], "is no UnixFS node"),
        (lambda blocks: [*blocks, (b"\x01\x55\x1e\x20" + bytes(32), b"x")], "no CID that IPOS knows|not hash"),
    ],
)
def test_nothing_of_a_wrong_file_is_stored(
    spoil: Callable[[list[Block]], list[Block]], words: str, tmp_path: Path
) -> None:
    store, one, _ = content()
    path = made(tmp_path / "f.car", [one], spoil(_dag(store, one)))
    other = MemoryStore()
    with pytest.raises(Refused, match=words) as refused:
        car.take(path, other)
    assert str(path) in str(refused.value)
    assert list(other) == []


def test_what_is_here_already_may_be_left_out(tmp_path: Path) -> None:
    store, one, _ = content()
    blocks = _dag(store, one)
    other = MemoryStore()
    other.put(blocks[3:])
    car.take(made(tmp_path / "f.car", [one], blocks[:3]), other)
    assert unixfs.missing(other, one) == []


def test_an_import_can_be_interrupted_and_a_file_be_missing(tmp_path: Path) -> None:
    store, one, _ = content()
    path = made(tmp_path / "f.car", [one], _dag(store, one))
    other = MemoryStore()
    with pytest.raises(Refused, match="interrupted: nothing was stored"):
        car.take(path, other, lambda: True)
    assert list(other) == []
    with pytest.raises(Refused, match="interrupted"):
        car.write_all(io.BytesIO(), [one], store, lambda: True)
    with pytest.raises(Refused, match="cannot be read: No such file"):
        car.take(tmp_path / "none.car", other)
    with pytest.raises(Refused, match="cannot be read: Is a directory"):
        car.take(tmp_path, other)


def test_an_importer_that_does_not_look_first_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "matches", lambda cid, block: True)
    with pytest.raises(pytest.fail.Exception):
        test_nothing_of_a_wrong_file_is_stored(
            lambda blocks: [*blocks[:-1], (blocks[-1][0], b"lie")], "does not hash", tmp_path
        )


# ---- hostile bytes


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_files(data: st.DataObject) -> None:
    """Whatever is changed in a CAR: one clear refusal and an untouched store, or blocks that hash to their names."""
    store, _, two = content()
    out = io.BytesIO()
    car.write_all(out, [two], store)
    body = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(("flip", "cut", "insert", "double"))):
            case "flip":
                body[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del body[at : at + data.draw(st.integers(1, 60))]
                body = body or bytearray(b"\0")
            case "insert":
                body[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            case _:
                body[at:at] = body[at : at + 100]
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        other = MemoryStore()
        said = ""
        try:
            car.take(Path(file.name), other)
        except Refused as refused:
            said = str(refused)
        if said:
            assert file.name in said
            assert list(other) == []
        else:
            assert all(c.matches(cid, other.get(cid)) for cid in other)


NODE = unixfs.add_stream(_store := MemoryStore(), io.BytesIO(bytes(range(200))), chunk=10, width=4)[0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_nodes(data: st.DataObject) -> None:
    """Of a dag-pb node: it is refused, or it is one; what is read through it is refused or as long as it says."""
    body = bytearray(_store.get(NODE))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        if data.draw(st.booleans()):
            body[at] = data.draw(st.integers(0, 255))
        else:
            body[at:at] = data.draw(st.binary(max_size=5))
    cid = c.of_dag_pb(bytes(body))
    store = MemoryStore()
    store.put([(cid, bytes(body)), *((each, _store.get(each)) for each in _store)])
    try:
        node = unixfs.parse(bytes(body))
        if node.kind == unixfs.FILE:
            assert len(unixfs.read(store, cid, 0, 1000)) <= 1000
        elif node.kind == unixfs.DIR:
            unixfs.entries(store, cid)
    except Refused:
        return
    assert node.kind in (unixfs.FILE, unixfs.DIR, unixfs.SYMLINK)


HOSTILE = """
import resource, sys
from pathlib import Path
from ipos.store import car, unixfs
from ipos.store.blocks import MemoryStore
from ipos.wire.errors import Refused
resource.setrlimit(resource.RLIMIT_DATA, (150 << 20, 150 << 20))
for body in (
    b"\\xff" * 100_000_000,  # a length of a length
    b"\\x80" * 5 + b"\\x01" + bytes(10),
    b"\\xff\\xff\\x03" + b"\\x81" * 65535,  # a header of lists in lists
    b"\\xff\\xff\\xff\\x7f" + bytes(100),
    b"\\x0a\\xa1\\x65roots\\x9b" + b"\\xff" * 8,  # a list of 2^64 roots
):
    Path(sys.argv[1]).write_bytes(body)
    try:
        car.take(Path(sys.argv[1]), MemoryStore())
    except Refused as refused:
        print(refused)
for block in (b"\\x12\\x00" * 1_000_000, b"\\x0a\\x80\\x80\\x80\\x80\\x10", b"\\x0a\\x02\\x08\\x02" * 400_000, b"\\x12\\xff\\xff\\xff\\x0f"):
    try:
        unixfs.parse(block)
    except Refused as refused:
        print(refused)
"""


@pytest.mark.real
def test_hostile_files_take_no_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(tmp_path / "f.car")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 8
