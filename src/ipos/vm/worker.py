"""ipos-worker of the engine: runs one task of WebAssembly in a process of its own, which the node starts as it starts native tasks.

`python -I -m ipos.vm.worker PLAN` with a JSON file that says everything (`Plan`). Standard input, output and error are the task's. It
saves every `every_s` into a directory that outlives it; started again with the same plan it goes on from there. SIGTERM: it saves and ends.
What it came to stands in `plan.report` when it ends with status 0; a missing one means that it was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import msgspec
import wasmtime

from ipos.vm import engine
from ipos.vm.host import Fault
from ipos.vm.plan import COMPILING, RUNNING, USED_UP, Plan, Progress, Report
from ipos.vm.runner import Runner, Spec
from ipos.vm.save import Saves
from ipos.vm.wasi import output
from ipos.vm.wasi.boot import Boot, Directory, File, Limits, Stdin, StdinKind, Symlink
from ipos.wire.errors import BadRecord, Refused

BLOCK_BYTES = 65536
RESERVED_BYTES = 4096
TELL_S = 0.2  # between two looks of the node at how far it is


class Files:
    """`host.FileHost` over a directory: input files by number, standard streams of this process."""

    def __init__(self, root: Path, saves: Path) -> None:
        self.paths: list[Path] = []
        self.tree = self._directory(root)
        self.copies: list[BinaryIO] = [(saves / which).open("a+b") for which in ("stdout", "stderr")]
        self._open: dict[int, BinaryIO] = {}

    def _directory(self, path: Path) -> Directory:
        entries: dict[str, Directory | File | Symlink] = {}
        for one in sorted(path.iterdir()):
            if one.is_symlink():
                entries[one.name] = Symlink(os.readlink(one))
            elif one.is_dir():
                entries[one.name] = self._directory(one)
            elif one.is_file():
                self.paths.append(one)
                entries[one.name] = File(len(self.paths), one.stat().st_size)
        return Directory(entries)

    def ready(self, file: int, first: int, last: int) -> bool:
        return True

    def block(self, file: int, n: int) -> bytes:
        try:
            if file not in self._open:
                self._open[file] = self.paths[file - 1].open("rb")
            self._open[file].seek(n * BLOCK_BYTES)
            return self._open[file].read(BLOCK_BYTES)
        except OSError as error:
            raise Fault(f"an input file cannot be read: {error}") from None

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Of an input file."""
        with open(self.paths[number - 1], "rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    def stdin(self, count: int) -> bytes | None:
        pieces, missing = [b""], count
        while missing and (piece := os.read(0, missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def output(self, stream: int, content: bytes) -> None:
        for fd in (stream + 1, self.copies[stream].fileno()):
            left = memoryview(content)
            while left:
                left = left[os.write(fd, left) :]

    def printed(self, written: tuple[int, int]) -> tuple[bytes, bytes]:
        """What the save says was printed; later output is cut off, and what is left is printed again to this process's streams."""
        both: list[bytes] = []
        for fd, copy, count in zip((1, 2), self.copies, written, strict=True):
            os.ftruncate(copy.fileno(), count)
            copy.seek(0)
            both.append(copy.read())
            left = memoryview(both[-1])
            while left:
                left = left[os.write(fd, left) :]
        return both[0], both[1]


class Work:
    """One run of one plan. `stopping` may be set at any moment, also from a signal's handler."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stopping = False
        self.note = ""
        self._saved = 0.0
        self._progress = os.open(plan.progress, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def run(self) -> Report:
        """To its end, or until it is told to stop."""
        plan = self.plan
        saves = Saves(Path(plan.saves))
        host = Files(Path(plan.root), saves.path)
        boot = Boot(
            args=plan.args, env=plan.env, seed=bytes.fromhex(plan.seed), stdin=Stdin(StdinKind.STREAM), tree=host.tree,
            limits=Limits(overlay_bytes=plan.memory_bytes // 2, output_bytes=plan.output_bytes),
        )  # fmt: skip
        spec = Spec(plan.task, boot, plan.memory_bytes, plan.work, plan.mark_every)
        Progress(COMPILING, 0, 0.0, 0.0).write(self._progress)
        try:
            module = engine.compiled(Path(plan.program).read_bytes(), Path(plan.cache))
        except Refused:
            if self.stopping:  # the signal ended the compiler as well
                return Report(stopped=True)
            raise
        runner, resumed_at = self._begin(module, spec, host, saves)
        last = told = time.monotonic()
        while runner.ended is None and not runner.exhausted() and not self.stopping:
            runner.step()
            now = time.monotonic()
            if now - told >= TELL_S:
                Progress(RUNNING, runner.work, runner.speed, self._saved).write(self._progress)
                told = now
            if now - last >= plan.every_s and runner.ended is None:
                self._save(runner, host, saves)
                last = time.monotonic()
        if runner.ended is None:
            self._save(runner, host, saves)
            if not runner.exhausted():
                return Report(stopped=True, work=runner.work, resumed_at=resumed_at, note=self.note)
            used_up = f"{USED_UP} {plan.work / 1e9:g} Gop of work (ipos resume goes on, with more --work)"
            return Report(exit=125, killed=used_up, work=runner.work, resumed_at=resumed_at, note=self.note)
        ended = runner.ended
        if not ended.trap:
            _put(output.root(runner.state), Path(plan.root), Path(plan.out), host)
        return Report(
            exit=ended.exit, killed=f"trapped: {ended.trap}" if ended.trap else "", work=ended.work, root=ended.root.hex(),
            marks=tuple((at, root.hex()) for at, root in ended.marks), resumed_at=resumed_at, note=self.note,
        )  # fmt: skip

    def _save(self, runner: Runner, host: Files, saves: Saves) -> None:
        try:
            for copy in host.copies:
                os.fsync(copy.fileno())
            runner.save(saves)
        except Refused as refused:
            raise Fault(str(refused)) from None  # the disk is full: the save before is still there
        self._saved = time.monotonic()
        Progress(RUNNING, runner.work, runner.speed, self._saved).write(self._progress)

    def _begin(self, module: wasmtime.Module, spec: Spec, host: Files, saves: Saves) -> tuple[Runner, int]:
        """From the save if there is a good one. A damaged one is said and put aside, never believed: the program begins again."""
        try:
            head = saves.head()
            if head is not None:
                runner = Runner.resume(module, spec, host, saves, host.printed(head.written))
                skip = runner.state.call("wasi_stdin_read")
                while skip and (piece := os.read(0, min(skip, 1 << 20))):
                    skip -= len(piece)
                self._saved = time.monotonic()
                return runner, head.work
        except (BadRecord, ValueError) as damage:
            (saves.path / "head").replace(saves.path / "head.damaged")
            for fd in (1, 2):
                os.ftruncate(fd, 0)
            self.note = f"the save on this machine was damaged ({damage}): it began again"
        host.printed((0, 0))
        return Runner.start(module, spec, host), 0


def _put(directory: output.OutputDirectory, source: Path, to: Path, host: Files) -> None:
    """What the program made or changed, as files in `to`; `source`: the directory of the input root that was at this place, if any."""
    to.mkdir(exist_ok=True)
    for name, node in directory.entries():
        was, new = source / name, to / name
        match node:
            case output.OutputDirectory():
                _put(node, was, new, host)
                if was.is_dir() and not any(new.iterdir()):
                    new.rmdir()
            case output.OutputFile() if not _same(node, was, host):
                with open(new, "xb") as stream:
                    for piece in node.content(host.read):
                        stream.write(piece)
            case output.OutputSymlink(target) if not (was.is_symlink() and os.readlink(was) == target):
                new.symlink_to(target)
            case _:
                pass


def _same(node: output.OutputFile, was: Path, host: Files) -> bool:
    """Whether it is still the input file of this name."""
    if node.size == 0:
        return not node.changed and was.is_file() and not was.is_symlink() and was.stat().st_size == 0
    return bool(node.untouched) and host.paths[node.untouched - 1] == was


def main() -> int:
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    new = Path(plan.report + ".new")
    new.write_bytes(bytes(RESERVED_BYTES))  # a full disk is a thing to report
    task = Work(plan)
    reports: list[Report] = []

    def run() -> None:
        try:
            reports.append(task.run())
        except Refused as refused:
            reports.append(Report(exit=125, killed=str(refused)))
        except (Fault, OSError, MemoryError) as fault:
            reports.append(Report(fault=str(fault) or type(fault).__name__))

    def stop(number: int, frame: object) -> None:
        task.stopping = True

    signal.signal(signal.SIGTERM, stop)
    threading.stack_size(engine.THREAD_STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if not reports:
        return 1
    body = msgspec.json.encode(reports[0])
    with open(new, "r+b") as stream:
        stream.write(body)
        stream.truncate(len(body))
    new.rename(plan.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
