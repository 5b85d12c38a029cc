"""/srv: where any program of the owner posts a file server, and everybody reaches it by name.

A program creates `/srv/NAME` and writes one line to it, `unix PATH [version=V] [aname=TREE] [uname=USER]`; from then on `/srv/NAME` is the
root of the server that listens at PATH, whatever dialect of 9P it speaks. It is connected to by the first walk into it and again when its
program was started anew, for all attaches in common; `rm` takes the name away. Nothing is believed of it: it answers in time or is cut off.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from ipos.tree.file import Attr, Caller, File, Handle, writable
from ipos.tree.ninep.calls import Sent
from ipos.tree.ninep.client import Client
from ipos.tree.ninep.codec import ALL
from ipos.tree.ninep.fids import checked
from ipos.tree.ninep.transport import UNIX_PATH_BYTES
from ipos.tree.remote import RemoteFile, remote
from ipos.tree.synthetic import Dir, Text, new_qid
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

STATUS = "status"
VERSIONS = ("9P2000.L.ipos", "9P2000.L", "9P2000.u", "9P2000")
FORM = "unix PATH [version=9P2000.L] [aname=TREE] [uname=USER]"
_MAY_WAIT = {"Tread", "Twrite"}


class Post(NamedTuple):
    """What was written to `/srv/NAME`. `version`: "" tries all, the best first."""

    path: str
    version: str = ""
    aname: str = ""
    uname: str = ""

    def __str__(self) -> str:
        options = ((key, getattr(self, key)) for key in ("version", "aname", "uname"))
        return " ".join(["unix", self.path, *(f"{key}={value}" for key, value in options if value)])


def parse(line: str) -> Post:
    """`Refused` names the word that is wrong."""
    match line.split():
        case ["unix", path, *options]:
            pass
        case _:
            raise Refused(f"{line.strip()[:200]!r} does not say where a server listens: {FORM}")
    if not path.startswith("/") or len(path.encode()) > UNIX_PATH_BYTES or "\0" in path:
        raise Refused(f"{path[:120]!r} is not the path of a socket: from the root, at most {UNIX_PATH_BYTES} bytes")
    values = dict[str, str]()
    for option in options:
        key, found, value = option.partition("=")
        if key not in ("version", "aname", "uname") or not found:
            raise Refused(f"{option[:80]!r} is not an option of a posted server: {FORM}")
        values[key] = value
    if values.get("version", "9P2000") not in ALL:
        raise Refused(f"{values['version'][:40]!r} is not a version of 9P known here: {', '.join(VERSIONS)}")
    return Post(path, **values)


class PostedClient(Client):
    """A client that trusts its server with nothing: every answer but those of reads and writes is due in `limits.posted_answer_s`."""

    def __init__(self, name: str, on_lost: Callable[[], None] | None = None) -> None:
        super().__init__(on_lost=on_lost)
        self.name = name
        self.entries_most = limits.posted_entries

    @property
    def ordered(self) -> bool:
        return self.dialect.version == "9P2000.L.ipos"  # a promise that only our own dialect makes

    async def wait(self, sent: Sent) -> tuple[Any, ...]:
        waiting = self._waiting.get(sent[1])
        if waiting is None or waiting[1] in _MAY_WAIT:
            return await super().wait(sent)
        said = f"/srv/{self.name} has not answered {waiting[1]} for {limits.posted_answer_s:g} s and was cut off"
        timer = asyncio.get_running_loop().call_later(limits.posted_answer_s, self.cut, said)
        try:
            return await super().wait(sent)
        finally:
            timer.cancel()

    async def agree(self, post: Post) -> None:
        """Find a version that both speak, and attach."""
        answer = ""
        for version in (post.version,) if post.version else VERSIONS:
            self.dialect = ALL[
                version.removesuffix(".ipos")
            ]  # a stranger to ours may answer with an error, without a sentence
            try:
                _, answer = await self.rpc("Tversion", limits.msize_bytes, version)
            except Gone:
                raise
            except Refused as refused:
                answer = str(refused)
            if answer in ALL:
                break
        else:
            known = post.version or "9P2000"
            raise Refused(f"it answers {known} with {answer[:80]!r}", errno.EPROTONOSUPPORT)
        self.dialect = ALL[answer]
        await self.attach(post.aname, post.uname or "ipos", os.getuid())


class _Posted:
    """One posted server, and the connection to it that all share."""

    def __init__(self, name: str, post: Post) -> None:
        self.name = name
        self.post = post
        self.client: PostedClient | None = None
        self.why = "nobody has walked there yet"
        self._connecting = asyncio.Lock()

    async def connect(self) -> PostedClient:
        async with self._connecting:
            if self.client is None or self.client.lost is not None:
                self.client = await self._connected()
            return self.client

    async def _connected(self) -> PostedClient:
        client = PostedClient(self.name)
        try:
            async with asyncio.timeout(limits.posted_connect_s):
                loop = asyncio.get_running_loop()
                await loop.create_unix_connection(lambda: client, self.post.path)
                await client.agree(self.post)
        except TimeoutError:
            self.why = f"it did not answer within {limits.posted_connect_s:g} s"
        except OSError as error:
            self.why = str(error) if isinstance(error, Refused) else os.strerror(error.errno or 0)
        else:
            return client
        client.cut(self.why)
        raise Gone(
            f"/srv/{self.name}: no file server at {self.post.path}: {self.why} (start its program again, or rm /srv/{self.name})"
        )

    def line(self) -> dict[str, object]:
        client = self.client
        up = client is not None and client.lost is None
        said = {"connected": up, "version": client.dialect.version if up and client is not None else None}
        why = None if up else str(client.lost) if client is not None else self.why
        return {"name": self.name, "post": str(self.post), **said, "why": why}

    def end(self) -> None:
        if self.client is not None:
            self.client.cut(f"/srv/{self.name} was removed")


class Srv(Dir):
    """The directory /srv. Only the owner, on the node's own socket, posts; his other machines may use what is posted."""

    def __init__(self) -> None:
        super().__init__({STATUS: Text(self._status)}, self._names, self._find)
        self._empty: dict[str, File] = {}
        self._posted: dict[str, tuple[_Posted, RemoteFile]] = {}

    async def attr(self) -> Attr:
        return Attr(stat.S_IFDIR | 0o755, nlink=2)

    def _status(self) -> str:
        return "".join(json.dumps(posted.line()) + "\n" for posted, _ in self._posted.values())

    def _names(self) -> list[str]:
        return [*self._empty, *self._posted]

    def _find(self, name: str) -> File | None:
        found = self._posted.get(name)
        return self._empty.get(name) if found is None else found[1]

    async def create(self, caller: Caller, name: str, flags: int, mode: int) -> tuple[File, Handle]:
        _owner(caller)
        checked(name)
        file = self.look(name)
        if file is None:
            if len(self._names()) >= limits.posted_servers:
                raise Refused(f"{name}: more than {limits.posted_servers} names in /srv: rm some", errno.ENOSPC)
            file = self._empty[name] = _Name(self, name)
        elif flags & os.O_EXCL or not isinstance(file, _Name):
            raise Refused(f"/srv/{name} is there already: rm /srv/{name} first", errno.EEXIST)
        return file, await file.open(caller, flags)

    async def remove(self, caller: Caller, name: str, directory: bool) -> None:
        """Also with `rm`, although a posted name is a directory: what is removed is the name."""
        _owner(caller)
        if name == STATUS:
            raise Refused("status: says what is posted, and stays", errno.EPERM)
        if self._empty.pop(name, None) is None:
            found = self._posted.pop(name, None)
            if found is None:
                raise Refused(f"{name}: no such file", errno.ENOENT)
            found[0].end()

    def post(self, name: str, post: Post) -> None:
        if self._empty.pop(name, None) is None:
            raise Refused(f"/srv/{name} was removed, or posted by somebody else, in the meantime", errno.ENOENT)
        self._posted[name] = _Posted(name, post), remote(lambda: self._connect(name))

    async def _connect(self, name: str) -> Client:
        found = self._posted.get(name)
        if found is None:
            raise Gone(f"/srv/{name}: nothing is posted there any more")
        return await found[0].connect()

    def close(self) -> None:
        for posted, _ in self._posted.values():
            posted.end()


def _owner(caller: Caller) -> None:
    if not caller.local:
        raise Refused("file servers are posted by this machine's own programs, on the node's own socket", errno.EPERM)


class _Name(File):
    """A name in /srv that nothing is posted under yet."""

    def __init__(self, srv: Srv, name: str) -> None:
        self.qid = new_qid()
        self.srv, self.name = srv, name

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o600)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags):
            _owner(caller)
        return _NameHandle(self)


class _NameHandle(Handle):
    whole = True

    def __init__(self, name: _Name) -> None:
        self._name = name

    async def read(self, offset: int, count: int) -> bytes:
        return b""

    async def write(self, offset: int, data: bytes) -> int:
        if len(data) > limits.ctl_line_bytes:
            raise Refused(f"{len(data)} bytes; one line was expected: {FORM}", errno.EMSGSIZE)
        try:
            line = data.decode()
        except UnicodeDecodeError:
            raise Refused(f"bytes that are no text; one line was expected: {FORM}") from None
        self._name.srv.post(self._name.name, parse(line))
        return len(data)
