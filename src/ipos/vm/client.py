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
import signal
import socket
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ipos.vm import code, plan
from ipos.vm.host import Fault
from ipos.vm.plan import Plan, Progress, Report
from ipos.vm.version import cache_root
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.engine")

CODES: Final = 8  # programs whose code is held ready for a new parent
PACKET_BYTES: Final = 1 << 16
READY_S: Final = 30.0
STATE_FILES: Final = (
    16  # times a task's memory: the largest a worker's saves may be (`vm.save.SLACK` of a state, and one more)
)
SPARE_BYTES: Final = 64 << 20

OnEvent = Callable[[plan.Event], None]


class Places(NamedTuple):
    """The directories and files of one run. `saves` outlives it; `root` is read; `out`, `stdout`, `stderr` are made; `stdin`: None, or a file."""

    root: Path
    out: Path
    saves: Path
    stdout: Path
    stderr: Path
    stdin: Path | None = None


class Ended(NamedTuple):
    """`report` is what the worker says it came to; if it died `silent`, a fault that says how. `code`: exit status, -9 if it was killed."""

    report: Report
    marks: list[tuple[int, str]]
    code: int
    cpu_s: float = 0.0
    rss_bytes: int = 0
    silent: bool = False


class Worker:
    """One task's process. All that is known of it is here, in the event loop's thread: nothing to lock."""

    def __init__(self, key: str, what: Plan, places: Places, kill: Callable[[str], None], on: OnEvent) -> None:
        self.key = key
        self.plan = what
        self.places = places
        self.pid: int | None = None
        self.layers: dict[str, str] = {}
        self.work = 0
        self.speed = 0.0
        self.marks: list[tuple[int, str]] = []
        self.saved: plan.Saved | None = None
        self.saved_at = 0.0
        self.paused = False
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._kill = kill
        self._on = on
        self._report: Report | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def progress(self) -> Progress:
        return Progress(plan.RUNNING, self.work, self.speed, self.saved_at)

    # ---- commands: each is sent, and answered by an event

    def pause(self) -> None:
        self._send(plan.Pause())

    def resume(self) -> None:
        self._send(plan.Resume())

    def save(self) -> None:
        self._send(plan.Save())

    def hand_over(self) -> None:
        """Save, and end; the report says `stopped`."""
        self._send(plan.HandOver())

    def kill(self) -> None:
        """At once, whatever it does."""
        self._send(plan.Kill())
        self._kill(self.key)

    def _send(self, command: plan.Command) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(plan.line(command))

    # ---- what it says

    async def attach(self, sock: socket.socket) -> None:
        reader, self._writer = await asyncio.open_connection(sock=sock, limit=plan.LINE_BYTES)
        self._send(plan.Start(self.plan))
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                event = plan.event(line)
                self._took(event)
                self._on(event)
        except (msgspec.DecodeError, ValueError) as error:  # ValueError: a line that is too long, or cannot be
            self._report = Report(fault=f"the engine's worker says what no worker says ({error}): it was ended")
            self.kill()
        except ConnectionError:
            pass  # it was killed with something unread in its pipe

    def _took(self, event: plan.Event) -> None:
        match event:
            case plan.Confined(layers):
                self.layers = layers
            case plan.Began(work):
                self.work = work
                self.saved_at = time.monotonic() if work else 0.0
            case plan.Marked(work, root):
                if len(self.marks) * self.plan.mark_every > work or len(root) != 64:
                    raise ValueError(f"{len(self.marks) + 1} marks after {work} units of work")
                self.marks.append((work, root))
            case plan.Progressed(work, speed):
                self.work, self.speed = work, speed
            case plan.Saved(work):
                self.work, self.saved, self.saved_at = work, event, time.monotonic()
            case plan.Paused() | plan.Resumed():
                self.paused = isinstance(event, plan.Paused)
            case plan.Over(report):
                self.work, self._report = report.work, report

    async def over(self, code: int, cpu_s: float, rss_bytes: int) -> None:
        """Its process has ended; what it said last is read first."""
        if self._reading is not None:
            await self._reading
        if self._writer is not None:
            self._writer.close()
        if not self.ended.done():
            report = self._report or Report(fault=self._how(code))
            self.ended.set_result(Ended(report, self.marks, code, cpu_s, rss_bytes, silent=self._report is None))

    def _how(self, code: int) -> str:
        try:
            with open(self.places.stderr, "rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - 400))
                last = stream.read().decode(errors="replace").strip().splitlines()
        except OSError:
            last = []
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return f"the engine's worker ended with {how}" + (f": {last[-1]}" if last else "")


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
        for fd in self._codes.values():
            os.close(fd)
        self._codes.clear()

    # ---- the code of programs

    async def compile(self, program: Path) -> str:
        """The name of its code, which is then at hand. May take minutes, once per machine and engine. `Refused`: it is not admitted."""
        body = await asyncio.to_thread(program.read_bytes)
        name = await asyncio.to_thread(code.name, body)
        async with self._compiling.setdefault(name, asyncio.Lock()):
            if name not in self._codes:
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
        bytes_ = file_bytes or STATE_FILES * what.memory_bytes + what.output_bytes + SPARE_BYTES
        return await self._fork(name, self._codes[name], what, places, on, bytes_)

    async def _fork(
        self, name: str, code_of_it: int, what: Plan, places: Places, on: OnEvent, file_bytes: int
    ) -> Worker:
        async with self._starting:
            if self._sock is None:
                await self._begin()
        self._count += 1
        worker = Worker(f"{self._count}", what, places, self._kill, on)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._send(
                    self._sock, [theirs.fileno(), code_of_it], op="fork", key=worker.key, program=name,
                    saves=str(places.saves), root=str(places.root), out=str(places.out), stdout=str(places.stdout),
                    stderr=str(places.stderr), stdin=str(places.stdin or ""), memory_bytes=what.memory_bytes,
                    file_bytes=file_bytes,
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
                worker = await self._fork("", nothing, Plan(task=""), places, lambda event: None, SPARE_BYTES)
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
