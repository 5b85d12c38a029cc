"""Virtual time: an event loop that never waits. When nothing is ready it jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _Jump(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("virtual time stands still: everything waits for something that nothing will do")
            self.loop.jump(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when all is idle."""

    def __init__(self) -> None:
        selector = _Jump()
        self._virtual = 0.0
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        return self._virtual

    def jump(self, seconds: float) -> None:
        self._virtual += max(0.0, seconds)


def run(main: Any) -> Any:
    """`asyncio.run` under virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class WorldClock:
    """The boot clock of one simulated machine; `freeze` is a closed lid: it goes on counting and wakes nobody."""

    def __init__(self, offset: float) -> None:
        self._offset = offset
        self._awake = asyncio.Event()
        self._awake.set()

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self._offset

    def wall(self) -> float:
        return 1_800_000_000.0 + asyncio.get_running_loop().time()

    @property
    def frozen(self) -> bool:
        return not self._awake.is_set()

    def freeze(self) -> None:
        self._awake.clear()

    def thaw(self) -> None:
        self._awake.set()

    async def awake(self) -> None:
        await self._awake.wait()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._awake.wait()
