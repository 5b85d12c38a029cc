"""A 9P client: 9P2000.L.ipos and .L towards nodes, 9P2000 towards `ipos-netd`. Everything is pipelined.

An operation on a path sends its walk, open, transfers and clunk in one packet and relies on the server's order per fid, so it costs one round
trip; a long file is read ahead. A call that is cancelled is flushed. A connection that ends makes every waiting call raise `Gone`; nothing is
ever sent twice, and who waited for a mutation gets `Unsure`: it may have happened.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat as statbits
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ipos.tree.file import DIRECTORY, Attr, Qid
from ipos.tree.ninep.calls import O_TRUNC_2000, Connection, Sent, Unsure, first_error
from ipos.tree.ninep.codec import ProtocolError
from ipos.tree.ninep.messages import NOFID
from ipos.tree.ninep.opened import IO_HEAD, Entry, OpenFile, took
from ipos.tree.ninep.stat import unpack
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

__all__ = ["Client", "Entry", "OpenFile", "Unsure", "connect_unix", "split"]

ROOT = 0
FIRST = 64 * limits.KiB  # what `read` asks for before it knows how long the file is
_MODES = {os.O_RDONLY: 0, os.O_WRONLY: 1, os.O_RDWR: 2}

Request = tuple[Any, ...]  # a message's name and its fields behind the fid


def split(path: str) -> tuple[str, ...]:
    """`/a//b/` -> ("a", "b")."""
    return tuple(name for name in path.split("/") if name and name != ".")


class Client(Connection):
    """Make it the protocol of a connection, then `await attach()`. `close()` when done."""

    entries_most = (
        limits.directory_entries
    )  # of one directory; a server that never comes to an end is no reason to run out of memory

    # ---- session

    async def attach(self, aname: str = "", uname: str = "", uid: int = NOFID) -> Client:
        """Agree on a version and take the root. Foreign servers want to know who: `uname`, or `uid`."""
        msize, version = await self.rpc("Tversion", self.msize, self.dialect.version)
        if not limits.msize_least_bytes <= msize <= self.msize:
            raise self.broken(
                ProtocolError(f"an msize of {msize} bytes; {limits.msize_least_bytes} to {self.msize} was asked")
            )
        self.msize = msize
        if version != self.dialect.version:
            raise Refused(f"the server speaks {version}, not {self.dialect.version}", errno.EPROTONOSUPPORT)
        extra = (uid,) if version != "9P2000" else ()
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
            future, _ = self.send("Tclunk", fid)
        except Refused:
            return  # out of tags: the fid is lost, the session is not

        def done(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and not isinstance(answer.exception(), Gone):  # refused: the server never had it
                self._fids.append(fid)

        future.add_done_callback(done)

    def released(self, fid: int) -> None:
        """The server has let go of this fid already."""
        self._fids.append(fid)

    def _walk(self, fid: int, path: tuple[str, ...], start: int = ROOT) -> list[Sent]:
        """Walk to `path`. A long one goes by fids of its own: one that falls short must not leave `fid` half way, where what is sent
        behind it would hit the wrong file."""
        cuts = range(0, max(len(path), 1), limits.walk_names)
        sent = list[Sent]()
        for at in cuts:
            to = fid if at == cuts[-1] else self.fid()
            sent.append(self.send("Twalk", start, to, path[at : at + limits.walk_names]))
            if at:
                self.clunk(start)
            start = to
        return sent

    @staticmethod
    def _arrived(answers: Sequence[tuple[Any, ...]], path: tuple[str, ...]) -> Qid | None:
        qids = [qid for answer in answers for qid in answer[0]]
        if len(qids) < len(path):
            raise Refused(f"/{'/'.join(path)}: there is no {path[len(qids)]}", errno.ENOENT)
        return qids[-1] if qids else None

    async def walk(self, path: tuple[str, ...], start: int = ROOT) -> tuple[int, Qid | None]:
        """A new fid for the file; clunk it. The qid is None for the walk of no names."""
        fid = self.fid()
        try:
            return fid, (await self.trip(fid, path, start=start))[1]
        except BaseException:
            self.clunk(fid)
            raise

    async def trip(
        self, fid: int, path: tuple[str, ...], *requests: Request, start: int = ROOT
    ) -> tuple[list[tuple[Any, ...]], Qid | None]:
        """Walk `fid` to `path` and make requests of it, in one round trip: their answers, and the qid of the file (None: the root).

        When the walk falls short, what follows fails too, and the reason is the walk's."""
        if not self.ordered:
            return await self._steps(fid, path, requests, start)
        walks = self._walk(fid, path, start)
        sent = [*walks, *(self.send(name, fid, *values) for name, *values in requests)]
        answers = await asyncio.gather(*(self.wait(one) for one in sent), return_exceptions=True)
        first_error([answer for answer in answers if isinstance(answer, Gone) or not isinstance(answer, OSError)])
        begun, rest = answers[: len(walks)], answers[len(walks) :]
        if isinstance(begun[0], BaseException):
            raise begun[0]
        walked = [answer for answer in begun if not isinstance(answer, BaseException)]
        qid = self._arrived(walked, path)
        first_error(answers)
        return [answer for answer in rest if not isinstance(answer, BaseException)], qid

    @property
    def ordered(self) -> bool:
        """Whether the server keeps the order per fid: nodes and ipos-netd do, diod's threads do not."""
        return self.dialect.version in ("9P2000", "9P2000.L.ipos")

    async def _steps(
        self, fid: int, path: tuple[str, ...], requests: Sequence[Request], start: int
    ) -> tuple[list[tuple[Any, ...]], Qid | None]:
        """`trip` one answer at a time."""
        answers, at = [await self.rpc("Twalk", start, fid, path[: limits.walk_names])], limits.walk_names
        self._arrived(answers, path[:at])
        while at < len(path):  # a walk that falls short leaves the fid where it was, and nothing is sent behind it
            answers.append(await self.rpc("Twalk", fid, fid, path[at : at + limits.walk_names]))
            at += limits.walk_names
            self._arrived(answers, path[:at])
        return [await self.rpc(name, fid, *values) for name, *values in requests], self._arrived(answers, path)

    def open_request(self, flags: int) -> Request:
        if self.dialect.version.startswith("9P2000.L"):
            return "Tlopen", flags
        return "Topen", _MODES[flags & os.O_ACCMODE] | (O_TRUNC_2000 if flags & os.O_TRUNC else 0)

    def send_open(self, fid: int, flags: int) -> Sent:
        name, *values = self.open_request(flags)
        return self.send(name, fid, *values)

    def is_whole(self, opened: tuple[Any, ...]) -> bool:
        """Whether a short read of this file is its end: our own dialect says so by an iounit."""
        return self.dialect.version == "9P2000.L.ipos" and opened[1] > 0

    # ---- whole files

    async def read(self, path: str) -> bytes:
        """The whole of a file; one round trip up to 64 KiB, and a few more for the next hundred MiB."""
        fid, first = self.fid(), min(FIRST, self.msize - IO_HEAD)
        try:
            (opened, (data,)), _ = await self.trip(
                fid, split(path), self.open_request(os.O_RDONLY), ("Tread", 0, first)
            )
            file, out = OpenFile(self, fid, self.is_whole(opened)), bytearray(data)
            file.offset = len(data)
            ended = len(data) < first if file.whole else not data
            while not ended:
                piece = await file.read()
                ended = not piece
                out += piece
                if len(out) > limits.GiB:
                    raise Refused(f"{path} is longer than 1 GiB: read it in pieces", errno.EFBIG)
            file.stop()
            return bytes(out)
        finally:
            self.clunk(fid)

    async def read_once(self, path: str, count: int = FIRST) -> bytes:
        """What one read of a freshly opened file gives; it may wait. For files that answer a question by blocking."""
        fid = self.fid()
        try:
            count = min(count, self.msize - IO_HEAD)
            answers, _ = await self.trip(fid, split(path), self.open_request(os.O_RDONLY), ("Tread", 0, count))
            return answers[1][0]
        finally:
            self.clunk(fid)

    async def write(self, path: str, data: bytes, flags: int = os.O_WRONLY) -> None:
        """Write `data` at the start of a file, one round trip if it fits one message; a refusal is the file's own sentence."""
        fid, room = self.fid(), self.msize - IO_HEAD
        try:
            answers, _ = await self.trip(fid, split(path), self.open_request(flags), ("Twrite", 0, data[:room]))
            at = took(answers[1][0]) if data else 0
            while at < len(data):
                at += took((await self.rpc("Twrite", fid, at, data[at : at + room]))[0])
        finally:
            self.clunk(fid)

    async def ls(self, path: str) -> list[Entry]:
        """The entries of a directory, without `.` and `..`, as the server orders them; one round trip where they fit one message."""
        fid, room = self.fid(), self.msize - IO_HEAD
        read: Request = ("Treaddir", 0, room) if self.dialect.linux else ("Tread", 0, room)
        try:
            (opened, (block,)), _ = await self.trip(fid, split(path), self.open_request(os.O_RDONLY), read)
            return await OpenFile(self, fid, self.is_whole(opened)).entries(block)
        finally:
            self.clunk(fid)

    async def stat(self, path: str) -> Attr:
        return (await self.stat_at(split(path)))[1]

    async def stat_at(self, path: tuple[str, ...]) -> tuple[Qid, Attr]:
        fid = self.fid()
        try:
            (answer,), _ = await self.trip(fid, path, ("Tgetattr", 0x7FF) if self.dialect.linux else ("Tstat",))
            return self._attr(answer)
        finally:
            self.clunk(fid)

    async def attr(self, fid: int) -> tuple[Qid, Attr]:
        return self._attr(await (self.rpc("Tgetattr", fid, 0x7FF) if self.dialect.linux else self.rpc("Tstat", fid)))

    def _attr(self, answer: tuple[Any, ...]) -> tuple[Qid, Attr]:
        if not self.dialect.linux:
            try:
                got, _ = unpack(answer[0], u=self.dialect.version == "9P2000.u")
            except ProtocolError as error:
                raise self.broken(error) from None
            kind = statbits.S_IFDIR if got.qid.type & DIRECTORY else statbits.S_IFREG
            return got.qid, Attr(kind | got.mode & 0o777, got.length, got.mtime * 10**9)
        _, qid, mode, uid, gid, nlink, _, size, _, _, at, at_ns, mt, mt_ns, ct, ct_ns, *_ = answer
        ns = 10**9
        return qid, Attr(mode, size, mt * ns + mt_ns, at * ns + at_ns, ct * ns + ct_ns, nlink, uid, gid)

    @asynccontextmanager
    async def open(self, path: str, flags: int = os.O_RDONLY) -> AsyncGenerator[OpenFile]:
        file, _ = await self.opened(split(path), flags)
        try:
            yield file
        finally:
            file.stop()
            self.clunk(file.fid)

    async def opened(self, path: tuple[str, ...], flags: int) -> tuple[OpenFile, Qid]:
        """An open file and what it is; clunk its fid."""
        fid = self.fid()
        try:
            (answer,), _ = await self.trip(fid, path, self.open_request(flags))
            return OpenFile(self, fid, self.is_whole(answer)), answer[0]
        except BaseException:
            self.clunk(fid)
            raise

    async def created(self, path: tuple[str, ...], flags: int, mode: int) -> tuple[OpenFile, Qid]:
        """A new file, open, and what it is; clunk its fid."""
        fid = self.fid()
        request = ("Tlcreate", path[-1], flags, mode, 0)
        if not self.dialect.linux:
            extension = ("",) if self.dialect.version == "9P2000.u" else ()
            request = ("Tcreate", path[-1], mode, _MODES[flags & os.O_ACCMODE], *extension)
        try:
            (answer,), _ = await self.trip(fid, path[:-1], request)
            return OpenFile(self, fid, self.is_whole(answer)), answer[0]
        except BaseException:
            self.clunk(fid)
            raise

    async def create(self, path: str, data: bytes = b"", mode: int = 0o644) -> None:
        """Make a file (or replace its content) and write `data`."""
        file, _ = await self.created(_entry(path), os.O_WRONLY | os.O_TRUNC, mode)
        try:
            await file.write(data)
        finally:
            self.clunk(file.fid)

    async def at(self, path: tuple[str, ...], *request: Any) -> tuple[Any, ...]:
        """One request of the file at `path`, in one round trip."""
        fid = self.fid()
        try:
            return (await self.trip(fid, path, request))[0][0]
        finally:
            self.clunk(fid)

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        *parent, name = _entry(path)
        await self.at(tuple(parent), "Tmkdir", name, mode, 0)

    async def remove(self, path: str, directory: bool = False) -> None:
        *parent, name = _entry(path)
        try:
            await self.at(tuple(parent), "Tunlinkat", name, 0x200 if directory else 0)
        except Refused as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            fid, _ = await self.walk(_entry(path))  # 9P2000, and diod before 1.1
            try:
                await self.rpc("Tremove", fid)
            finally:
                self.released(fid)

    async def rename(self, old: str, new: str) -> None:
        """Both on one file system of the server. Two round trips."""
        *source, one = _entry(old)
        *to, two = _entry(new)
        second, _ = await self.walk(tuple(to))
        try:
            try:
                await self.at(tuple(source), "Trenameat", one, second, two)
            except Refused as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                await self.at(_entry(old), "Trename", second, two)
        finally:
            self.clunk(second)


def _entry(path: str) -> tuple[str, ...]:
    names = split(path)
    if not names:
        raise Refused(f"{path!r} is the root, which is there already and stays", errno.EEXIST)
    return names


async def connect_unix(path: Path, aname: str = "") -> Client:
    """A client attached to the node whose socket this is; `Gone` if nobody answers there. `aname`: "#/" is the tree without the namespace
    of its owner."""
    try:
        _, client = await asyncio.get_running_loop().create_unix_connection(Client, str(path))
    except OSError as error:
        raise Gone(f"no node answers at {path} ({os.strerror(error.errno or 0)})") from None
    return await client.attach(aname)
