"""Records: typed values with one canonical encoding, DAG-CBOR (https://ipld.io/specs/codecs/dag-cbor/spec/), so each has a CID.

A record is a frozen struct whose fields the schema names; `v` is the version of its schema, `ext` the one place where unknown fields
may stand and are ignored. Decoding demands that encoding the decoded value gives the same bytes back: libipld takes any byte string that
parses as a CID for a link and accepts integers that are longer than they need be, and neither may give one record two identities.
For the same reason a field of plain bytes whose value parses as a CID is refused when it is encoded: it would come back as a link.
"""

from __future__ import annotations

import hashlib
import types
import typing
from functools import cache
from typing import Annotated, Any, TypeVar, cast

import libipld
import msgspec

from ipos.wire import limits
from ipos.wire.errors import BadRecord
from ipos.wire.nesting import deeper_than

Link = Annotated[bytes, "link"]
"""A field that holds a binary CID and is encoded as a link."""

Count = Annotated[int, msgspec.Meta(ge=0)]
"""A field that holds how many or how much there is of something."""

Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A field that holds 32 bytes as hexadecimal digits: bytes that are a hash may parse as a CID by chance."""

MaybeDigest = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]

Address = Annotated[str, msgspec.Meta(pattern=r"\A0x[0-9a-fA-F]{40}\Z")]
"""A field that holds an account or a run key by its EIP-55 text."""

LateLink = Annotated[bytes | None, "link", "late"]
"""A link in a field that came after its record was first used: None is not encoded, so records without it keep their bytes and CIDs."""

DAG_CBOR = b"\x01\x71\x12\x20"
_COMMON = frozenset({DAG_CBOR, b"\x01\x55\x12\x20", b"\x01\x70\x12\x20", b"\x01\x55\x1e\x20", b"\x01\x71\x1e\x20"})
_VERSIONS = (
    0x01,
    0x12,
)  # a CID begins with its version, or is a bare sha2-256 multihash; the top bit: a varint longer than need be
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records. Fields: bool, int (64 bit), float (finite), str, bytes, Link, another record, tuples and str-keyed dicts of
    these, and None. `ext`: fields of later versions that an older reader may ignore; left out of the encoding while it is empty."""

    ext: dict[str, str] = msgspec.field(default_factory=dict[str, str])


R = TypeVar("R", bound=Record)


def encode(record: Record) -> bytes:
    """Canonical bytes. `BadRecord` names the field whose value has no canonical form or exceeds a limit."""
    body = libipld.encode_dag_cbor(_plain(record, type(record), "", 0))
    if len(body) > limits.record_bytes:
        raise BadRecord("", f"{len(body)} bytes, the most is {limits.record_bytes}")
    return body


def decode(kind: type[R], body: bytes) -> R:
    """The record that `body` encodes, or `BadRecord` with the path of the field that is wrong."""
    if len(body) > limits.record_bytes:
        raise BadRecord("", f"{len(body)} bytes, the most is {limits.record_bytes}")
    value = plain_value(body)
    try:
        record = msgspec.convert(value, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        why, _, where = str(error).partition(" - at `$")
        raise BadRecord(where.rstrip("`").lstrip("."), why) from None
    if encode(record) != body:
        raise BadRecord("", "not the canonical encoding of what it says")
    return record


def plain_value(body: bytes) -> Any:
    """What DAG-CBOR bytes say, as dicts, lists, bytes (links too), text and numbers; `BadRecord` if they are none, or nested too deep."""
    if deeper_than(body, limits.record_depth + 1):  # a link is a tag around its bytes
        raise BadRecord("", f"nested deeper than {limits.record_depth}")
    try:
        return libipld.decode_dag_cbor(body)
    except Exception as error:  # libipld raises ValueError, and others
        raise BadRecord("", f"not DAG-CBOR: {error}") from None


def cid_of(record: Record) -> bytes:
    """The record's identity: CIDv1, dag-cbor, sha2-256, binary."""
    return DAG_CBOR + hashlib.sha256(encode(record)).digest()


def parses_as_cid(value: bytes) -> bool:
    """Whether libipld would take this byte string for a link."""
    if len(value) == 36 and value[:4] in _COMMON:
        return True
    if not value or value[0] & 0x7F not in _VERSIONS:
        return False
    try:
        libipld.encode_cid(value)
    except Exception:
        return False
    return len(value) > 0


@cache
def _fields(kind: type[Record]) -> tuple[tuple[str, Any], ...]:
    return tuple(typing.get_type_hints(kind, include_extras=True).items())


@cache
def _version(kind: type[Record]) -> int:
    """Which version of its schema this is; 1 where it does not say."""
    return next((field.default for field in msgspec.structs.fields(kind) if field.name == "v"), 1)


def _plain(value: Any, kind: Any, path: str, depth: int) -> Any:
    """The value in terms that libipld encodes, checked against its field's type."""
    if depth > limits.record_depth:
        raise BadRecord(path, f"nested deeper than {limits.record_depth}")
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, bytes):
        return _bytes(value, kind, path)
    if isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise BadRecord(path, f"{value} does not fit 64 bits")
        return value
    if isinstance(value, Record):
        prefix = path + "." if path else ""
        known, given = _version(type(value)), getattr(value, "v", 1)
        if given != known:
            raise BadRecord(prefix + "v", f"version {given}, this IPOS knows {known}")
        return {
            name: _plain(getattr(value, name), hint, prefix + name, depth + 1)
            for name, hint in _fields(type(value))
            if not (name == "ext" and not value.ext) and not (getattr(value, name) is None and _is_late(hint))
        }
    if isinstance(value, (tuple, list)):
        items = cast("tuple[Any, ...]", value)
        inner = _inner(kind, 0)
        return [_plain(each, inner, f"{path}[{i}]", depth + 1) for i, each in enumerate(items)]
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        inner = _inner(kind, 1)
        return {key: _plain(each, inner, f"{path}.{key}", depth + 1) for key, each in mapping.items()}
    if isinstance(value, float) and value - value == 0.0:
        return value
    raise BadRecord(path, f"{value!r} has no canonical form")


@cache
def _inner(kind: Any, which: int) -> Any:
    """The type of a collection's items: argument `which` of its hint, bytes where it says nothing."""
    args = typing.get_args(_strip(kind))
    return args[which] if len(args) > which else bytes


def _strip(kind: Any) -> Any:
    """`X | None` -> X."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        rest = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


@cache
def _is_link(kind: Any) -> bool:
    return "link" in getattr(_strip(kind), "__metadata__", ())


def _is_late(kind: Any) -> bool:
    return "late" in getattr(kind, "__metadata__", ())


def _bytes(value: bytes, kind: Any, path: str) -> bytes:
    link = _is_link(kind)
    if link and not parses_as_cid(value):
        raise BadRecord(path, "not a CID")
    if not link and parses_as_cid(value):
        raise BadRecord(path, "plain bytes that parse as a CID cannot be told from a link")
    return value
