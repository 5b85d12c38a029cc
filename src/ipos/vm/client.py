"""client: the engine's workers as a program of asyncio sees them. A node uses it, and so may anybody: it needs no node.

    async with Workers() as workers:
        worker = await workers.start(plan, places, program)
        worker.pause(); worker.resume(); worker.save(); worker.hand_over()
        ended = await worker.ended

One warm parent per `Workers`, started with the first worker and again when it was killed. What a worker says is checked: a line that it could
not have said ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from ipos.vm import code, image
from ipos.vm.host import Fault
from ipos.vm.plan import Plan, Report
from ipos.vm.process import Ended, OnEvent, Places, Worker
from ipos.vm.version import cache_root
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.engine")

CODES: Final = 8  # programs whose code is held ready for a new parent
IMAGES: Final = 4
NAMES: Final = 1024
PACKET_BYTES: Final = 1 << 16
READY_S: Final = 30.0
STATE_FILES: Final = (
    16  # times a task's memory: the largest a worker's saves may be (`vm.save.SLACK` of a state, and one more)
)
SPARE_BYTES: Final = 64 << 20


def _emptied(directory: Path) -> None:
    """A worker that was killed while it wrote its output may have left some of it."""
    if any(directory.iterdir()):
        shutil.rmtree(directory)
        directory.mkdir()


class Workers:
    """`home`: hidden from the workers but for `work` and `env` in it; `hidden`: directories that are hidden whole; `cache`: compiled code of this
    user, hidden as well; `module`: what the parent runs (tests)."""

    def __init__(
        self, home: Path | None = None, hidden: tuple[Path, ...] = (), cache: Path | None = None, module: str = "ipos.vm.parent",
        arguments: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.cache = cache or cache_root()
        self.isolation = "not started"
        self.starts = 0
        self._home = home
        self._hidden = (*hidden, self.cache)
        self._module = module
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._sock: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._workers: dict[str, Worker] = {}
        self._codes: OrderedDict[str, int] = OrderedDict()
        self._images: OrderedDict[str, int] = OrderedDict()
        self._names: dict[tuple[Path, int, int, int], str] = {}
        self._compiling: dict[str, asyncio.Lock] = {}
        self._count = 0

    @property
    def pid(self) -> int | None:
        """Of the warm parent."""
        return self._process.pid if self._sock is not None and self._process is not None else None

    async def __aenter__(self) -> Workers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Every worker ends with the parent, without a save."""
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._reader is not None:
            await self._reader
        for fds in (self._codes, self._images):
            for fd in fds.values():
                os.close(fd)
            fds.clear()

    # ---- the code of programs

    async def compile(self, program: Path) -> str:
        """The name of its code, which is then at hand. May take minutes, once per machine and engine. `Refused`: it is not admitted."""
        seen = await asyncio.to_thread(program.stat)
        same = program, seen.st_ino, seen.st_size, seen.st_mtime_ns
        if (name := self._names.get(same)) is None:
            if len(self._names) > NAMES:
                self._names.clear()
            self._names[same] = name = await asyncio.to_thread(lambda: code.name(program.read_bytes()))
        async with self._compiling.setdefault(name, asyncio.Lock()):
            if name not in self._codes:
                body = await asyncio.to_thread(program.read_bytes)
                try:
                    self._codes[name] = await asyncio.to_thread(lambda: code.sealed(code.compiled(body, self.cache)))
                except OSError as error:
                    raise (
                        error
                        if isinstance(error, Refused)
                        else Refused(f"compiled code cannot be kept in {self.cache}: {error.strerror}")
                    ) from None
                while len(self._codes) > CODES:
                    os.close(self._codes.popitem(last=False)[1])
        self._codes.move_to_end(name)
        return name

    async def image(self, packed: Path, program: str) -> int:
        """A sealed descriptor of an image of this program (its CID as text), verified. `BadRecord`: it is damaged; `Refused`: it is not for
        this engine or this program; `Fault`: this machine cannot read or keep it."""
        name = f"{packed.name} {program}"
        async with self._compiling.setdefault(name, asyncio.Lock()):
            if name not in self._images:
                try:
                    self._images[name] = await asyncio.to_thread(
                        lambda: code.sealed(image.loaded(packed, program, self.cache))
                    )
                except Refused:
                    raise
                except OSError as error:
                    raise Fault(f"the image cannot be read, or kept in {self.cache}: {error.strerror}") from None
                while len(self._images) > IMAGES:
                    os.close(self._images.popitem(last=False)[1])
        self._images.move_to_end(name)
        return self._images[name]

    # ---- the warm parent

    async def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-X", "utf8", "-m", self._module, *self._arguments,
                str(theirs.fileno()), str(self._home or ""), *map(str, self._hidden),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True, env={},
            )  # fmt: skip
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READY_S):
                packet = await loop.sock_recv(ours, PACKET_BYTES)
        except (TimeoutError, OSError):
            packet = b""
        if not packet:
            ours.close()
            raise Fault("the parent process of the engine's workers did not start; the node's log has its message")
        why_not = json.loads(packet)["isolation"]
        self.isolation = (
            f"none: {why_not}"
            if why_not
            else "mount, network and IPC namespace; home, sockets and compiled code hidden"
        )
        self.starts += 1
        self._sock = ours
        self._reader = asyncio.create_task(self._read(ours, self._process))

    async def _read(self, sock: socket.socket, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while packet := await loop.sock_recv(sock, PACKET_BYTES):
                event = json.loads(packet)
                worker = self._workers.get(event["key"])
                if worker is None:
                    continue
                match event["event"]:
                    case "forked":
                        worker.pid = event["pid"]
                    case "failed":
                        del self._workers[worker.key]
                        worker.ended.set_result(
                            Ended(Report(fault=f"no worker can be started here: {event['why']}"), [], 1)
                        )
                    case _:
                        del self._workers[worker.key]
                        await worker.over(event["code"], event["cpu_s"], event["rss"])
        if self._sock is sock:
            self._sock = None
        sock.close()
        mine = list(self._workers.values())
        self._workers.clear()
        await process.wait()
        for worker in mine:
            worker.kill()
            if worker.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            await worker.over(-signal.SIGKILL, 0.0, 0)

    def _send(self, sock: socket.socket | None, fds: list[int], **command: Any) -> None:
        """Packets are small and the parent only forks: if its queue is full, it hangs."""
        if sock is None:
            raise Fault("the parent process of the engine's workers was killed")
        try:
            socket.send_fds(sock, [json.dumps(command).encode()], fds)
        except OSError as error:
            raise Fault(f"the parent process of the engine's workers does not answer: {error.strerror}") from None

    async def start(
        self, what: Plan, places: Places, program: Path, on: OnEvent = lambda event: None, file_bytes: int = 0
    ) -> Worker:
        """Run a program (a file of WebAssembly; it is compiled first, if need be). `on` gets every event as it comes. `file_bytes`: the
        largest file that it may write; 0: what its saves and its output can need. `Refused`: by the engine; `Fault`: by this machine."""
        name = await self.compile(program)
        given = [self._codes[name]]
        if places.image is not None:
            given.append(await self.image(places.image, places.image_of))
        await asyncio.to_thread(_emptied, places.out)
        bytes_ = file_bytes or STATE_FILES * what.memory_bytes + what.output_bytes + SPARE_BYTES
        return await self._fork(name, given, what, places, on, bytes_)

    async def _fork(
        self, name: str, given: list[int], what: Plan, places: Places, on: OnEvent, file_bytes: int
    ) -> Worker:
        async with self._starting:
            if self._sock is None:
                await self._begin()
        self._count += 1
        worker = Worker(f"{self._count}", what, places, self._kill, on, 2 * file_bytes)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._send(
                    self._sock, [theirs.fileno(), *given], op="fork", key=worker.key, program=name,
                    saves=str(places.saves), root=str(places.root), out=str(places.out), stdout=str(places.stdout),
                    stderr=str(places.stderr), stdin=str(places.stdin or ""), memory_bytes=what.memory_bytes,
                    file_bytes=file_bytes, image=what.image,
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        self._workers[worker.key] = worker
        await worker.attach(ours)
        return worker

    async def probe(self) -> dict[str, str]:
        """What confines a worker here: layer -> "" if it is in force, otherwise why not. `Fault`: none can be started."""
        with tempfile.TemporaryDirectory(dir=self._home / "work" if self._home else None) as scratch:
            where = Path(scratch)
            for name in ("saves", "root", "out"):
                (where / name).mkdir()
            places = Places(where / "root", where / "out", where / "saves", where / "stdout", where / "stderr")
            nothing = code.sealed(b"")
            try:
                worker = await self._fork("", [nothing], Plan(task=""), places, lambda event: None, SPARE_BYTES)
                ended = await worker.ended
            finally:
                os.close(nothing)
            if not worker.layers:
                raise Fault(ended.report.fault)
            return worker.layers

    def _kill(self, key: str) -> None:
        if key in self._workers:
            with contextlib.suppress(Fault):
                self._send(self._sock, [], op="kill", key=key)
