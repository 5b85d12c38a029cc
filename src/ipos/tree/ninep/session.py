"""A 9P session, the server's side, without I/O: messages in, messages out through `send`. Speaks 9P2000.L and 9P2000.L.ipos.

Order: a message that names a fid with an operation under way waits for it, so a client may send walk, open, read and clunk in one packet;
everything else runs at once. Tflush cancels.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from ipos.tree.file import DIRECTORY, SYMLINK, Attr, Caller, Change, Changeable, Directory, File, Handle
from ipos.tree.ninep.codec import ALL, HEAD, ProtocolError
from ipos.wire import limits
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.ninep")

Attach = Callable[[Caller, str], Awaitable[File]]
_DIRENT = struct.Struct("<BIQQBH")
_DT = {DIRECTORY: 4, SYMLINK: 10}
SERVED = ("9P2000.L", "9P2000.L.ipos")
SETATTR_MODE, SETATTR_SIZE, SETATTR_ATIME_SET, SETATTR_MTIME_SET = 1, 8, 128, 256
REMOVE_DIRECTORY = 0x200
NAMES = {"fid", "newfid", "dfid", "dirfd", "olddirfid", "newdirfid"}


class Fid:
    """A name that the client gave to a file; `trail` are the directories above it, for `..`."""

    def __init__(self, file: File, trail: tuple[File, ...] = ()) -> None:
        self.file = file
        self.trail = trail
        self.handle: Handle | None = None
        self.listing: list[tuple[str, File]] | None = None


def refuse(number: int, what: str) -> Refused:
    return Refused(f"{what}: {os.strerror(number)}" if what else os.strerror(number), number)


def checked(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode()) > limits.name_bytes:
        raise refuse(errno.EINVAL, repr(name[:80]))
    return name


class Session:
    """`attach(caller, aname)` gives the root that this caller sees; `send` takes one encoded message and must not fail."""

    def __init__(self, attach: Attach, caller: Caller, send: Callable[[bytes], None]) -> None:
        self.caller = caller
        self.fids: dict[int, Fid] = {}
        self.dialect = ALL["9P2000.L"]
        self.msize = 8192
        self._attach = attach
        self._send = send
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._last: dict[int, asyncio.Task[None]] = {}  # fid -> the last operation that names it
        self._closing: list[asyncio.Task[None]] = []
        self.idle: Callable[[], None] | None = None  # called when an operation has ended

    @property
    def busy(self) -> int:
        """Operations under way."""
        return len(self._tasks)

    def message(self, b: memoryview) -> None:
        """One whole message. `ProtocolError` if it cannot even be answered."""
        _, code, tag = HEAD.unpack_from(b)
        row = self.dialect.by_code.get(code)
        if row is not None and row.name == "Tversion":
            self.reset()
            self._send(self.dialect.by_name["Rversion"].encode(tag, *self._version(*row.decode(b))))
            return
        method = getattr(self, row.name, None) if row is not None and row.name[0] == "T" else None
        if row is None or (method is None and row.name != "Tflush"):
            self._fail(tag, refuse(errno.EOPNOTSUPP, f"9P message {code}"))
            return
        try:
            values = row.decode(b)
        except ProtocolError as error:
            self._fail(tag, Refused(str(error), errno.EPROTO))
            return
        if method is None:
            self._flush(tag, values[0])
            return
        if tag in self._tasks:
            raise ProtocolError(f"tag {tag} is in use")
        reply = self.dialect.by_code[code + 1]
        named = [v for f, v in zip(row.fields, values, strict=True) if f in NAMES]
        before = {task for fid in named if (task := self._last.get(fid)) is not None}
        if row.name == "Twalk":
            named = [values[1]]  # a walk only looks at where it starts: many may start from one fid at once
        task = asyncio.get_running_loop().create_task(self._answer(tag, reply.encode, method, values, before))
        self._tasks[tag] = task
        for fid in named:
            self._last[fid] = task
        task.add_done_callback(lambda done: self._done(tag, named, done))

    def _done(self, tag: int, named: list[int], task: asyncio.Task[None]) -> None:
        if self._tasks.get(tag) is task:
            del self._tasks[tag]
        for fid in named:
            if self._last.get(fid) is task:
                del self._last[fid]
        if self.idle is not None:
            self.idle()

    async def _answer(
        self,
        tag: int,
        encode: Callable[..., bytes],
        method: Callable[..., Awaitable[tuple[Any, ...]]],
        values: tuple[Any, ...],
        before: set[asyncio.Task[None]],
    ) -> None:
        if before:
            await asyncio.wait(before)
        try:
            reply = encode(tag, *await method(*values))
        except OSError as error:
            reply = self._error(tag, error)
        except Exception as error:
            log.exception("a file server failed")
            reply = self._error(tag, Refused(f"a mistake in IPOS: {type(error).__name__}: {error}", errno.EIO))
        if self._tasks.pop(tag, None) is not None:  # the client may use the tag again as soon as it has the reply
            self._send(reply)

    def _fail(self, tag: int, error: OSError) -> None:
        self._send(self._error(tag, error))

    def _error(self, tag: int, error: OSError) -> bytes:
        number = error.errno or errno.EIO
        row = self.dialect.by_name["Rlerror"]
        sentence = str(error) if isinstance(error, Refused) else f"{error.strerror or error}"
        return row.encode(tag, number, sentence[:2000]) if len(row.fields) == 2 else row.encode(tag, number)

    def _flush(self, tag: int, old: int) -> None:
        """Cancel `old`; the answer leaves when it is gone, so its tag may be used again."""
        answer = self.dialect.by_name["Rflush"].encode(tag)
        task = self._tasks.get(old)
        if task is None:
            self._send(answer)
            return
        task.cancel()
        task.add_done_callback(lambda _: self._send(answer))

    def reset(self) -> None:
        """Forget every fid and cancel what is under way (Tversion, or the connection's end)."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks, self._last = {}, {}
        handles = [fid.handle for fid in self.fids.values() if fid.handle is not None]
        self.fids = {}
        for handle in handles:
            self._closing.append(asyncio.get_running_loop().create_task(handle.close()))
        self._closing = [task for task in self._closing if not task.done()]

    # ---- fids

    def _fid(self, number: int) -> Fid:
        try:
            return self.fids[number]
        except KeyError:
            raise refuse(errno.EBADF, f"fid {number}") from None

    def _opened(self, number: int) -> Handle:
        handle = self._fid(number).handle
        if handle is None:
            raise refuse(errno.EBADF, f"fid {number} is not open")
        return handle

    def _new(self, number: int, fid: Fid) -> None:
        if number not in self.fids and len(self.fids) >= limits.fids_per_session:
            raise refuse(errno.EMFILE, f"more than {limits.fids_per_session} fids")
        self.fids[number] = fid

    def _directory(self, number: int) -> Directory:
        file = self._fid(number).file
        if not isinstance(file, Directory):
            raise refuse(errno.EROFS if file.qid.type & DIRECTORY else errno.ENOTDIR, "")
        return file

    # ---- messages

    def _version(self, msize: int, version: str) -> tuple[int, str]:
        self.msize = min(msize, limits.msize_bytes)
        if version not in SERVED or self.msize < 256:
            return self.msize, "unknown"
        self.dialect = ALL[version]
        return self.msize, version

    async def Tauth(self, afid: int, uname: str, aname: str, n_uname: int) -> tuple[Any, ...]:
        raise Refused("no authentication is asked for: the transport has proved who you are", errno.ENOENT)

    async def Tattach(self, fid: int, afid: int, uname: str, aname: str, n_uname: int) -> tuple[Any, ...]:
        root = await self._attach(self.caller, aname)
        self._new(fid, Fid(root))
        return (root.qid,)

    async def Twalk(self, fid: int, newfid: int, wname: tuple[str, ...]) -> tuple[Any, ...]:
        start = self._fid(fid)
        if newfid != fid and newfid in self.fids:
            raise refuse(errno.EBADF, f"fid {newfid} is in use")
        if len(wname) > limits.walk_names:
            raise refuse(errno.EINVAL, f"{len(wname)} names in one walk")
        file, trail, qids = start.file, start.trail, list[Any]()
        for name in wname:
            try:
                if name == "..":
                    file, trail = (trail[-1], trail[:-1]) if trail else (file, trail)
                elif name != ".":
                    if not file.qid.type & DIRECTORY:
                        raise refuse(errno.ENOTDIR, name)
                    file, trail = await file.walk(checked(name)), (*trail, file)
            except OSError:
                if not qids:
                    raise
                return (qids,)
            qids.append(file.qid)
        if newfid == fid and start.handle is not None:
            raise refuse(errno.EBUSY, f"fid {fid} is open")
        self._new(newfid, Fid(file, trail))
        return (qids,)

    async def Tlopen(self, fid: int, flags: int) -> tuple[Any, ...]:
        one = self._fid(fid)
        if one.handle is not None:
            raise refuse(errno.EBUSY, f"fid {fid} is open")
        kept = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND
        one.handle = await one.file.open(self.caller, flags & kept)
        return one.file.qid, 0

    async def Tlcreate(self, fid: int, name: str, flags: int, mode: int, gid: int) -> tuple[Any, ...]:
        one, directory = self._fid(fid), self._directory(fid)
        kept = flags & (os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_EXCL)
        file, handle = await directory.create(self.caller, checked(name), kept, mode & 0o777)
        one.file, one.trail, one.handle = file, (*one.trail, directory), handle
        return file.qid, 0

    async def Tread(self, fid: int, offset: int, count: int) -> tuple[Any, ...]:
        return (await self._opened(fid).read(offset, min(count, self.msize - 24)),)

    async def Twrite(self, fid: int, offset: int, data: bytes) -> tuple[Any, ...]:
        return (await self._opened(fid).write(offset, data),)

    async def Tclunk(self, fid: int) -> tuple[Any, ...]:
        one = self._fid(fid)
        del self.fids[fid]
        if one.handle is not None:
            await one.handle.close()
        return ()

    async def Tremove(self, fid: int) -> tuple[Any, ...]:
        await self.Tclunk(fid)
        raise refuse(errno.EOPNOTSUPP, "use unlinkat")

    async def Tgetattr(self, fid: int, mask: int) -> tuple[Any, ...]:
        file = self._fid(fid).file
        a: Attr = await file.attr()
        times = (*divmod(a.atime_ns, 10**9), *divmod(a.mtime_ns, 10**9), *divmod(a.ctime_ns, 10**9))
        size = (a.nlink, 0, a.size, 4096, (a.size + 511) // 512)
        return (0x7FF, file.qid, a.mode, a.uid, a.gid, *size, *times, 0, 0, 0, 0)

    async def Tsetattr(
        self, fid: int, valid: int, mode: int, uid: int, gid: int, length: int, at: int, at_ns: int, mt: int, mt_ns: int
    ) -> tuple[Any, ...]:
        file = self._fid(fid).file
        if not isinstance(file, Changeable):
            return ()  # a shell's `> file` truncates first: meaningless for a control file, and no reason to refuse the write
        atime = at * 10**9 + at_ns if valid & SETATTR_ATIME_SET else None
        mtime = mt * 10**9 + mt_ns if valid & SETATTR_MTIME_SET else None
        change = Change(
            mode & 0o7777 if valid & SETATTR_MODE else None, length if valid & SETATTR_SIZE else None, atime, mtime
        )
        await file.change(self.caller, change)
        return ()

    async def Treaddir(self, fid: int, offset: int, count: int) -> tuple[Any, ...]:
        one, handle = self._fid(fid), self._opened(fid)
        if offset == 0 or one.listing is None:
            up = one.trail[-1] if one.trail else one.file
            one.listing = [(".", one.file), ("..", up), *await handle.entries()]
        out, room = bytearray(), min(count, self.msize - 24)
        for i in range(offset, len(one.listing)):
            name, file = one.listing[i]
            body = name.encode()
            if len(out) + _DIRENT.size + len(body) > room:
                break
            kind = _DT.get(file.qid.type & (DIRECTORY | SYMLINK), 8)
            out += _DIRENT.pack(*file.qid, i + 1, kind, len(body)) + body
        return (bytes(out),)

    async def Tstatfs(self, fid: int) -> tuple[Any, ...]:
        self._fid(fid)
        return 0x01021997, 4096, 0, 0, 0, 0, 0, 0, limits.name_bytes

    async def Tfsync(self, fid: int, datasync: int) -> tuple[Any, ...]:
        await self._opened(fid).sync()
        return ()

    async def Tmkdir(self, dfid: int, name: str, mode: int, gid: int) -> tuple[Any, ...]:
        return ((await self._directory(dfid).mkdir(self.caller, checked(name), mode & 0o777)).qid,)

    async def Tunlinkat(self, dirfd: int, name: str, flags: int) -> tuple[Any, ...]:
        await self._directory(dirfd).remove(self.caller, checked(name), bool(flags & REMOVE_DIRECTORY))
        return ()

    async def Trenameat(self, olddirfid: int, oldname: str, newdirfid: int, newname: str) -> tuple[Any, ...]:
        to = self._directory(newdirfid)
        await self._directory(olddirfid).rename(self.caller, checked(oldname), to, checked(newname))
        return ()

    async def Txattrwalk(self, fid: int, newfid: int, name: str) -> tuple[Any, ...]:
        raise refuse(errno.EOPNOTSUPP, "extended attributes")
