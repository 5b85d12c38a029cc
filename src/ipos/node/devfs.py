"""/dev: the console, the time and random bytes, as Plan 9 has them (https://9p.io/magic/man2html/3/cons)."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable

from ipos.tree.file import Attr, Caller, File, Handle
from ipos.tree.synthetic import Dir, new_qid
from ipos.wire import limits
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.cons")

TICKS_HZ = 1_000_000_000


class _Device(File):
    """One file; `handle` makes what an opening of it is."""

    def __init__(self, mode: int, handle: Callable[[Caller], Handle]) -> None:
        self.qid = new_qid()
        self._mode = mode
        self._handle = handle

    async def attr(self) -> Attr:
        return Attr(0o100000 | self._mode)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY and not self._mode & 0o222:
            raise Refused("this device is only read", errno.EACCES)
        return self._handle(caller)


class _Time(Handle):
    """Each read, wherever it begins, is of this moment: seconds and nanoseconds since 1970, ticks since boot, ticks a second."""

    async def read(self, offset: int, count: int) -> bytes:
        now = time.time_ns()
        text = f"{now // 10**9:11d} {now:21d} {time.clock_gettime_ns(time.CLOCK_BOOTTIME):21d} {TICKS_HZ:21d} "
        return text.encode()[offset : offset + count]


class _Random(Handle):
    """It has no end: a read gives as much as was asked, up to what one message carries."""

    async def read(self, offset: int, count: int) -> bytes:
        return os.urandom(count)


class _Cons(Handle):
    """The console of a node that has no terminal: what is written is a line of the log, with who wrote it; nobody types, so a read is at
    its end at once. Who attaches with a terminal binds his own over it."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._rest = b""

    async def read(self, offset: int, count: int) -> bytes:
        return b""

    async def write(self, offset: int, data: bytes) -> int:
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > limits.log_line_bytes:
            whole.append(self._rest)
            self._rest = b""
        self._say(whole)
        return len(data)

    def _say(self, whole: list[bytes]) -> None:
        for line in whole:
            if line.strip():
                log.info("%s", line.decode(errors="replace"), extra={"by": self._caller.name})

    async def close(self) -> None:
        self._say([self._rest])


def dev_dir() -> Dir:
    return Dir(
        {
            "cons": _Device(0o666, _Cons),
            "time": _Device(0o444, lambda _: _Time()),
            "random": _Device(0o444, lambda _: _Random()),
        }
    )
