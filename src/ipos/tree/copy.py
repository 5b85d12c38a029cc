"""copy: files and directories from one file server to another, whichever two.

A file is written under a name of its own beside the goal and renamed over it at the end, so whoever interrupts, kills, or fills the disk leaves
the old file whole. Links are copied as links and never followed, at either end. Memory is bounded: `PIECES` pieces of a MiB are under way at
once, whatever the sizes. A piece of zeros is not written: sparse files stay sparse.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from ipos.tree.file import DIRECTORY, SYMLINK, Attr, Caller, Change, Changeable, Directory, File, Handle
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

T = TypeVar("T")
PIECE = limits.MiB
PIECES = 16
AT_ONCE = 16  # files and directories that are worked on at the same time
_ZEROS = bytes(PIECE)
_FATAL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
)  # the next file would meet it too
_UNCHANGING = (errno.EROFS, errno.EOPNOTSUPP, errno.EPERM)
OWNER = Caller("", "", own=True, local=True)


async def each(items: Iterable[T], work: Callable[[T], Awaitable[object]], most: int = AT_ONCE) -> None:
    """`work` on every item, `most` at a time; an item is taken when there is room for it. The first error ends the others, and is raised."""
    rest = iter(items)

    async def some() -> None:
        for item in rest:
            await work(item)

    tasks = [asyncio.create_task(some()) for _ in range(most)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Job(NamedTuple):
    source: File
    into: Directory
    name: str
    path: tuple[str, ...]  # of the copy, from where the copying began


class Copying:
    """One command's worth of copies. `tell(count)`: so many bytes more are copied; `trouble(path, error)`: this entry is not, the others go on.
    `keep`: no file that is there is replaced."""

    def __init__(
        self, tell: Callable[[int], None], trouble: Callable[[str, OSError], None], keep: bool = False
    ) -> None:
        self._keep = keep
        self.files = self.directories = self.links = self.bytes = 0
        self._tell = tell
        self._trouble = trouble
        self._room = asyncio.Semaphore(PIECES)
        self._made = set[int]()  # qid.path of directories that this copying made or filled

    async def copy(self, source: File, into: Directory, name: str, recursive: bool = False) -> None:
        """`source` as `name` in `into`. A directory is merged into one that is there. `Refused` if nothing could be done."""
        if source.qid.type & DIRECTORY and not recursive:
            raise Refused(f"{name} is a directory: -r copies it with all that is in it", errno.EISDIR)
        finish = list[tuple[tuple[str, ...], Attr]]()
        waiting = [_Job(source, into, name, (name,))]
        busy, wake = 0, asyncio.Event()

        async def worker(_: int) -> None:
            nonlocal busy
            while True:
                while not waiting:
                    if not busy:
                        return
                    wake.clear()
                    await wake.wait()
                job, busy = waiting.pop(), busy + 1
                try:
                    await self._one(job, waiting, finish)
                except OSError as error:
                    if len(job.path) == 1 or isinstance(error, Gone) or error.errno in _FATAL:
                        raise
                    self._trouble("/".join(job.path), error)
                finally:
                    busy -= 1
                    wake.set()

        await each(range(AT_ONCE if source.qid.type & DIRECTORY else 1), worker)
        for path, attr in reversed(finish):  # what is in a directory changes its time, and its mode may forbid that
            file: File = into
            for step in path:
                file = await file.walk(step)
            await _dress(file, attr)

    async def _one(self, job: _Job, waiting: list[_Job], finish: list[tuple[tuple[str, ...], Attr]]) -> None:
        try:
            job.name.encode()
        except UnicodeEncodeError:
            raise Refused(f"{job.name!r}: names in the tree are UTF-8", errno.EILSEQ) from None
        if self._keep and not job.source.qid.type & DIRECTORY and await _there(job.into, job.name):
            raise Refused(f"{job.name}: is there already, and -n replaces nothing", errno.EEXIST)
        if job.source.qid.type & SYMLINK:
            await self._link(job)
        elif job.source.qid.type & DIRECTORY:
            attr = await job.source.attr()
            if job.source.qid.path in self._made:
                raise Refused(f"{job.name}: a directory cannot be copied into itself")
            target, made = await _directory(job.into, job.name)
            self._made.add(target.qid.path)
            self.directories += made
            handle = await job.source.open(OWNER, os.O_RDONLY)
            try:
                entries = await handle.entries()
            finally:
                await handle.close()
            if made:
                finish.append((job.path, attr))
            waiting += [_Job(file, target, name, (*job.path, name)) for name, file in reversed(entries)]
        else:
            await self._file(job)

    async def _link(self, job: _Job) -> None:
        target = await job.source.readlink()
        temporary = _temporary()
        try:
            await job.into.symlink(OWNER, temporary, target)
            await job.into.rename(OWNER, temporary, job.into, job.name)
        except BaseException:
            await _forget(job.into, temporary)
            raise
        self.links += 1

    async def _file(self, job: _Job) -> None:
        """A file that changes while it is read is read once more, then refused: half of one moment and half of another is nobody's file."""
        for last in (False, True):
            before = await job.source.attr()
            temporary = _temporary()
            try:
                try:
                    target, out = await job.into.create(OWNER, temporary, os.O_WRONLY | os.O_EXCL, 0o600)
                except Refused as error:
                    if error.errno != errno.EROFS:
                        raise
                    return await self._poured(job, error)
                count = await self._filled(job.source, before, target, out)
                after = await job.source.attr() if before.mtime_ns else before
                if (after.size, after.mtime_ns) == (before.size, before.mtime_ns):
                    await _dress(target, before)
                    await job.into.rename(OWNER, temporary, job.into, job.name)
                    self.files += 1
                    self.bytes += count
                    return None
            except BaseException:
                await _forget(job.into, temporary)
                raise
            await _forget(job.into, temporary)
            if last:
                raise Refused(f"{job.name}: changed while it was copied; what was there is as it was", errno.EBUSY)
        return None

    async def _poured(self, job: _Job, error: Refused) -> None:
        """Into a file that is there, in a directory where nothing can be made: a control file."""
        try:
            target = await job.into.walk(job.name)
        except Refused:
            raise error from None
        if target.qid.type & (DIRECTORY | SYMLINK):
            raise error
        source = await job.source.open(OWNER, os.O_RDONLY)
        try:
            out = await target.open(OWNER, os.O_WRONLY | os.O_TRUNC)
            try:
                self.bytes += await self._in_order(source, out, 0)
            finally:
                await out.close()
        finally:
            await source.close()
        self.files += 1

    async def _filled(self, source: File, attr: Attr, target: File, out: Handle) -> int:
        try:
            handle = await source.open(OWNER, os.O_RDONLY)
            try:
                known = attr.size // PIECE * PIECE if handle.whole else 0
                written = await self._at_once(handle, out, known) if known else 0
                count = await self._in_order(handle, out, known)
            finally:
                await handle.close()
        finally:
            await out.close()
        if isinstance(target, Changeable) and written < known == count:  # it ends with zeros that were left out
            await target.change(OWNER, Change(size=count))
        return count

    async def _at_once(self, source: Handle, out: Handle, known: int) -> int:
        """The first `known` bytes, several pieces at a time. How far bytes were written; a file that is shorter by now shows itself later."""
        written = 0

        async def piece(offset: int) -> None:
            nonlocal written
            async with self._room:
                data = await source.read(offset, PIECE)
                if data != _ZEROS[: len(data)]:
                    await _write(out, offset, data)
                    written = max(written, offset + len(data))
                self._tell(len(data))

        await each(range(0, known, PIECE), piece, PIECES // 2)
        return written

    async def _in_order(self, source: Handle, out: Handle, at: int) -> int:
        """From `at` to the end, which only a read can find. How long the file is."""
        while data := await source.read(at, PIECE):
            await _write(out, at, data)
            at += len(data)
            self._tell(len(data))
            if source.whole and len(data) < PIECE:
                break
        return at


async def _there(into: Directory, name: str) -> bool:
    try:
        await into.walk(name)
    except Refused as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


async def _write(out: Handle, at: int, data: bytes) -> None:
    taken = await out.write(at, data)
    while taken < len(data):
        more = await out.write(at + taken, data[taken:])
        if not more:
            raise Refused("the file takes no more", errno.ENOSPC)
        taken += more


async def _directory(into: Directory, name: str) -> tuple[Directory, bool]:
    """The directory `name`, and whether it was made."""
    try:
        file, made = await into.mkdir(OWNER, name, 0o700), True
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EROFS):
            raise
        try:
            file, made = await into.walk(name), False
        except OSError:
            raise error from None
    if not isinstance(file, Directory) or not file.qid.type & DIRECTORY:
        raise Refused(f"{name}: is there, and not a directory", errno.ENOTDIR)
    return file, made


async def _dress(file: File, attr: Attr) -> None:
    """The mode and the time of the original. What has no time (made when it is read, or content by CID) gets what new files have."""
    if not isinstance(file, Changeable):
        return
    mode = attr.mode & 0o777 if attr.mtime_ns else 0o755 if stat.S_ISDIR(attr.mode) else 0o644
    try:
        await file.change(OWNER, Change(mode=mode, mtime_ns=attr.mtime_ns or None))
    except Refused as error:
        if error.errno not in _UNCHANGING:
            raise


async def _forget(into: Directory, name: str) -> None:
    with suppress(OSError):
        await into.remove(OWNER, name, False)


def _temporary() -> str:
    return f".ipos-{os.urandom(8).hex()}"
