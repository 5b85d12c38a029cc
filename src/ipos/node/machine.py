"""What this computer has and how busy it is: the figures of a beat, and of `ipos pool`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

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


class MachineLoad:
    """`holding.Load` of the real machine. `said`: slots that the owner set, 0 = every core."""

    def __init__(self, said: int, native: bool, machine: str) -> None:
        self.cores = len(os.sched_getaffinity(0))
        self.speed = 1.0
        self._said = said
        self._native = native
        self._machine = machine
        self._last = self._times()
        self._others = 0.0

    @property
    def slots(self) -> int:
        return 0 if not self._native else self._said or self.cores

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
            self._others = max(0.0, cores - busy)
            self._last = now
        total, free = memory()
        return {
            "cores": self.cores,
            "slots": self.slots,
            "said": bool(self._said),
            "speed": self.speed,
            "memory_total": total,
            "memory_free": free,
            "foreign": round(self._others, 2),
            "platform": here(),
            "engine": platform(),
            "machine": self._machine,
            "declined": "" if self._native else "its owner lets no native work run there",
        }
