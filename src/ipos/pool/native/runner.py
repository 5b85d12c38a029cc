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
import os
import signal
import sys
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ipos.pool.native import verdict, workdir
from ipos.pool.native.line import LOST, Line, Place
from ipos.pool.native.parent import PATH, Parent
from ipos.pool.native.process import Exited, Limits, Outcome, Program
from ipos.pool.native.workdir import KEY, Mark, Source
from ipos.wire import limits as most
from ipos.wire.clock import Clock, SystemClock
from ipos.wire.errors import Refused

ONE_CORE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS")
KILL_S = 5.0  # after this a process that does not go takes its seat with it
DIRECTORIES = ("work", "env", "program")


def base_python() -> Path:
    """The interpreter of scripts that declare no environment: the one that the node's own environment was made from, so that a script
    sees the machine's packages and never the node's."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))


class Process:
    """A running task. Its `stdout` and `stderr` can be read while it runs."""

    def __init__(
        self, line: Line, directory: Path, asked: Limits, marks: Mapping[str, Mark], clock: Clock, inner: int
    ) -> None:
        self.directory = directory
        self.given = marks
        self._line = line
        self._exited = line.exited
        self._asked = asked
        self._clock = clock
        self._inner = inner
        self._began = clock.now()
        self._ended: float | None = None
        self._paused_at: float | None = None
        self._paused_s = 0.0
        self._killed: str | None = None
        self._oom_kills = verdict.oom_kills()
        self._timer = asyncio.create_task(self._time_out(asked.wall_s)) if asked.wall_s else None
        self._exited.add_done_callback(self._over)

    @property
    def stdout(self) -> Path:
        return self.directory / "stdout"

    @property
    def stderr(self) -> Path:
        return self.directory / "stderr"

    @property
    def cwd(self) -> Path:
        return self.directory / "cwd"

    @property
    def pid(self) -> int | None:
        """As `ps` on this machine shows it; None once it has ended."""
        return None if self._exited.done() else self._line.task_pid(self._inner)

    async def wait(self) -> Outcome:
        """How it ended. May be awaited more than once, and cancelled: that changes nothing for the process."""
        await asyncio.wait((self._exited,))
        try:
            exited = self._exited.result()
        except Refused as error:
            return self._outcome(Exited(0, 0.0, 0), verdict.Verdict(fault=str(error)))
        if self._killed is not None:
            return self._outcome(exited, verdict.Verdict(killed=self._killed))
        return self._outcome(exited, await self._judged(exited))

    async def _judged(self, exited: Exited) -> verdict.Verdict:
        try:
            if exited.status == 0 and not verdict.printed_too_much(self._asked, self.directory):
                return verdict.Verdict()  # two stat calls are not worth a thread
            oom = verdict.oom_kills() - self._oom_kills
            return await asyncio.to_thread(
                verdict.judge, exited.status, self._asked, self.directory, exited.rss_bytes, oom
            )
        except OSError as error:
            return verdict.Verdict(fault=f"what the task left cannot be read: {error}")

    def pause(self) -> None:
        """SIGSTOP to all of it."""
        if self._paused_at is None:
            self._paused_at = self._clock.now()
        self._line_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to all of it."""
        if self._paused_at is not None:
            self._paused_s += self._clock.now() - self._paused_at
            self._paused_at = None
        self._line_signal(signal.SIGCONT)

    async def kill(self, why: str = "was cancelled") -> None:
        """Returns when nothing of it runs any more. `wait` then says that it was killed, and `why`."""
        if not self._exited.done():
            self._killed = self._killed or why
            self._line_signal(signal.SIGKILL)
            try:
                async with asyncio.timeout(KILL_S):
                    await asyncio.wait((self._exited,))
            except TimeoutError:
                self._line.end()
                await asyncio.wait((self._exited,))

    def _line_signal(self, number: int) -> None:
        if not self._exited.done():
            self._line.signal(number)

    def _over(self, _: object) -> None:
        self._ended = self._clock.now()
        if self._timer is not None:
            self._timer.cancel()

    async def _time_out(self, wall_s: float) -> None:
        """Pauses do not count: while it is paused this looks again later."""
        while True:
            paused = self._paused_s
            if self._paused_at is not None:
                paused += self._clock.now() - self._paused_at
            left = self._began + wall_s + paused - self._clock.now()
            if left <= 0 and self._paused_at is None:
                break
            await self._clock.sleep(max(left, 0.05))
        await self.kill(f"ran longer than {wall_s:g} s: raise it with --timeout")

    def _outcome(self, exited: Exited, judged: verdict.Verdict) -> Outcome:
        fault, status = judged.fault, exited.status
        return Outcome(
            exit=status if status >= 0 and fault is None else None,
            signal=-status if status < 0 and fault is None else None,
            stdout=self.stdout,
            stderr=self.stderr,
            dir=self.cwd,
            cpu_s=exited.cpu_s,
            wall_s=(self._ended or self._clock.now()) - self._began,
            max_rss_bytes=exited.rss_bytes,
            fault=fault,
            killed=judged.killed,
        )


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
        if key in self._busy:
            raise Refused(f"task {key} is running already", 17)
        python = interpreter or base_python()
        argv = [str(python), str(program.path), *args] if program.python else [str(program.path), *args]
        marks = await asyncio.to_thread(workdir.lay, directory, stdin, files or {})
        try:
            line = await self._seat()
        except BaseException:
            await asyncio.to_thread(workdir.remove, directory)
            raise
        self._busy[key] = line
        line.start(
            {
                "do": "start", "key": key, "argv": argv, "stdin": stdin is not None,
                "env": self._variables(key, line.place, python if program.python else None) | dict(variables or {}),
                "writes": [str(path) for path in writes], "limits": _rlimits(asked),
            }
        )  # fmt: skip
        line.exited.add_done_callback(lambda _: self._release(key, line))
        try:
            inner = await line.started
        except BaseException as error:
            await self._abandon(key, line)
            if isinstance(error, Refused) and str(error) != LOST:
                raise verdict.why_not(program.name, argv[0], error.errno or 0, str(error)) from None
            raise
        return Process(line, directory, asked, marks, self._clock, inner)

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
        """A task is over; its seat serves the next one, or goes if there are more than this machine has cores."""
        if self._busy.get(key) is line:
            del self._busy[key]
        if line.gone.done() or line.exited.exception() is not None:
            if self._bare:
                self._spawn(asyncio.to_thread(workdir.end_strays, self._work, key))
        elif len(self._free) < (os.cpu_count() or 1):
            self._free.append(line)
        else:
            line.hang_up()

    async def _abandon(self, key: str, line: Line) -> None:
        """A start that failed or was cancelled: give the seat back, or end it if it may be running something."""
        if line.started.done() and line.started.exception() is not None and not line.gone.done():
            line.exited.cancel()
            self._busy.pop(key, None)
            self._free.append(line)
        else:
            line.end()
            await line.gone
        await asyncio.to_thread(workdir.remove, self._work / key)

    def _spawn(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # pyright: ignore[reportArgumentType]
        task.add_done_callback(self._tasks.discard)  # pyright: ignore[reportArgumentType]
        return task  # pyright: ignore[reportReturnType]

    async def _own(self, work: Awaitable[Any]) -> None:
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
