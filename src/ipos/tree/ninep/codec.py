"""Bytes to values and back, made from the table in `messages`. Nothing here knows what a message means.

Each row of the table is compiled into one function that takes a message apart and one that puts it together: runs of fields of fixed size
become one `struct.Struct`. A Tgetattr costs 0.3 µs so, a fifth of what a loop over its fields costs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ipos.tree.file import Qid
from ipos.tree.ninep.messages import DIALECTS

HEAD = struct.Struct("<IBH")  # size of the whole message, type, tag
DIRENT = struct.Struct("<BIQQBH")  # of Rreaddir: qid, offset, type; then the name
_U2 = struct.Struct("<H")
_U4 = struct.Struct("<I")
_QID = struct.Struct("<BIQ")
_FORMS = {"1": "B", "2": "H", "4": "I", "8": "Q"}


class ProtocolError(Exception):
    """Bytes that are no message of this dialect."""


def text(b: memoryview, at: int, end: int) -> tuple[str, int]:
    """The string at `at`, and where it ends. `struct.error`, `UnicodeDecodeError`, `ProtocolError`: there is none."""
    to = at + 2 + _U2.unpack_from(b, at)[0]
    if to > end:
        raise ProtocolError("a field runs over the end of its message")
    return str(b[at + 2 : to], "utf-8"), to


def put_text(value: str) -> bytes:
    body = value.encode()
    return _U2.pack(len(body)) + body


def _texts(b: memoryview, at: int, end: int) -> tuple[tuple[str, ...], int]:
    count: int = _U2.unpack_from(b, at)[0]
    values, at = list[str](), at + 2
    for _ in range(count):
        value, at = text(b, at, end)
        values.append(value)
    return tuple(values), at


def _qids(b: memoryview, at: int, end: int) -> tuple[tuple[Qid, ...], int]:
    count: int = _U2.unpack_from(b, at)[0]
    to = at + 2 + count * _QID.size
    if to > end:
        raise ProtocolError("a field runs over the end of its message")
    return tuple(Qid(*_QID.unpack_from(b, i)) for i in range(at + 2, to, _QID.size)), to


def _block(b: memoryview, at: int, end: int, form: struct.Struct) -> tuple[memoryview, int]:
    to = at + form.size + form.unpack_from(b, at)[0]
    if to > end:
        raise ProtocolError("a field runs over the end of its message")
    return b[at + form.size : to], to


def _put_texts(values: tuple[str, ...]) -> bytes:
    return _U2.pack(len(values)) + b"".join([put_text(value) for value in values])


def _put_qids(values: tuple[Qid, ...]) -> bytes:
    return _U2.pack(len(values)) + b"".join([_QID.pack(*value) for value in values])


class Message(NamedTuple):
    """One row of the table.

    `decode(b)` gives the fields of a whole message, head included; `ProtocolError` if it is too short, too long or not of this form. Data
    of a T-message stays a view of `b`; all else is a copy. `encode(tag, *fields)` gives the whole message.
    """

    code: int
    name: str
    fields: tuple[str, ...]
    decode: Callable[[memoryview], tuple[Any, ...]]
    encode: Callable[..., bytes]


_BEGUN: dict[str, Any] = {
    "Qid": Qid, "ProtocolError": ProtocolError, "struct": struct, "text": text, "texts": _texts, "qids": _qids, "block": _block,
    "put_text": put_text, "put_texts": _put_texts, "put_qids": _put_qids, "U2": _U2, "U4": _U4,
}  # fmt: skip
_TAKE = {
    "s": "text(b, o, e)",
    "s*": "texts(b, o, e)",
    "q*": "qids(b, o, e)",
    "b": "block(b, o, e, U2)",
    "d": "block(b, o, e, U4)",
}
_PUT = {
    "s": "put_text({})",
    "s*": "put_texts({})",
    "q*": "put_qids({})",
    "b": "U2.pack(len({0})), {0}",
    "d": "U4.pack(len({0})), {0}",
}


def _decoder(name: str, kinds: list[str], env: dict[str, Any]) -> str:
    """The source of `decode`; values are v0, v1, ... so that no field's name can collide with a local one."""
    lines, run, names = [f"o, e = {HEAD.size}, len(b)"], list[tuple[str, str]](), list[str]()

    def close() -> None:
        if run:
            form = struct.Struct("<" + "".join(f for f, _ in run))
            env[key := f"d{len(lines)}"] = form
            lines.append(f"{', '.join(v for _, v in run)}, = {key}.unpack_from(b, o); o += {form.size}")
            run.clear()

    for i, kind in enumerate(kinds):
        if kind in _FORMS:
            run.append((_FORMS[kind], f"v{i}"))
            names.append(f"v{i}")
        elif kind == "q":
            run.append(("BIQ", f"v{i}a, v{i}b, v{i}c"))
            names.append(f"Qid(v{i}a, v{i}b, v{i}c)")
        else:
            close()
            lines.append(f"v{i}, o = {_TAKE[kind]}")
            view = kind in ("b", "d") and not (kind == "d" and name.startswith("T"))
            names.append(f"bytes(v{i})" if view else f"v{i}")
    close()
    lines.append(f"if o != e: raise ProtocolError(f'{name} is {{e - o}} bytes too long')")
    lines.append(f"return ({', '.join(names)}{',' if names else ''})")
    body = "\n  ".join(lines)
    return (
        f"def decode(b):\n try:\n  {body}\n"
        " except struct.error: raise ProtocolError('a field runs over the end of its message') from None\n"
        " except UnicodeDecodeError: raise ProtocolError('a string that is not UTF-8') from None\n"
    )


def _encoder(code: int, kinds: list[str], env: dict[str, Any]) -> str:
    parts, run = list[str](), list[tuple[str, str]]()

    def close() -> None:
        if run:
            env[key := f"e{len(parts)}"] = struct.Struct("<" + "".join(f for f, _ in run))
            parts.append(f"{key}.pack({', '.join(v for _, v in run)})")
            run.clear()

    for i, kind in enumerate(kinds):
        if kind in _FORMS:
            run.append((_FORMS[kind], f"v{i}"))
        elif kind == "q":
            run.append(("BIQ", f"*v{i}"))
        else:
            close()
            parts.append(_PUT[kind].format(f"v{i}"))
    arguments = "".join(f", v{i}" for i in range(len(kinds)))
    if not parts:  # all of one size: one pack
        form = env["whole"] = struct.Struct("<IBH" + "".join(f for f, _ in run))
        values = "".join(f", {v}" for _, v in run)
        return f"def encode(tag{arguments}):\n return whole.pack({form.size}, {code}, tag{values})\n"
    close()
    env["HEAD"] = HEAD
    return (
        f"def encode(tag{arguments}):\n body = b''.join(({', '.join(parts)},))\n"
        f" return HEAD.pack({HEAD.size} + len(body), {code}, tag) + body\n"
    )


def _compiled(row: str) -> Message:
    code, name, *fields = row.split()
    names = tuple(field.split(":")[0] for field in fields)
    kinds = [field.split(":")[1] for field in fields]
    env = dict(_BEGUN)
    source = _decoder(name, kinds, env) + _encoder(int(code), kinds, env)
    exec(compile(source, f"<9P {name}>", "exec"), env)  # of our own table, at import
    return Message(int(code), name, names, env["decode"], env["encode"])


class Dialect:
    """The messages of one version of the protocol, by number and by name."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.by_code: dict[int, Message] = {}
        for table in DIALECTS[version]:
            for row in table.strip().splitlines():
                message = _ROWS.get(row) or _compiled(row)
                self.by_code[message.code] = _ROWS[row] = message
        self.by_name = {message.name: message for message in self.by_code.values()}

    @property
    def linux(self) -> bool:
        """.L and what is made of it."""
        return self.version.startswith("9P2000.L")


_ROWS: dict[str, Message] = {}
ALL = {version: Dialect(version) for version in DIALECTS}

_SCRATCH = 256 << 10
_LONG = 16 << 10  # a message this long gets memory of its own at once, and is received into it


class Framer:
    """Cuts a byte stream into messages, each in memory of its own. Holds at most one long message and 256 KiB."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._at = self._end = 0  # what of the scratch is not yet taken
        self._long: memoryview | None = None
        self._filled = 0

    def buffer(self) -> memoryview:
        """Where the next bytes of the stream go; then say how many by `filled`. Take what is whole by `next` first."""
        if self._long is not None and self._filled < len(self._long):
            return self._long[self._filled :]
        if self._at:
            rest = bytes(self._scratch[self._at : self._end])
            self._scratch[: len(rest)] = rest
            self._at, self._end = 0, len(rest)
        return self._scratch[self._end :]

    def filled(self, count: int) -> None:
        if self._long is not None and self._filled < len(self._long):
            self._filled += count
        else:
            self._end += count

    def next(self) -> memoryview | None:
        """The next whole message, or None. `ProtocolError` for one that is shorter than its head or longer than the limit."""
        if self._long is not None:
            if self._filled < len(self._long):
                return None
            message, self._long = self._long, None
            return message
        have = self._end - self._at
        if have < 4:
            return None
        size: int = _U4.unpack_from(self._scratch, self._at)[0]
        if not HEAD.size <= size <= self.limit:
            raise ProtocolError(f"a message of {size} bytes; between {HEAD.size} and {self.limit} are allowed")
        if size <= have:
            message = memoryview(bytes(self._scratch[self._at : self._at + size]))
            self._at += size
            return message
        if size >= _LONG:
            self._long, self._filled = memoryview(bytearray(size)), have
            self._long[:have] = self._scratch[self._at : self._end]
            self._at = self._end = 0
        return None

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """Whole messages, in order."""
        out, view = list[memoryview](), memoryview(data)
        while view:
            into = self.buffer()
            count = min(len(into), len(view))
            into[:count] = view[:count]
            self.filled(count)
            view = view[count:]
            while (message := self.next()) is not None:
                out.append(message)
        return out
