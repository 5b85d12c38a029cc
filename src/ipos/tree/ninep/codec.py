"""Bytes to values and back, made from the table in `messages`. Nothing here knows what a message means."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ipos.tree.file import Qid
from ipos.tree.ninep.messages import DIALECTS

HEAD = struct.Struct("<IBH")  # size of the whole message, type, tag
_U2 = struct.Struct("<H")
_U4 = struct.Struct("<I")
_FIXED = {"1": struct.Struct("<B"), "2": _U2, "4": _U4, "8": struct.Struct("<Q")}
_QID = struct.Struct("<BIQ")


class ProtocolError(Exception):
    """Bytes that are no message of this dialect."""


Decoder = Callable[[memoryview, int, int], tuple[Any, int]]  # (buffer, at, end) -> (value, next)
Encoder = Callable[[Any], bytes]


def _take(end: int, at: int, n: int) -> int:
    if at + n > end:
        raise ProtocolError("a field runs over the end of its message")
    return at + n


def _fixed(size: str) -> tuple[Decoder, Encoder]:
    form = _FIXED[size]

    def decode(b: memoryview, at: int, end: int) -> tuple[Any, int]:
        to = _take(end, at, form.size)
        return form.unpack_from(b, at)[0], to

    return decode, form.pack


def _string(b: memoryview, at: int, end: int) -> tuple[Any, int]:
    start = _take(end, at, 2)
    to = _take(end, start, _U2.unpack_from(b, at)[0])
    try:
        return str(b[start:to], "utf-8"), to
    except UnicodeDecodeError:
        raise ProtocolError("a string that is not UTF-8") from None


def _put_string(value: str) -> bytes:
    body = value.encode()
    return _U2.pack(len(body)) + body


def _data(form: struct.Struct) -> tuple[Decoder, Encoder]:
    def decode(b: memoryview, at: int, end: int) -> tuple[Any, int]:
        start = _take(end, at, form.size)
        to = _take(end, start, form.unpack_from(b, at)[0])
        return bytes(b[start:to]), to

    return decode, lambda value: form.pack(len(value)) + value


def _qid(b: memoryview, at: int, end: int) -> tuple[Any, int]:
    to = _take(end, at, _QID.size)
    return Qid(*_QID.unpack_from(b, at)), to


def _list(decode_one: Decoder, encode_one: Encoder) -> tuple[Decoder, Encoder]:
    def decode(b: memoryview, at: int, end: int) -> tuple[Any, int]:
        to = _take(end, at, 2)
        values: list[Any] = []
        for _ in range(_U2.unpack_from(b, at)[0]):
            value, to = decode_one(b, to, end)
            values.append(value)
        return tuple(values), to

    return decode, lambda values: _U2.pack(len(values)) + b"".join(map(encode_one, values))


_TYPES: dict[str, tuple[Decoder, Encoder]] = {
    **{size: _fixed(size) for size in _FIXED},
    "s": (_string, _put_string),
    "b": _data(_U2),
    "d": _data(_U4),
    "q": (_qid, lambda q: _QID.pack(*q)),
}
_TYPES["s*"] = _list(*_TYPES["s"])
_TYPES["q*"] = _list(*_TYPES["q"])


class Message(NamedTuple):
    """One row of the table."""

    code: int
    name: str
    fields: tuple[str, ...]
    decoders: tuple[Decoder, ...]
    encoders: tuple[Encoder, ...]

    def decode(self, b: memoryview) -> tuple[Any, ...]:
        """The fields of a whole message, head included. `ProtocolError` if it is too short, too long or not of this form."""
        at, end = HEAD.size, len(b)
        values: list[Any] = []
        for decode in self.decoders:
            value, at = decode(b, at, end)
            values.append(value)
        if at != end:
            raise ProtocolError(f"{self.name} is {end - at} bytes too long")
        return tuple(values)

    def encode(self, tag: int, *values: Any) -> bytes:
        body = b"".join([encode(value) for encode, value in zip(self.encoders, values, strict=True)])
        return HEAD.pack(HEAD.size + len(body), self.code, tag) + body


class Dialect:
    """The messages of one version of the protocol, by number and by name."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.by_code: dict[int, Message] = {}
        for table in DIALECTS[version]:
            for row in table.strip().splitlines():
                code, name, *fields = row.split()
                pairs = [field.split(":") for field in fields]
                kinds = [_TYPES[kind] for _, kind in pairs]
                names = tuple(field for field, _ in pairs)
                message = Message(int(code), name, names, tuple(k[0] for k in kinds), tuple(k[1] for k in kinds))
                self.by_code[message.code] = message
        self.by_name = {message.name: message for message in self.by_code.values()}


ALL = {version: Dialect(version) for version in DIALECTS}


class Framer:
    """Cuts a byte stream into messages. Feeding may give none, one or many."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[memoryview]:
        """Whole messages, in order. `ProtocolError` for one that is shorter than its head or longer than the limit."""
        self._buffer += data
        out: list[memoryview] = []
        at = 0
        while len(self._buffer) - at >= 4:
            size: int = _U4.unpack_from(self._buffer, at)[0]
            if not HEAD.size <= size <= self.limit:
                raise ProtocolError(f"a message of {size} bytes; between {HEAD.size} and {self.limit} are allowed")
            if len(self._buffer) - at < size:
                break
            out.append(memoryview(bytes(memoryview(self._buffer)[at : at + size])))
            at += size
        if at:
            del self._buffer[:at]
        return out


_STAT = struct.Struct("<HHIBIQIIIQ")


def unpack_stat(b: bytes, at: int = 0) -> tuple[dict[str, Any], int]:
    """One stat structure of 9P2000 (stat(5)), and where the next begins."""
    try:
        size, _, _, kind, version, path, mode, atime, mtime, length = _STAT.unpack_from(b, at)
    except struct.error:
        raise ProtocolError("a stat that is too short") from None
    end = at + 2 + size
    view, to = memoryview(b), at + _STAT.size
    name, to = _string(view, to, min(end, len(b)))
    fields = {
        "qid": Qid(kind, version, path),
        "mode": mode,
        "atime": atime,
        "mtime": mtime,
        "length": length,
        "name": name,
    }
    return fields, end
