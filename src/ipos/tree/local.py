"""A host directory in the tree, by descriptors: a name is always looked up in the directory that was opened, never in a joined path, and
symbolic links are shown but not followed, so nothing outside can be reached, however the directory is changed meanwhile.

What is in the page cache is read at once; a read or write that may wait for the disk runs in a thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ipos.tree.beneath import open_in
from ipos.tree.file import DIRECTORY, SYMLINK, Attr, Caller, Change, Changeable, Directory, File, Handle, Qid, Statfs
from ipos.wire import limits
from ipos.wire.errors import Refused

T = TypeVar("T")
_V9FS_MAGIC = 0x01021997
_AT_ONCE = 128 << 10  # so much goes to the page cache without a thread, which would cost more than the copy,
_SLOW_S, _REST_S = 0.005, 1.0  # unless the kernel made one such write wait: then threads take them for a while


def _qid(st: os.stat_result) -> Qid:
    kind = DIRECTORY if stat.S_ISDIR(st.st_mode) else SYMLINK if stat.S_ISLNK(st.st_mode) else 0
    return Qid(kind, (st.st_mtime_ns >> 8) & 0xFFFFFFFF, _path(st.st_ino, st.st_dev))


def _path(inode: int, device: int) -> int:
    return (inode ^ (device << 48)) & (1 << 64) - 1


def _sentence(error: OSError, name: str) -> Refused:
    return Refused(f"{name}: {os.strerror(error.errno or errno.EIO)}", error.errno or errno.EIO)


def _attr(st: os.stat_result) -> Attr:
    return Attr(
        st.st_mode, st.st_size, st.st_mtime_ns, st.st_atime_ns, st.st_ctime_ns, st.st_nlink, st.st_uid, st.st_gid
    )


class LocalFile(Changeable):
    """An entry of a host directory, held by an O_PATH descriptor."""

    prompt = True

    def __init__(self, fd: int, name: str, st: os.stat_result) -> None:
        self._fd = fd
        self._name = name
        self.qid = _qid(st)

    def __del__(self) -> None:
        os.close(self._fd)

    @property
    def _magic(self) -> str:
        """A path that the kernel takes for exactly this file."""
        return f"/proc/self/fd/{self._fd}"

    async def attr(self) -> Attr:
        st = os.fstat(self._fd)
        self.qid = _qid(st)
        return _attr(st)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if self.qid.type & SYMLINK:
            raise Refused(f"{self._name}: a symbolic link is not followed", errno.ELOOP)
        try:
            st = os.fstat(self._fd)
            if not stat.S_ISREG(st.st_mode):  # a pipe or a device would be opened, and waited for, on the host
                raise Refused(f"{self._name}: not a regular file", errno.EACCES)
            return LocalHandle(os.open(self._magic, flags | os.O_CLOEXEC | os.O_NONBLOCK))
        except Refused:
            raise
        except OSError as error:
            raise _sentence(error, self._name) from None

    async def change(self, caller: Caller, change: Change) -> None:
        if self.qid.type & SYMLINK:
            raise Refused(f"{self._name}: a symbolic link has no attributes of its own", errno.EOPNOTSUPP)
        try:
            if change.uid is not None or change.gid is not None:
                uid, gid = (-1 if n is None else n for n in (change.uid, change.gid))
                os.chown(self._magic, uid, gid)
            if change.size is not None:
                await asyncio.to_thread(os.truncate, self._magic, change.size)
            if change.mode is not None:
                os.chmod(self._magic, change.mode)
            if change.mtime_ns is not None or change.atime_ns is not None:
                self._touch(change)
        except OverflowError:
            raise Refused(f"{self._name}: a value that this machine's file system cannot hold") from None
        except OSError as error:
            raise _sentence(error, self._name) from None

    def _touch(self, change: Change) -> None:
        """-1 is now, None as it is."""
        if {change.atime_ns, change.mtime_ns} == {-1}:
            os.utime(self._magic)  # which needs less than to own the file
            return
        st = os.fstat(self._fd)
        os.utime(self._magic)
        now = os.fstat(self._fd).st_mtime_ns
        pairs = ((change.atime_ns, st.st_atime_ns), (change.mtime_ns, st.st_mtime_ns))
        atime, mtime = (was if wanted is None else now if wanted == -1 else wanted for wanted, was in pairs)
        os.utime(self._magic, ns=(atime, mtime))

    async def readlink(self) -> str:
        try:
            return os.readlink("", dir_fd=self._fd)
        except OSError:
            raise Refused(f"{self._name}: not a symbolic link", errno.EINVAL) from None

    async def statfs(self) -> Statfs:
        st = os.fstatvfs(self._fd)
        return Statfs(
            _V9FS_MAGIC, st.f_bsize, st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree,
            st.f_fsid & (1 << 64) - 1, min(st.f_namemax, limits.name_bytes),
        )  # fmt: skip

    async def xattrs(self) -> Sequence[str]:
        try:
            return [name for name in os.listxattr(self._magic) if name.startswith("user.")]
        except OSError:
            return ()

    async def xattr(self, name: str) -> bytes:
        if not name.startswith("user."):
            raise Refused(f"{name}: no attribute of this name is shown", errno.ENODATA)
        try:
            return os.getxattr(self._magic, name)
        except OSError as error:
            raise Refused(f"{name}: {os.strerror(error.errno or 0)}", error.errno or errno.ENODATA) from None

    async def set_xattr(self, caller: Caller, name: str, value: bytes | None, flags: int) -> None:
        if not name.startswith("user."):
            raise Refused(f"{name}: only attributes whose names begin with 'user.' can be set", errno.EOPNOTSUPP)
        try:
            if value is None:
                os.removexattr(self._magic, name)
            else:
                os.setxattr(self._magic, name, value, flags)
        except OSError as error:
            raise Refused(f"{name}: {os.strerror(error.errno or 0)}", error.errno or errno.EIO) from None

    def link_at(self, directory: int, name: str) -> None:
        os.link(self._magic, name, dst_dir_fd=directory, follow_symlinks=True)


class LocalDir(LocalFile, Directory):
    """A host directory."""

    async def walk(self, name: str) -> File:
        return self._entry(name)

    def _entry(self, name: str) -> LocalFile:
        fd = self._do(name, lambda: open_in(self._fd, name, os.O_PATH))
        try:
            st = os.fstat(fd)
            return (LocalDir if stat.S_ISDIR(st.st_mode) else LocalFile)(fd, name, st)
        except BaseException:
            os.close(fd)
            raise

    def _do(self, name: str, call: Callable[[], T]) -> T:
        """A system call about an entry; its error becomes a sentence."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise Refused(f"{name[:80]!r} cannot be the name of a file")
        try:
            return call()
        except UnicodeEncodeError:
            raise Refused(f"{name[:80]!r} cannot be the name of a file") from None
        except OSError as error:
            raise _sentence(error, name[:80]) from None

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _LocalListing(self)

    def listing(self) -> list[tuple[str, File]]:
        try:
            with os.scandir(self._magic) as found:
                seen = [(entry.name, entry.inode(), entry) for entry in found]
        except OSError as error:
            raise _sentence(error, self._name) from None
        device, out = os.fstat(self._fd).st_dev, list[tuple[str, File]]()
        for name, inode, entry in sorted(seen, key=lambda one: one[0]):
            kind = DIRECTORY if entry.is_dir(follow_symlinks=False) else SYMLINK if entry.is_symlink() else 0
            out.append((name, _Listed(self, name, Qid(kind, 0, _path(inode, device)))))
        return out

    async def create(self, caller: Caller, name: str, flags: int, mode: int) -> tuple[File, Handle]:
        wanted = flags | os.O_CREAT | os.O_NONBLOCK
        fd = self._do(name, lambda: open_in(self._fd, name, wanted, mode))
        handle = LocalHandle(fd)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                raise Refused(f"{name}: is there, and not a regular file", errno.EEXIST)
            # of the descriptor, not of the name, which may be another file's by now
            return LocalFile(os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC), name, st), handle
        except BaseException:
            await handle.close()
            raise

    async def mkdir(self, caller: Caller, name: str, mode: int) -> File:
        self._do(name, lambda: os.mkdir(name, mode, dir_fd=self._fd))
        return self._entry(name)

    async def remove(self, caller: Caller, name: str, directory: bool) -> None:
        self._do(name, lambda: (os.rmdir if directory else os.unlink)(name, dir_fd=self._fd))

    async def rename(self, caller: Caller, name: str, to: Directory, new: str) -> None:
        if not isinstance(to, LocalDir):
            raise Refused(f"{name}: cannot be moved out of this directory's disk", errno.EXDEV)
        checked = to._do(new, lambda: new)
        self._do(name, lambda: os.rename(name, checked, src_dir_fd=self._fd, dst_dir_fd=to._fd))

    async def symlink(self, caller: Caller, name: str, target: str) -> File:
        self._do(name, lambda: os.symlink(target, name, dir_fd=self._fd))
        return self._entry(name)

    async def link(self, caller: Caller, name: str, file: File) -> None:
        if not isinstance(file, LocalFile):
            raise Refused(f"{name}: a second name has to be on the same disk as the file", errno.EXDEV)
        self._do(name, lambda: file.link_at(self._fd, name))


class _Listed(File):
    """An entry of a listing: it is opened only when somebody wants more than its name, so a long listing holds no descriptors."""

    prompt = True

    def __init__(self, directory: LocalDir, name: str, qid: Qid) -> None:
        self._directory, self._name, self.qid = directory, name, qid

    async def _file(self) -> File:
        return await self._directory.walk(self._name)

    async def attr(self) -> Attr:
        file = await self._file()
        self.qid = file.qid
        return await file.attr()

    async def walk(self, name: str) -> File:
        return await (await self._file()).walk(name)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return await (await self._file()).open(caller, flags)

    async def readlink(self) -> str:
        return await (await self._file()).readlink()


class LocalHandle(Handle):
    """An open regular file of the host."""

    prompt = whole = views = True

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._users = 0
        self._slow_until = 0.0
        self._closed = False

    async def read(self, offset: int, count: int) -> bytes:
        found = await self.read_behind(0, offset, count)
        return bytes(found) if found is not None else await self._pread(offset, count)

    async def _pread(self, offset: int, count: int) -> bytes:
        return await self._thread(lambda: os.pread(self._fd, count, offset), "read")

    async def read_behind(self, head: int, offset: int, count: int) -> bytearray | None:
        if offset > limits.file_offset:
            return bytearray(head)
        buffer = bytearray(head + count)
        try:
            got = os.preadv(self._fd, [memoryview(buffer)[head:]], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise _sentence(error, "read") from None
            return None
        if got < count:
            if offset + got < os.fstat(self._fd).st_size:
                return None  # the rest is not in the cache: a thread may wait for it
            del buffer[head + got :]
        return buffer

    async def write(self, offset: int, data: bytes) -> int:
        if offset + len(data) > limits.file_offset:
            raise Refused(f"an offset of {offset}: no file of this machine is so long", errno.EFBIG)
        if len(data) > _AT_ONCE or time.monotonic() < self._slow_until:
            return await self._thread(lambda: os.pwrite(self._fd, data, offset), "write")
        began = time.monotonic()
        try:
            return os.pwrite(self._fd, data, offset)
        except OSError as error:
            raise _sentence(error, "write") from None
        finally:
            if time.monotonic() - began > _SLOW_S:
                self._slow_until = began + _REST_S

    async def _thread(self, call: Callable[[], T], what: str) -> T:
        """The descriptor stays open until the call is over, whoever was cancelled meanwhile."""
        self._users += 1
        future = asyncio.get_running_loop().run_in_executor(None, call)
        future.add_done_callback(self._left)
        try:
            return await future
        except OSError as error:
            raise _sentence(error, what) from None

    def _left(self, future: asyncio.Future[T]) -> None:
        if not future.cancelled():
            future.exception()  # its waiter may be gone
        self._users -= 1
        if self._closed and not self._users:
            os.close(self._fd)

    async def sync(self) -> None:
        await self._thread(lambda: os.fsync(self._fd), "fsync")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            if not self._users:
                os.close(self._fd)


class _LocalListing(Handle):
    prompt = whole = True

    def __init__(self, directory: LocalDir) -> None:
        self._directory = directory

    async def entries(self) -> Sequence[tuple[str, File]]:
        return self._directory.listing()

    async def sync(self) -> None:
        pass


def local(path: Path) -> LocalDir:
    """The host directory `path`, which must exist."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return LocalDir(fd, str(path), os.fstat(fd))
