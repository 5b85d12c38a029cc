"""A file server that nobody changes: another one, with its reading half only."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from ipos.tree.file import Attr, Caller, Directory, File, Handle, Statfs, writable
from ipos.wire.errors import Refused


class ReadOnly(File):
    """What `file` gives to readers. Writers get EROFS, at the open already."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.qid = file.qid
        self.prompt = file.prompt

    async def attr(self) -> Attr:
        attr = await self._file.attr()
        self.qid = self._file.qid
        return attr._replace(mode=attr.mode & ~0o222)

    async def walk(self, name: str) -> File:
        return read_only(await self._file.walk(name))

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags) or flags & os.O_TRUNC:
            raise Refused("this directory is shown for reading only", errno.EROFS)
        handle = await self._file.open(caller, flags)
        return _Listing(handle) if (await self._file.attr()).directory else handle

    async def readlink(self) -> str:
        return await self._file.readlink()

    async def statfs(self) -> Statfs:
        return await self._file.statfs()

    async def xattrs(self) -> Sequence[str]:
        return await self._file.xattrs()

    async def xattr(self, name: str) -> bytes:
        return await self._file.xattr(name)


class ReadOnlyDir(ReadOnly, Directory):
    """Its entries as well; they cannot be made, removed or renamed."""


class _Listing(Handle):
    prompt = whole = True

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def entries(self) -> Sequence[tuple[str, File]]:
        return [(name, read_only(file)) for name, file in await self._handle.entries()]

    async def close(self) -> None:
        await self._handle.close()


def read_only(file: File) -> ReadOnly:
    """`file` for reading, directory or not."""
    return ReadOnlyDir(file) if isinstance(file, Directory) else ReadOnly(file)
