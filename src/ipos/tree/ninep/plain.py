"""What the messages of 9P2000 and 9P2000.u mean where .L has others: https://9p.io/sys/man/5/INDEX.html. File servers never see dialects."""

from __future__ import annotations

import errno
import os
from typing import Any

from ipos.tree.file import DIRECTORY, SYMLINK, Change, Changeable
from ipos.tree.ninep import stat as stats
from ipos.tree.ninep.codec import ProtocolError
from ipos.tree.ninep.fids import Fid, Step, checked, refuse
from ipos.tree.ninep.linux import SHARED, Values, created, move, opened, parent
from ipos.tree.ninep.linux import read as read_file
from ipos.tree.ninep.session import IO_HEAD, Operation, Session, own_task
from ipos.tree.ninep.stat import DMAPPEND, DMDEVICE, DMDIR, DMLINK, DMNAMEDPIPE, DMSOCKET, DMSYMLINK, KEEP4, KEEP8, Stat
from ipos.wire.errors import Refused

OTRUNC, ORCLOSE, OAPPEND = 0x10, 0x40, 0x80  # the last is 9P2000.u's
_ACCESS = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY)  # OREAD, OWRITE, ORDWR, OEXEC


def _flags(s: Session, mode: int) -> int:
    if mode & ~(3 | OTRUNC | ORCLOSE | (OAPPEND if s.dialect.version == "9P2000.u" else 0)):
        raise refuse(errno.EINVAL, f"the mode {mode:#x} of an open")
    return _ACCESS[mode & 3] | (os.O_TRUNC if mode & OTRUNC else 0) | (os.O_APPEND if mode & OAPPEND else 0)


async def auth(s: Session, afid: int, uname: str, aname: str, n_uname: int = 0) -> Values:
    """Here the text counts, and that of ENOENT is not this one."""
    raise Refused("authentication not required: the transport has proved who you are", errno.EOPNOTSUPP)


async def open_(s: Session, fid: int, mode: int) -> Values:
    one = s.fid(fid)
    if one.handle is not None:
        raise refuse(errno.EBUSY, f"fid {fid} is open")
    reply = await opened(s, one, _flags(s, mode))
    one.goes = bool(mode & ORCLOSE)
    return reply


async def create(s: Session, fid: int, name: str, perm: int, mode: int, extension: str = "") -> Values:
    one, directory = s.fid(fid), s.directory(fid)
    checked(name)
    if perm & (DMDEVICE | DMNAMEDPIPE | DMSOCKET):
        raise Refused(f"{name}: device files, pipes and sockets are not made here", errno.EPERM)
    if perm & (DMDIR | DMSYMLINK | DMLINK):
        if one.handle is not None:
            raise refuse(errno.EBUSY, f"fid {fid} is open")
        if mode & 3:
            raise refuse(errno.EISDIR, name)
        await own_task()
        if perm & DMLINK:
            if not extension.strip().isdecimal():
                raise refuse(errno.EINVAL, f"{extension[:80]!r} instead of the fid to link to")
            file = s.fid(int(extension)).file
            await directory.link(s.caller, name, file)
        elif perm & DMDIR:
            file = await directory.mkdir(s.caller, name, perm & 0o777)
            one.handle = await file.open(s.caller, os.O_RDONLY)
        else:
            file = await directory.symlink(s.caller, name, extension)
        one.path = (*one.path, Step(name, file))
        return file.qid, 0
    flags = (
        _flags(s, mode) | os.O_EXCL | (os.O_APPEND if perm & DMAPPEND else 0)
    )  # open(5): create of a file that is there fails
    reply = await created(s, fid, name, flags, perm & 0o777)
    one.goes = bool(mode & ORCLOSE)
    return reply


async def read(s: Session, fid: int, offset: int, count: int) -> Values:
    one = s.fid(fid)
    if one.file.qid.type & DIRECTORY and one.handle is not None:
        return await _entries(s, one, offset, count)
    return await read_file(s, fid, offset, count)


async def _entries(s: Session, one: Fid, offset: int, count: int) -> Values:
    """read(5): whole stats only; the offset is 0 or where the last read ended."""
    assert one.handle is not None
    await own_task()
    if offset == 0:
        one.listing, one.place = list(await one.handle.entries()), (0, 0)
    at, expected = one.place
    if offset != expected or one.listing is None:
        raise Refused(f"a directory is read from its start or where the last read ended, {expected}, not {offset}")
    out, room = bytearray(), min(count, s.msize - IO_HEAD)
    while at < len(one.listing):
        name, file = one.listing[at]
        try:
            entry = await _stat(s, Fid((*one.path, Step(name, file))))
        except (OSError, UnicodeEncodeError):
            at += 1  # gone since, or not a name that 9P can carry
            continue
        if len(out) + len(entry) > room:
            if not out:
                raise refuse(errno.EINVAL, f"{count} bytes are too few for the entry of {name}")
            break
        out += entry
        at += 1
    one.place = at, offset + len(out)
    return (bytes(out),)


async def _stat(s: Session, one: Fid) -> bytes:
    u = s.dialect.version == "9P2000.u"
    attr = await one.file.attr()
    target = await one.file.readlink() if u and one.file.qid.type & SYMLINK else ""
    return stats.of(one.file.qid, attr, one.path[-1].name, u, target).pack(u)


async def stat(s: Session, fid: int) -> Values:
    one = s.fid(fid)
    await own_task()
    return (await _stat(s, one),)


async def wstat(s: Session, fid: int, body: bytes) -> Values:
    """stat(5): fields of all ones, and empty strings, are left alone; all left alone means fsync. All of it is done or nothing: what can be
    refused by looking is refused first, and a rename, which can still fail, comes before what it might leave half done."""
    one = s.fid(fid)
    try:
        want, end = stats.unpack(body, u=s.dialect.version == "9P2000.u")
    except ProtocolError as error:
        raise Refused(str(error), errno.EPROTO) from None
    if end != len(body):
        raise refuse(errno.EPROTO, "a stat with something behind it")
    change = _change(one, want)
    name = want.name if want.name not in ("", one.path[-1].name) else ""
    if change == Change() and not name:
        if one.handle is not None:
            await own_task()
            await one.handle.sync()
        return ()
    if change != Change() and not isinstance(one.file, Changeable):
        if change._replace(size=None, mtime_ns=None, atime_ns=None) != Change():
            raise Refused("the mode and owner of this file cannot be changed", errno.EPERM)
        change = Change()
    await own_task()
    if name:
        checked(name)
        above, old = await parent(one)
        try:
            await above.walk(name)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            raise refuse(errno.EEXIST, name)
        await move(s, above, old, above, one.path[:-1], name)
    if change != Change():
        assert isinstance(one.file, Changeable)
        await one.file.change(s.caller, change)
    return ()


def _change(one: Fid, want: Stat) -> Change:
    directory = bool(one.file.qid.type & DIRECTORY)
    if want.mode != KEEP4 and bool(want.mode & DMDIR) != directory:
        raise refuse(errno.EINVAL, "a directory stays one, and a file does")
    if want.length != KEEP8 and directory and want.length != 0:
        raise refuse(errno.EISDIR)
    ids: list[Any] = [None if n == KEEP4 else n for n in want.ids[:2]]
    return Change(
        mode=want.mode & 0o777 if want.mode != KEEP4 else None,
        size=want.length if want.length != KEEP8 and not directory else None,
        atime_ns=want.atime * 10**9 if want.atime != KEEP4 else None,
        mtime_ns=want.mtime * 10**9 if want.mtime != KEEP4 else None,
        uid=ids[0],
        gid=ids[1],
    )


OPERATIONS: dict[str, Operation] = {
    **SHARED, "Tauth": auth, "Topen": open_, "Tcreate": create, "Tread": read, "Tstat": stat, "Twstat": wstat,
}  # fmt: skip
