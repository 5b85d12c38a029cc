"""A host directory in the tree, by directory descriptors: a name is always looked up in the directory that was opened, never in a joined
path, and symbolic links are shown but not followed, so nothing outside can be reached."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ipos.tree.file import DIRECTORY, SYMLINK, Attr, Caller, Change, Changeable, Directory, File, Handle, Qid
from ipos.wire.errors import Refused

PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def _qid(st: os.stat_result) -> Qid:
    kind = DIRECTORY if stat.S_ISDIR(st.st_mode) else SYMLINK if stat.S_ISLNK(st.st_mode) else 0
    return Qid(kind, st.st_mtime_ns & 0xFFFFFFFF, (st.st_ino ^ (st.st_dev << 48)) & (1 << 64) - 1)


def _sentence(error: OSError, name: str) -> Refused:
    return Refused(f"{name}: {os.strerror(error.errno or errno.EIO)}", error.errno or errno.EIO)


class LocalFile(Changeable):
    """An entry of a host directory, held by an O_PATH descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self.qid = _qid(os.fstat(fd))

    def __del__(self) -> None:
        os.close(self._fd)

    async def attr(self) -> Attr:
        st = os.fstat(self._fd)
        self.qid = _qid(st)
        return Attr(
            st.st_mode, st.st_size, st.st_mtime_ns, st.st_atime_ns, st.st_ctime_ns, st.st_nlink, st.st_uid, st.st_gid
        )

    async def open(self, caller: Caller, flags: int) -> Handle:
        if self.qid.type & SYMLINK:
            raise Refused(f"{self._name}: a symbolic link is not followed", errno.ELOOP)
        return LocalHandle(self._open(flags))

    def _open(self, flags: int) -> int:
        try:
            return os.open(f"/proc/self/fd/{self._fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _sentence(error, self._name) from None

    async def change(self, caller: Caller, change: Change) -> None:
        path = f"/proc/self/fd/{self._fd}"
        try:
            if change.size is not None:
                os.truncate(path, change.size)
            if change.mode is not None:
                os.chmod(path, change.mode)
            if change.mtime_ns is not None or change.atime_ns is not None:
                st = os.fstat(self._fd)
                os.utime(path, ns=(change.atime_ns or st.st_atime_ns, change.mtime_ns or st.st_mtime_ns))
        except OSError as error:
            raise _sentence(error, self._name) from None


class LocalDir(LocalFile, Directory):
    """A host directory."""

    async def walk(self, name: str) -> File:
        return self._entry(name)

    def _entry(self, name: str) -> LocalFile:
        try:
            fd = os.open(name, PATH_ONLY, dir_fd=self._fd)
        except OSError as error:
            raise _sentence(error, name) from None
        return (LocalDir if stat.S_ISDIR(os.fstat(fd).st_mode) else LocalFile)(fd, name)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _LocalListing(self)

    def listing(self) -> list[tuple[str, File]]:
        out: list[tuple[str, File]] = []
        for name in sorted(os.listdir(f"/proc/self/fd/{self._fd}")):
            try:
                out.append((name, self._entry(name)))
            except Refused:
                continue  # gone since
        return out

    async def create(self, caller: Caller, name: str, flags: int, mode: int) -> tuple[File, Handle]:
        kept = flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, kept, mode, dir_fd=self._fd)
        except OSError as error:
            raise _sentence(error, name) from None
        return self._entry(name), LocalHandle(fd)

    async def mkdir(self, caller: Caller, name: str, mode: int) -> File:
        try:
            os.mkdir(name, mode, dir_fd=self._fd)
        except OSError as error:
            raise _sentence(error, name) from None
        return self._entry(name)

    async def remove(self, caller: Caller, name: str, directory: bool) -> None:
        try:
            (os.rmdir if directory else os.unlink)(name, dir_fd=self._fd)
        except OSError as error:
            raise _sentence(error, name) from None

    async def rename(self, caller: Caller, name: str, to: Directory, new: str) -> None:
        if not isinstance(to, LocalDir):
            raise Refused(f"{name}: cannot be moved out of this directory's disk", errno.EXDEV)
        try:
            os.rename(name, new, src_dir_fd=self._fd, dst_dir_fd=to._fd)
        except OSError as error:
            raise _sentence(error, name) from None


class LocalHandle(Handle):
    """An open host file; transfers run in a thread, so a slow disk does not stop the node."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self, offset: int, count: int) -> bytes:
        return await asyncio.to_thread(os.pread, self._fd, count, offset)

    async def write(self, offset: int, data: bytes) -> int:
        try:
            return await asyncio.to_thread(os.pwrite, self._fd, data, offset)
        except OSError as error:
            raise _sentence(error, "write") from None

    async def sync(self) -> None:
        await asyncio.to_thread(os.fsync, self._fd)

    async def close(self) -> None:
        os.close(self._fd)


class _LocalListing(Handle):
    def __init__(self, directory: LocalDir) -> None:
        self._directory = directory

    async def entries(self) -> Sequence[tuple[str, File]]:
        return self._directory.listing()


def local(path: Path) -> LocalDir:
    """The host directory `path`, which must exist."""
    return LocalDir(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), str(path))
