"""Time, as the parts of a node see it: one machine's boot clock, never compared with another machine's."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed moment of this machine, counting the time it slept. `ipos.testing` has a virtual one."""

    def now(self) -> float:
        """Seconds; only differences mean something."""
        ...

    def wall(self) -> float:
        """Unix time in seconds, for people only: no protocol decides by it."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """CLOCK_BOOTTIME: a lid that was closed for an hour counts an hour."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
