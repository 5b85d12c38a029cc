"""/ipfs: content by CID, read from the store block by block as it is asked for, and from the machines of the pool if it is not here."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.store.reading import Reader
from ipos.tree.file import DIRECTORY, SYMLINK, Attr, Caller, Directory, File, Handle, Qid, writable
from ipos.wire.errors import BadRecord, Refused

if TYPE_CHECKING:
    from ipos.node.daemon import Node


def _qid(kind: int, cid: bytes) -> Qid:
    """Equal content is the same file."""
    return Qid(kind, 0, int.from_bytes(cid[4:12], "little"))


class Ipfs(Directory):
    """The directory /ipfs. It lists what is pinned; any CID can be walked to. `store` fetches what is not here."""

    def __init__(self, node: Node, store: BlockStore) -> None:
        self.node = node
        self.store = store
        self.qid = Qid(DIRECTORY, 0, 0x697066730000)

    async def attr(self) -> Attr:
        return Attr(stat.S_IFDIR | 0o555, nlink=2)

    async def walk(self, name: str) -> File:
        try:
            cid = c.parse(name)
        except Refused as refused:
            raise Refused(str(refused), errno.ENOENT) from None
        return await self.file(cid)

    async def file(self, cid: bytes) -> File:
        """`Missing` if its first block cannot be had."""
        return await self.node.offload(lambda: _file(self, cid))

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags):
            raise Refused("what is in /ipfs never changes: ipos add makes new content", errno.EROFS)
        return _Roots(self, caller)

    def check(self, caller: Caller, cid: bytes) -> None:
        """`Refused` if this caller may not have the block."""
        if not caller.local and not self.node.pins.may(cid, caller.own):
            raise Refused(f"{c.text(cid)} is not shown to {caller.name}: no pin of this node allows it", errno.EACCES)


class _Roots(Handle):
    def __init__(self, ipfs: Ipfs, caller: Caller) -> None:
        self._ipfs = ipfs
        self._caller = caller

    async def entries(self) -> Sequence[tuple[str, File]]:
        def work() -> list[tuple[str, File]]:
            pins, store = self._ipfs.node.pins, self._ipfs.node.store
            roots = dict.fromkeys(pin.root for pin in pins.list())
            seen = [cid for cid in roots if self._caller.local or pins.may(cid, self._caller.own)]
            return [(c.text(cid), _file(self._ipfs, cid)) for cid in seen if store.has(cid)]

        return await self._ipfs.node.offload(work)


def _file(ipfs: Ipfs, cid: bytes) -> File:
    """In a thread."""
    if cid[:4] != c.DAG_PB:
        return CidFile(ipfs, cid, 0, None)
    node = unixfs.parse(ipfs.store.get(cid))
    if node.kind == unixfs.DIR:
        return CidDir(ipfs, cid)
    return CidFile(ipfs, cid, SYMLINK if node.kind == unixfs.SYMLINK else 0, node)


class CidFile(File):
    """A file, the bytes of a record, or a symbolic link, which reads as its target."""

    def __init__(self, ipfs: Ipfs, cid: bytes, kind: int, node: unixfs.Node | None) -> None:
        self._ipfs = ipfs
        self._cid = cid
        self._node = node
        self.qid = _qid(kind, cid)

    async def attr(self) -> Attr:
        if self._node is None:
            return Attr(stat.S_IFREG | 0o444, await self._ipfs.node.offload(lambda: self._ipfs.store.size(self._cid)))
        if self.qid.type & SYMLINK:
            return Attr(stat.S_IFLNK | 0o777, len(self._node.data))
        return Attr(stat.S_IFREG | 0o444, self._node.size)

    async def readlink(self) -> str:
        if self._node is None or not self.qid.type & SYMLINK:
            raise Refused("this is not a symbolic link", errno.EINVAL)
        return os.fsdecode(self._node.data)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags):
            raise Refused("what is in /ipfs never changes: ipos add makes new content", errno.EROFS)
        self._ipfs.check(caller, self._cid)
        return _CidHandle(self._ipfs, self._cid, self._node if self.qid.type & SYMLINK else None)


class _CidHandle(Handle):
    def __init__(self, ipfs: Ipfs, cid: bytes, link: unixfs.Node | None) -> None:
        self._offload = ipfs.node.offload
        self._link = link
        self._reader = Reader(ipfs.store, cid)

    async def read(self, offset: int, count: int) -> bytes:
        if self._link is not None:
            return self._link.data[offset : offset + count]
        return await self._offload(lambda: self._reader.read(offset, count))


class CidDir(Directory):
    def __init__(self, ipfs: Ipfs, cid: bytes) -> None:
        self._ipfs = ipfs
        self._cid = cid
        self.qid = _qid(DIRECTORY, cid)

    async def attr(self) -> Attr:
        return Attr(stat.S_IFDIR | 0o555, nlink=2)

    async def walk(self, name: str) -> File:
        return await self._ipfs.node.offload(
            lambda: _file(self._ipfs, unixfs.resolve(self._ipfs.store, self._cid, (name,)))
        )

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags):
            raise Refused("what is in /ipfs never changes: ipos add makes new content", errno.EROFS)
        self._ipfs.check(caller, self._cid)
        return _CidListing(self._ipfs, self._cid)


class _CidListing(Handle):
    def __init__(self, ipfs: Ipfs, cid: bytes) -> None:
        self._ipfs = ipfs
        self._cid = cid

    async def entries(self) -> Sequence[tuple[str, File]]:
        def work() -> list[tuple[str, File]]:
            out: list[tuple[str, File]] = []
            for link in unixfs.entries(self._ipfs.store, self._cid):
                try:
                    out.append((link.name, _file(self._ipfs, link.cid)))
                except (BadRecord, Refused):  # what it is cannot be told; opening it says why
                    out.append((link.name, CidFile(self._ipfs, link.cid, 0, None)))
            return out

        return await self._ipfs.node.offload(work)
