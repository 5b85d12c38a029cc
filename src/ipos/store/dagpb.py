"""dag-pb nodes with UnixFS data (https://specs.ipfs.tech/unixfs/, https://ipld.io/specs/codecs/dag-pb/spec/): bytes to values and back.

As much of protobuf as that needs, written out: field 2 of a node is a link (1 CID, 2 name, 3 size with all below), field 1 the UnixFS
data (1 kind, 2 content, 3 size of the file, 4 size below each link).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ipos.store import cid as c
from ipos.wire.errors import BadRecord

FILE, DIR, SYMLINK = 2, 1, 4


class Link(NamedTuple):
    cid: bytes
    name: str
    tsize: int


class Node(NamedTuple):
    """A dag-pb node: UnixFS type, total size of the file in bytes, size of each child, links, and data of its own."""

    kind: int
    size: int
    sizes: tuple[int, ...]
    links: tuple[Link, ...]
    data: bytes


def varint(n: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def _fields(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(body):
        key, at = _read_varint(body, at)
        if key & 7 == 0:
            value, at = _read_varint(body, at)
            yield key >> 3, value
        elif key & 7 == 2:
            length, at = _read_varint(body, at)
            if at + length > len(body):
                raise BadRecord("", "a dag-pb field runs over the end of its block")
            yield key >> 3, body[at : at + length]
            at += length
        else:
            raise BadRecord("", f"dag-pb wire type {key & 7} is not used in UnixFS")


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    n = shift = 0
    while True:
        if at >= len(body) or shift > 63:
            raise BadRecord("", "a broken number in a dag-pb block")
        n |= (body[at] & 127) << shift
        at += 1
        if body[at - 1] < 128:
            return n, at
        shift += 7


def _link(link: Link) -> bytes:
    name = link.name.encode()
    body = (
        b"\x0a" + varint(len(link.cid)) + link.cid + b"\x12" + varint(len(name)) + name + b"\x18" + varint(link.tsize)
    )
    return b"\x12" + varint(len(body)) + body


def block_of(links: list[Link], unixfs: bytes) -> bytes:
    """The block of a node."""
    return b"".join(map(_link, links)) + b"\x0a" + varint(len(unixfs)) + unixfs


def parse(block: bytes) -> Node:
    """A dag-pb UnixFS node, or `BadRecord`."""
    links: list[Link] = []
    unixfs = b""
    for number, value in _fields(block):
        if number == 2 and isinstance(value, bytes):
            cid, name, tsize = b"", "", 0
            for n, v in _fields(value):
                if n == 1 and isinstance(v, bytes):
                    cid = v
                elif n == 2 and isinstance(v, bytes):
                    name = v.decode("utf-8", "replace")
                elif n == 3 and isinstance(v, int):
                    tsize = v
            if not c.valid(cid):
                raise BadRecord("links", "a link to something that is no CID IPOS knows")
            links.append(Link(cid, name, tsize))
        elif number == 1 and isinstance(value, bytes):
            unixfs = value
    kind, size, sizes, data = -1, 0, list[int](), b""
    for number, value in _fields(unixfs):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            data = value
        elif number == 3 and isinstance(value, int):
            size = value
        elif number == 4 and isinstance(value, int):
            sizes.append(value)
    if kind not in (FILE, DIR, SYMLINK):
        raise BadRecord("", f"UnixFS type {kind} is not served (files, symbolic links and plain directories are)")
    if kind == FILE and len(sizes) != len(links):
        raise BadRecord("", "a file's node with as many sizes as links was expected")
    return Node(kind, size, tuple(sizes), tuple(links), data)
