"""UnixFS files and directories (https://specs.ipfs.tech/unixfs/), profile `unixfs-v1-2025`: CIDv1, raw leaves, 1 MiB chunks, 1024 links
a node, balanced. The CIDs are those that Kubo gives for the same content and profile. Sharded directories (HAMT) come with issue 9.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ipos.store import cid as c
from ipos.store.blocks import BlockStore, Missing, put_hashed
from ipos.store.dagpb import DIR, FILE, SYMLINK, Link, Node, block_of, parse, varint
from ipos.wire.errors import BadRecord, Refused

CHUNK = 1 << 20
WIDTH = 1024
DEPTH = 16  # of a file's tree: 1024**16 leaves are out of anybody's reach
NESTED = 64  # directories
DIRECTORY_BYTES = 256 << 10
BATCH_BYTES = 8 << 20


# ---- in


class Profile(NamedTuple):
    """How a file is cut: bytes of a chunk, links of a node."""

    chunk: int
    width: int


PROFILES = {"unixfs-v1-2025": Profile(CHUNK, WIDTH), "legacy-cid-v1": Profile(256 << 10, 174)}
"""By the names that Kubo has for them."""


class Writer:
    """Puts blocks in batches, so that a large file costs one fsync every few MiB."""

    def __init__(self, store: BlockStore) -> None:
        self.store = store
        self.batch: list[tuple[bytes, bytes]] = []
        self.bytes = 0

    def put(self, cid: bytes, block: bytes) -> None:
        self.batch.append((cid, block))
        self.bytes += len(block)
        if self.bytes >= BATCH_BYTES:
            self.flush()

    def leaf(self, cid: bytes, block: bytes, stream: BinaryIO) -> None:
        """The block was just read from `stream`."""
        self.put(cid, block)

    def flush(self) -> None:
        put_hashed(self.store, self.batch)
        self.batch, self.bytes = [], 0


class _Kid(NamedTuple):
    cid: bytes
    tsize: int
    size: int


def _parent(kids: list[_Kid], out: Writer) -> _Kid:
    size = sum(kid.size for kid in kids)
    unixfs = b"\x08\x02\x18" + varint(size) + b"".join(b"\x20" + varint(kid.size) for kid in kids)
    block = block_of([Link(kid.cid, "", kid.tsize) for kid in kids], unixfs)
    cid = c.of_dag_pb(block)
    out.put(cid, block)
    return _Kid(cid, len(block) + sum(kid.tsize for kid in kids), size)


def _file(stream: BinaryIO, out: Writer, chunk: int, width: int) -> _Kid:
    kids: list[_Kid] = []
    while True:
        block = _read(stream, chunk)
        if not block and kids:
            break
        cid = c.of_raw(block)
        out.leaf(cid, block, stream)
        kids.append(_Kid(cid, len(block), len(block)))
        if len(block) < chunk:
            break
    return _tree(kids, out, width)


def _read(stream: BinaryIO, count: int) -> bytes:
    """Shorter only at the end: one read of an unbuffered file or of a pipe may give less."""
    block = stream.read(count)
    while 0 < len(block) < count and (more := stream.read(count - len(block))):
        block += more
    return block


def _tree(kids: list[_Kid], out: Writer, width: int) -> _Kid:
    while len(kids) > 1:
        kids = [_parent(kids[i : i + width], out) for i in range(0, len(kids), width)]
    return kids[0]


def add_stream(store: BlockStore, stream: BinaryIO, chunk: int = CHUNK, width: int = WIDTH) -> tuple[bytes, int]:
    """Store a file's content; (CID, bytes). The root is there when this returns."""
    out = Writer(store)
    kid = _file(stream, out, chunk, width)
    out.flush()
    return kid.cid, kid.size


def add_file(store: BlockStore, path: Path | str) -> tuple[bytes, int]:
    with open(path, "rb") as stream:
        return add_stream(store, stream)


def add_bytes(store: BlockStore, content: bytes) -> bytes:
    return add_stream(store, io.BytesIO(content))[0]


def add_chunks(store: BlockStore, chunks: Iterable[tuple[bytes, int] | bytes]) -> bytes:
    """A file whose content is cut where the caller says: blocks, or (CID, bytes) of raw blocks that are in the store already."""
    out = Writer(store)
    kids: list[_Kid] = []
    for chunk in chunks:
        if isinstance(chunk, bytes):
            kids.append(_Kid(c.of_raw(chunk), len(chunk), len(chunk)))
            out.put(kids[-1].cid, chunk)
        else:
            kids.append(_Kid(chunk[0], chunk[1], chunk[1]))
    root = _tree(kids, out, WIDTH)
    out.flush()
    return root.cid


def add_dir(store: BlockStore, path: Path, links: bool = False) -> bytes:
    """A directory of files and directories. Special files in it are left out; so are symbolic links, for another machine's path means
    nothing here, unless `links` says that they are meant to stay within the directory."""
    out = Writer(store)
    kid = _dir(path, out, 0, links)
    out.flush()
    return kid.cid


def add_links(store: BlockStore, links: Iterable[Link]) -> bytes:
    """A directory of what is in the store already. Equal entries are one CID, in whatever order they are given."""
    ordered = sorted(links, key=lambda link: link.name.encode())
    block = block_of(ordered, b"\x08\x01")
    if len(block) > DIRECTORY_BYTES:
        raise Refused(f"{len(ordered)} entries are more than one directory block holds; use subdirectories")
    cid = c.of_dag_pb(block)
    store.put([(cid, block)])
    return cid


def _symlink(target: str, out: Writer) -> _Kid:
    text = os.fsencode(target)
    unixfs = b"\x08\x04\x12" + varint(len(text)) + text
    block = block_of([], unixfs)
    cid = c.of_dag_pb(block)
    out.put(cid, block)
    return _Kid(cid, len(block), 0)


def add_tree(out: Writer, path: Path, profile: Profile, left_out: Callable[[str], None]) -> tuple[bytes, int]:
    """A file, a symbolic link (as a link) or a directory with all in it, as `ipfs add -r -H` does: (CID, bytes with all nodes).
    `left_out` is told of what is none of these. The caller flushes `out`."""
    if path.is_symlink():
        kid = _symlink(os.readlink(path), out)
    elif path.is_dir():
        kid = _dir(path, out, 0, True, profile, left_out)
    else:
        if not path.is_file():
            os.stat(path)
            raise Refused(f"{path} is no file, directory or symbolic link: it has no content to add")
        with open(path, "rb", buffering=0) as stream:
            kid = _file(stream, out, *profile)  # pyright: ignore[reportArgumentType]  (FileIO reads as BinaryIO does)
    return kid.cid, kid.tsize


def _ignore(_: str) -> None:
    """Of what is left out nothing is said."""


def _dir(
    path: Path,
    out: Writer,
    depth: int,
    symlinks: bool,
    profile: Profile = PROFILES["unixfs-v1-2025"],
    left_out: Callable[[str], None] = _ignore,
) -> _Kid:
    if depth > NESTED:
        raise Refused(f"{path}: directories nested deeper than {NESTED}")
    links: list[Link] = []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda e: os.fsencode(e.name)):
            if entry.is_dir(follow_symlinks=False):
                kid = _dir(Path(entry.path), out, depth + 1, symlinks, profile, left_out)
            elif symlinks and entry.is_symlink():
                kid = _symlink(os.readlink(entry.path), out)
            elif entry.is_file(follow_symlinks=False):
                with open(entry.path, "rb", buffering=0) as stream:
                    kid = _file(stream, out, *profile)  # pyright: ignore[reportArgumentType]
            else:
                left_out(entry.path)
                continue
            links.append(Link(kid.cid, entry.name, kid.tsize))
    block = block_of(links, b"\x08\x01")
    if len(block) > DIRECTORY_BYTES:
        raise Refused(f"{path}: {len(links)} entries are more than one directory block holds; use subdirectories")
    cid = c.of_dag_pb(block)
    out.put(cid, block)
    return _Kid(cid, len(block) + sum(link.tsize for link in links), 0)


# ---- out


def reach(store: BlockStore, root: bytes) -> Iterator[bytes]:
    """Every CID of the DAG under `root`, once, parents first, as far as the blocks that are in the store tell."""
    seen: set[bytes] = set()
    todo = [root]
    while todo:
        cid = todo.pop()
        if cid in seen:
            continue
        seen.add(cid)
        yield cid
        if cid[:4] == c.DAG_PB and store.has(cid):
            todo.extend(link.cid for link in reversed(parse(store.get(cid)).links))


def resolve(store: BlockStore, root: bytes, names: Iterable[str]) -> bytes:
    """What a path of names leads to, from a directory. `Refused` (ENOENT) where there is no such name."""
    cid = root
    for name in names:
        found = next((link.cid for link in entries(store, cid) if link.name == name), None)
        if found is None:
            raise Refused(f"{c.text(cid)} has no entry {name!r}", errno.ENOENT)
        cid = found
    return cid


def missing(store: BlockStore, root: bytes) -> list[bytes]:
    """CIDs of the DAG under `root` that are not in the store, as far as the blocks that are there tell; empty: it is all there."""
    return [cid for cid in reach(store, root) if not store.has(cid)]


def size(store: BlockStore, cid: bytes) -> int:
    """Bytes of a file."""
    if cid[:4] != c.DAG_PB:
        return store.size(cid)
    node = parse(store.get(cid))
    if node.kind != FILE:
        raise Refused(f"{c.text(cid)} is not a file")
    return node.size


def total(store: BlockStore, cid: bytes) -> int:
    """Bytes of a DAG with its nodes, as the links of its root say."""
    return store.size(cid) + (sum(link.tsize for link in parse(store.get(cid)).links) if cid[:4] == c.DAG_PB else 0)


def read(store: BlockStore, cid: bytes, offset: int = 0, count: int | None = None) -> bytes:
    """A range of a file; shorter at its end. `Missing` if a block of the range is not here."""
    end = None if count is None else offset + count
    return b"".join(_range(store, cid, offset, end, 0))


def stream(store: BlockStore, cid: bytes) -> Iterator[bytes]:
    """A file's content, a block at a time."""
    return _range(store, cid, 0, None, 0)


def _range(store: BlockStore, cid: bytes, start: int, end: int | None, depth: int) -> Iterator[bytes]:
    if depth > DEPTH:
        raise BadRecord("", f"a file's tree deeper than {DEPTH}")
    block = store.get(cid)
    if cid[:4] != c.DAG_PB:
        if piece := block[start:end]:
            yield piece
        return
    node = parse(block)
    if node.kind != FILE:
        raise Refused(f"{c.text(cid)} is not a file")
    if piece := node.data[start:end]:
        yield piece
    at = len(node.data)
    for link, length in zip(node.links, node.sizes, strict=True):
        if start < at + length and (end is None or end > at):
            got = 0
            for piece in _range(
                store, link.cid, max(0, start - at), None if end is None else min(end - at, length), depth + 1
            ):
                got += len(piece)
                yield piece
            if got > length:
                raise BadRecord("", f"{c.text(link.cid)} holds more bytes than its parent says")
        at += length


def entries(store: BlockStore, cid: bytes) -> tuple[Link, ...]:
    """What is in a directory."""
    if cid[:4] != c.DAG_PB or (node := parse(store.get(cid))).kind != DIR:
        raise Refused(f"{c.text(cid)} is not a directory")
    return node.links


def is_dir(store: BlockStore, cid: bytes) -> bool:
    return cid[:4] == c.DAG_PB and parse(store.get(cid)).kind == DIR


def export(
    store: BlockStore, cid: bytes, path: Path, mode: int = 0o644, visit: Callable[[Path], None] | None = None
) -> None:
    """Write a file or a directory to `path`, which must not exist. Names that would leave the directory are refused."""
    _export(store, cid, path, mode, 0)
    if visit is not None:
        visit(path)


def _export(store: BlockStore, cid: bytes, path: Path, mode: int, depth: int) -> None:
    if depth > NESTED:
        raise BadRecord("", f"directories nested deeper than {NESTED}")
    node = parse(store.get(cid)) if cid[:4] == c.DAG_PB else None
    if node is not None and node.kind == SYMLINK:
        os.symlink(os.fsdecode(node.data), path)
        return
    if node is not None and node.kind == DIR:
        path.mkdir()
        for link in node.links:
            if link.name in ("", ".", "..") or "/" in link.name or "\0" in link.name:
                raise BadRecord("links", f"{link.name!r} cannot be the name of a file")
            _export(store, link.cid, path / link.name, mode, depth + 1)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(fd, "wb") as out:
        for piece in stream(store, cid):
            out.write(piece)


__all__ = [
    "Link",
    "Missing",
    "Node",
    "add_bytes",
    "add_chunks",
    "add_dir",
    "add_file",
    "add_links",
    "add_stream",
    "add_tree",
    "entries",
    "export",
    "is_dir",
    "missing",
    "parse",
    "reach",
    "read",
    "resolve",
    "size",
    "stream",
    "total",
]
