"""NativeRunner: one native process after another, at full speed, each in a directory of its own and out of reach of the node's keys.

    runner = NativeRunner(home)
    await runner.open()
    program = await runner.program("abc", "job.py", Path("job.py"))
    process = await runner.start("task-1", program, ["-n", "3"], stdin=Path("in.txt"))
    outcome = await process.wait()      # outcome.stdout is a file
    await runner.discard("task-1")

What a process sees, may do and costs is in docs/native.md.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ipos.pool.native import verdict, workdir
from ipos.pool.native.line import LOST, Line, NotStarted, Place
from ipos.pool.native.parent import PATH, Parent
from ipos.pool.native.process import Limits, Program
from ipos.pool.native.running import Process
from ipos.pool.native.workdir import KEY, Source
from ipos.wire import limits as most
from ipos.wire.clock import Clock, SystemClock
from ipos.wire.errors import Refused

T = TypeVar("T")

ONE_CORE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS")
DIRECTORIES = ("work", "env", "program")


def base_python() -> Path:
    """The interpreter of scripts that declare no environment: the one that the node's own environment was made from, so that a script
    sees the machine's packages and never the node's."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))


class NativeRunner:
    """`home`: work/, env/ and program/ in it are used, everything else in it is hidden from processes; `hide`: what else is, all of which
    must exist (the directory of the nodes' sockets, other homes); `nice`: of the processes; `processes`: how many one task may have;
    `isolate` False is for machines whose owner wants it so, and for the test of the tests."""

    def __init__(
        self,
        home: Path,
        *,
        hide: Sequence[Path] = (),
        clock: Clock | None = None,
        nice: int = 5,
        processes: int = most.task_processes,
        isolate: bool = True,
    ) -> None:
        self.isolation = "not started"
        self._home = home.resolve()
        self._work = self._home / "work"
        self._hide = [path.resolve() for path in hide]
        self._clock = clock or SystemClock()
        self._parent = Parent(self._home, self._hide, processes, nice)
        self._bare = "" if isolate else "switched off"
        self._free: list[Line] = []
        self._busy: dict[str, Line] = {}
        self._keys: set[str] = set()
        self._making: dict[Path, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def pid(self) -> int | None:
        """Of the warm parent."""
        return self._parent.pid

    @property
    def starts(self) -> int:
        """How often the warm parent was started: more than 1 means that it died."""
        return self._parent.starts

    async def open(self) -> int:
        """End and remove what an earlier life of this home left, then make the first seat. Afterwards `isolation` tells what processes
        cannot reach: "namespaces", "namespaces; lacks ...", or "none: why". Returns how many processes were left over."""
        for path in self._hide:
            if not path.exists():
                raise Refused(f"{path} cannot be hidden from native tasks: it does not exist")
        strays = await asyncio.to_thread(self._prepare_home)
        await self._own(self._make_seat())
        return strays

    async def program(self, key: str, name: str, source: Source) -> Path:
        """The program `key`, once per machine, as HOME/program/KEY/NAME: read-only and executable."""
        path = self._home / "program" / _checked(key) / name
        if not name or "/" in name or name in (".", ".."):
            raise Refused(f"{name!r} cannot be the name of a program")
        async with self._making.setdefault(path, asyncio.Lock()):
            if not path.exists():
                try:
                    await asyncio.to_thread(_place_program, source, path)
                except OSError as error:
                    raise workdir.no_room(path.parent, error) from None
        return path

    async def start(
        self,
        key: str,
        program: Program,
        args: Sequence[str] = (),
        *,
        interpreter: Path | None = None,
        stdin: Source | None = None,
        files: Mapping[str, Source] | None = None,
        limits: Limits | None = None,
        variables: Mapping[str, str] | None = None,
        writes: Sequence[Path] = (),
    ) -> Process:
        """Start it in the new directory HOME/work/KEY. `interpreter`: of the environment, for a python program, None for the machine's;
        `variables`: beyond the fixed few; `writes`: directories that it may write to besides its own (uv's cache, an environment that is
        being built). `Refused` if this machine cannot: the sentence says why; then nothing is left of it."""
        asked = limits or Limits()
        if 0 < asked.memory_bytes < most.task_memory_min_bytes:
            raise Refused(
                f"a memory limit of {verdict.size(asked.memory_bytes)} is too small, "
                f"the least is {verdict.size(most.task_memory_min_bytes)}"
            )
        directory = self._work / _checked(key)
        if key in self._keys:
            raise Refused(f"task {key} is running already", errno.EEXIST)
        self._keys.add(key)
        python = interpreter or base_python()
        argv = [str(python), str(program.path), *args] if program.python else [str(program.path), *args]
        try:
            marks = await self._whole(workdir.lay, directory, stdin, files or {})
            line = await self._seat()
            command = {
                "do": "start", "key": key, "argv": argv, "stdin": stdin is not None,
                "env": self._variables(key, line.place, python if program.python else None) | dict(variables or {}),
                "writes": [str(path) for path in writes], "limits": _rlimits(asked),
            }  # fmt: skip
            inner = await self._begin(key, line, command)
        except BaseException as error:
            await asyncio.to_thread(workdir.remove, directory)
            self._keys.discard(key)
            if isinstance(error, NotStarted):
                raise verdict.why_not(program.name, argv[0], error.errno or 0, str(error)) from None
            raise
        return Process(line, directory, asked, marks, self._clock, inner)

    async def _begin(self, key: str, line: Line, command: dict[str, Any]) -> int:
        """The pid in the seat. If it fails, the seat is given back; if it is cancelled, nobody knows whether something runs: it is ended."""
        self._busy[key] = line
        line.start(command)
        try:
            inner = await line.started
        except BaseException as error:
            del self._busy[key]
            if isinstance(error, NotStarted):
                self._give_back(line)
            else:
                line.end()
                await line.gone
            raise
        line.exited.add_done_callback(lambda _: self._release(key, line))
        return inner

    async def discard(self, key: str) -> None:
        """Remove the task's directory; what still runs is killed first."""
        line = self._busy.get(key)
        if line is not None:
            line.end()
            await line.gone
        await asyncio.to_thread(workdir.remove, self._work / _checked(key))

    async def close(self) -> None:
        """Kill everything."""
        lines = [*self._free, *self._busy.values()]
        await self._parent.close()
        for line in lines:
            line.end()
        await asyncio.gather(*(line.gone for line in lines))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- seats

    async def _seat(self) -> Line:
        while True:
            while self._free:
                line = self._free.pop()
                if not line.gone.done():
                    return line
            await self._own(self._make_seat())

    async def _make_seat(self) -> None:
        """Into the list of free ones. If the kernel refuses namespaces once, it is not asked again."""
        try:
            line = await self._parent.seat(self._bare)
        except Refused as error:
            if self._bare or str(error) == LOST:
                raise
            self._bare = f"this machine's kernel refuses namespaces ({error})"
            line = await self._parent.seat(self._bare)
        self.isolation = line.isolation
        own = self._work / ".seats" / line.place.name
        line.gone.add_done_callback(lambda _: self._spawn(asyncio.to_thread(workdir.remove, own)))
        await asyncio.to_thread(workdir.record, self._work, line.pid)
        self._free.append(line)

    def _release(self, key: str, line: Line) -> None:
        """A task is over."""
        del self._busy[key]
        self._keys.discard(key)
        if line.exited.exception() is None:
            self._give_back(line)
        elif self._bare:
            self._spawn(asyncio.to_thread(workdir.end_strays, self._work, key))

    def _give_back(self, line: Line) -> None:
        """The seat serves the next task, or goes if there are more than this machine has cores."""
        if len(self._free) < (os.cpu_count() or 1):
            self._free.append(line)
        else:
            line.hang_up()

    async def _whole(self, work: Callable[..., T], *arguments: Any) -> T:
        """In a thread, and to its end even if who waits for it is cancelled: what it made can then be taken away."""
        running = self._spawn(asyncio.to_thread(work, *arguments))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait((running,))
            raise

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on with it even if who waits for it is cancelled."""
        await asyncio.shield(self._spawn(work))

    # ---- files

    def _prepare_home(self) -> int:
        for name in DIRECTORIES:
            (self._home / name).mkdir(mode=0o700, exist_ok=True)
        strays = workdir.sweep(self._work)
        workdir.remove(self._home / "program")
        (self._home / "program").mkdir(mode=0o700)
        return strays

    def _variables(self, key: str, place: Place, python: Path | None) -> dict[str, str]:
        """Nothing of the node's own environment. One slot is one core, so numeric libraries are told to use one thread."""
        return {
            "PATH": f"{python.parent}:{PATH}" if python is not None else PATH,
            "HOME": place.home,
            "TMPDIR": place.tmp,
            "LANG": "C.UTF-8",
            "IPOS_TASK": key,
            "IPOS_WORK": str(self._work),
            "PYTHONDONTWRITEBYTECODE": "1",
            **dict.fromkeys(ONE_CORE, "1"),
        }


def _checked(key: str) -> str:
    if not KEY.fullmatch(key):
        raise Refused(f"{key!r} cannot be the key of a task: letters, digits, '.', '_' and '-', at most 128")
    return key


def _rlimits(asked: Limits) -> dict[str, int]:
    wanted = {"output_bytes": asked.output_bytes, "memory_bytes": asked.memory_bytes, "cpu_s": asked.cpu_s}
    return {"open_files": most.task_open_files} | {name: value for name, value in wanted.items() if value}


def _place_program(source: Source, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(".new-" + path.name)
    new.unlink(missing_ok=True)
    workdir.place(source, new, 0o555)
    new.rename(path)
