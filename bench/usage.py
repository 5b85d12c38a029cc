"""What a process and all that it has started cost."""

from __future__ import annotations

import os
from pathlib import Path


def usage(pid: int) -> tuple[float, float]:
    """(resident MB, CPU seconds) of a process and its children."""
    pids = [pid]
    for one in pids:
        try:
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except OSError:
            continue
        pids += [int(child) for child in children]
    memory = seconds = 0.0
    for one in pids:
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        memory += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1000
    return memory, seconds
