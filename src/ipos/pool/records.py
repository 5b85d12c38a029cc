"""The records that travel between a coordinator and the nodes that work for it. A task's CID is its identity."""

from __future__ import annotations

import msgspec

from ipos.wire import limits
from ipos.wire.record import Address, Count, Digest, LateLink, Link, MaybeDigest, Record


class Limits(Record, frozen=True, kw_only=True):
    """What one run of a program may use. Bytes and milliseconds; 0 means no limit."""

    output_bytes: int = limits.output_bytes  # of stdout, of stderr, and of each file it writes
    memory_bytes: int = 0
    wall_ms: int = 0


class Task(Record, frozen=True, kw_only=True):
    """One run of a native program on one input. Equal descriptors are one task, computed once and paid once.

    `program`: a file; `name`: what it is called in the task's directory (`.py`: an interpreter runs it); `args` as the program gets
    them; `environment`: an Environment record, None for the node's own interpreter; `stdin`: a file; `files`: name in the task's
    directory -> file; `platform`: "linux-x86_64" where the program is built for one machine, "" for scripts; `image`: of the engine, the
    state of the program that the task starts from (docs/protocols/engine.md).
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
    image: LateLink = None

    @property
    def in_engine(self) -> bool:
        return self.platform.startswith("wasm:")

    @property
    def engine(self) -> str:
        """The version of the engine that it is for, "" if it is native."""
        return self.platform.removeprefix("wasm:") if self.in_engine else ""


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
    the save it went on from), `note` (what its owner should know), and, if it used up its work, `save` (CID) and `save_work`. One
    that replicas agreed on has `verified` (`pool.verified`) and `verification` (CID of that record).
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


class Mark(Record, frozen=True, kw_only=True):
    """The state of a task at a point of its grid: `index` k is how many points lie below `work`, the work used at the first safepoint
    beyond the k-th; `root` as docs/protocols/engine.md says. A task's marks are a file of lines `work root`."""

    v: int = 1
    index: Count
    work: Count
    root: Digest


class Receipt(Record, frozen=True, kw_only=True):
    """One node's signed account of what it computed of one task: from `since` (units of work; the state there had the root `since_root`,
    "" = the task's start) to `work` and `root`.

    `result`: None if the task moved on then. `account` answers for it, `run` is the key that signed it, `node` the peer id; `machines`: the
    account's signed list, which binds the three. `engine`: its version, "" = a native program: then there is no work, no root, and
    nothing but a claim. `marks`: of the whole task up to here; `before`: the receipt of who had the task before. `page_work`, `cpu_ms`,
    `wall_ms` are measured, 0 = not; the last two nobody can check. `signature`: EIP-712 by `run`, hex (docs/protocols/receipts.md).
    """

    v: int = 1
    task: Link
    result: Link | None
    account: Address
    run: Address
    node: str
    machines: Link
    engine: str
    since: Count
    since_root: MaybeDigest
    work: Count
    root: MaybeDigest
    marks: Link | None
    before: Link | None
    page_work: Count
    cpu_ms: Count
    wall_ms: Count
    signature: str = ""


class MarkedSave(Record, frozen=True, kw_only=True):
    """A packed save of the state at a mark. It need not be believed: its root is the mark's, or it is none."""

    v: int = 1
    index: Count
    save: Link


class Evidence(Record, frozen=True, kw_only=True):
    """The root of a CAR with everything that a stranger needs to judge a receipt; `saves` in order of their marks shorten the way to an
    interval."""

    v: int = 1
    receipt: Link
    saves: tuple[MarkedSave, ...] = ()


class Deal(Record, frozen=True, kw_only=True):
    """A coordinator gives a node a lease. Dealing the same `id` again changes nothing, so a lost reply is no problem.

    `job` is for people ("job 7 of desk"); `epoch`: the coordinator's, nodes obey the highest they have seen; `blocks`: small blocks the
    node may not have, so that small tasks need no second message. `save`: the packed save that a task of the engine goes on from;
    `save_every_ms`: how often it is to be saved. `ext`: `receipt` (CID) of who computed the task up to that save.
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
