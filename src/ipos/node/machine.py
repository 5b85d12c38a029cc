"""What this computer has and how busy it is: the figures of a beat, and of `ipos pool`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ipos.node.settings import Settings
from ipos.pool.prepare import here
from ipos.vm.version import platform

NOMINAL_S = 0.0135  # the loop below on one core of a machine of 2020


def measure_speed() -> float:
    """How fast one core runs Python, 1.0 = a core of 2020; best of three, about 50 ms in all."""
    best = min(_loop() for _ in range(3))
    return round(NOMINAL_S / best, 2)


def _loop() -> float:
    start = time.perf_counter()
    total = 0
    for i in range(200_000):
        total += i * i % 7
    return time.perf_counter() - start


def memory() -> tuple[int, int]:
    """(total, available) bytes."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemTotal"].split()[0]) * 1024, int(fields["MemAvailable"].split()[0]) * 1024


def resident(parents: Sequence[int]) -> int:
    """Bytes of memory of all that these processes have started, without themselves; what two of them share counts twice."""
    total, waiting = 0, list(parents)
    for pid in waiting:
        try:
            if pid not in parents:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except (OSError, ValueError):
            continue  # it has ended meanwhile
    return total


class MachineLoad:
    """`holding.Load` of the real machine, as far as its owner gives it: `settings` says how far that is now."""

    def __init__(self, settings: Callable[[], Settings], machine: str) -> None:
        self.cores = len(os.sched_getaffinity(0))
        self.speed = 1.0
        self.parents: Callable[[], Sequence[int]] = tuple  # of the processes that run tasks
        self.others = 0.0  # cores' worth of work that is not IPOS's
        self._settings = settings
        self._machine = machine
        self._last = self._times()

    @property
    def slots(self) -> int:
        settings = self._settings()
        given = settings.cores or self.cores
        return max(1, given * settings.share // 100) if settings.share else 0

    @property
    def declined(self) -> str:
        """Why no program outside the engine may run here, "" if one may."""
        return "" if self._settings().native else "its owner lets no native work run there"

    def tasks_bytes(self) -> int:
        return resident(self.parents())

    def offered(self, total: int, free: int) -> tuple[int, int]:
        """(total, free) bytes for tasks: under the owner's cap, less what they have already."""
        cap = self._settings().memory_bytes
        return (total, free) if cap is None else (min(total, cap), max(0, min(free, cap - self.tasks_bytes())))

    @staticmethod
    def _times() -> tuple[float, float]:
        """(seconds the machine's cores were busy, seconds since boot)."""
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        ticks = [int(n) for n in first[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), time.monotonic()

    def figures(self, busy: int) -> dict[str, Any]:
        now = self._times()
        passed = now[1] - self._last[1]
        if passed > 0.5:
            cores = (now[0] - self._last[0]) / passed
            self.others = round(max(0.0, cores - busy), 2)
            self._last = now
        total, free = self.offered(*memory())
        settings = self._settings()
        return {
            "cores": self.cores,
            "slots": self.slots,
            "said": bool(settings.cores) or settings.share < 100,
            "speed": self.speed,
            "memory_total": total,
            "memory_free": free,
            "foreign": self.others,
            "platform": here(),
            "engine": platform(),
            "machine": self._machine,
            "declined": self.declined,
        }
