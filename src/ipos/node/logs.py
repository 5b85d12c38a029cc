"""The node's log: one line an event, `key=value` all along, rotated by size; read as /log, followed as /events.

    time=2026-11-25T21:17:40.123Z level=info part=node says="machine list version 3: attic, desk"

What a call gives as `extra` are pairs of its own; a traceback is the value of `trace`, its line ends written \\n. A log that cannot be
written (a full disk) ends nothing: what is lost is counted.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ipos.tree.file import Attr, Caller, File, Handle, readable, writable
from ipos.tree.synthetic import Events, new_qid
from ipos.wire import limits
from ipos.wire.errors import Refused

KEPT: Final = 2  # files before the newest
LAST_LINES: Final = 20  # that a follower gets first
_PLAIN: Final = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f]+")
_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(value: object) -> str:
    """A value as it stands in a line: as it is if it is one plain word, else in quotes, with whatever is not printable escaped."""
    text = str(value)
    if text.isprintable() and _PLAIN.fullmatch(text):
        return text
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _escape(ord(c))) for c in text) + '"'


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Lines(logging.Formatter):
    """One record, one line of at most about `limits.log_line_bytes`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        pairs: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "part": record.name.removeprefix("ipos."),
            "says": record.getMessage(),
        }
        pairs |= {key: value for key, value in vars(record).items() if key not in _USUAL}
        if record.exc_info:
            pairs["trace"] = self.formatException(record.exc_info)
        line = " ".join(f"{key}={quoted(value)}" for key, value in pairs.items())
        most = limits.log_line_bytes
        return line if len(line) <= most else line[: most - 12] + '..." cut=yes'


class LogFiles(logging.handlers.RotatingFileHandler):
    """`path`, and `path.1`, `path.2` before it. `lost`: lines that could not be written."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path, maxBytes=most, backupCount=KEPT, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(Lines())
        self.lost = 0
        self.tell: Callable[[str], None] | None = None  # every line, in whatever thread it was made
        self.last: deque[str] = deque(maxlen=LAST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        line = self.format(record)
        self.last.append(line)
        if self.tell is not None:
            self.tell(line)

    def handleError(self, record: logging.LogRecord) -> None:
        self.lost += 1

    def opened(self) -> list[int]:
        """Descriptors of all that is kept, oldest first; no rotation comes between them."""
        self.acquire()
        try:
            names = [f"{self.baseFilename}.{i}" for i in range(KEPT, 0, -1)] + [self.baseFilename]
            return [os.open(name, os.O_RDONLY | os.O_CLOEXEC) for name in names if os.path.exists(name)]
        finally:
            self.release()


class LogFile(File):
    """/log: what is kept, from the oldest line to the newest at the time of the read. Rotation does not disturb who has it open."""

    def __init__(self, files: LogFiles) -> None:
        self.qid = new_qid()
        self._files = files

    async def attr(self) -> Attr:
        fds = self._files.opened()
        try:
            return Attr(0o100444, sum(os.fstat(fd).st_size for fd in fds))
        finally:
            for fd in fds:
                os.close(fd)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags) or not readable(flags):
            raise Refused("the log is written by the node alone: what a program has to say goes to /dev/cons")
        return _LogHandle(self._files.opened())


class _LogHandle(Handle):
    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    async def read(self, offset: int, count: int) -> bytes:
        return await asyncio.to_thread(self._read, offset, count)

    def _read(self, offset: int, count: int) -> bytes:
        out = b""
        for fd in self._fds[:-1]:
            size = os.fstat(fd).st_size
            if offset < size and len(out) < count:
                out += os.pread(fd, count - len(out), offset)
                offset = 0
            else:
                offset = max(0, offset - size)
        return out + os.pread(self._fds[-1], count - len(out), offset) if len(out) < count else out

    async def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def follow(files: LogFiles) -> Events:
    """/events: the last lines of the log, then each as it is written. Called on the loop that serves it."""
    events = Events(lambda: list(files.last))
    loop = asyncio.get_running_loop()

    def tell(line: str) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.emit, line)

    files.tell = tell
    return events


def begin(path: Path, most: int) -> LogFiles:
    """All that is logged in this process goes to `path` from here on."""
    files = LogFiles(path, most)
    logging.basicConfig(level=logging.INFO, handlers=[files], force=True)
    return files
