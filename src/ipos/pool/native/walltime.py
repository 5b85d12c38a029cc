"""walltime: how long a run may take. Pauses do not count, and the limit may be changed while it runs."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ipos.wire.clock import Clock

LEAST_S: Final = (
    0.001  # less is nothing: a clock's float may be too coarse to move by it, and waiting for it would never end
)


class WallTime:
    """Counts from when it is made. `limit_s`: 0 = no limit."""

    def __init__(self, clock: Clock, limit_s: float) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._before = 0.0
        self._since: float | None = clock.now()  # None while paused
        self._changed = asyncio.Event()

    @property
    def used_s(self) -> float:
        return self._before + (self._clock.now() - self._since if self._since is not None else 0.0)

    def pause(self) -> None:
        self._before, self._since = self.used_s, None
        self._changed.set()

    def resume(self) -> None:
        if self._since is None:
            self._since = self._clock.now()
        self._changed.set()

    def limit(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._changed.set()

    @property
    def sentence(self) -> str:
        return f"ran longer than {self.limit_s:g} s (allow more with --timeout)"

    async def over(self, ended: asyncio.Future[Any]) -> bool:
        """Whether the time is used before `ended` is done; returns when either is so."""
        while not ended.done():
            self._changed.clear()
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._changed.wait())]
            if self.limit_s and self._since is not None:
                left = self.limit_s - self.used_s
                if left < LEAST_S:
                    waits[0].cancel()
                    return True
                waits.append(asyncio.ensure_future(self._clock.sleep(left)))
            try:
                await asyncio.wait((*waits, ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
        return False
