"""plan: what a worker is told, and what it tells. Loads nothing of the engine."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

USED_UP = "used up its"  # how `Report.killed` begins when the work allowed was used: a save is there


COMPILING, RUNNING = 0, 1
_PROGRESS: Final = struct.Struct("<QQdd")


class Progress(NamedTuple):
    """How far a run is: `work` in units, `speed` in units a second, `saved`: CLOCK_MONOTONIC of the newest save, 0 = none yet."""

    phase: int
    work: int
    speed: float
    saved: float

    def write(self, fd: int) -> None:
        os.pwrite(fd, _PROGRESS.pack(*self), 0)

    @staticmethod
    def read(path: Path) -> Progress | None:
        try:
            body = path.read_bytes()
        except OSError:
            return None
        return Progress(*_PROGRESS.unpack(body)) if len(body) == _PROGRESS.size else None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`root`: the input root; `out`: where files that the program made are put; `saves`: a directory of this task alone; `cache`: this
    user's compiled code; `report`, `progress`: files. Bytes, units of work, seconds."""

    task: str
    program: str
    args: tuple[str, ...]
    env: dict[str, str]
    seed: str
    root: str
    out: str
    saves: str
    report: str
    progress: str
    cache: str
    memory_bytes: int
    output_bytes: int
    work: int
    mark_every: int
    every_s: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`fault`: this node failed, in a sentence, and nothing else counts. `resumed_at`: work of the save it went on from; `stopped`: it was
    told to stop and has saved; `note`: what its owner should know."""

    exit: int = 0
    killed: str = ""
    work: int = 0
    root: str = ""
    marks: tuple[tuple[int, str], ...] = ()
    resumed_at: int = 0
    fault: str = ""
    stopped: bool = False
    note: str = ""
