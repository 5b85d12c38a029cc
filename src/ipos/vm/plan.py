"""plan: what a worker is told, and what it tells. Loads nothing of the engine."""

from __future__ import annotations

import msgspec

USED_UP = "used up its"  # how `Report.killed` begins when the work allowed was used: a save is there


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`cwd`: the input root, and where files that the program made are put; `saves`: a directory of this task alone; `cache`: this user's compiled code; `report`: where
    `result.json` goes. Bytes, units of work, seconds."""

    task: str
    program: str
    args: tuple[str, ...]
    env: dict[str, str]
    seed: str
    cwd: str
    saves: str
    report: str
    cache: str
    memory_bytes: int
    output_bytes: int
    work: int
    mark_every: int
    every_s: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`fault`: this node failed, in a sentence, and nothing else counts. `resumed_at`: work of the save it went on from."""

    exit: int = 0
    killed: str = ""
    work: int = 0
    root: str = ""
    marks: tuple[tuple[int, str], ...] = ()
    resumed_at: int = 0
    fault: str = ""
