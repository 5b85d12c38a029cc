"""line: the node's end of a seat. Sends commands, hears what became of them, knows when the seat is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

from ipos.pool.native.process import Exited
from ipos.wire.errors import Refused

LOST = "the worker process that the task ran in was killed"


class NotStarted(Refused):
    """The kernel would not start the program; the seat is free."""


class Place(NamedTuple):
    """Of one seat: its name, and what its tasks see as working directory ("": where it really is), TMPDIR and HOME."""

    name: str
    cwd: str
    tmp: str
    home: str


class Line(asyncio.Protocol):
    """One seat. `ready` gives the seat's report; `started` and `exited` are of the task it has now."""

    def __init__(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self.isolation = ""
        self.place = Place("", "", "", "")
        self.ready: asyncio.Future[None] = loop.create_future()
        self.started: asyncio.Future[int] = loop.create_future()
        self.exited: asyncio.Future[Exited] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = -1
            loop.call_soon(self._ended)
        else:
            loop.add_reader(self._fd, self._ended)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def start(self, command: dict[str, Any]) -> None:
        """A new task; `started` and `exited` are about it from now on."""
        loop = asyncio.get_running_loop()
        self.started, self.exited = loop.create_future(), loop.create_future()
        if self.gone.done():
            _fail(self.started, Refused(LOST))
            return
        self._send(command)

    def signal(self, number: int) -> None:
        self._send({"do": "signal", "number": number})

    def end(self) -> None:
        """SIGKILL the seat itself: the kernel ends everything in it. `gone` follows."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def hang_up(self) -> None:
        """The seat ends itself when it sees the end of the line. `gone` follows."""
        if self._transport is not None:
            self._transport.close()

    def task_pid(self, inner: int) -> int | None:
        """The pid, as this node sees it, of the process that is `inner` to its seat."""
        try:
            for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                for line in Path(f"/proc/{child}/status").read_text().splitlines():
                    if line.startswith("NSpid:") and line.split()[-1] == str(inner):
                        return int(child)
        except OSError:
            return None
        return None

    def _send(self, command: dict[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(json.dumps(command).encode() + b"\n")

    def _hear(self, event: dict[str, Any]) -> None:
        match event:
            case {"isolation": str(isolation), "name": str(name), "cwd": str(cwd), "tmp": str(tmp), "home": str(home)}:
                self.isolation, self.place = isolation, Place(name, cwd, tmp, home)
                if not self.ready.done():
                    self.ready.set_result(None)
            case {"failed": str(why)}:
                _fail(self.ready, Refused(why))
            case {"started": int(pid)}:
                self.started.set_result(pid)
            case {"refused": int(error), "why": str(why)}:
                _fail(self.started, NotStarted(why, error))
            case {"exited": int(status), "cpu_s": float(cpu_s), "rss_bytes": int(rss)}:
                self.exited.set_result(Exited(status, cpu_s, rss))
            case _:
                raise AssertionError(f"a seat said {event}")

    def _ended(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._transport is not None:
            self._transport.close()
        for future in (self.ready, self.started, self.exited):
            _fail(future, Refused(LOST))
        if not self.gone.done():
            self.gone.set_result(None)


def _fail(future: asyncio.Future[Any], why: Refused) -> None:
    if not future.done():
        future.set_exception(why)
        future.exception()  # nobody has to be waiting for it
