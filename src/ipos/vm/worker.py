"""ipos-worker of the engine: runs one task of WebAssembly in a process of its own, which the node starts as it starts native tasks.

`python -I -m ipos.vm.worker PLAN` with a JSON file that says everything (`Plan`). Standard input, output and error are the task's. It
saves every `every_s` into a directory that outlives it; started again with the same plan it goes on from there. What it came to stands in
`result.json` when it ends with status 0; a missing one means that it was killed.
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
from ipos.vm.plan import USED_UP, Plan, Report
from ipos.vm.runner import Runner, Spec
from ipos.vm.save import Saves
from ipos.vm.wasi import output
from ipos.vm.wasi.boot import Boot, Directory, File, Limits, Stdin, StdinKind
from ipos.wire.errors import Refused

BLOCK_BYTES = 65536


class Files:
    """`host.FileHost` over a directory: input files by number, standard streams of this process."""

    def __init__(self, root: Path, saves: Path) -> None:
        self.paths: list[Path] = []
        self.tree = self._directory(root)
        self.copies: list[BinaryIO] = [(saves / which).open("a+b") for which in ("stdout", "stderr")]
        self._open: dict[int, BinaryIO] = {}

    def _directory(self, path: Path) -> Directory:
        entries: dict[str, Directory | File] = {}
        for one in sorted(path.iterdir()):
            if one.is_dir():
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


def work(plan: Plan) -> Report:
    """Run the plan to its end."""
    saves_at = Path(plan.saves)
    saves = Saves(saves_at)
    cwd = Path(plan.cwd)
    host = Files(cwd, saves_at)
    boot = Boot(
        args=plan.args, env=plan.env, seed=bytes.fromhex(plan.seed), stdin=Stdin(StdinKind.STREAM), tree=host.tree,
        limits=Limits(overlay_bytes=plan.memory_bytes // 2, output_bytes=plan.output_bytes),
    )  # fmt: skip
    spec = Spec(plan.task, boot, plan.memory_bytes, plan.work, plan.mark_every)
    module = engine.compiled(Path(plan.program).read_bytes(), Path(plan.cache))
    runner, resumed_at = _begin(module, spec, host, saves)
    stopping = threading.Event()
    signal_stop[0] = stopping
    last = time.monotonic()
    while runner.ended is None and not runner.exhausted():
        runner.step()
        if stopping.is_set() or (time.monotonic() - last >= plan.every_s and runner.ended is None):
            for copy in host.copies:
                os.fsync(copy.fileno())
            runner.save(saves)
            last = time.monotonic()
    if runner.ended is None:
        runner.save(saves)
        return Report(
            exit=125,
            killed=f"{USED_UP} {plan.work / 1e9:g} Gop of work (allow more with --work)",
            work=runner.work,
            resumed_at=resumed_at,
        )
    ended = runner.ended
    if not ended.trap:
        _put(output.root(runner.state), cwd, host)
    return Report(
        exit=ended.exit, killed=f"trapped: {ended.trap}" if ended.trap else "", work=ended.work, root=ended.root.hex(),
        marks=tuple((at, root.hex()) for at, root in ended.marks), resumed_at=resumed_at,
    )  # fmt: skip


signal_stop: list[threading.Event | None] = [None]


def _begin(module: wasmtime.Module, spec: Spec, host: Files, saves: Saves) -> tuple[Runner, int]:
    """From the save if there is a good one; a damaged one is said and left behind, never believed."""
    try:
        head = saves.head()
        if head is not None:
            runner = Runner.resume(module, spec, host, saves, host.printed(head.written))
            skip = runner.state.call("wasi_stdin_read")
            while skip and (piece := os.read(0, min(skip, 1 << 20))):
                skip -= len(piece)
            return runner, head.work
    except (Refused, OSError, ValueError) as refused:
        raise Fault(f"the save of this task cannot be used: {refused}") from None
    host.printed((0, 0))
    return Runner.start(module, spec, host), 0


def _put(directory: output.OutputDirectory, to: Path, host: Files) -> None:
    """What the program made or changed, as files."""

    def read_input(number: int, offset: int, length: int) -> bytes:
        with open(host.paths[number - 1], "rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    for name, node in directory.entries():
        match node:
            case output.OutputDirectory():
                (to / name).mkdir(exist_ok=True)
                _put(node, to / name, host)
            case output.OutputFile() if not (to / name).exists() or not node.untouched:
                new = to / f".ipos-{os.getpid()}"
                with open(new, "wb") as stream:
                    for piece in node.content(read_input):
                        stream.write(piece)
                new.rename(to / name)
            case output.OutputSymlink(target):
                (to / name).symlink_to(target)
            case _:
                pass


def main() -> int:
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    reports: list[Report] = []

    def run() -> None:
        try:
            reports.append(work(plan))
        except Refused as refused:
            reports.append(Report(exit=125, killed=str(refused)))
        except (Fault, OSError, MemoryError) as fault:
            reports.append(Report(fault=str(fault) or type(fault).__name__))

    def stop(number: int, frame: object) -> None:
        if signal_stop[0] is not None:
            signal_stop[0].set()

    signal.signal(signal.SIGTERM, stop)  # save now
    threading.stack_size(engine.THREAD_STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if not reports:
        return 1
    new = Path(plan.report + ".new")
    new.write_bytes(msgspec.json.encode(reports[0]))
    new.rename(plan.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
