"""A 9P client: 9P2000.L.ipos and .L towards nodes, 9P2000 towards `ipos-netd`. Everything is pipelined.

`read` and `write` send walk, open, the first transfers and clunk in one packet and rely on the server's order per fid, so they cost one round
trip. A call that is cancelled is flushed. A connection that ends makes every waiting call raise `Gone`; nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat as statbits
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ipos.tree.file import DIRECTORY, Attr, Qid
from ipos.tree.ninep.codec import ALL, HEAD, Dialect, Framer, ProtocolError
from ipos.tree.ninep.messages import NOFID, NOTAG
from ipos.tree.ninep.stat import unpack
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

ROOT = 0
FIRST = 64 * limits.KiB  # what `read` asks for before it knows how long the file is
_DIRENT = struct.Struct("<BIQQBH")
_MODES = {os.O_RDONLY: 0, os.O_WRONLY: 1, os.O_RDWR: 2}
O_TRUNC_2000 = 0x10


class Entry(NamedTuple):
    """One name in a directory."""

    name: str
    qid: Qid

    @property
    def directory(self) -> bool:
        return bool(self.qid.type & DIRECTORY)


def split(path: str) -> tuple[str, ...]:
    """`/a//b/` -> ("a", "b")."""
    return tuple(name for name in path.split("/") if name and name != ".")


class Client(asyncio.Protocol):
    """Make it the protocol of a connection, then `await attach()`. `close()` when done."""

    def __init__(self, version: str = "9P2000.L.ipos", on_lost: Callable[[], None] | None = None) -> None:
        self.dialect: Dialect = ALL[version]
        self.msize = limits.msize_bytes
        self.lost: Exception | None = None
        self._on_lost = on_lost
        self._framer = Framer(limits.msize_bytes)
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, tuple[asyncio.Future[tuple[Any, ...]], str]] = {}
        self._tags = list(range(1024, 0, -1))
        self._tag_free = asyncio.Event()
        self._fids = list(range(limits.fids_per_session - 1, 0, -1))
        self._writable = asyncio.Event()
        self._writable.set()
        self._background: set[asyncio.Task[Any]] = set()

    # ---- connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._framer.feed(data):
                self._received(message)
        except ProtocolError as error:
            self.lost = Gone(f"the server does not speak 9P: {error}")
            if self._transport is not None:
                self._transport.abort()

    def _received(self, message: memoryview) -> None:
        _, code, tag = HEAD.unpack_from(message)
        row = self.dialect.by_code.get(code)
        waiting = self._waiting.pop(tag, None)
        if row is None or waiting is None:
            raise ProtocolError(f"an answer (message {code}, tag {tag}) to nothing")
        future, name = waiting
        if tag != NOTAG:
            self._tags.append(tag)
        self._tag_free.set()
        try:
            values: tuple[Any, ...] = row.decode(message)
        except ProtocolError:
            self._waiting[tag] = waiting  # it is told with the others, when the connection is cut
            raise
        if future.done():
            return
        if row.name == "Rlerror":
            sentence: str = values[-1] if len(row.fields) > 1 else os.strerror(values[0])
            future.set_exception(Refused(sentence, values[0]))
        elif row.name == "Rerror":
            known = errno.ENOENT if "no such" in str(values[0]) else errno.EIO
            future.set_exception(Refused(values[0], known))
        elif row.name != "R" + name[1:]:
            raise ProtocolError(f"{row.name} answers {name}")
        else:
            future.set_result(values)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.lost is None:
            self.lost = Gone("the connection ended" + (f": {exc}" if exc else ""))
        waiting, self._waiting = self._waiting, {}
        for future, _ in waiting.values():
            if not future.done():
                future.set_exception(Gone(str(self.lost)))
        self._tag_free.set()
        self._writable.set()
        if self._on_lost is not None:
            self._on_lost()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # ---- one message

    async def rpc(self, name: str, *values: Any) -> tuple[Any, ...]:
        """Send a message, wait for its answer. `Refused` if it is an error, `Gone` if none can come any more."""
        return await self._wait(self._send(name, *values))

    def _send(self, name: str, *values: Any) -> tuple[asyncio.Future[tuple[Any, ...]], int]:
        if self._transport is None:
            raise Gone(str(self.lost) if self.lost else "there is no connection")
        if not self._tags:
            raise Refused("more requests at once than there are tags", errno.EAGAIN)
        tag = NOTAG if name == "Tversion" else self._tags.pop()
        future: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        self._waiting[tag] = future, name
        self._transport.write(self.dialect.by_name[name].encode(tag, *values))
        return future, tag

    async def _wait(self, sent: tuple[asyncio.Future[tuple[Any, ...]], int]) -> tuple[Any, ...]:
        future, tag = sent
        try:
            if not self._writable.is_set():
                await self._writable.wait()
            return await future
        except asyncio.CancelledError:
            if tag in self._waiting and self._transport is not None and self._waiting[tag][0] is future:
                flushed, _ = self._send("Tflush", tag)
                flushed.add_done_callback(lambda f: self._flushed(f, tag, future))
            raise

    def _flushed(self, flushed: asyncio.Future[Any], tag: int, future: asyncio.Future[Any]) -> None:
        if not flushed.cancelled():
            flushed.exception()
        if tag in self._waiting and self._waiting[tag][0] is future:
            del self._waiting[tag]
            self._tags.append(tag)
            self._tag_free.set()

    async def all(self, *sent: tuple[asyncio.Future[tuple[Any, ...]], int]) -> list[tuple[Any, ...]]:
        """Wait for several answers, all of them, then raise the first error if there is one."""
        answers = await asyncio.gather(*(self._wait(one) for one in sent), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    # ---- session

    async def attach(self, aname: str = "", uname: str = "") -> Client:
        """Agree on a version and take the root."""
        self.msize, version = await self.rpc("Tversion", self.msize, self.dialect.version)
        if version != self.dialect.version:
            raise Refused(f"the server speaks {version}, not {self.dialect.version}", errno.EPROTONOSUPPORT)
        extra = (NOFID,) if version != "9P2000" else ()
        await self.rpc("Tattach", ROOT, NOFID, uname, aname, *extra)
        return self

    def fid(self) -> int:
        if not self._fids:
            raise Refused("more files open than there are fids", errno.EMFILE)
        return self._fids.pop()

    def clunk(self, fid: int) -> None:
        """Give a fid back, without waiting: its number is used again when the server has confirmed."""
        if self._transport is None:
            return
        try:
            future, _ = self._send("Tclunk", fid)
        except Refused:
            return  # out of tags: the fid is lost, the session is not

        def done(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and not isinstance(answer.exception(), Gone):  # refused: the server never had it
                self._fids.append(fid)

        future.add_done_callback(done)

    def _walk(
        self, fid: int, path: tuple[str, ...], start: int = ROOT
    ) -> list[tuple[asyncio.Future[tuple[Any, ...]], int]]:
        sent = [self._send("Twalk", start, fid, path[: limits.walk_names])]
        for at in range(limits.walk_names, len(path), limits.walk_names):
            sent.append(self._send("Twalk", fid, fid, path[at : at + limits.walk_names]))
        return sent

    @staticmethod
    def _arrived(answers: list[tuple[Any, ...]], path: tuple[str, ...]) -> Qid | None:
        qids = [qid for answer in answers for qid in answer[0]]
        if len(qids) < len(path):
            raise Refused(f"/{'/'.join(path)}: there is no {path[len(qids)]}", errno.ENOENT)
        return qids[-1] if qids else None

    async def walk(self, path: tuple[str, ...], start: int = ROOT) -> tuple[int, Qid | None]:
        """A new fid for the file; clunk it. The qid is None for the walk of no names."""
        fid = self.fid()
        sent = self._walk(fid, path, start)
        try:
            return fid, self._arrived(await self.all(*sent), path)
        except OSError:
            self.clunk(fid)
            raise
        except asyncio.CancelledError:
            self.clunk(fid)
            raise

    def send_open(self, fid: int, flags: int) -> tuple[asyncio.Future[tuple[Any, ...]], int]:
        if self.dialect.version == "9P2000":
            return self._send("Topen", fid, _MODES[flags & os.O_ACCMODE] | (O_TRUNC_2000 if flags & os.O_TRUNC else 0))
        return self._send("Tlopen", fid, flags)

    # ---- whole files

    async def read(self, path: str) -> bytes:
        """The whole of a file; one round trip up to 64 KiB."""
        names, fid = split(path), self.fid()
        try:
            walked = self._walk(fid, names)
            rest = [self.send_open(fid, os.O_RDONLY), self._send("Tread", fid, 0, min(FIRST, self.msize - 24))]
            answers = await self._settle([*walked, *rest], names, len(walked))
            out = bytearray(answers[-1][0])
            while answers[-1][0]:
                answers = [await self.rpc("Tread", fid, len(out), self.msize - 24)]
                out += answers[0][0]
                if len(out) > limits.GiB:
                    raise Refused(f"{path} is longer than 1 GiB: read it in pieces", errno.EFBIG)
            return bytes(out)
        finally:
            self.clunk(fid)

    async def read_once(self, path: str, count: int = FIRST) -> bytes:
        """What one read of a freshly opened file gives; it may wait. For files that answer a question by blocking."""
        async with self.open(path) as file:
            return await file.read_at(0, count)

    async def write(self, path: str, data: bytes, flags: int = os.O_WRONLY) -> None:
        """Write `data` at the start of a file, one round trip if it fits one message; a refusal is the file's own sentence."""
        names, fid = split(path), self.fid()
        room = self.msize - 24
        try:
            walked = self._walk(fid, names)
            rest = [self.send_open(fid, flags), self._send("Twrite", fid, 0, data[:room])]
            answers = await self._settle([*walked, *rest], names, len(walked))
            at: int = answers[-1][0]
            while at < len(data):
                at += (await self.rpc("Twrite", fid, at, data[at : at + room]))[0]
        finally:
            self.clunk(fid)

    async def _settle(self, sent: list[Any], names: tuple[str, ...], walks: int) -> list[tuple[Any, ...]]:
        """Answers to walks and what follows them. When the walk fell short, what followed failed too, and its reason is the walk's."""
        answers = await asyncio.gather(*(self._wait(one) for one in sent), return_exceptions=True)
        good: list[tuple[Any, ...]] = []
        for i, answer in enumerate(answers):
            if isinstance(answer, Gone) or (isinstance(answer, BaseException) and not isinstance(answer, OSError)):
                raise answer
            if i == walks:
                self._arrived(good, names)
            if isinstance(answer, BaseException):
                raise answer
            good.append(answer)
        return good

    async def ls(self, path: str) -> list[Entry]:
        """The entries of a directory, without `.` and `..`, as the server orders them."""
        async with self.open(path) as directory:
            return await directory.entries()

    async def stat(self, path: str) -> Attr:
        fid, _ = await self.walk(split(path))
        try:
            return (await self.attr(fid))[1]
        finally:
            self.clunk(fid)

    async def attr(self, fid: int) -> tuple[Qid, Attr]:
        if self.dialect.version == "9P2000":
            got, _ = unpack((await self.rpc("Tstat", fid))[0])
            kind = statbits.S_IFDIR if got.qid.type & DIRECTORY else statbits.S_IFREG
            return got.qid, Attr(kind | got.mode & 0o777, got.length, got.mtime * 10**9)
        values = await self.rpc("Tgetattr", fid, 0x7FF)
        _, qid, mode, uid, gid, nlink, _, size, _, _, at, at_ns, mt, mt_ns, ct, ct_ns, *_ = values
        ns = 10**9
        return qid, Attr(mode, size, mt * ns + mt_ns, at * ns + at_ns, ct * ns + ct_ns, nlink, uid, gid)

    @asynccontextmanager
    async def open(self, path: str, flags: int = os.O_RDONLY) -> AsyncGenerator[OpenFile]:
        names, fid = split(path), self.fid()
        try:
            walked = self._walk(fid, names)
            await self._settle([*walked, self.send_open(fid, flags)], names, len(walked))
            yield OpenFile(self, fid)
        finally:
            self.clunk(fid)

    async def create(self, path: str, data: bytes = b"", mode: int = 0o644) -> None:
        """Make a file (or replace its content) and write `data`."""
        *parent, name = split(path)
        fid, _ = await self.walk(tuple(parent))
        try:
            await self.rpc("Tlcreate", fid, name, os.O_WRONLY | os.O_TRUNC, mode, 0)
            file = OpenFile(self, fid)
            for at in range(0, len(data), self.msize - 24):
                await file.write_at(at, data[at : at + self.msize - 24])
        finally:
            self.clunk(fid)

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        *parent, name = split(path)
        fid, _ = await self.walk(tuple(parent))
        try:
            await self.rpc("Tmkdir", fid, name, mode, 0)
        finally:
            self.clunk(fid)

    async def remove(self, path: str, directory: bool = False) -> None:
        *parent, name = split(path)
        fid, _ = await self.walk(tuple(parent))
        try:
            await self.rpc("Tunlinkat", fid, name, 0x200 if directory else 0)
        finally:
            self.clunk(fid)


class OpenFile:
    """An open file of a `Client`; `read` and `write` go on where the last one ended."""

    def __init__(self, client: Client, fid: int) -> None:
        self.client = client
        self.fid = fid
        self.offset = 0

    async def read_at(self, offset: int, count: int) -> bytes:
        return (await self.client.rpc("Tread", self.fid, offset, min(count, self.client.msize - 24)))[0]

    async def read(self, count: int = limits.MiB) -> bytes:
        data = await self.read_at(self.offset, count)
        self.offset += len(data)
        return data

    async def write_at(self, offset: int, data: bytes) -> int:
        return (await self.client.rpc("Twrite", self.fid, offset, data))[0]

    async def write(self, data: bytes) -> None:
        view, room = memoryview(data), self.client.msize - 24
        while view:
            taken = await self.write_at(self.offset, bytes(view[:room]))
            self.offset += taken
            view = view[taken:]

    async def lines(self) -> AsyncIterator[str]:
        """Lines of text as they come; ends when the file does."""
        rest = b""
        while piece := await self.read(64 * limits.KiB):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.decode()
        if rest:
            yield rest.decode()

    async def entries(self) -> list[Entry]:
        if self.client.dialect.version == "9P2000":
            return await self._entries_2000()
        out: list[Entry] = []
        offset = 0
        while block := (await self.client.rpc("Treaddir", self.fid, offset, self.client.msize - 24))[0]:
            at = 0
            while at < len(block):
                kind, version, path, offset, _, length = _DIRENT.unpack_from(block, at)
                at += _DIRENT.size + length
                out.append(Entry(block[at - length : at].decode(), Qid(kind, version, path)))
        return [entry for entry in out if entry.name not in (".", "..")]

    async def _entries_2000(self) -> list[Entry]:
        out: list[Entry] = []
        while block := await self.read(64 * limits.KiB):
            at = 0
            while at < len(block):
                one, at = unpack(block, at)
                out.append(Entry(one.name, one.qid))
        return out


async def connect_unix(path: Path) -> Client:
    """A client attached to the node whose socket this is; `Gone` if nobody answers there."""
    try:
        _, client = await asyncio.get_running_loop().create_unix_connection(Client, str(path))
    except OSError as error:
        raise Gone(f"no node answers at {path} ({os.strerror(error.errno or 0)})") from None
    return await client.attach()
