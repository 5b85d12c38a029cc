"""A file of another server, reached through a client: what /n/<node> and /net are made of.

A file is known by its path; each operation walks anew on whatever connection there is now, so a lost connection spoils open files only.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence

from ipos.tree.file import DIRECTORY, Attr, Caller, Change, Changeable, Directory, File, Handle, Qid
from ipos.tree.ninep.client import Client, OpenFile
from ipos.wire.errors import Refused

Connect = Callable[[], Awaitable[Client]]
"""The connection of now; raises `Gone` with the sentence that says why there is none."""


class RemoteFile(Directory, Changeable):
    """The file `path` of the server that `connect` reaches."""

    def __init__(self, connect: Connect, path: tuple[str, ...], qid: Qid) -> None:
        self._connect = connect
        self._path = path
        self.qid = qid

    async def attr(self) -> Attr:
        client = await self._connect()
        fid, _ = await client.walk(self._path)
        try:
            self.qid, attr = await client.attr(fid)
            return attr
        finally:
            client.clunk(fid)

    async def walk(self, name: str) -> File:
        client = await self._connect()
        path = (*self._path, name)
        fid, qid = await client.walk(path)
        client.clunk(fid)
        return RemoteFile(self._connect, path, qid or self.qid)

    async def open(self, caller: Caller, flags: int) -> Handle:
        client = await self._connect()
        fid, _ = await client.walk(self._path)
        try:
            await client.all(client.send_open(fid, flags))
        except BaseException:
            client.clunk(fid)
            raise
        return RemoteHandle(self._connect, self._path, client, fid)

    async def create(self, caller: Caller, name: str, flags: int, mode: int) -> tuple[File, Handle]:
        client = await self._connect()
        fid, _ = await client.walk(self._path)
        try:
            qid, _ = await client.rpc("Tlcreate", fid, name, flags, mode, 0)
        except BaseException:
            client.clunk(fid)
            raise
        path = (*self._path, name)
        return RemoteFile(self._connect, path, qid), RemoteHandle(self._connect, path, client, fid)

    async def mkdir(self, caller: Caller, name: str, mode: int) -> File:
        client = await self._connect()
        await client.mkdir("/".join((*self._path, name)), mode)
        return await self.walk(name)

    async def remove(self, caller: Caller, name: str, directory: bool) -> None:
        client = await self._connect()
        await client.remove("/".join((*self._path, name)), directory)

    async def rename(self, caller: Caller, name: str, to: Directory, new: str) -> None:
        if not isinstance(to, RemoteFile) or to._connect is not self._connect:
            raise Refused(f"{name}: cannot be moved to another machine; copy it", 18)
        client = await self._connect()
        one, _ = await client.walk(self._path)
        two, _ = await client.walk(to._path)
        try:
            await client.rpc("Trenameat", one, name, two, new)
        finally:
            client.clunk(one)
            client.clunk(two)

    async def change(self, caller: Caller, change: Change) -> None:
        if change.size is None and change.mode is None:
            return
        client = await self._connect()
        fid, _ = await client.walk(self._path)
        valid = (1 if change.mode is not None else 0) | (8 if change.size is not None else 0)
        try:
            await client.rpc("Tsetattr", fid, valid, change.mode or 0, 0, 0, change.size or 0, 0, 0, 0, 0)
        finally:
            client.clunk(fid)


class RemoteHandle(Handle):
    def __init__(self, connect: Connect, path: tuple[str, ...], client: Client, fid: int) -> None:
        self._connect = connect
        self._path = path
        self._client = client
        self._file = OpenFile(client, fid)

    async def read(self, offset: int, count: int) -> bytes:
        return await self._file.read_at(offset, count)

    async def write(self, offset: int, data: bytes) -> int:
        room = self._client.msize - 24
        return await self._file.write_at(offset, data[:room])

    async def entries(self) -> Sequence[tuple[str, File]]:
        return [
            (entry.name, RemoteFile(self._connect, (*self._path, entry.name), entry.qid))
            for entry in await self._file.entries()
        ]

    async def sync(self) -> None:
        await self._client.rpc("Tfsync", self._file.fid, 0)

    async def close(self) -> None:
        self._client.clunk(self._file.fid)


def remote(connect: Connect) -> RemoteFile:
    """The root of the server that `connect` reaches."""
    path = int.from_bytes(os.urandom(7), "little")
    return RemoteFile(connect, (), Qid(DIRECTORY, 0, path))
