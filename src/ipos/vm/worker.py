"""ipos-worker of the engine: runs one task of WebAssembly in a process of its own, forked and confined by `parent`.

It has a pipe, its standard streams, and three directories: its saves, its input root, its output. Between two slices of about 10 ms it looks
at its pipe: nothing that it is told waits longer, but for a save that is being made. It saves as `pace` says, into a directory that outlives
it; another worker goes on from there.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import wasmtime

from ipos.vm import engine, image, made, pace, plan
from ipos.vm.content import spec_of
from ipos.vm.host import Fault
from ipos.vm.plan import USED_UP, Plan, Report
from ipos.vm.runner import Held, Runner, Spec
from ipos.vm.save import Saves
from ipos.vm.wasi import output
from ipos.vm.wasi.boot import Directory, File, Symlink
from ipos.wire.errors import BadRecord, Refused

STDIN, STDOUT, STDERR, PIPE, SAVES, ROOT, OUT = range(7)  # the descriptors of a worker
BLOCK_BYTES: Final = 65536
OPEN_INPUTS: Final = 16
PATIENCE_S: Final = 2.0
TELL_S: Final = 0.2  # between two looks of the node at how far it is


class Files:
    """`host.FileHost`: input files by number, below ROOT; standard streams. `copies`: of the output, beside the saves (the working
    directory)."""

    def __init__(self, start: bytes = b"") -> None:
        """`start`: what a task that starts from an image finds as `image.START`."""
        self.paths: list[str] = []
        self.tree = self._directory(ROOT, "")
        self._start = start
        if start:
            self.tree = image.with_start(self.tree, len(self.paths) + 1, start)
        self.copies: list[BinaryIO] = [open(which, "a+b") for which in ("stdout", "stderr")]  # noqa: SIM115
        self._open: OrderedDict[int, int] = OrderedDict()

    def _directory(self, fd: int, path: str) -> Directory:
        entries: dict[str, Directory | File | Symlink] = {}
        with os.scandir(fd) as listed:
            found = sorted(listed, key=lambda one: one.name)
        for one in found:
            here = path + one.name
            if one.is_symlink():
                entries[one.name] = Symlink(os.readlink(one.name, dir_fd=fd))
            elif one.is_dir():
                below = os.open(one.name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
                entries[one.name] = self._directory(below, here + "/")
                os.close(below)
            elif one.is_file():
                self.paths.append(here)
                entries[one.name] = File(len(self.paths), one.stat().st_size)
        return Directory(entries)

    def ready(self, file: int, first: int, last: int) -> bool:
        return True

    def block(self, file: int, n: int) -> bytes:
        return self.read(file, n * BLOCK_BYTES, BLOCK_BYTES)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Of an input file."""
        if number > len(self.paths):
            return self._start[offset : offset + length]
        try:
            if number not in self._open:
                if len(self._open) == OPEN_INPUTS:
                    os.close(self._open.popitem(last=False)[1])
                self._open[number] = os.open(self.paths[number - 1], os.O_RDONLY, dir_fd=ROOT)
            self._open.move_to_end(number)
            return os.pread(self._open[number], length, offset)
        except OSError as error:
            raise Fault(f"an input file cannot be read: {error}") from None

    def stdin(self, count: int) -> bytes | None:
        pieces, missing = [b""], count
        while missing and (piece := os.read(STDIN, missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def skip(self, count: int) -> None:
        """Of standard input: what had been read before the save."""
        while count and (piece := os.read(STDIN, min(count, 1 << 20))):
            count -= len(piece)

    def output(self, stream: int, content: bytes) -> None:
        for fd in (STDOUT + stream, self.copies[stream].fileno()):
            _write(fd, content)

    def printed(self, written: tuple[int, int]) -> tuple[bytes, bytes]:
        """What the save says was printed; later output is cut off, and what is left is printed again to this process's streams."""
        both: list[bytes] = []
        for fd, copy, count in zip((STDOUT, STDERR), self.copies, written, strict=True):
            os.ftruncate(copy.fileno(), count)
            copy.seek(0)
            both.append(copy.read())
            _write(fd, both[-1])
        return both[0], both[1]


def _write(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


class Pipe:
    """To the node. If the node goes, so does this process."""

    def __init__(self) -> None:
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(PIPE, select.POLLIN)

    def say(self, event: plan.Event) -> None:
        _write(PIPE, plan.line(event))

    def told(self, wait: bool) -> list[plan.Command]:
        """What there is to obey. `wait`: until there is something."""
        if not self._poll.poll(None if wait else 0):
            return []
        data = os.read(PIPE, 1 << 16)
        if not data:
            os._exit(1)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [plan.command(line) for line in lines]

    def first(self) -> Plan:
        while True:
            match self.told(wait=True):
                case [plan.Start(what)]:
                    return what
                case []:
                    continue
                case other:
                    raise Fault(f"the first thing a worker is told is start, not {other[0]}")


class Work:
    """One run of one plan."""

    def __init__(self, what: Plan, pipe: Pipe, held: Held | None) -> None:
        self.plan = what
        self.pipe = pipe
        self.held = held
        self.note = ""
        self._stopping = self._paused = self._save_now = False
        self._wait_s = what.every_s
        self._marks = 0

    def run(self, module: wasmtime.Module) -> Report:
        """To its end, or until it is told to stop."""
        what = self.plan
        saves = Saves(Path("."), patience_s=PATIENCE_S)
        host = Files(image.start_file(what.args, what.env) if what.image else b"")
        spec = spec_of(what, host.tree)
        runner, resumed_at = self._begin(module, spec, host, saves)
        self.pipe.say(plan.Began(resumed_at, self.note))
        self._tell_marks(runner)
        last = told = time.monotonic()
        while runner.ended is None and not runner.exhausted():
            self._obey(runner)
            if self._stopping:
                break
            if self._save_now or time.monotonic() - last >= self._wait_s:
                self._save(runner, host, saves)
                last = time.monotonic()
            if self._paused:
                continue
            runner.step()
            self._tell_marks(runner)
            now = time.monotonic()
            if now - told >= TELL_S:
                self.pipe.say(plan.Progressed(runner.work, runner.speed))
                told = now
        if runner.ended is None:
            self._save(runner, host, saves)
            if not runner.exhausted():
                return Report(stopped=True, work=runner.work, resumed_at=resumed_at, note=self.note)
            used_up = f"{USED_UP} {what.work / 1e9:g} Gop of work (ipos resume goes on, with more --work)"
            return Report(
                exit=125, killed=used_up, work=runner.work, page_work=runner.page_work, root=runner.root().hex(),
                resumed_at=resumed_at, note=self.note,
            )  # fmt: skip
        ended = runner.ended
        if not ended.trap:
            made.write(output.root(runner.state), host.tree, OUT, host.read)
        return Report(
            exit=ended.exit, killed=f"trapped: {ended.trap}" if ended.trap else "", work=ended.work, root=ended.root.hex(),
            page_work=ended.page_work, resumed_at=resumed_at, note=self.note,
        )  # fmt: skip

    def _obey(self, runner: Runner) -> None:
        wait = self._paused and not self._save_now
        for told in self.pipe.told(wait):
            match told:
                case plan.Pause() if not self._paused:
                    self._paused = True
                    self.pipe.say(plan.Paused(runner.work))
                case plan.Resume() if self._paused:
                    self._paused = False
                    self.pipe.say(plan.Resumed(runner.work))
                case plan.Save():
                    self._save_now = True
                case plan.HandOver():
                    self._stopping = True
                case plan.Kill():
                    os._exit(1)
                case _:
                    pass

    def _tell_marks(self, runner: Runner) -> None:
        for work, root in runner.marks[self._marks :]:
            self.pipe.say(plan.Marked(work, root.hex()))
        self._marks = len(runner.marks)

    def _save(self, runner: Runner, host: Files, saves: Saves) -> None:
        self._save_now = False
        began = time.monotonic()
        try:
            for copy in host.copies:
                os.fsync(copy.fileno())
            root, written = runner.save(saves)
        except Refused as refused:
            raise Fault(str(refused)) from None  # the disk is full: the save before is still there
        took = time.monotonic() - began
        self._wait_s = pace.wait_s(self.plan.every_s, took)
        self.pipe.say(plan.Saved(runner.work, root.hex(), written, took, self._wait_s))

    def _begin(self, module: wasmtime.Module, spec: Spec, host: Files, saves: Saves) -> tuple[Runner, int]:
        """From the save if there is a good one. A damaged one is said and put aside, never believed: the program begins again."""
        try:
            head = saves.head()
            if head is not None:
                runner = Runner.resume(module, spec, host, saves, host.printed(head.written), self.held)
                host.skip(runner.state.call("wasi_stdin_read"))
                return runner, head.work
        except (BadRecord, ValueError) as damage:
            os.rename("head", "head.damaged")
            for fd in (STDOUT, STDERR):
                os.ftruncate(fd, 0)
            self.note = f"the save on this machine was damaged ({damage}): it began again"
        host.printed((0, 0))
        return Runner.start(module, spec, host, self.held), 0


def work(module: wasmtime.Module, pipe: Pipe, held: Held | None) -> None:
    """In a confined process: everything that a worker does, from its first command to its report."""
    reports: list[Report] = []

    def run() -> None:
        try:
            os.fchdir(SAVES)
            reports.append(Work(pipe.first(), pipe, held).run(module))
        except Refused as refused:
            reports.append(Report(exit=125, killed=str(refused)))
        except (Fault, OSError, MemoryError, msgspec.DecodeError) as fault:
            reports.append(Report(fault=str(fault) or type(fault).__name__))

    threading.stack_size(engine.THREAD_STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if reports:
        pipe.say(plan.Over(reports[0]))
