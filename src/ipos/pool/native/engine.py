"""The engine's side of NativeExecutor: lays out a task for a worker of `vm.client`, keeps it running, and stores what it comes to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from ipos.pool import marks, saves
from ipos.pool.execute import Memory, Ran
from ipos.pool.image import owner
from ipos.pool.native.memory import memory_of
from ipos.pool.native.walltime import WallTime
from ipos.pool.records import Task
from ipos.pool.saves import Holds, Importer, Save
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm.client import Workers
from ipos.vm.host import Fault
from ipos.vm.plan import COMPILING, USED_UP, Plan, Progress, Report
from ipos.vm.process import Ended, Places, Worker
from ipos.wire.clock import Clock
from ipos.wire.errors import BadRecord, Refused

log = logging.getLogger("ipos.engine")

FORGET_S: Final = 30 * 24 * 3600  # a save that nobody has gone on from for so long is removed when the node starts
DEATHS: Final = 3  # so many silent deaths without a newer save in between, and the task is tried elsewhere


class Engine:
    """Of one home. `hidden`: what workers must not see besides it."""

    def __init__(self, home: Path, hidden: tuple[Path, ...], store: BlockStore, holds: Holds, clock: Clock) -> None:
        self.workers = Workers(home, hidden)
        self.store = store
        self.holds = holds
        self.clock = clock
        self._work = home / "work"
        self._root = home / "env" / "saves"
        self._images = home / "env" / "images"
        self._plans: dict[str, Plan] = {}

    def saves(self, task: Task) -> Path:
        """The directory of a task's saves; outlives the run and the node."""
        return self._root / saves.identity(task, saves.engine_run(self.store, task))

    def forget(self, task: Task) -> None:
        """It is over: its saves are of no use any more."""
        shutil.rmtree(self.saves(task), ignore_errors=True)

    def clean(self) -> None:
        """Remove saves of tasks that went elsewhere, and what a crash left half laid out."""
        for directory in self._root.glob("*"):
            with contextlib.suppress(OSError):
                aged = time.time() - directory.stat().st_mtime > FORGET_S
                if aged or directory.name.startswith(".save-"):
                    shutil.rmtree(directory, ignore_errors=True)

    def image(self, task: Task) -> Path | None:
        """In a thread: the image that the task starts from, as a file named by its CID; laid out once for all tasks."""
        if task.image is None:
            return None
        path = self._images / c.text(task.image)
        if not self.holds.has(owner(task.image)):  # its saves share blocks with it
            self.holds.hold(owner(task.image), task.image)
        if not path.exists():
            self._images.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._images, prefix=".image-") as scratch:
                new = Path(scratch, "packed")
                unixfs.export(self.store, task.image, new, 0o444)
                new.rename(path)
        return path

    def prepare(self, key: str, task: Task, every_s: float) -> None:
        """In a thread, when its input is laid out in `work/KEY/cwd`."""
        run = saves.engine_run(self.store, task)
        (self._work / key / "out").mkdir()
        self._plans[key] = msgspec.structs.replace(saves.plan_of(task, run), every_s=every_s)

    def planned(self, key: str) -> Plan:
        """What was prepared, to be run otherwise."""
        return self._plans.pop(key)

    async def start(self, key: str, task: Task, program: Path, save: bytes | None) -> EngineRun:
        place = self.saves(task)
        # now, and not when it was prepared: the same task may have ended since, and its directory gone
        await asyncio.to_thread(place.mkdir, parents=True, exist_ok=True)
        if save is not None:
            await asyncio.to_thread(saves.lay_out, self.store, save, place)
        directory = self._work / key
        image = await asyncio.to_thread(self.image, task)
        places = Places(
            root=directory / "cwd", out=directory / "out", saves=place, stdout=directory / "stdout",
            stderr=directory / "stderr", stdin=directory / "stdin" if task.stdin is not None else None, image=image, image_of=c.text(task.program),
        )  # fmt: skip
        return EngineRun(self, key, task, self._plans.pop(key), places, program)

    async def close(self) -> None:
        await self.workers.close()


class EngineRun:
    """`execute.Run` of a task in the engine. It outlives its worker: one that dies silently is followed by another, from its last save."""

    def __init__(self, engine: Engine, key: str, task: Task, plan: Plan, places: Places, program: Path) -> None:
        self._engine = engine
        self._key = key
        self._task = task
        self._plan = plan
        self._places = places
        self._program = program
        self._importer = Importer(engine.store, places.saves, engine.holds, f"run {key}")
        self._importing = asyncio.Lock()
        self._worker: Worker | None = None
        self._killed = ""
        self._stopping = self._paused = False
        self._wall = WallTime(engine.clock, task.limits.wall_ms / 1000)
        self._stirred = asyncio.Event()  # its worker has said something
        self._cpu_s = 0.0
        self._deaths = 0
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.create_task(self._run())

    async def _run(self) -> Ended:
        without_progress, last = 0, -1
        while True:
            if self._stopping:
                return Ended(Report(stopped=True), [], 0)
            worker = await self._start()
            if isinstance(worker, Report):
                return Ended(worker, [], 1)
            ended = await worker.ended
            self._cpu_s += ended.cpu_s
            if not ended.silent or ended.code >= 0 or self._killed:
                return ended
            self._deaths += 1
            saved = worker.saved.work if worker.saved is not None else last
            without_progress = 0 if saved > last else without_progress + 1
            last = max(last, saved)
            log.warning("%s: %s; it goes on from %d units of work", self._key, ended.report.fault, max(0, last))
            if without_progress >= DEATHS:
                return ended

    async def _start(self) -> Worker | Report:
        """A worker at work; or why there is none. To be compiled takes long: nobody who stops or kills the task waits for that."""
        starting = asyncio.ensure_future(self._begin())
        await asyncio.wait((starting, self._given_up), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.add_done_callback(_unwanted)
            return Report(exit=125, killed=self._killed) if self._killed else Report(stopped=True)
        try:
            worker = starting.result()
        except BadRecord as damage:
            return Report(fault=f"the image is damaged ({damage})")
        except Refused as refused:  # what is not admitted here is admitted nowhere: that is the task's end
            return Report(exit=125, killed=str(refused))
        except (Fault, OSError) as fault:
            return Report(fault=str(fault))
        self._worker = worker
        if self._paused:
            worker.pause()
        if self._stopping:
            worker.hand_over()
        if self._killed:
            worker.kill()
        return worker

    async def _begin(self) -> Worker:
        if self._places.image is not None:
            await self._whole(self._places.image)
        return await self._engine.workers.start(
            self._plan, self._places, self._program, on=lambda event: self._stirred.set()
        )

    async def _whole(self, image: Path) -> None:
        """A file that was damaged here is laid out anew, once. `BadRecord`: so it is what the task names."""
        try:
            await self._engine.workers.image(image, self._places.image_of)
        except BadRecord as damage:
            log.warning("%s: the image on this machine is damaged (%s): laid out anew", self._key, damage)
            image.unlink(missing_ok=True)
            await asyncio.to_thread(self._engine.image, self._task)

    async def exited(self) -> None:
        if await self._wall.over(self._ended):
            self._end(self._wall.sentence)
        await asyncio.shield(self._ended)

    def _end(self, why: str) -> None:
        self._killed = why
        if self._worker is not None:
            self._worker.kill()
        self._give_up()

    def _give_up(self) -> None:
        if not self._given_up.done():
            self._given_up.set_result(None)

    async def wait(self) -> Ran:
        ended = await asyncio.shield(self._ended)
        return await asyncio.to_thread(self._collect, ended, self._wall.used_s)

    def _collect(self, ended: Ended, wall: float) -> Ran:
        """In a thread: what it printed and left becomes content of the store."""
        report, store = ended.report, self._engine.store
        if report.stopped:
            return Ran(stopped=True, save=self._importer.newest(again=True))
        if report.fault and not self._killed:
            return Ran(fault=report.fault)
        try:
            stdout, stderr = (self._stored(path) for path in (self._places.stdout, self._places.stderr))
            made = unixfs.add_dir(store, self._places.out, links=True) if any(self._places.out.iterdir()) else None
        except OSError as error:
            return Ran(fault=f"its output cannot be stored: {error}")
        note = report.note
        limit = self._plan.output_bytes
        printed = sum(path.stat().st_size for path in (self._places.stdout, self._places.stderr) if path.exists())
        if (
            report.exit and printed >= limit
        ):  # a write was short, then ENOSPC: the program ended with its own words for that
            full = f"it had printed the {limit / (1 << 20):g} MiB that it may (allow more with --max-output)"
            note = "; ".join(filter(None, [note, full]))
        if self._deaths:
            note = "; ".join(
                filter(None, [note, f"its worker was killed {self._deaths} times and went on from its save"])
            )
        ext = [("work", str(report.work)), ("page_work", str(report.page_work)), ("root", report.root)]
        ext += [("resumed_at", str(report.resumed_at))]
        ext += [("note", note)] if note else []
        save: Save | None = None
        if report.killed.startswith(USED_UP):
            save = self._importer.newest(again=True)
        else:
            self._engine.forget(self._task)
        if ended.marks:
            ext.append(("marks", c.text(unixfs.add_bytes(store, marks.text(ended.marks)))))
        killed = self._killed or report.killed
        code = -signal.SIGKILL if self._killed else report.exit
        return Ran(code, killed, stdout, stderr, made, self._cpu_s, wall, ended.rss_bytes, ext=tuple(ext), save=save)

    def _stored(self, path: Path) -> bytes:
        if not path.exists():  # refused before it began
            path.touch()
        return unixfs.add_file(self._engine.store, path)[0]

    def pause(self) -> None:
        self._wall.pause()
        self._paused = True
        if self._worker is not None:
            self._worker.pause()

    def resume(self) -> None:
        self._wall.resume()
        self._paused = False
        if self._worker is not None:
            self._worker.resume()

    def stop(self) -> None:
        self._stopping = True
        if self._worker is not None:
            self._worker.hand_over()
        self._give_up()

    def limit(self, wall_s: float) -> None:
        self._wall.limit(wall_s)

    def memory(self) -> Memory | None:
        worker = self._worker
        return (
            memory_of(worker.pid) if worker is not None and worker.pid is not None and not worker.ended.done() else None
        )

    async def save(self) -> int:
        worker = self._worker
        if worker is None or worker.ended.done():
            raise Refused(f"{self._task.name} does not run yet, or not any more: there is nothing to save")
        before = worker.saved
        worker.save()
        while worker.saved is before:
            self._stirred.clear()
            told = asyncio.ensure_future(self._stirred.wait())
            try:
                await asyncio.wait((told, worker.ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                told.cancel()
            if worker.ended.done() and worker.saved is before:
                raise Refused(f"{self._task.name} has ended before it was saved")
        assert worker.saved is not None
        return worker.saved.work

    async def saved(self, again: bool) -> Save | None:
        async with self._importing:
            try:
                return await asyncio.to_thread(self._importer.newest, again)
            except BadRecord as error:  # it was replaced again and again while it was read
                log.info("%s: %s", self._key, error)
                return None

    def progress(self) -> Progress | None:
        return self._worker.progress if self._worker is not None else Progress(COMPILING, 0, 0.0, 0.0)

    def marks(self) -> list[tuple[int, str]]:
        return self._worker.marks if self._worker is not None else []

    async def kill(self) -> None:
        if not self._ended.done():
            self._end("it was stopped")
            await asyncio.wait((self._ended,), timeout=10)

    def close(self) -> None:
        """In a thread: its saves are nobody's through this run any more."""
        self._importer.close()

    def peek(self, which: str, offset: int, count: int) -> bytes:
        return peek(getattr(self._places, which), offset, count)


def _unwanted(starting: asyncio.Future[Worker]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().kill()


def peek(path: Path, offset: int, count: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            return stream.read(count)
    except FileNotFoundError:
        return b""
