"""File and Handle: the two small interfaces that a file server implements. They know nothing of 9P.

Everything a node offers is a `File`. Directories are files that can be walked; opening a file gives a `Handle`, whose reads may
block until there is something to read and whose writes may refuse with a sentence. All methods are coroutines; a method that is
cancelled (9P: Tflush, or the connection's end) has done nothing, or all.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from ipos.wire.errors import Refused

DIRECTORY = 0x80  # bits of Qid.type, intro(5)
APPEND_ONLY = 0x40
SYMLINK = 0x02


class Qid(NamedTuple):
    """What makes two walks reach the same file: `path` is unique in one server, `version` changes with the content."""

    type: int
    version: int
    path: int


class Attr(NamedTuple):
    """`mode` as in stat(2), type bits included; times in ns since 1970."""

    mode: int
    size: int = 0
    mtime_ns: int = 0
    atime_ns: int = 0
    ctime_ns: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0

    @property
    def directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Caller(NamedTuple):
    """Who is asking, as the transport proved it. `account` and `node` are text; `local`: the owner, on this machine's socket."""

    account: str
    node: str
    own: bool
    local: bool

    @property
    def name(self) -> str:
        return "this machine" if self.local else self.node


class Handle:
    """An open file. The default refuses everything, so a file server writes only what its file can do."""

    async def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`; empty at the end of the file. Event files ignore `offset` and wait."""
        raise Refused("this file cannot be read", errno.EACCES)

    async def write(self, offset: int, data: bytes) -> int:
        """How many bytes were taken: all, unless the file server is full."""
        raise Refused("this file cannot be written", errno.EACCES)

    async def entries(self) -> Sequence[tuple[str, File]]:
        raise Refused("this is not a directory", errno.ENOTDIR)

    async def sync(self) -> None:
        """Return when what was written survives a crash."""

    async def close(self) -> None:
        """Never refuses."""


class File:
    """One file or directory, not open."""

    qid: Qid

    async def attr(self) -> Attr:
        raise NotImplementedError

    async def walk(self, name: str) -> File:
        """The entry `name`, never "", "." or ".."; `Refused` with ENOENT where there is none."""
        raise Refused(f"{name}: the file it should be in is not a directory", errno.ENOTDIR)

    async def open(self, caller: Caller, flags: int) -> Handle:
        """`flags` as in open(2): O_RDONLY, O_WRONLY, O_RDWR, O_TRUNC, O_APPEND."""
        raise Refused("this file cannot be opened", errno.EACCES)


class Directory(File):
    """A directory whose entries can be changed. Synthetic directories keep these refusals."""

    async def create(self, caller: Caller, name: str, flags: int, mode: int) -> tuple[File, Handle]:
        raise Refused(f"{name}: files cannot be made here", errno.EROFS)

    async def mkdir(self, caller: Caller, name: str, mode: int) -> File:
        raise Refused(f"{name}: directories cannot be made here", errno.EROFS)

    async def remove(self, caller: Caller, name: str, directory: bool) -> None:
        raise Refused(f"{name}: nothing can be removed here", errno.EROFS)

    async def rename(self, caller: Caller, name: str, to: Directory, new: str) -> None:
        raise Refused(f"{name}: nothing can be renamed here", errno.EROFS)


class Change(NamedTuple):
    """What a setattr asks for; None leaves a value alone. Times in ns since 1970."""

    mode: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Changeable(File):
    """A file whose attributes can be set (truncate, chmod, utimes)."""

    async def change(self, caller: Caller, change: Change) -> None:
        raise Refused("the attributes of this file cannot be changed", errno.EROFS)


def writable(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY


def readable(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_WRONLY
