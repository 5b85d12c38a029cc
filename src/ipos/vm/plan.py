"""plan: what a worker is told, and what it tells, one JSON object a line (docs/protocols/worker.md). Loads nothing of the engine."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

USED_UP = "used up its"  # how `Report.killed` begins when the work allowed was used: a save is there
LINE_BYTES: Final = 1 << 20

COMPILING, RUNNING = 0, 1


def mark_index(work: int, mark_every: int) -> int:
    """How many points of the grid of marks lie below `work`: which mark a stop there is, if it is one."""
    return max(0, work - 1) // mark_every


class Progress(NamedTuple):
    """How far a run is: `work` in units, `speed` in units a second, `saved`: CLOCK_MONOTONIC of the newest save, 0 = none yet."""

    phase: int
    work: int
    speed: float
    saved: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run; where its files are the worker knows by its descriptors. `seed`: 64 hexadecimal digits; bytes, units of work, seconds.
    `work`: the most it may use, 0 = no limit; `every_s`: between saves, as `pace` says. `image`: the CID of what it starts from, "" for none."""

    task: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    seed: str = "00" * 32
    memory_bytes: int = 256 << 20
    output_bytes: int = 256 << 20
    work: int = 0
    mark_every: int = 1_000_000_000
    every_s: float = 5.0
    image: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`fault`: this node failed, in a sentence, and nothing else counts. `page_work`: pages of 64 KiB x
    work they were held for; `resumed_at`: work of the save it went on from; `stopped`: it was
    told to stop and has saved; `note`: what its owner should know."""

    exit: int = 0
    killed: str = ""
    work: int = 0
    page_work: int = 0
    root: str = ""
    resumed_at: int = 0
    fault: str = ""
    stopped: bool = False
    note: str = ""


# ---- to a worker


class Start(msgspec.Struct, frozen=True, tag="start", tag_field="op"):
    """The first line. It goes on from the save in its directory, if there is one."""

    plan: Plan


class Pause(msgspec.Struct, frozen=True, tag="pause", tag_field="op"):
    """Compute no more, until `resume`; `save`, `handover` and `kill` are obeyed all the same."""


class Resume(msgspec.Struct, frozen=True, tag="resume", tag_field="op"):
    pass


class Save(msgspec.Struct, frozen=True, tag="save", tag_field="op"):
    """Now. Answered by `Saved`."""


class HandOver(msgspec.Struct, frozen=True, tag="handover", tag_field="op"):
    """Save, and end: the report says `stopped`."""


class Kill(msgspec.Struct, frozen=True, tag="kill", tag_field="op"):
    """End at once, without a save."""


Command = Start | Pause | Resume | Save | HandOver | Kill


# ---- from a worker


class Confined(msgspec.Struct, frozen=True, tag="confined", tag_field="event"):
    """The first line, before it reads anything. Layer -> "" if it is in force, otherwise why not."""

    layers: dict[str, str]


class Began(msgspec.Struct, frozen=True, tag="began", tag_field="event"):
    """`work`: of the save it goes on from; 0: from the beginning. The marks of that save follow."""

    work: int
    note: str = ""


class Marked(msgspec.Struct, frozen=True, tag="mark", tag_field="event"):
    """`root`: hexadecimal."""

    work: int
    root: str


class Progressed(msgspec.Struct, frozen=True, tag="progress", tag_field="event"):
    work: int
    speed: float


class Saved(msgspec.Struct, frozen=True, tag="saved", tag_field="event"):
    """On disk. `bytes` were written in `took_s`; the next comes after `next_s`, if nobody asks for one."""

    work: int
    root: str
    bytes: int
    took_s: float
    next_s: float


class Paused(msgspec.Struct, frozen=True, tag="paused", tag_field="event"):
    work: int


class Resumed(msgspec.Struct, frozen=True, tag="resumed", tag_field="event"):
    work: int


class Over(msgspec.Struct, frozen=True, tag="ended", tag_field="event"):
    """The last line."""

    report: Report


Event = Confined | Began | Marked | Progressed | Saved | Paused | Resumed | Over


def line(message: Command | Event) -> bytes:
    return msgspec.json.encode(message) + b"\n"


command = msgspec.json.Decoder(Command).decode
event = msgspec.json.Decoder(Event).decode
