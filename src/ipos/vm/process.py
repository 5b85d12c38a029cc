"""process: one worker of the engine, as who started it sees it: what it is told, what it says, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ipos.vm import plan
from ipos.vm.plan import Plan, Progress, Report

WATCH_S: Final = 1.0
ENTRY_BYTES: Final = 512  # that a name costs, however empty the file

OnEvent = Callable[[plan.Event], None]


class Places(NamedTuple):
    """The directories and files of one run. `saves` outlives it; `root` is read; `out`, `stdout`, `stderr` are made; `stdin`: None, or a file;
    `image`: the packed image that `Plan.image` names, under that name, `image_of`: the CID of its program."""

    root: Path
    out: Path
    saves: Path
    stdout: Path
    stderr: Path
    stdin: Path | None = None
    image: Path | None = None
    image_of: str = ""


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

    def __init__(
        self, key: str, what: Plan, places: Places, kill: Callable[[str], None], on: OnEvent, most_bytes: int
    ) -> None:
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
        self._most_bytes = most_bytes
        self._watching: asyncio.Task[None] | None = None
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
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """One file of a worker is limited by the kernel; how many it makes, by this."""
        while True:
            await asyncio.sleep(WATCH_S)
            used = await asyncio.to_thread(lambda: _used(self.places.saves) + _used(self.places.out))
            if used > self._most_bytes:
                self._end(
                    f"it has written {used >> 20} MiB, more than the {self._most_bytes >> 20} MiB that its task can need"
                )

    def _end(self, why: str) -> None:
        self._report = Report(fault=f"the engine's worker was ended: {why}")
        self.kill()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                event = plan.event(line)
                self._took(event)
                self._on(event)
        except (msgspec.DecodeError, ValueError) as error:  # ValueError: a line that is too long, or cannot be
            self._end(f"it says what no worker says ({error})")
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
        if self._watching is not None:
            self._watching.cancel()
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


def _used(directory: Path) -> int:
    """Bytes that the files below occupy."""
    total = 0
    for where, names, files in os.walk(directory):
        total += ENTRY_BYTES * len(names)
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += ENTRY_BYTES + os.lstat(os.path.join(where, name)).st_blocks * 512
    return total
