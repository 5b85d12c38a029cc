"""The records that travel between a coordinator and the nodes that work for it. A task's CID is its identity."""

from __future__ import annotations

import msgspec

from ipos.wire import limits
from ipos.wire.record import Link, Record


class Limits(Record, frozen=True, kw_only=True):
    """What one run of a program may use. Bytes and milliseconds; 0 means no limit."""

    output_bytes: int = limits.output_bytes  # of stdout, of stderr, and of each file it writes
    memory_bytes: int = 0
    wall_ms: int = 0


class Task(Record, frozen=True, kw_only=True):
    """One run of a native program on one input. Equal descriptors are one task, computed once and paid once.

    `program`: a file; `name`: what it is called in the task's directory (`.py`: an interpreter runs it); `args` as the program gets
    them; `environment`: an Environment record, None for the node's own interpreter; `stdin`: a file; `files`: name in the task's
    directory -> file; `platform`: "linux-x86_64" where the program is built for one machine, "" for scripts.
    """

    v: int = 1
    program: Link
    name: str
    args: tuple[str, ...] = ()
    environment: Link | None = None
    stdin: Link | None = None
    files: dict[str, Link] = msgspec.field(default_factory=dict[str, bytes])
    platform: str = ""
    limits: Limits = Limits()

    @property
    def in_engine(self) -> bool:
        return self.platform.startswith("wasm:")


class EngineRun(Record, frozen=True, kw_only=True):
    """What a task of the engine has in the place of an Environment; its platform is `wasm:<engine>`. Bytes, units of work, `seed` as
    64 hexadecimal digits. The task's `files` are the program's input root."""

    v: int = 1
    engine: str
    env: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    seed: str = "00" * 32
    memory_bytes: int = limits.engine_memory_bytes
    work: int = 0
    mark_every: int = limits.mark_every


class Result(Record, frozen=True, kw_only=True):
    """What a task came to. `exit` is the program's status, -N if signal N ended it.

    `killed`: the sentence of the limit that ended it, or ""; `dir`: the files it left in its directory, None if it left none. Only
    `task`, `exit`, `stdout`, `stderr` and `dir` say what was computed; the rest is measured and differs from run to run. A task of the
    engine has in `ext`: `work` (units), `page_work` (64 KiB pages of memory x the work they were held for), `root`, `marks` (CID of a file of lines `work root`), which are computed too; and `resumed_at` (work of
    the save it went on from), `note` (what its owner should know), and, if it used up its work, `save` (CID) and `save_work`.
    """

    v: int = 1
    task: Link
    exit: int
    killed: str
    stdout: Link
    stderr: Link
    dir: Link | None
    cpu_ms: int
    wall_ms: int
    rss_bytes: int
    node: str

    @property
    def ok(self) -> bool:
        return self.exit == 0 and not self.killed


class Deal(Record, frozen=True, kw_only=True):
    """A coordinator gives a node a lease. Dealing the same `id` again changes nothing, so a lost reply is no problem.

    `job` is for people ("job 7 of desk"); `epoch`: the coordinator's, nodes obey the highest they have seen; `blocks`: small blocks the
    node may not have, so that small tasks need no second message. `save`: the packed save that a task of the engine goes on from;
    `save_every_ms`: how often it is to be saved.
    """

    v: int = 1
    id: str
    job: str
    epoch: int
    grace_ms: int
    task: Task
    fresh: bool
    blocks: tuple[bytes, ...] = ()
    save: Link | None = None
    save_every_ms: int = round(limits.save_every_s * 1000)
