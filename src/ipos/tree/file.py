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


class Statfs(NamedTuple):
    """statfs(2) of the file system a file is on; sizes in blocks of `block_bytes`."""

    kind: int = 0x01021997  # V9FS_MAGIC
    block_bytes: int = 4096
    blocks: int = 0
    free: int = 0
    available: int = 0
    files: int = 0
    files_free: int = 0
    fsid: int = 0
    name_bytes: int = 255


class Handle:
    """An open file. The default refuses everything, so a file server writes only what its file can do.

    Three promises that a file server may make for speed, each false unless it is meant:
    `prompt`: no method needs a task of its own before its first wait (`asyncio.timeout`, `TaskGroup`), and none computes long: the server
    may begin it at once. `whole`: a read that gives less than was asked is at the end, so nobody asks again. `views`: `write` takes a
    memoryview as well, which is its own for as long as the call lasts.
    """

    prompt: bool = False
    whole: bool = False
    views: bool = False

    async def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`; empty at the end of the file. Event files ignore `offset` and wait."""
        raise Refused("this file cannot be read", errno.EACCES)

    async def read_behind(self, head: int, offset: int, count: int) -> bytearray | None:
        """What `read` gives, behind `head` bytes of room, so that a server need not copy it; None where it is not at hand at once."""
        return None

    async def write(self, offset: int, data: bytes) -> int:
        """How many bytes were taken: all, unless the file server is full."""
        raise Refused("this file cannot be written", errno.EACCES)

    async def entries(self) -> Sequence[tuple[str, File]]:
        raise Refused("this is not a directory", errno.ENOTDIR)

    async def sync(self) -> None:
        """Return when what was written survives a crash."""

    async def close(self) -> None:
        """Never refuses."""

    async def lost(self) -> None:
        """Instead of `close`, where the connection ended before its client had closed the file. Never refuses."""
        await self.close()


class File:
    """One file or directory, not open. `prompt`: as in `Handle`."""

    qid: Qid
    prompt: bool = False

    async def attr(self) -> Attr:
        raise NotImplementedError

    async def walk(self, name: str) -> File:
        """The entry `name`, never "", "." or ".."; `Refused` with ENOENT where there is none."""
        raise Refused(f"{name}: the file it should be in is not a directory", errno.ENOTDIR)

    async def open(self, caller: Caller, flags: int) -> Handle:
        """`flags` as in open(2): O_RDONLY, O_WRONLY, O_RDWR, O_TRUNC, O_APPEND."""
        raise Refused("this file cannot be opened", errno.EACCES)

    async def readlink(self) -> str:
        raise Refused("this is not a symbolic link", errno.EINVAL)

    async def statfs(self) -> Statfs:
        return Statfs()

    async def xattrs(self) -> Sequence[str]:
        """The names of the extended attributes."""
        return ()

    async def xattr(self, name: str) -> bytes:
        raise Refused(f"{name}: this file has no such attribute", errno.ENODATA)


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

    async def symlink(self, caller: Caller, name: str, target: str) -> File:
        raise Refused(f"{name}: links cannot be made here", errno.EROFS)

    async def link(self, caller: Caller, name: str, file: File) -> None:
        """A second name of `file`, which must be of the same file system (EXDEV)."""
        raise Refused(f"{name}: links cannot be made here", errno.EROFS)


class Change(NamedTuple):
    """What a setattr asks for; None leaves a value alone. Times in ns since 1970."""

    mode: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    uid: int | None = None
    gid: int | None = None


class Changeable(File):
    """A file whose attributes can be set (truncate, chmod, chown, utimes, setxattr)."""

    async def change(self, caller: Caller, change: Change) -> None:
        raise Refused("the attributes of this file cannot be changed", errno.EROFS)

    async def set_xattr(self, caller: Caller, name: str, value: bytes | None, flags: int) -> None:
        """None removes it; `flags`: os.XATTR_CREATE, os.XATTR_REPLACE."""
        raise Refused(f"{name}: this file takes no extended attributes", errno.EOPNOTSUPP)


def writable(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY


def readable(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_WRONLY
