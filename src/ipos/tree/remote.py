"""A file of another server, reached through a client: what /n/<node> and /net are made of.

A file that is not open is known by its path; each operation walks anew on whatever connection there is now, in one round trip. An open file
outlives its connection: it is opened again on the next one, if what is found there is the same file by its qid. A write whose reply was lost
is never sent again (`Unsure`), and what is read from a stream is not resumed, for nobody knows what was on its way.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Sequence

from ipos.tree.file import DIRECTORY, Attr, Caller, Change, Changeable, Directory, File, Handle, Qid, Statfs
from ipos.tree.ninep import linux
from ipos.tree.ninep.client import Client, OpenFile, Unsure
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

Connect = Callable[[], Awaitable[Client]]
"""The connection of now; raises `Gone` with the sentence that says why there is none."""


class RemoteFile(Directory, Changeable):
    """The file `path` of the server that `connect` reaches."""

    def __init__(self, connect: Connect, path: tuple[str, ...], qid: Qid) -> None:
        self._connect = connect
        self._path = path
        self.qid = qid

    async def attr(self) -> Attr:
        qid, attr = await (await self._connect()).stat_at(self._path)
        self.qid = (
            qid if self._path else self.qid._replace(version=qid.version)
        )  # of all servers' roots one is the 1st file
        return attr

    async def walk(self, name: str) -> File:
        client = await self._connect()
        path = (*self._path, name)
        fid, qid = await client.walk(path)
        client.clunk(fid)
        return RemoteFile(self._connect, path, qid or self.qid)

    async def open(self, caller: Caller, flags: int) -> Handle:
        client = await self._connect()
        file, qid = await client.opened(self._path, flags)
        return RemoteHandle(self._connect, self._path, client, file, qid, flags)

    async def create(self, caller: Caller, name: str, flags: int, mode: int) -> tuple[File, Handle]:
        client = await self._connect()
        path = (*self._path, name)
        file, qid = await client.created(path, flags, mode)
        handle = RemoteHandle(self._connect, path, client, file, qid, flags)
        return RemoteFile(self._connect, path, qid), handle

    async def _here(self, *request: object) -> tuple[object, ...]:
        """One request of this file; what 9P2000 has no message for is refused."""
        return await (await self._connect()).at(self._path, *request)

    async def mkdir(self, caller: Caller, name: str, mode: int) -> File:
        client = await self._connect()
        (qid,) = await client.at(self._path, "Tmkdir", name, mode, 0)
        return RemoteFile(self._connect, (*self._path, name), qid)

    async def remove(self, caller: Caller, name: str, directory: bool) -> None:
        await (await self._connect()).remove("/".join((*self._path, name)), directory)

    async def symlink(self, caller: Caller, name: str, target: str) -> File:
        client = await self._connect()
        (qid,) = await client.at(self._path, "Tsymlink", name, target, 0)
        return RemoteFile(self._connect, (*self._path, name), qid)

    async def readlink(self) -> str:
        return str((await self._here("Treadlink"))[0])

    async def statfs(self) -> Statfs:
        client = await self._connect()
        return Statfs(*await client.at(self._path, "Tstatfs"))

    def _same_server(self, name: str, other: File) -> RemoteFile:
        if not isinstance(other, RemoteFile) or other._connect is not self._connect:
            raise Refused(f"{name}: cannot be moved or linked to another machine; copy it", errno.EXDEV)
        return other

    async def rename(self, caller: Caller, name: str, to: Directory, new: str) -> None:
        target = self._same_server(name, to)
        await (await self._connect()).rename("/".join((*self._path, name)), "/".join((*target._path, new)))

    async def link(self, caller: Caller, name: str, file: File) -> None:
        target = self._same_server(name, file)
        client = await self._connect()
        fid, _ = await client.walk(target._path)
        try:
            await client.at(self._path, "Tlink", fid, name)
        finally:
            client.clunk(fid)

    async def change(self, caller: Caller, change: Change) -> None:
        valid, times = 0, list[int]()
        for value, bit in (
            (change.mode, linux.MODE), (change.uid, linux.UID), (change.gid, linux.GID), (change.size, linux.SIZE),
        ):  # fmt: skip
            valid |= bit if value is not None else 0
        for value, bit, given in (
            (change.atime_ns, linux.ATIME, linux.ATIME_SET), (change.mtime_ns, linux.MTIME, linux.MTIME_SET),
        ):  # fmt: skip
            valid |= 0 if value is None else bit if value == linux.NOW else bit | given
            times += divmod(value, 10**9) if value is not None and value != linux.NOW else (0, 0)
        if valid:
            await self._here(
                "Tsetattr", valid, change.mode or 0, change.uid or 0, change.gid or 0, change.size or 0, *times
            )


class RemoteHandle(Handle):
    def __init__(
        self, connect: Connect, path: tuple[str, ...], client: Client, file: OpenFile, qid: Qid, flags: int
    ) -> None:
        self._connect = connect
        self._path = path
        self._client = client
        self._file = file
        self._qid = qid
        self._flags = flags & ~(os.O_TRUNC | os.O_EXCL | os.O_CREAT)
        self._wrote = self._left_writes = False
        self.whole = file.whole and client.msize >= limits.msize_bytes

    async def read(self, offset: int, count: int) -> bytes:
        try:
            if self._client.lost is None:
                return await self._file.read_at(offset, count)
        except Gone:
            if not self._file.whole:
                raise
        await self._again()
        return await self._file.read_at(offset, count)

    async def write(self, offset: int, data: bytes) -> int:
        if self._client.lost is not None:
            await self._again()
        room = self._client.msize - linux.IO_HEAD
        self._wrote = True
        taken = await self._file.write_at(offset, data[:room])
        if data and not 0 < taken <= len(data):
            raise Refused(f"the server says it took {taken} of {len(data)} bytes", errno.EIO)
        return taken

    async def _again(self) -> None:
        """Open the same file on a new connection."""
        name = "/" + "/".join(self._path)
        if not self._file.whole:
            raise Gone(f"{name}: the connection ended, and a stream is not resumed")
        client = await self._connect()
        if client is self._client or client.lost is not None:
            raise Gone(str(self._client.lost))
        file, qid = await client.opened(self._path, self._flags)
        if (qid.type, qid.path) != (self._qid.type, self._qid.path):
            client.clunk(file.fid)
            raise Refused(f"{name}: is another file than the one that was open when the connection ended", errno.ESTALE)
        self._client, self._file = client, file
        self._left_writes, self._wrote = self._left_writes or self._wrote, False

    async def entries(self) -> Sequence[tuple[str, File]]:
        return [
            (entry.name, RemoteFile(self._connect, (*self._path, entry.name), entry.qid))
            for entry in await self._file.entries()
        ]

    async def sync(self) -> None:
        """`Unsure` if the connection is another than the one that was written to: what it took may be lost."""
        if self._client.lost is not None or self._left_writes:
            raise Unsure("the connection ended since the last sync: what was written before may not be on disk")
        self._wrote = False
        if self._client.dialect.linux:
            await self._client.rpc("Tfsync", self._file.fid, 0)

    async def close(self) -> None:
        self._client.clunk(self._file.fid)


def remote(connect: Connect) -> RemoteFile:
    """The root of the server that `connect` reaches."""
    path = int.from_bytes(os.urandom(7), "little")
    return RemoteFile(connect, (), Qid(DIRECTORY, 0, path))
