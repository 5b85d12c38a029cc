"""An open file of a client: reads that run ahead, writes, lines, entries."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ipos.tree.file import DIRECTORY, Qid
from ipos.tree.ninep.codec import DIRENT, ProtocolError
from ipos.tree.ninep.stat import unpack
from ipos.wire import limits
from ipos.wire.errors import Refused

if TYPE_CHECKING:
    from ipos.tree.ninep.client import Client

IO_HEAD = 24  # bytes of a Twrite that are not data
AHEAD = 6  # reads under way once a file is read one piece after the other
_NAME_MOST = 4 * limits.name_bytes

Sent = tuple[asyncio.Future[tuple[Any, ...]], int]


class Entry(NamedTuple):
    """One name in a directory."""

    name: str
    qid: Qid

    @property
    def directory(self) -> bool:
        return bool(self.qid.type & DIRECTORY)


class OpenFile:
    """`read` and `write` go on where the last one ended. `whole`: a read that gives less than was asked is at the end of the file, which
    only then is read ahead: elsewhere a read may take what the next one would have given."""

    def __init__(self, client: Client, fid: int, whole: bool = False) -> None:
        self.client = client
        self.fid = fid
        self.whole = whole
        self.offset = 0
        self._ahead: deque[tuple[int, int, Sent]] = deque()  # (offset, count, request), without gaps
        self._in_a_row = 0

    async def read_at(self, offset: int, count: int) -> bytes:
        return (await self.client.rpc("Tread", self.fid, offset, min(count, self.client.msize - IO_HEAD)))[0]

    async def read(self, count: int = limits.MiB) -> bytes:
        count = min(count, self.client.msize - IO_HEAD)
        data = await (self._next(count) if self.whole else self.read_at(self.offset, count))
        self.offset += len(data)
        return data

    async def _next(self, count: int) -> bytes:
        """The next piece, of `count` bytes at most, and requests for those behind it once two were read in a row."""
        if self._ahead and (self._ahead[0][0] != self.offset or self._ahead[0][1] > count):
            self.stop()
        at = self._ahead[-1][0] + self._ahead[-1][1] if self._ahead else self.offset
        while len(self._ahead) < (AHEAD if self._in_a_row else 1):
            self._ahead.append((at, count, self.client.send("Tread", self.fid, at, count)))
            at += count
        self._in_a_row += 1
        _, asked, sent = self._ahead.popleft()
        try:
            data: bytes = (await self.client.wait(sent))[0]
        except BaseException:
            self.stop()
            raise
        if len(data) < asked:
            self.stop()  # the end
        return data

    def stop(self) -> None:
        """Forget what was read ahead."""
        for _, _, sent in self._ahead:
            self.client.forget(sent)
        self._ahead.clear()
        self._in_a_row = 0

    async def write_at(self, offset: int, data: bytes) -> int:
        return (await self.client.rpc("Twrite", self.fid, offset, data))[0]

    async def write(self, data: bytes) -> None:
        self.stop()
        view, room = memoryview(data), self.client.msize - IO_HEAD
        while view:
            taken = took(await self.write_at(self.offset, bytes(view[:room])))
            self.offset += taken
            view = view[taken:]

    async def lines(self) -> AsyncIterator[str]:
        """Lines of text as they come; ends when the file does."""
        rest = b""
        while piece := await self.read(64 * limits.KiB):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
            if len(rest) > limits.line_bytes:
                raise Refused(f"a line of more than {limits.line_bytes} bytes", errno.EMSGSIZE)
        if rest:
            yield rest.decode(errors="replace")

    async def entries(self, block: bytes | None = None) -> list[Entry]:
        """Of a directory, at most `client.entries_most`; `block` is the answer to its first read if that has been made."""
        listed = self._entries_linux(block) if self.client.dialect.linux else self._entries_2000(block)
        try:
            return [entry for entry in await listed if _nameable(entry.name)]
        except ProtocolError as error:
            raise self.client.broken(error) from None

    async def _entries_linux(self, block: bytes | None) -> list[Entry]:
        out, room = list[Entry](), self.client.msize - IO_HEAD
        if block is None:
            block = await self._readdir(0, room)
        while block:
            found = _entries(block)
            self._bounded(out, [entry for _, entry in found])
            if self.whole and len(block) + DIRENT.size + _NAME_MOST <= room:
                break  # another entry would have been in it
            block = await self._readdir(found[-1][0], room)
        return out

    def _bounded(self, out: list[Entry], found: list[Entry]) -> None:
        out += found
        if len(out) > self.client.entries_most:
            raise Refused(f"a directory of more than {self.client.entries_most} entries", errno.EFBIG)

    async def _readdir(self, offset: int, room: int) -> bytes:
        return (await self.client.rpc("Treaddir", self.fid, offset, room))[0]

    async def _entries_2000(self, block: bytes | None) -> list[Entry]:
        out = list[Entry]()
        if block is None:
            block = await self.read(64 * limits.KiB)
        else:
            self.offset = len(block)
        while block:
            at, found = 0, list[Entry]()
            while at < len(block):
                one, at = unpack(block, at, u=self.client.dialect.version == "9P2000.u")
                found.append(Entry(one.name, one.qid))
            self._bounded(out, found)
            block = await self.read(64 * limits.KiB)
        return out


def _nameable(name: str) -> bool:
    """Whether a name of a listing can be walked to; nothing else a server says leaves the directory that was listed."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def took(count: int) -> int:
    """What a write took of some bytes; `Refused` if that was nothing: it would be asked again for ever."""
    if not count:
        raise Refused("the server takes no more of what is written", errno.EIO)
    return count


def _entries(block: bytes) -> list[tuple[int, Entry]]:
    """(offset of the next, entry) of an Rreaddir. `ProtocolError`: it is none."""
    out, at = list[tuple[int, Entry]](), 0
    while at < len(block):
        if at + DIRENT.size > len(block):
            raise ProtocolError("a directory entry that is too short")
        kind, version, path, offset, _, length = DIRENT.unpack_from(block, at)
        at += DIRENT.size + length
        if at > len(block):
            raise ProtocolError("a directory entry that is too short")
        out.append((offset, Entry(block[at - length : at].decode(errors="replace"), Qid(kind, version, path))))
    return out
