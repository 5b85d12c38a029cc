"""A running task, as the node holds it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

from ipos.pool.native import verdict
from ipos.pool.native.line import Line
from ipos.pool.native.process import Exited, Limits, Outcome
from ipos.pool.native.workdir import Mark
from ipos.wire.clock import Clock
from ipos.wire.errors import Refused

KILL_S = 5.0  # after this a process that does not go takes its seat with it


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
