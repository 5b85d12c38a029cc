"""How long the loop keeps others waiting. Always measured, because it costs nothing while nothing happens.

A turn of the loop is what it does between two looks for new work: whatever comes meanwhile waits until the turn ends. The selector is where
the loop looks, so a selector of our own times every turn. What the turns do not show (other threads that hold the interpreter, a machine
that is too busy) shows in a timer that comes too late; one is set a few times a second. A turn that is longer than `limits.lag_bad_s` is
written to the log with the stack that it was seen in, by a thread that sleeps while the loop does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import selectors
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Final

from ipos.wire import limits

log = logging.getLogger("ipos.lag")

LOOK_S: Final = 0.025  # between two looks of the thread, while the loop works
QUIET_LOOKS: Final = 8  # so many in a row with nothing to see, and it sleeps
TIMER_S: Final = 0.5
STEPS: Final = 4  # buckets of the distribution in a factor of two
FRAMES: Final = 8  # innermost ones that the log gets


class Lag:
    """The figures of one loop, in seconds since it began, or since `forget`."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.most = 0.0
        self.turns = 0
        self._counts = [0] * (32 * STEPS)

    def add(self, seconds: float) -> None:
        self.turns += 1
        self.most = max(self.most, seconds)
        self._counts[min(len(self._counts) - 1, max(0, int(STEPS * math.log2(seconds * 1e6 + 1))))] += 1

    def p99(self) -> float:
        """99 of 100 turns were at most so long, to a fifth: the upper end of their bucket."""
        left = self.turns // 100
        for i in range(len(self._counts) - 1, -1, -1):
            left -= self._counts[i]
            if left < 0:
                return min(self.most, (2 ** ((i + 1) / STEPS) - 1) / 1e6)
        return 0.0


class Watched(selectors.DefaultSelector):
    """The selector of a watched loop. `seen`: the stack of a turn that is too long, by the thread that saw it."""

    def __init__(self) -> None:
        super().__init__()
        self.lag = Lag()
        self.bad = 0
        self._began: float | None = None  # of the turn that is under way,
        self._spent = 0.0  # and the processor's time at its beginning
        self._seen = ""
        self._blamed = -math.inf  # when a turn was last found too long
        self._thread = threading.get_ident()
        self._asleep = threading.Event()
        self._wake = threading.Event()
        self._closed = False
        self._watcher = threading.Thread(target=self._watch, name="lag", daemon=True)
        self._watcher.start()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._began is not None:
            took = time.monotonic() - self._began
            self._began = None
            self.lag.add(took)
            if took > limits.lag_bad_s:
                self._blamed = time.monotonic()
                self._say(took, "the loop was blocked", self._seen, time.thread_time() - self._spent)
            self._seen = ""
        found = super().select(timeout)
        self._began, self._spent = time.monotonic(), time.thread_time()
        if self._asleep.is_set():
            self._asleep.clear()
            self._wake.set()
        return found

    def late(self, seconds: float) -> None:
        """A timer came so much too late."""
        self.lag.add(seconds)
        if seconds > limits.lag_bad_s and time.monotonic() - self._blamed > seconds + TIMER_S:
            self._say(seconds, "a timer came late, no turn of the loop was to blame: other threads, or a busy machine")

    def _say(self, seconds: float, words: str, seen: str = "", spent: float | None = None) -> None:
        """`spent`: seconds of processor; far less than the lag means that it waited, for a disk or for its turn on a busy machine."""
        self.bad += 1
        more = {"cpu_ms": round(spent * 1e3)} if spent is not None else {}
        log.warning(words, extra={"lag_ms": round(seconds * 1e3), **more, **({"stack": seen} if seen else {})})

    def _watch(self) -> None:
        """Sees, while a turn lasts, where it is; what it sees is kept for the turn's end, or said if there is none for a second."""
        quiet, last, said = 0, None, None
        while not self._closed:
            time.sleep(LOOK_S)
            began = self._began
            took = time.monotonic() - began if began is not None else 0.0
            if began is None or began != last:
                quiet, last = (quiet + 1 if began is None else 0), began
            if took > limits.lag_bad_s - LOOK_S / 2 and (frame := sys._current_frames().get(self._thread)) is not None:  # pyright: ignore[reportPrivateUsage]  (documented)
                self._seen = stack(frame)
                if took > 1.0 and said != began:
                    said = began
                    log.warning("the loop is blocked", extra={"lag_ms": round(took * 1e3), "stack": self._seen})
            if quiet >= QUIET_LOOKS:
                self._asleep.set()
                self._wake.wait()
                self._wake.clear()
                quiet = 0

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        super().close()


def stack(frame: FrameType) -> str:
    """The innermost frames, innermost first, as `file:line function`."""
    frames = traceback.extract_stack(frame, FRAMES)
    return " < ".join(f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno} {f.name}" for f in reversed(frames))


async def timer(watched: Watched) -> None:
    """Set a timer again and again, and see how late it comes."""
    while True:
        due = time.monotonic() + TIMER_S
        await asyncio.sleep(TIMER_S)
        watched.late(max(0.0, time.monotonic() - due))
