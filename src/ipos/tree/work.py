"""Work: a file to which a question is written and from which lines are read while it is worked on. Closing the file ends the work."""

from __future__ import annotations

import asyncio
import errno
import stat
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from ipos.tree.file import Attr, Caller, File, Handle
from ipos.tree.synthetic import new_qid
from ipos.wire.errors import Refused

Say = Callable[[dict[str, object]], None]
"""A line for the reader, as JSON. From the loop's thread."""

Run = Callable[[Caller, bytes, Say], Awaitable[None]]


class Work(File):
    """`run` is begun by the first read after a write. The file ends when `run` does; its refusal is the error of the read."""

    def __init__(self, run: Run, most: int) -> None:
        self.qid = new_qid()
        self.run = run
        self.most = most

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o666)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _WorkHandle(self, caller)


class _WorkHandle(Handle):
    def __init__(self, work: Work, caller: Caller) -> None:
        self._work = work
        self._caller = caller
        self._question = bytearray()
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def write(self, offset: int, data: bytes) -> int:
        if self._task is not None:
            raise Refused("this file has had its question: open it again for another", errno.EBUSY)
        if len(self._question) + len(data) > self._work.most:
            raise Refused(f"more than {self._work.most} bytes", errno.EMSGSIZE)
        self._question += data
        return len(data)

    async def _begun(self) -> None:
        try:
            await self._work.run(self._caller, bytes(self._question), self._say)
        finally:
            self._wake.set()

    def _say(self, line: dict[str, object]) -> None:
        self._lines.append(msgspec.json.encode(line) + b"\n")
        self._wake.set()

    async def read(self, offset: int, count: int) -> bytes:
        if self._task is None:
            self._task = asyncio.create_task(self._begun())
        while not self._rest and not self._lines:
            if self._task.done():
                self._task.result()
                return b""
            self._wake.clear()
            await self._wake.wait()
        body = self._rest or self._lines.popleft()
        self._rest = body[count:]
        return body[:count]

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
