"""Records: one value, one encoding, one identity."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.pool.records import Limits, Task
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import Record, cid_of, decode, encode
from ipos.wire.text import lines, parse


def link(seed: bytes) -> bytes:
    return b"\x01\x55\x12\x20" + hashlib.sha256(seed).digest()


LINKS = st.binary(max_size=4).map(link)
TASKS = st.builds(
    Task,
    program=LINKS,
    name=st.text(max_size=8),
    args=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    environment=st.none() | LINKS,
    files=st.dictionaries(st.text(max_size=4), LINKS, max_size=3),
    limits=st.builds(Limits, output_bytes=st.integers(0, 1 << 62)),
    ext=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)


class Plain(Record, frozen=True, kw_only=True):
    body: bytes
    n: int = 0
    f: float = 0.0


@given(TASKS)
def test_round_trip(task: Task) -> None:
    body = encode(task)
    assert decode(Task, body) == task
    assert encode(decode(Task, body)) == body


@given(TASKS, st.data())
def test_altered_bytes_are_refused_or_mean_themselves(task: Task, data: st.DataObject) -> None:
    body = bytearray(encode(task))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(Task, bytes(body))
    except BadRecord:
        return
    assert encode(other) == bytes(body)
    assert cid_of(other) != cid_of(task)


@given(st.binary(max_size=200))
def test_garbage_is_refused(body: bytes) -> None:
    with pytest.raises(BadRecord):
        decode(Task, body)


def test_an_encoding_longer_than_need_be_is_refused() -> None:
    body = encode(Plain(body=b"x", n=5))
    assert body.count(b"\x61n\x05") == 1
    with pytest.raises(BadRecord, match="canonical"):
        decode(Plain, body.replace(b"\x61n\x05", b"\x61n\x18\x05"))


def test_fields_are_named() -> None:
    with pytest.raises(BadRecord, match="body: plain bytes that parse as a CID"):
        encode(Plain(body=link(b"")))
    with pytest.raises(BadRecord, match="program: not a CID"):
        encode(Task(program=b"no", name="x"))
    with pytest.raises(BadRecord, match=r"n: .* does not fit 64 bits"):
        encode(Plain(body=b"", n=1 << 70))
    with pytest.raises(BadRecord, match="f: nan"):
        encode(Plain(body=b"", f=float("nan")))
    with pytest.raises(BadRecord, match="the most is"):
        encode(Plain(body=b"x" * limits.record_bytes))


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(max_size=20)))
def test_status_lines(pairs: dict[str, str]) -> None:
    back = parse(lines(pairs))
    assert set(back) == set(pairs)
    for key, value in pairs.items():
        assert back[key] == " ".join(value.splitlines()).rstrip() or not value.isprintable()


def test_keys_of_status_lines() -> None:
    with pytest.raises(Refused, match="cannot be a key"):
        lines({"a b": 1})
    assert lines({"a": None, "b": True}) == "a\nb yes\n"
