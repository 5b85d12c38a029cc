"""CAR files: as the specification has them, and what is wrong with the others."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.store import car, unixfs
from ipos.store import cid as c
from ipos.store.blocks import MemoryStore, Missing
from ipos.wire.errors import Refused


def made() -> tuple[bytes, bytes, MemoryStore]:
    store = MemoryStore()
    root = unixfs.add_stream(store, io.BytesIO(random.Random(1).randbytes(3_000_000)))[0]
    out = io.BytesIO()
    assert car.write(out, root, unixfs.reach(store, root), store) == len(out.getvalue())
    return out.getvalue(), root, store


def read(body: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    reader = car.Reader(io.BytesIO(body), "f.car")
    return reader.root, dict(reader.blocks())


def test_there_and_back() -> None:
    body, root, store = made()
    got, blocks = read(body)
    assert got == root
    assert blocks == {cid: store.get(cid) for cid in store}


def test_the_bytes_are_those_of_the_specification() -> None:
    """Header and one raw block, written out by hand: {"roots": [CID], "version": 1}."""
    store, block = MemoryStore(), b"hello"
    store.put([(c.of_raw(block), block)])
    out = io.BytesIO()
    car.write(out, c.of_raw(block), [c.of_raw(block)], store)
    header = b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00" + c.of_raw(block) + b"\x67version\x01"
    assert out.getvalue() == bytes([len(header)]) + header + bytes([36 + 5]) + c.of_raw(block) + block


def test_a_block_that_is_not_there_is_not_written() -> None:
    with pytest.raises(Missing):
        car.write(io.BytesIO(), c.of_raw(b"x"), [c.of_raw(b"x")], MemoryStore())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda body: body[:-1], "ends in the middle of a block"),
        (lambda body: body[:3], "not a CAR file"),
        (lambda body: body[:-10] + bytes([body[-10] ^ 1]) + body[-9:], "does not hash to its CID"),
        (lambda body: b"", "not a CAR file"),
        (lambda body: b"\x05hello", "not a CAR file"),
        (lambda body: b"\x7fELF" * 100, "not a CAR file"),
        (lambda body: body.replace(b"version\x01", b"version\x02"), "version 1"),
        (lambda body: body + b"\xff\xff\xff\xff\xff\xff", "a broken length"),
        (lambda body: body + b"\x03abc", "a block of 3 bytes"),
    ],
)
def test_what_is_wrong_is_named(spoil: object, words: str) -> None:
    body, _, _ = made()
    with pytest.raises(Refused, match=words) as refused:
        read(spoil(body))  # type: ignore[operator]
    assert "f.car" in str(refused.value)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_garbage(noise: bytes, at: int) -> None:
    body, _, store = made()
    try:
        root, blocks = read(body[:at] + noise)
    except Refused:
        return
    assert store.has(root)  # it was cut between two blocks
    assert all(store.get(cid) == block for cid, block in blocks.items())
