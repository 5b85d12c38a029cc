"""Every record of the project: what it says survives, and no other bytes say it. And what libipld lets through, one trap at a time."""

from __future__ import annotations

import importlib
import pkgutil
import types
import typing
from typing import Any

import libipld
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_record import LINKS, Plain, link

import ipos
from ipos.pool.records import Mark, Receipt
from ipos.wire import record as records
from ipos.wire.errors import BadRecord
from ipos.wire.record import Record, cid_of, decode, encode, parses_as_cid

for module in pkgutil.walk_packages(ipos.__path__, "ipos."):
    if module.name.split(".")[1] in ("identity", "net", "pool", "node") and not module.ispkg:
        importlib.import_module(module.name)


def every(kind: type[Record] = Record) -> list[type[Record]]:
    found = [kind] if kind is not Record and kind.__module__.startswith("ipos.") else []
    return found + [each for one in kind.__subclasses__() for each in every(one)]


KINDS = sorted(set(every()), key=lambda kind: kind.__name__)
TEXTS = st.text(max_size=6)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Of the type of a field."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        said = hint.__metadata__
        if "link" in said:
            return LINKS | st.none() if type(None) in typing.get_args(args[0]) else LINKS
        pattern = next((meta.pattern for meta in said if isinstance(meta, msgspec.Meta) and meta.pattern), None)
        if pattern is not None:
            return st.from_regex(pattern.replace(r"\A", "^").replace(r"\Z", r"\Z"), fullmatch=True)
        return st.integers(0, (1 << 63) - 1) if args[0] is int else values(args[0])
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, args))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXTS, values(args[1]), max_size=2)
    if isinstance(hint, type) and issubclass(hint, Record):
        return built(hint)
    simple = {
        str: TEXTS, int: st.integers(-(1 << 63), (1 << 63) - 1), bool: st.booleans(), type(None): st.none(),
        bytes: st.binary(max_size=40).filter(lambda body: not parses_as_cid(body)),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }  # fmt: skip
    return simple[hint]


def built(kind: type[Record]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{name: values(hint) for name, hint in hints.items() if name != "v"})


def test_the_records_are_found() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert {"Task", "Result", "Deal", "EngineRun", "Mark", "Receipt", "Evidence", "HandOver", "MachineList"} <= names


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_it_says_survives_and_no_other_bytes_say_it(kind: type[Record]) -> None:
    @settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    @given(built(kind), st.data())
    def check(value: Record, data: st.DataObject) -> None:
        body = encode(value)
        assert decode(kind, body) == value
        changed = bytearray(body)
        at = data.draw(st.integers(0, len(body) - 1))
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
        try:
            other = decode(kind, bytes(changed))
        except BadRecord:
            return
        assert other != value or repr(other) != repr(value)  # -0.0 equals 0.0
        assert encode(other) == bytes(changed)
        assert cid_of(other) != cid_of(value)

    check()


def test_a_decoder_that_takes_what_libipld_takes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: without the re-encoding, two encodings are one record."""
    body = encode(Plain(body=b"x", n=5)).replace(b"\x61n\x05", b"\x61n\x18\x05")
    with pytest.raises(BadRecord, match="canonical"):
        decode(Plain, body)
    monkeypatch.setattr(records, "encode", lambda record: body)
    assert decode(Plain, body) == Plain(body=b"x", n=5)


PLAIN = encode(Plain(body=b"x", n=5))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (PLAIN.replace(b"\x61n\x05", b"\x61n\x18\x05"), "canonical"),  # an integer longer than need be
        (PLAIN.replace(b"\x61n\x05", b"\x61n\x1b" + bytes(7) + b"\x05"), "canonical"),
        (b"\xa4" + PLAIN[1:] + b"\x61n\x05", "DAG-CBOR|canonical"),  # a key twice
        (PLAIN.replace(b"\xfb" + bytes(8), b"\xf9\x00\x00"), "DAG-CBOR|canonical"),  # a short float
        (PLAIN.replace(b"\xfb" + bytes(8), b"\xfa" + bytes(4)), "DAG-CBOR|canonical"),
        (PLAIN.replace(bytes(8), b"\x7f\xf8" + bytes(6)), "DAG-CBOR|canonical|canonical form"),  # NaN
        (PLAIN.replace(bytes(8), b"\x7f\xf0" + bytes(6)), "DAG-CBOR|canonical|canonical form"),  # infinity
        (PLAIN.replace(b"\x61n\x05", b"\x61n" + b"\x81" * 600 + b"\x05"), "nested deeper"),
        (b"\x81" * 500_000, "nested deeper"),
        (b"\xa1\x61a" * 100_000, "nested deeper"),
        (PLAIN.replace(b"\x41x", b"\xd8\x2a\x58\x25\x00" + link(b"")), "parse as a CID"),  # a link where bytes should be
        (PLAIN.replace(b"\x41x", b"\x58\x24" + link(b"")), "parse as a CID"),  # bytes that are a CID
        (PLAIN.replace(b"\x41x", b"\x58\x22\x12\x20" + bytes(32)), "parse as a CID"),  # an old CID: a bare multihash
        (PLAIN + b"\x00", "DAG-CBOR|canonical"),
        (b"", "DAG-CBOR"),
    ],
)  # fmt: skip
def test_traps_of_libipld(body: bytes, words: str) -> None:
    assert body != PLAIN
    with pytest.raises(BadRecord, match=words):
        decode(Plain, body)


def test_a_version_that_is_not_known_is_refused() -> None:
    mark = Mark(index=1, work=2, root="00" * 32)
    body = encode(mark)
    later = libipld.encode_dag_cbor({**libipld.decode_dag_cbor(body), "v": 2})
    with pytest.raises(BadRecord, match="v: version 2, this IPOS knows 1"):
        decode(Mark, later)
    with pytest.raises(BadRecord, match="version 2"):
        encode(msgspec.structs.replace(mark, v=2))


@pytest.mark.parametrize(
    ("field", "value"),
    [("work", -1), ("since", -1), ("root", "AB" * 32), ("root", "ab" * 31), ("root", "ab" * 32 + "\n"), ("account", "0x12"),
     ("run", "0x" + "g" * 40), ("since_root", "x")],
)  # fmt: skip
def test_fields_of_a_receipt_are_what_they_should_be(field: str, value: object) -> None:
    one = Receipt(
        task=link(b"t"), result=None, account="0x" + "1" * 40, run="0x" + "2" * 40, node="n", machines=link(b"m"), engine="e",
        since=0, since_root="", work=0, root="", marks=None, before=None, page_work=0, cpu_ms=0, wall_ms=0,
    )  # fmt: skip
    assert decode(Receipt, encode(one)) == one
    with pytest.raises(BadRecord, match=field):
        decode(Receipt, encode(msgspec.structs.replace(one, **{field: value})))
