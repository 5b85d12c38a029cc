"""The stat structure of 9P2000 and 9P2000.u (stat(5) of the Plan 9 manual): what Tstat, Twstat and directory reads carry."""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

from ipos.tree.file import APPEND_ONLY, DIRECTORY, Attr, Qid
from ipos.tree.ninep.codec import ProtocolError, put_text, text

_FIXED = struct.Struct("<HHIBIQIIIQ")
_IDS = struct.Struct("<III")
DMDIR, DMAPPEND, DMSYMLINK, DMLINK = 1 << 31, 1 << 30, 1 << 25, 1 << 24
DMDEVICE, DMNAMEDPIPE, DMSOCKET = 1 << 23, 1 << 21, 1 << 20
KEEP2, KEEP4, KEEP8 = 0xFFFF, 0xFFFFFFFF, (1 << 64) - 1  # in a Twstat: leave the field alone


class Stat(NamedTuple):
    """`ids` and `extension` are of .u only."""

    qid: Qid
    mode: int
    atime: int
    mtime: int
    length: int
    name: str
    uid: str = ""
    gid: str = ""
    muid: str = ""
    extension: str = ""
    ids: tuple[int, int, int] = (KEEP4, KEEP4, KEEP4)

    def pack(self, u: bool = False) -> bytes:
        texts = (self.name, self.uid, self.gid, self.muid, *((self.extension,) if u else ()))
        body = b"".join(map(put_text, texts)) + (_IDS.pack(*self.ids) if u else b"")
        size = _FIXED.size - 2 + len(body)
        return _FIXED.pack(size, 0, 0, *self.qid, self.mode, self.atime, self.mtime, self.length) + body


def unpack(b: bytes, at: int = 0, u: bool = False) -> tuple[Stat, int]:
    """One structure, and where the next begins. `ProtocolError`: it is none."""
    try:
        size, _, _, kind, version, path, mode, atime, mtime, length = _FIXED.unpack_from(b, at)
        end, to, texts = at + 2 + size, at + _FIXED.size, list[str]()
        view = memoryview(b)
        for _ in range(5 if u else 4):
            value, to = text(view, to, min(end, len(b)))
            texts.append(value)
        ids: tuple[int, int, int] = _IDS.unpack_from(b, to) if u else (KEEP4, KEEP4, KEEP4)
    except (struct.error, UnicodeDecodeError):
        raise ProtocolError("a stat that is too short, or whose text is not UTF-8") from None
    name, uid, gid, muid, *extension = texts
    one = Stat(Qid(kind, version, path), mode, atime, mtime, length, name, uid, gid, muid, "".join(extension), ids)
    return one, end


def of(qid: Qid, attr: Attr, name: str, u: bool = False, target: str = "") -> Stat:
    """What Tstat says of a file. `target` is that of a symbolic link."""
    mode = attr.mode & 0o777
    if stat.S_ISDIR(attr.mode):
        mode |= DMDIR
    elif u:
        kinds = {stat.S_IFLNK: DMSYMLINK, stat.S_IFIFO: DMNAMEDPIPE, stat.S_IFSOCK: DMSOCKET}
        mode |= kinds.get(stat.S_IFMT(attr.mode), 0)
    if qid.type & APPEND_ONLY:
        mode |= DMAPPEND
    uid, gid = str(attr.uid), str(attr.gid)
    length = 0 if qid.type & DIRECTORY else attr.size
    atime, mtime = (ns // 10**9 & 0xFFFFFFFF for ns in (attr.atime_ns, attr.mtime_ns))
    return Stat(qid, mode, atime, mtime, length, name, uid, gid, uid, target, (attr.uid, attr.gid, KEEP4))
