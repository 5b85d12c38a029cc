"""NativeExecutor: runs tasks on this machine through the warm parent. `execute.Executor` says what it promises."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipos.pool.execute import Memory, Ran, Run
from ipos.pool.native.engine import Engine, EngineRun, peek
from ipos.pool.native.environment import Builds, Environment
from ipos.pool.native.memory import memory_of
from ipos.pool.native.replicas import ReplicaRun, Replicas
from ipos.pool.native.walltime import WallTime
from ipos.pool.records import Task
from ipos.pool.saves import Holds, Save
from ipos.pool.signing import Signer
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm.plan import Progress
from ipos.wire.clock import Clock
from ipos.wire.errors import Refused
from ipos.wire.record import decode

log = logging.getLogger("ipos.native")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ONE_CORE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")  # one slot is one core


def base_python() -> str:
    """The interpreter of scripts that declare no environment: the one that the node's own environment was made from."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


class NativeRun:
    """`execute.Run`."""

    def __init__(self, executor: NativeExecutor, key: str, directory: Path, task: Task) -> None:
        self.key = key
        self.directory = directory
        self.task = task
        self.ended: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.killed = ""
        self._executor = executor
        self._wall = WallTime(executor.clock, task.limits.wall_ms / 1000)

    async def exited(self) -> None:
        if await self._wall.over(self.ended):
            self.killed = self._wall.sentence
            self._executor.send(op="kill", key=self.key)
        await asyncio.shield(self.ended)

    async def wait(self) -> Ran:
        event = await asyncio.shield(self.ended)
        if "fault" in event:
            return Ran(fault=event["fault"])
        return await asyncio.to_thread(self._collect, event, self._wall.used_s)

    def _collect(self, event: dict[str, Any], wall: float) -> Ran:
        """In a thread: what it printed and left becomes content of the store."""
        store, code = self._executor.store, event["code"]
        limit = self.task.limits.output_bytes
        killed = self.killed
        sizes = [(self.directory / which).stat().st_size for which in ("stdout", "stderr")]
        if code == -signal.SIGXFSZ or (
            limit and code != 0 and max(sizes) >= limit
        ):  # Python ignores the signal and fails
            killed = f"wrote more than {limit / (1 << 20):g} MiB to one file (allow more with --max-output)"
        try:
            stdout, _ = unixfs.add_file(store, self.directory / "stdout")
            stderr, _ = unixfs.add_file(store, self.directory / "stderr")
            directory = unixfs.add_dir(store, self.directory / "cwd") if self._left() else None
        except OSError as error:
            return Ran(fault=f"its output cannot be stored: {error}")
        return Ran(code, killed, stdout, stderr, directory, event["cpu_s"], wall, event["rss"])

    def _left(self) -> bool:
        """Whether the task made files; its inputs are taken away first."""
        cwd = self.directory / "cwd"
        for name in self.task.files:
            (cwd / name).unlink(missing_ok=True)
        shutil.rmtree(cwd / "tmp", ignore_errors=True)
        return any(cwd.iterdir())

    def pause(self) -> None:
        self._wall.pause()
        self._executor.send(op="pause", key=self.key)

    def resume(self) -> None:
        self._wall.resume()
        self._executor.send(op="resume", key=self.key)

    def limit(self, wall_s: float) -> None:
        self._wall.limit(wall_s)

    def memory(self) -> Memory | None:
        running = self.started.done() and not self.started.cancelled() and not self.ended.done()
        return memory_of(self.started.result()) if running else None

    async def save(self) -> int:
        raise Refused(f"{self.task.name} is a native program: it can be paused and restarted, not saved (--wasm can)")

    def stop(self) -> None:
        self._executor.send(op="stop", key=self.key)

    async def saved(self, again: bool) -> Save | None:
        return None

    def progress(self) -> Progress | None:
        return None

    def marks(self) -> list[tuple[int, str]]:
        return []

    def close(self) -> None:
        pass

    async def kill(self) -> None:
        if not self.ended.done():
            self._executor.send(op="kill", key=self.key)
            await asyncio.wait((self.ended,), timeout=10)

    def peek(self, which: str, offset: int, count: int) -> bytes:
        return peek(self.directory / which, offset, count)


class NativeExecutor:
    """`home`: work/ and env/ in it are used; `hidden`: directories that tasks must not see besides the home."""

    def __init__(
        self, *, home: Path, hidden: tuple[Path, ...], store: BlockStore, holds: Holds, clock: Clock, key: Signer
    ) -> None:
        self.store = store
        self.holds = holds
        self.clock = clock
        self.isolation = "not started"
        self.starts = 0
        self._home = home
        self._hidden = hidden
        self.engine = Engine(home, hidden, store, holds, clock)
        self._replicas = Replicas(home, store, key)
        self._builds = Builds(home / "env")
        self._runs: dict[str, NativeRun] = {}
        self._of_engine: dict[str, EngineRun | ReplicaRun] = {}
        self._pythons: dict[str, list[str]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._materialising: dict[Path, asyncio.Lock] = {}

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    # ---- the warm parent

    async def open(self) -> None:
        """Clear what an earlier life left (its processes died with it) and start the warm parent."""
        work = self._home / "work"
        await asyncio.to_thread(shutil.rmtree, work, True)
        work.mkdir(mode=0o700)
        (self._home / "env").mkdir(mode=0o700, exist_ok=True)
        await asyncio.to_thread(self.engine.clean)
        await self._begin()

    async def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-m", "ipos.pool.native.spawner",
                str(theirs.fileno()), str(self._home), *map(str, self._hidden),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True,
                env={"PATH": PATH, "LANG": "C.UTF-8"},
            )  # fmt: skip
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        line = await reader.readline()
        if not line:
            raise Refused("the worker's parent process did not start; the node's log has its message")
        why_not = json.loads(line)["isolation"]
        self.isolation = f"none: {why_not}" if why_not else "user and mount namespace; home and sockets hidden"
        self.starts += 1
        self._reader = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            event = json.loads(line)
            run = self._runs.get(event["key"])
            if run is None:
                continue
            if event["event"] == "started":
                run.started.set_result(event["pid"])
            elif event["event"] == "failed":
                run.ended.set_result({"fault": f"{run.task.name} cannot be started here: {event['why']}"})
                run.started.cancel()
            elif not run.ended.done():
                run.ended.set_result(event)
        self._writer = None
        for run in self._runs.values():
            if not run.ended.done():
                run.ended.set_result({"fault": "the worker process of the node was killed"})

    def send(self, **command: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(command).encode() + b"\n")

    async def close(self) -> None:
        await self.engine.close()
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            try:
                async with asyncio.timeout(3):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    # ---- Executor

    async def prepare(self, key: str, task: Task, say: Callable[[str], None], save_every_s: float) -> None:
        if not task.in_engine:
            self._pythons[key] = await self._python(task, say)
        program = self._program(task)
        async with self._materialising.setdefault(program, asyncio.Lock()):
            try:
                await asyncio.to_thread(self._materialise, task, self._home / "work" / key, program)
                if task.in_engine:
                    await asyncio.to_thread(self.engine.prepare, key, task, save_every_s)
            except OSError as error:
                raise Refused(f"the task's files cannot be laid out here: {error}") from None
        if not task.in_engine:
            self.send(op="park", **self._command(key, task))

    def _program(self, task: Task) -> Path:
        return self._home / "env" / "programs" / c.text(task.program) / task.name

    async def start(self, key: str, task: Task, save: bytes | None, replicas: int = 0) -> Run:
        if replicas:
            self._of_engine[key] = run = self._replicas.start(task, replicas, self.engine.planned(key).every_s)
            return run
        if task.in_engine:
            self._of_engine[key] = run = await self.engine.start(key, task, self._program(task), save)
            return run
        async with self._starting:
            if self._writer is None:
                await self._begin()
        run = NativeRun(self, key, self._home / "work" / key, task)
        self._runs[key] = run
        self.send(op="start", **self._command(key, task))  # whole again: the parent that parked it may have died since
        return run

    def _command(self, key: str, task: Task) -> dict[str, Any]:
        python, directory = self._pythons[key], self._home / "work" / key
        most = task.limits
        rlimits = {"core": 0}
        argv = [*python, str(self._program(task)), *task.args]
        if most.output_bytes:
            rlimits["fsize"] = most.output_bytes
        if most.memory_bytes:
            rlimits["as"] = most.memory_bytes
        return {
            "key": key, "argv": argv, "cwd": str(directory / "cwd"),
            "stdin": str(directory / "stdin") if task.stdin is not None else "",
            "stdout": str(directory / "stdout"), "stderr": str(directory / "stderr"),
            "rlimits": rlimits, "env": self._variables(key, directory, python),
        }  # fmt: skip

    async def _python(self, task: Task, say: Callable[[str], None]) -> list[str]:
        if not task.name.endswith(".py"):
            return []
        if task.environment is None:
            return [base_python()]
        environment = decode(Environment, self.store.get(task.environment))
        return [str(await self._builds.interpreter(c.text(task.environment), environment, say))]

    @staticmethod
    def _variables(key: str, directory: Path, python: list[str]) -> dict[str, str]:
        path = f"{Path(python[0]).parent}:{PATH}" if python else PATH
        cwd = str(directory / "cwd")
        fixed = {"PATH": path, "HOME": cwd, "TMPDIR": cwd + "/tmp", "LANG": "C.UTF-8", "IPOS_TASK": key}
        return {**fixed, **dict.fromkeys(ONE_CORE, "1"), "PYTHONDONTWRITEBYTECODE": "1"}

    def _materialise(self, task: Task, directory: Path, program: Path) -> None:
        """In a thread: the program once per machine, the inputs as read-only copies, so that no task can alter another's."""
        if not program.exists():
            program.parent.mkdir(parents=True, exist_ok=True)
            new = program.with_name(f".new-{directory.name}")
            new.unlink(missing_ok=True)
            unixfs.export(self.store, task.program, new, 0o555)
            new.rename(program)
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "cwd").mkdir(parents=True)
        if "tmp" not in task.files:
            (directory / "cwd" / "tmp").mkdir()
        if task.stdin is not None:
            unixfs.export(self.store, task.stdin, directory / "stdin", 0o444)
        for name, cid in task.files.items():
            unixfs.export(self.store, cid, directory / "cwd" / name, 0o444)

    async def discard(self, key: str) -> None:
        self._runs.pop(key, None)
        run = self._of_engine.pop(key, None)
        if run is not None:
            await asyncio.to_thread(run.close)
        if self._pythons.pop(key, None) is not None:
            self.send(op="unpark", key=key)
        await asyncio.to_thread(shutil.rmtree, self._home / "work" / key, True)
