"""NativeExecutor: tasks of the pool on NativeRunner. Content comes from the store and goes back into it. `execute.Executor` promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from ipos.pool.execute import Ran
from ipos.pool.native import uv, workdir
from ipos.pool.native.environment import Builds, Environment
from ipos.pool.native.process import Limits, Outcome, Program
from ipos.pool.native.runner import NativeRunner, Process
from ipos.pool.native.workdir import Source
from ipos.pool.records import Task
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.wire.clock import Clock
from ipos.wire.record import decode


class NativeRun:
    """`execute.Run`."""

    def __init__(self, process: Process, store: BlockStore) -> None:
        self._process = process
        self._store = store

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def wait(self) -> Ran:
        outcome = await self._process.wait()
        if outcome.fault is not None:
            return Ran(fault=outcome.fault)
        return await asyncio.to_thread(self._collect, outcome)

    def _collect(self, outcome: Outcome) -> Ran:
        """In a thread: what it printed and left becomes content of the store."""
        status = outcome.exit if outcome.exit is not None else -(outcome.signal or 0)
        try:
            stdout, _ = unixfs.add_file(self._store, outcome.stdout)
            stderr, _ = unixfs.add_file(self._store, outcome.stderr)
            left = workdir.left(outcome.dir, self._process.given)
            directory = unixfs.add_dir(self._store, outcome.dir) if left else None
        except OSError as error:
            return Ran(fault=f"its output cannot be stored: {error}")
        return Ran(
            exit=status,
            killed=outcome.killed or "",
            stdout=stdout,
            stderr=stderr,
            dir=directory,
            cpu_s=outcome.cpu_s,
            wall_s=outcome.wall_s,
            rss_bytes=outcome.max_rss_bytes,
        )

    def pause(self) -> None:
        self._process.pause()

    def resume(self) -> None:
        self._process.resume()

    async def kill(self) -> None:
        await self._process.kill()

    def peek(self, which: str, offset: int, count: int) -> bytes:
        try:
            with open(self._process.directory / which, "rb") as stream:
                stream.seek(offset)
                return stream.read(count)
        except FileNotFoundError:
            return b""


class NativeExecutor:
    """`home`: work/, env/ and program/ in it are used; `hidden`: what tasks must not see besides the home, all of which must exist."""

    def __init__(self, *, home: Path, hidden: tuple[Path, ...], store: BlockStore, clock: Clock) -> None:
        self.store = store
        self.runner = NativeRunner(home, hide=hidden, clock=clock)
        self._builds = Builds(home.resolve() / "env", uv.isolated(self.runner))

    @property
    def pid(self) -> int | None:
        """Of the warm parent."""
        return self.runner.pid

    @property
    def isolation(self) -> str:
        """ "namespaces", "namespaces; lacks ..." or "none: why"."""
        return self.runner.isolation

    @property
    def starts(self) -> int:
        return self.runner.starts

    async def open(self) -> None:
        """Clear what an earlier life left and start the warm parent."""
        await self.runner.open()

    async def close(self) -> None:
        await self.runner.close()

    # ---- Executor

    async def start(self, key: str, task: Task, say: Callable[[str], None]) -> NativeRun:
        python = task.name.endswith(".py")
        interpreter = await self._interpreter(task, say) if python else None
        path = await self.runner.program(c.text(task.program), task.name, self._content(task.program))
        process = await self.runner.start(
            key,
            Program(task.name, path, python),
            task.args,
            interpreter=interpreter,
            stdin=self._content(task.stdin) if task.stdin is not None else None,
            files={name: self._content(cid) for name, cid in task.files.items()},
            limits=Limits(
                output_bytes=task.limits.output_bytes,
                memory_bytes=task.limits.memory_bytes,
                wall_s=task.limits.wall_ms / 1000 or None,
            ),
        )
        return NativeRun(process, self.store)

    def _content(self, cid: bytes) -> Source:
        return lambda path: unixfs.export(self.store, cid, path)

    async def _interpreter(self, task: Task, say: Callable[[str], None]) -> Path | None:
        if task.environment is None:
            return None
        environment = decode(Environment, self.store.get(task.environment))
        return await self._builds.interpreter(c.text(task.environment), environment, say)

    async def discard(self, key: str) -> None:
        await self.runner.discard(key)
