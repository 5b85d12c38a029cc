"""What the messages of 9P2000.L mean, and those that all dialects share. Each function is one message: a session and the message's fields in,
the reply's fields out. Meanings: https://github.com/chaos/diod/blob/master/protocol.md and intro(5) of the Plan 9 manual."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from ipos.tree.file import DIRECTORY, SYMLINK, Caller, Change, Changeable, Directory, Handle
from ipos.tree.ninep.codec import DIRENT
from ipos.tree.ninep.fids import Fid, Step, checked, refuse
from ipos.tree.ninep.locks import UNLOCK, Owner
from ipos.tree.ninep.session import COPIED, IO_HEAD, RREAD, Operation, Session, own_task
from ipos.wire import limits
from ipos.wire.errors import Refused

Values = tuple[Any, ...]
OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND
MODE, UID, GID, SIZE, ATIME, MTIME, ATIME_SET, MTIME_SET = 1, 2, 4, 8, 16, 32, 128, 256
REMOVE_DIRECTORY = 0x200
NOW = -1  # a time in a Change: the server's own
_ENTRY_KINDS = {DIRECTORY: stat.S_IFDIR >> 12, SYMLINK: stat.S_IFLNK >> 12}
# What a walk that falls short means; our own clients are told of everything else.
_NO_SUCH = (errno.ENOENT, errno.ENOTDIR)
_NAME_MOST = 4 * limits.name_bytes  # bytes of an entry's name, whatever a file server calls it


# ---- of all dialects


async def auth(s: Session, afid: int, uname: str, aname: str, n_uname: int = 0) -> Values:
    """ENOENT, and not EOPNOTSUPP, is what diod's clients take for "go on without"."""
    raise Refused("authentication not required: the transport has proved who you are", errno.ENOENT)


async def attach(s: Session, fid: int, afid: int, uname: str, aname: str, n_uname: int = 0) -> Values:
    if fid in s.fids:
        raise refuse(errno.EBADF, f"fid {fid} is in use")
    await own_task()
    root = await s.attach(s.caller, aname)
    s.new(fid, Fid((Step("/", root),)))
    return (root.qid,)


async def walk(s: Session, fid: int, newfid: int, names: tuple[str, ...]) -> Values:
    start = s.fid(fid)
    if newfid != fid and newfid in s.fids:
        raise refuse(errno.EBADF, f"fid {newfid} is in use")
    if newfid == fid and start.handle is not None:
        raise refuse(errno.EBUSY, f"fid {fid} is open")
    if len(names) > limits.walk_names:
        raise refuse(errno.EINVAL, f"{len(names)} names in one walk")
    path, qids = start.path, list[Any]()
    for name in names:
        try:
            file = path[-1].file
            if name == "..":
                path = path[:-1] or path
            elif name != ".":
                if not file.qid.type & DIRECTORY:
                    raise refuse(errno.ENOTDIR, name)
                checked(name)
                if not file.prompt:
                    await own_task()
                path = (*path, Step(name, await file.walk(name)))
        except OSError as error:
            if not qids or (s.dialect.version == "9P2000.L.ipos" and error.errno not in _NO_SUCH):
                raise
            return (qids,)
        qids.append(path[-1].file.qid)
    if newfid == fid:
        start.path = path
    else:
        s.new(newfid, Fid(path))
    return (qids,)


async def read(s: Session, fid: int, offset: int, count: int) -> Values:
    one = s.fid(fid)
    if one.handle is None:
        raise refuse(errno.EBADF, f"fid {fid} is not open")
    if not one.handle.prompt:
        await own_task()
    count = min(count, s.msize - IO_HEAD)
    if count >= COPIED and (framed := await one.handle.read_behind(RREAD.size, offset, count)) is not None:
        return framed, RREAD
    data = await one.handle.read(offset, count)
    return (data if len(data) <= count else data[:count],)


async def write(s: Session, fid: int, offset: int, data: memoryview) -> Values:
    one = s.fid(fid)
    if one.handle is None:
        raise refuse(errno.EBADF, f"fid {fid} is not open")
    if not one.handle.prompt:
        await own_task()
    return (await one.handle.write(offset, data if one.handle.views else bytes(data)),)  # type: ignore[arg-type]


async def clunk(s: Session, fid: int) -> Values:
    one = s.fid(fid)
    del s.fids[fid]
    if one.locked:
        s.locks.drop(s.number, one.file.qid.path)
    if one.handle is not None:
        if not one.handle.prompt:
            await own_task()
        await one.handle.close()
    if one.goes:
        await _unlink(s, one)
    return ()


async def remove(s: Session, fid: int) -> Values:
    """The fid is clunked even if the file cannot be removed."""
    one = s.fid(fid)
    one.goes = False
    await clunk(s, fid)
    await _unlink(s, one)
    return ()


async def parent(one: Fid) -> tuple[Directory, str]:
    """Where the file of a fid is and what it is called; ENOENT if by now another file has that name, so nothing else is ever hit."""
    if len(one.path) < 2:
        raise refuse(errno.EBUSY, "the root")
    above, name = one.path[-2].file, one.path[-1].name
    if not isinstance(above, Directory):
        raise refuse(errno.EROFS, name)
    await own_task()
    if (await above.walk(name)).qid.path != one.file.qid.path:
        raise Refused(f"{name}: was moved or removed by somebody else", errno.ENOENT)
    return above, name


async def _unlink(s: Session, one: Fid) -> None:
    above, name = await parent(one)
    await above.remove(s.caller, name, bool(one.file.qid.type & DIRECTORY))


async def move(s: Session, above: Directory, name: str, to: Directory, path: tuple[Step, ...], new: str) -> None:
    await above.rename(s.caller, name, to, new)
    s.moved(above, name, path, new)


# ---- of .L


async def lopen(s: Session, fid: int, flags: int) -> Values:
    one = s.fid(fid)
    if one.handle is not None:
        raise refuse(errno.EBUSY, f"fid {fid} is open")
    return await opened(s, one, flags & OPEN_FLAGS)


async def opened(s: Session, one: Fid, flags: int) -> Values:
    """Open a fid. The iounit of a file whose short reads are its end is what one read may carry; of others it is 0."""
    if flags & (os.O_ACCMODE | os.O_TRUNC) and one.file.qid.type & DIRECTORY:
        raise refuse(errno.EISDIR)
    if not one.file.prompt:
        await own_task()
    one.handle = await one.file.open(s.caller, flags)
    return one.file.qid, _iounit(s, one.handle)


def _iounit(s: Session, handle: Handle) -> int:
    return s.msize - IO_HEAD if handle.whole else 0


async def lcreate(s: Session, fid: int, name: str, flags: int, mode: int, gid: int) -> Values:
    return await created(s, fid, name, flags & (OPEN_FLAGS | os.O_EXCL), mode & 0o777)


async def created(s: Session, fid: int, name: str, flags: int, mode: int) -> Values:
    one, directory = s.fid(fid), s.directory(fid)
    if one.handle is not None:
        raise refuse(errno.EBUSY, f"fid {fid} is open")
    checked(name)
    await own_task()
    file, handle = await directory.create(s.caller, name, flags, mode)
    one.path, one.handle = (*one.path, Step(name, file)), handle
    return file.qid, _iounit(s, handle)


async def symlink(s: Session, fid: int, name: str, target: str, gid: int) -> Values:
    directory = s.directory(fid)
    if not target or "\0" in target or len(target.encode()) > limits.symlink_bytes:
        raise refuse(errno.EINVAL, repr(target[:80]))
    await own_task()
    return ((await directory.symlink(s.caller, checked(name), target)).qid,)


async def mknod(s: Session, dfid: int, name: str, mode: int, major: int, minor: int, gid: int) -> Values:
    raise Refused(f"{name}: device files, pipes and sockets are not made here", errno.EPERM)


async def rename(s: Session, fid: int, dfid: int, name: str) -> Values:
    one, to = s.fid(fid), s.directory(dfid)
    checked(name)
    above, old = await parent(one)
    await move(s, above, old, to, s.fid(dfid).path, name)
    return ()


async def readlink(s: Session, fid: int) -> Values:
    await own_task()
    return (await s.fid(fid).file.readlink(),)


async def getattr_(s: Session, fid: int, mask: int) -> Values:
    file = s.fid(fid).file
    if not file.prompt:
        await own_task()
    a = await file.attr()
    times = (*divmod(a.atime_ns, 10**9), *divmod(a.mtime_ns, 10**9), *divmod(a.ctime_ns, 10**9))
    size = (a.nlink, 0, a.size, 4096, (a.size + 511) // 512)
    return (0x7FF, file.qid, a.mode, a.uid, a.gid, *size, *times, 0, 0, 0, 0)


async def setattr_(
    s: Session,
    fid: int,
    valid: int,
    mode: int,
    uid: int,
    gid: int,
    length: int,
    at: int,
    at_ns: int,
    mt: int,
    mt_ns: int,
) -> Values:
    file = s.fid(fid).file
    if not isinstance(file, Changeable):
        if valid & (MODE | UID | GID):
            raise Refused("the mode and owner of this file cannot be changed", errno.EPERM)
        return ()  # a shell's `> file` truncates first: meaningless for a control file, and no reason to refuse the write
    if at_ns >= 10**9 or mt_ns >= 10**9:
        raise refuse(errno.EINVAL, "a time")
    change = Change(
        mode=mode & 0o7777 if valid & MODE else None,
        size=length if valid & SIZE else None,
        atime_ns=at * 10**9 + at_ns if valid & ATIME_SET else NOW if valid & ATIME else None,
        mtime_ns=mt * 10**9 + mt_ns if valid & MTIME_SET else NOW if valid & MTIME else None,
        uid=uid if valid & UID else None,
        gid=gid if valid & GID else None,
    )
    await own_task()
    await file.change(s.caller, change)
    return ()


async def xattrwalk(s: Session, fid: int, newfid: int, name: str) -> Values:
    """A fid from which the value of an attribute is read, or the names of all, each with a zero behind it, if `name` is empty."""
    one = s.fid(fid)
    if newfid in s.fids:
        raise refuse(errno.EBADF, f"fid {newfid} is in use")
    await own_task()
    value = await one.file.xattr(name) if name else "".join(f"{n}\0" for n in await one.file.xattrs()).encode()
    s.new(newfid, Fid(one.path, _Value(value)))
    return (len(value),)


async def xattrcreate(s: Session, fid: int, name: str, size: int, flags: int) -> Values:
    """The fid becomes what the value is written to; it is set by the clunk, and removed if its size is 0."""
    one = s.fid(fid)
    if one.handle is not None:
        raise refuse(errno.EBUSY, f"fid {fid} is open")
    if not isinstance(one.file, Changeable):
        raise Refused(f"{name}: this file takes no extended attributes", errno.EOPNOTSUPP)
    if size > limits.xattr_bytes:
        raise refuse(errno.E2BIG, f"an attribute of {size} bytes")
    one.handle = _NewValue(s.caller, one.file, name, size, flags)
    return ()


class _Value(Handle):
    prompt = True

    def __init__(self, value: bytes) -> None:
        self._value = value

    async def read(self, offset: int, count: int) -> bytes:
        return self._value[offset : offset + count]


class _NewValue(Handle):
    def __init__(self, caller: Caller, file: Changeable, name: str, size: int, flags: int) -> None:
        self._caller, self._file, self._name, self._size, self._flags = caller, file, name, size, flags
        self._value = bytearray()

    async def write(self, offset: int, data: bytes) -> int:
        if offset != len(self._value) or offset + len(data) > self._size:
            raise refuse(errno.EINVAL, f"bytes {offset} to {offset + len(data)} of an attribute of {self._size}")
        self._value += data
        return len(data)

    async def close(self) -> None:
        if len(self._value) == self._size:  # a client that died in the middle has set nothing
            await self._file.set_xattr(
                self._caller, self._name, bytes(self._value) if self._size else None, self._flags
            )


async def readdir(s: Session, fid: int, offset: int, count: int) -> Values:
    """The offset of an entry is its number in the listing, which is made at offset 0 and stays as it was until the next such read."""
    one, handle = s.fid(fid), s.opened(fid)
    if offset == 0 or one.listing is None:
        if not handle.prompt:
            await own_task()
        up = one.path[-2].file if len(one.path) > 1 else one.file
        one.listing = [(".", one.file), ("..", up), *await handle.entries()]
    out, room = bytearray(), min(count, s.msize - IO_HEAD)
    for i in range(offset, len(one.listing)):
        name, file = one.listing[i]
        try:
            body = name.encode()
        except UnicodeEncodeError:
            continue  # 9P's names are UTF-8: what is not cannot be shown
        if len(body) > _NAME_MOST:
            continue
        if len(out) + DIRENT.size + len(body) > room:
            if not out:
                raise refuse(errno.EINVAL, f"{count} bytes are too few for the entry of {name}")
            break
        kind = _ENTRY_KINDS.get(file.qid.type & (DIRECTORY | SYMLINK), stat.S_IFREG >> 12)
        out += DIRENT.pack(*file.qid, i + 1, kind, len(body)) + body
    return (bytes(out),)


async def statfs(s: Session, fid: int) -> Values:
    await own_task()
    return tuple(await s.fid(fid).file.statfs())


async def fsync(s: Session, fid: int, datasync: int) -> Values:
    handle = s.opened(fid)
    await own_task()
    await handle.sync()
    return ()


async def lock(
    s: Session, fid: int, kind: int, flags: int, start: int, length: int, process: int, client: str
) -> Values:
    one = s.fid(fid)
    s.opened(fid)
    one.locked = one.locked or kind != UNLOCK
    return (s.locks.take(one.file.qid.path, Owner(s.number, client, process), kind, start, length),)


async def getlock(s: Session, fid: int, kind: int, start: int, length: int, process: int, client: str) -> Values:
    one = s.fid(fid)
    s.opened(fid)
    found = s.locks.conflict(one.file.qid.path, Owner(s.number, client, process), kind, start, length)
    if found is None:
        return UNLOCK, start, length, process, client
    size = 0 if found.end >= 1 << 64 else found.end - found.start
    return found.kind, found.start, size, found.owner.process, found.owner.client


async def link(s: Session, dfid: int, fid: int, name: str) -> Values:
    directory, one = s.directory(dfid), s.fid(fid)
    await own_task()
    await directory.link(s.caller, checked(name), one.file)
    return ()


async def mkdir(s: Session, dfid: int, name: str, mode: int, gid: int) -> Values:
    directory = s.directory(dfid)
    await own_task()
    return ((await directory.mkdir(s.caller, checked(name), mode & 0o777)).qid,)


async def renameat(s: Session, fid: int, old: str, newfid: int, new: str) -> Values:
    source, to = s.directory(fid), s.directory(newfid)
    await own_task()
    await move(s, source, checked(old), to, s.fid(newfid).path, checked(new))
    return ()


async def unlinkat(s: Session, fid: int, name: str, flags: int) -> Values:
    directory = s.directory(fid)
    await own_task()
    await directory.remove(s.caller, checked(name), bool(flags & REMOVE_DIRECTORY))
    return ()


SHARED: dict[str, Operation] = {
    "Tauth": auth, "Tattach": attach, "Twalk": walk, "Tread": read, "Twrite": write, "Tclunk": clunk, "Tremove": remove,
}  # fmt: skip
OPERATIONS: dict[str, Operation] = {
    **SHARED,
    "Tstatfs": statfs, "Tlopen": lopen, "Tlcreate": lcreate, "Tsymlink": symlink, "Tmknod": mknod, "Trename": rename,
    "Treadlink": readlink, "Tgetattr": getattr_, "Tsetattr": setattr_, "Txattrwalk": xattrwalk, "Txattrcreate": xattrcreate,
    "Treaddir": readdir, "Tfsync": fsync, "Tlock": lock, "Tgetlock": getlock, "Tlink": link, "Tmkdir": mkdir,
    "Trenameat": renameat, "Tunlinkat": unlinkat,
}  # fmt: skip
