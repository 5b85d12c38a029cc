"""parent: the node's end of the warm parent (spawner.py), which is started when needed and again when it dies."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ipos.pool.native.line import Line
from ipos.wire.errors import Refused

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ANSWER_S = 30.0


class Parent:
    """`seat()` gives new seats. `starts` counts how often the process had to be started."""

    def __init__(self, home: Path, hide: Sequence[Path], processes: int, nice: int) -> None:
        self.starts = 0
        self._arguments = [str(home), str(processes), str(nice), *map(str, hide)]
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def seat(self, bare: str) -> Line:
        """A new seat that is ready; `bare`: why it is to have no namespaces, "" if it is to have them. `Refused` if it cannot have them,
        or if there is no starting the parent."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                pid = await self._ask({"bare": bare}, theirs)
            line = Line(pid)
            ours.setblocking(False)
            await asyncio.get_running_loop().create_unix_connection(lambda: line, sock=ours)
        except BaseException:
            ours.close()
            raise
        await line.ready
        return line

    async def _ask(self, question: dict[str, str], theirs: socket.socket) -> int:
        async with self._turn:
            for again in (True, False):
                control = self._control or await self._begin()
                try:
                    async with asyncio.timeout(ANSWER_S):
                        socket.send_fds(control, [json.dumps(question).encode()], [theirs.fileno()])
                        body = await asyncio.get_running_loop().sock_recv(control, 4096)
                except (OSError, TimeoutError):
                    body = b""
                if body:
                    break
                await self._bury()
                if not again:
                    raise Refused(
                        "the parent of the worker processes does not stay alive; the node's log has its message"
                    )
        answer = json.loads(body)
        if "failed" in answer:
            raise Refused(str(answer["failed"]))
        return int(answer["seat"])

    async def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-I", "-m", "ipos.pool.native.spawner", str(theirs.fileno()), *self._arguments]
            fds = (theirs.fileno(),)
            environment = {"PATH": PATH, "LANG": "C.UTF-8"}
            self._process = await asyncio.to_thread(
                lambda: subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=fds, env=environment,
                    start_new_session=True, cwd="/",
                )
            )  # fmt: skip
        self._control = ours
        self.starts += 1
        return ours

    async def _bury(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            await asyncio.to_thread(process.wait)

    async def close(self) -> None:
        """End it, and every seat with it."""
        async with self._turn:
            await self._bury()
