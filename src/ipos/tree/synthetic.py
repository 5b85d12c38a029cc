"""Building blocks of file servers: directories, status and control files, event files, and Plan 9's clone idiom."""

from __future__ import annotations

import asyncio
import errno
import inspect
import itertools
import logging
import os
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from ipos.tree.file import APPEND_ONLY, DIRECTORY, Attr, Caller, Directory, File, Handle, Qid, readable, writable
from ipos.wire import limits
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.tree")

_paths = itertools.count(int.from_bytes(os.urandom(4), "little") << 32)  # a node that was restarted has other files
BACKLOG_LINES = 20_000  # a reader of events that lags behind by more starts anew


def new_qid(kind: int = 0) -> Qid:
    return Qid(kind, 0, next(_paths))


class Dir(Directory):
    """A directory of given files; `more` adds names that come and go (`names` lists them, `find` gives the file or None)."""

    def __init__(
        self,
        files: Mapping[str, File] | None = None,
        names: Callable[[], Iterable[str]] | None = None,
        find: Callable[[str], File | None] | None = None,
    ) -> None:
        self.qid = new_qid(DIRECTORY)
        self.files = dict(files or {})
        self._names = names
        self._find = find

    async def attr(self) -> Attr:
        return Attr(stat.S_IFDIR | 0o555, nlink=2)

    def look(self, name: str) -> File | None:
        return self.files.get(name) or (self._find(name) if self._find is not None else None)

    async def walk(self, name: str) -> File:
        file = self.look(name)
        if file is None:
            raise Refused(f"{name}: no such file", errno.ENOENT)
        return file

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags):
            raise Refused("a directory cannot be opened for writing", errno.EISDIR)
        return _Listing(self)

    def listing(self) -> list[tuple[str, File]]:
        dynamic = (
            []
            if self._names is None
            else [(name, file) for name in self._names() if (file := self.look(name)) is not None]
        )
        return [*self.files.items(), *dynamic]


class _Listing(Handle):
    whole = True

    def __init__(self, directory: Dir) -> None:
        self._directory = directory

    async def entries(self) -> Sequence[tuple[str, File]]:
        return self._directory.listing()


Read = Callable[[], str | bytes | Awaitable[str | bytes]]
Command = Callable[[Caller, str], Awaitable[None] | None]


class Text(File):
    """A file whose content is made when it is opened, and whose written lines are commands, one at a time, refused with a sentence."""

    def __init__(self, read: Read | None = None, write: Command | None = None) -> None:
        self.qid = new_qid()
        self._read = read
        self._write = write

    async def attr(self) -> Attr:
        mode = (0o444 if self._read else 0) | (0o222 if self._write else 0)
        return Attr(stat.S_IFREG | mode)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags) and self._write is None:
            raise Refused("this file cannot be written", errno.EACCES)
        if readable(flags) and self._read is None and not writable(flags):
            raise Refused("this file cannot be read", errno.EACCES)
        content: str | bytes = b""
        if readable(flags) and self._read is not None:
            made = self._read()
            content = await made if inspect.isawaitable(made) else made
        body = content.encode() if isinstance(content, str) else content
        return _TextHandle(body, caller, self._write)


class _TextHandle(Handle):
    whole = True

    def __init__(self, body: bytes, caller: Caller, command: Command | None) -> None:
        self._body = body
        self._caller = caller
        self._command = command

    async def read(self, offset: int, count: int) -> bytes:
        return self._body[offset : offset + count]

    async def write(self, offset: int, data: bytes) -> int:
        if self._command is None:
            raise Refused("this file is not open for writing", errno.EBADF)
        if len(data) > limits.ctl_line_bytes:
            raise Refused(f"{len(data)} bytes of commands at once, the most is {limits.ctl_line_bytes}", errno.EMSGSIZE)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise Refused("a command that is not UTF-8 text") from None
        for line in text.splitlines():
            try:
                done = self._command(self._caller, line)
                if inspect.isawaitable(done):
                    await done
            except Refused as refused:
                log.info("refused: %s", refused)  # plain 9P2000.L carries only its errno
                raise
        return len(data)


class Events(File):
    """Lines that happen. Opening gives the lines of `snapshot` first and then every later one; a read waits until there is something.

    A reader that lags more than `BACKLOG_LINES` behind gets the line `{"event":"lagged"}` and a new snapshot instead of what it missed.
    """

    def __init__(self, snapshot: Callable[[], Iterable[str]] = tuple) -> None:
        self.qid = new_qid(APPEND_ONLY)
        self.ended = False
        self._snapshot = snapshot
        self._readers: set[_EventHandle] = set()

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o444)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags):
            raise Refused("events cannot be written", errno.EACCES)
        reader = _EventHandle(self, self._snapshot())
        self._readers.add(reader)
        return reader

    def emit(self, line: str) -> None:
        for reader in self._readers:
            reader.add(line)

    def end(self) -> None:
        """Nothing more will happen: readers come to the end of the file."""
        self.ended = True
        for reader in self._readers:
            reader.wake()

    def again(self) -> list[str]:
        return ['{"event":"lagged"}', *self._snapshot()]

    def leave(self, reader: _EventHandle) -> None:
        self._readers.discard(reader)


class _EventHandle(Handle):
    def __init__(self, events: Events, first: Iterable[str]) -> None:
        self._events = events
        self._lines = deque(first)
        self._rest = b""
        self._wake = asyncio.Event()

    def add(self, line: str) -> None:
        if len(self._lines) >= BACKLOG_LINES:
            self._lines = deque(self._events.again())
        self._lines.append(line)
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    async def read(self, offset: int, count: int) -> bytes:
        while not self._rest and not self._lines:
            if self._events.ended:
                return b""
            self._wake.clear()
            await self._wake.wait()
        out = bytearray(self._rest)
        while self._lines and len(out) < count:
            out += self._lines.popleft().encode() + b"\n"
        self._rest = bytes(out[count:])
        return bytes(out[:count])

    async def close(self) -> None:
        self._events.leave(self)


class Clone(File):
    """Plan 9's clone: what is written to one opening of the file is the question, what is read from it the answer.

    `call(caller, question)` is made once per question: by the first read after a write, or by the write itself where `at_once` is set,
    so that a refusal is the write's own error.
    """

    def __init__(
        self, call: Callable[[Caller, bytes], Awaitable[str | bytes]], most: int, at_once: bool = False
    ) -> None:
        self.qid = new_qid()
        self.call = call
        self.most = most
        self.at_once = at_once

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o666)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _CloneHandle(self, caller)


class _CloneHandle(Handle):
    whole = True

    def __init__(self, clone: Clone, caller: Caller) -> None:
        self._clone = clone
        self._caller = caller
        self._question = bytearray()
        self._answer: bytes | None = None

    async def write(self, offset: int, data: bytes) -> int:
        if len(self._question) + len(data) > self._clone.most:
            raise Refused(f"more than {self._clone.most} bytes", errno.EMSGSIZE)
        self._question += data
        if self._clone.at_once:
            await self._ask()
        return len(data)

    async def _ask(self) -> None:
        question, self._question = bytes(self._question), bytearray()
        answer = await self._clone.call(self._caller, question)
        self._answer = answer.encode() if isinstance(answer, str) else answer

    async def read(self, offset: int, count: int) -> bytes:
        if self._answer is None or self._question:
            await self._ask()
        assert self._answer is not None
        return self._answer[offset : offset + count]


class Blob(File):
    """A read-only file over a function that reads a range: `read(offset, count)`, `size()` in bytes."""

    def __init__(self, read: Callable[[int, int], bytes | Awaitable[bytes]], size: Callable[[], int]) -> None:
        self.qid = new_qid()
        self._read = read
        self._size = size

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o444, self._size())

    async def open(self, caller: Caller, flags: int) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise Refused("this file cannot be written", errno.EACCES)
        return _BlobHandle(self._read)


class _BlobHandle(Handle):
    def __init__(self, read: Callable[[int, int], bytes | Awaitable[bytes]]) -> None:
        self._read = read

    async def read(self, offset: int, count: int) -> bytes:
        got = self._read(offset, count)
        return await got if inspect.isawaitable(got) else got
