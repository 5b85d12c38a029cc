"""What the tests of native tasks share: a runner on a fresh home, and one call that runs a script to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ipos.pool.native.process import Outcome, Program
from ipos.pool.native.runner import NativeRunner, Process

SHELL = Program("sh", Path("/bin/sh"), python=False)


class Ran(NamedTuple):
    outcome: Outcome
    out: str
    err: str


@contextlib.asynccontextmanager
async def runner_on(directory: Path, **options: Any) -> AsyncIterator[NativeRunner]:
    home = directory / "home"
    home.mkdir(exist_ok=True)
    runner = NativeRunner(home, **options)
    await runner.open()
    try:
        yield runner
    finally:
        await runner.close()


async def script(runner: NativeRunner, text: str, name: str = "job.py") -> Program:
    key = f"p{abs(hash(text))}"
    return Program(name, await runner.program(key, name, lambda path: path.write_text(text) and None), python=True)


async def finish(process: Process) -> Ran:
    outcome = await process.wait()
    return Ran(outcome, outcome.stdout.read_text(errors="replace"), outcome.stderr.read_text(errors="replace"))


async def run_script(
    runner: NativeRunner, text: str, args: Sequence[str] = (), key: str = "task", **options: Any
) -> Ran:
    return await finish(await runner.start(key, await script(runner, text), args, **options))


async def run_shell(runner: NativeRunner, text: str, key: str = "task", **options: Any) -> Ran:
    return await finish(await runner.start(key, SHELL, ["-c", text], **options))


async def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that no event announces."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not happen"
        await asyncio.sleep(0.005)


def alive(key: str) -> list[int]:
    """Processes of this machine that are the task `key` or come from it."""
    mark, found = f"IPOS_TASK={key}".encode(), []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def state(pid: int) -> str:
    """The letter of proc_pid_stat(5): R, S, T (stopped), Z."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class HandClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._moved = asyncio.Event()

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        limit = self.time + seconds
        while self.time < limit:
            await self._moved.wait()

    async def pass_by(self, seconds: float) -> None:
        self.time += seconds
        self._moved.set()
        self._moved = asyncio.Event()
        for _ in range(5):
            await asyncio.sleep(0)
