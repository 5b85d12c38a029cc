"""memory: what a process and those it has started have of the machine's memory (proc(5))."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ipos.pool.execute import Memory

RESIDENT: Final = re.compile(r"^Vm(RSS|HWM):\s+(\d+) kB$", re.MULTILINE)


def memory_of(pid: int) -> Memory:
    """Bytes that are resident, of a process and all below it; processes that have ended count nothing."""
    now = peak = 0
    todo = [pid]
    while todo:
        one = todo.pop()
        try:
            found = dict(RESIDENT.findall(Path(f"/proc/{one}/status").read_text()))
            todo += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except OSError:
            continue
        now += int(found.get("RSS", 0)) << 10
        peak += int(found.get("HWM", 0)) << 10
    return Memory(now, peak)
