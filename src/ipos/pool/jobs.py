"""A job as its coordinator keeps it: the machine's state, its rows, and what people want to see. No decisions are made here."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import msgspec

from ipos.pool import holder
from ipos.pool import job as j
from ipos.pool import task as t
from ipos.pool.journal import JobState, Times
from ipos.pool.machine import State
from ipos.pool.placement import Choice
from ipos.pool.records import Task
from ipos.pool.saves import Save
from ipos.pool.spec import JobSpec
from ipos.store import cid as c
from ipos.tree.synthetic import Events
from ipos.wire.record import encode

PAUSED_BY = {
    holder.JOB: "its job's owner (resume in /job/<n>/<i>/ctl)",
    holder.OWNER: "the owner of that machine (resume in /proc/<pid>/ctl there)",
}


class Row:
    """One task of a job. `index` in input order; `name` of its input."""

    def __init__(self, i: int, name: str, task: Task | None, state: State) -> None:
        self.i = i
        self.name = name
        self._task = task
        self.state: Any = state
        self.says = ""
        self.save: Save | None = None  # the newest that this node keeps
        self.progress: dict[str, Any] | None = None
        self.sizes: dict[bytes, int] | None = None
        self.size: int | None = None  # as Job.size found it
        self.resting: tuple[
            str, ...
        ] = ()  # who has paused it where it is, as its holder says (`holder.JOB`, `holder.OWNER`)

    @property
    def task(self) -> Task:
        assert self._task is not None
        return self._task

    def become(self, task: Task) -> None:
        """Another task in this row, which nobody has been dealt."""
        self._task = task
        self.sizes = self.size = None
        for made in ("record", "cid"):
            self.__dict__.pop(made, None)

    @property
    def ended(self) -> bool:
        return isinstance(self.state, (t.Done, t.GivenUp, t.Cancelled))

    @cached_property
    def record(self) -> bytes:
        """The task's canonical bytes."""
        return encode(self.task)

    @cached_property
    def cid(self) -> bytes:
        """The task's identity."""
        return c.of_dag_cbor(self.record)

    @staticmethod
    def none() -> Row:
        """Stands where a decision is about the job as a whole."""
        return Row(-1, "", None, t.Pending())

    @property
    def word(self) -> str:
        state = self.state
        if isinstance(state, t.Leased):
            if self.resting:
                return "paused"
            return "pausing" if state.paused else type(state.lease).__name__.lower()
        if isinstance(state, t.Done):
            return "done" if state.ok else "failed"
        return {"GivenUp": "given-up"}.get(type(state).__name__, type(state).__name__.lower())


class Note(msgspec.Struct):
    """What a job remembers beside its machine's state."""

    estimate_s: float | None = None
    moved: int = 0
    tried_again: int = 0
    handed: dict[int, str] = msgspec.field(default_factory=dict[int, str])  # where tasks went on, by index
    resumed: int = 0
    repeated_s: float = 0.0
    sizes: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    written: int = 0
    trouble: str = ""
    rested: bool = False  # some of its tasks were paused or held: how long it took says nothing
    wall_s: dict[str, float] = msgspec.field(default_factory=dict[str, float])  # limits said while tasks ran, by index


class Job:
    def __init__(self, id: int, spec: bytes, state: JobState, note: bytes = b"") -> None:
        self.id = id
        self.spec_bytes = spec
        self.spec = msgspec.json.decode(spec, type=JobSpec)
        self.state: State = state
        self.info = msgspec.json.decode(note, type=Note) if note else Note()
        self.rows: list[Row] = []
        self.pending: set[int] = set()
        self.waits: dict[int, Choice] = {}
        self.times = Times()
        self.lessons = Times()
        self.names: Mapping[str, str] = {}
        self.says = ""
        self.events = Events(self._snapshot)
        self._stirred = asyncio.Event()
        self._heap: list[tuple[int, int]] = []  # (rank, index)
        self._measured = 0
        self._seconds = 0.0

    def note(self) -> bytes:
        return msgspec.json.encode(self.info)

    # ---- what the coordinator keeps in step

    def index(self) -> None:
        """After the rows have changed as a whole."""
        self.pending = {row.i for row in self.rows if isinstance(row.state, t.Pending)}
        self._heap = sorted((self.rank(self.rows[i]), i) for i in self.pending)

    def changed(self, row: Row, old: State) -> None:
        if isinstance(row.state, t.Pending):
            if row.i not in self.pending:
                self.pending.add(row.i)
                heapq.heappush(self._heap, (self.rank(row), row.i))
        else:
            self.pending.discard(row.i)
            self.waits.pop(row.i, None)
        if type(old) is not type(row.state):
            self.emit({"event": "task", **self.line(row)})

    def first_pending(self, most: int) -> list[int]:
        while self._heap and self._heap[0][1] not in self.pending:
            heapq.heappop(self._heap)
        return [i for _, i in self._heap[:most] if i in self.pending]

    def rank(self, row: Row) -> int:
        """Large inputs are dealt first, so that no long task begins when the others are over; within a factor of 1.4 they keep their order."""
        return -(self.size(row) ** 2).bit_length()

    def dealt(self) -> list[Row]:
        """The tasks in the order in which they are dealt."""
        return sorted(self.rows, key=self.rank)

    @property
    def mean_s(self) -> float | None:
        """Mean seconds of a task at speed 1.0, as measured in this job."""
        return self._seconds / self._measured if self._measured else None

    def measured(self, seconds: float) -> None:
        self._measured += 1
        self._seconds += seconds

    def moved(self, row: Row, reason: str, wasted: float) -> None:
        self.info.moved += 1
        self.info.repeated_s += wasted
        self.emit({"event": "moved", "i": row.i, "name": row.name, "reason": reason, "wasted_s": round(wasted, 2)})

    def tried_again(self, row: Row) -> None:
        """A program that failed is run once more, as the job asked."""
        self.info.tried_again += 1
        self.emit({"event": "tried-again", "i": row.i, "name": row.name})

    def say(self, row: Row | None, text: str) -> None:
        if row is None:
            self.says = text
        else:
            row.says = text
        self.emit({"event": "says", "i": None if row is None else row.i, "text": text})

    def progressed(self, row: Row, event: dict[str, Any]) -> None:
        """How far a task of the engine is: phase, work, speed, save_age_s."""
        row.progress = {key: event[key] for key in ("phase", "work", "speed", "save_age_s")}
        self.emit({"event": "progress", "i": row.i, **row.progress})

    def emit(self, event: dict[str, Any]) -> None:
        self.events.emit(msgspec.json.encode(event).decode())
        self.stir()

    def stir(self) -> None:
        """Something has changed: who waits in `until` looks again."""
        self._stirred.set()
        self._stirred = asyncio.Event()

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._stirred.wait()

    @property
    def open_stdin(self) -> bool:
        """Its one task does not begin before somebody has closed its standard input."""
        return self.spec.open_stdin and bool(self.rows) and self.rows[0].task.stdin is None

    def close(self) -> None:
        self.emit({"event": "end", **self.status()})
        self.events.end()

    def blocks(self, row: Row) -> Mapping[bytes, int]:
        """Bytes of each input of the task, by CID."""
        if row.sizes is None:
            task = row.task
            files = [task.stdin, *task.files.values()] if task.stdin is not None else list(task.files.values())
            row.sizes = {cid: self.info.sizes.get(cid.hex(), 0) for cid in files}
        return row.sizes

    def size(self, row: Row) -> int:
        """Bytes that the task reads."""
        if row.size is None:
            row.size = sum(self.blocks(row).values())
        return row.size

    # ---- what people see

    @property
    def over(self) -> bool:
        return isinstance(self.state, (j.Finished, j.Stopped, j.Refused))

    @property
    def rests(self) -> bool:
        """Whether nothing of it goes on by itself: it is over, or all that is left is suspended."""
        open_ = (t.Pending, t.Leased)
        return self.over or (
            isinstance(self.state, j.Working) and not any(isinstance(r.state, open_) for r in self.rows)
        )

    def status(self) -> dict[str, Any]:
        """The pairs of /job/<n>/status."""
        state = self.state
        counts = state.counts if isinstance(state, (j.Working, j.Finished, j.Stopped)) else j.Counts()
        running = sum(isinstance(row.state, t.Leased) for row in self.rows) if isinstance(state, j.Working) else 0
        began = state.began if isinstance(state, (j.Working, j.Finished)) else None
        ended = state.ended if isinstance(state, (j.Finished, j.Stopped, j.Refused)) else None
        by_node: dict[str, int] = {}
        for row in self.rows:
            if isinstance(row.state, t.Done):
                by_node[row.state.node] = by_node.get(row.state.node, 0) + 1
        return {
            "job": self.id,
            "state": type(state).__name__.lower(),
            "program": self.spec.program,
            "total": counts.total,
            "done": counts.done,
            "failed": counts.failed,
            "given_up": counts.given_up,
            "cancelled": counts.cancelled - len(self.info.handed),
            "handed_over": len(self.info.handed),
            "from_store": counts.from_store,
            "running": running,
            "suspended": sum(isinstance(row.state, t.Suspended) for row in self.rows) if not self.over else 0,
            "held": sum(isinstance(row.state, t.Held) for row in self.rows) if not self.over else 0,
            "paused": sum(row.word in ("paused", "pausing") for row in self.rows) if not self.over else 0,
            "moved": self.info.moved,
            "tried_again": self.info.tried_again,
            "resumed": self.info.resumed,
            "repeated_s": round(self.info.repeated_s, 2),
            "estimate_s": self.info.estimate_s,
            "mean_s": None if self.mean_s is None else round(self.mean_s, 4),
            "wall_s": round(ended - began, 3) if began is not None and ended is not None else None,
            "began": began,
            "nodes": " ".join(f"{self.names.get(n, n) or 'store'}={k}" for n, k in sorted(by_node.items())),
            "out": self.spec.out,
            "says": self.says,
            "trouble": self.info.trouble,
            "refused": state.sentence if isinstance(state, j.Refused) else None,
        }

    def line(self, row: Row) -> dict[str, Any]:
        state = row.state
        out: dict[str, Any] = {"i": row.i, "name": row.name, "state": row.word}
        if isinstance(state, t.Leased):
            out["node"] = self.names.get(state.lease.node, state.lease.node)
            out |= row.progress or {}
            out |= {"save_work": row.save.work} if row.save is not None else {}
        elif isinstance(state, t.Done):
            out |= {
                "node": self.names.get(state.node, state.node) or "store",
                "result": state.result,
                "wall_s": state.wall_s,
            }
            out |= {"resumed": state.resumed} if state.resumed else {}
        elif isinstance(state, t.Suspended):
            out["save_work"] = row.save.work if row.save is not None else 0
        elif isinstance(state, t.GivenUp):
            out["reason"] = state.reason
        elif row.i in self.info.handed:
            out |= {"state": "handed-over", "reason": self.info.handed[row.i]}
        return out

    def why(self, row: Row) -> str:
        """Why the task ran, runs or waits where it does: one paragraph a lease."""
        state = row.state
        head = f"task {row.i} ({row.name})" if row.name else f"task {row.i}"
        lines = [
            f"{head} was on {self.names.get(p.node, p.node)}: {p.reason}"
            + (f"; {p.wasted_s:.1f} s of work repeated" if p.wasted_s else "")
            for p in state.past
        ]
        if isinstance(state, t.Leased):
            node = self.names.get(state.lease.node, state.lease.node)
            lines.append(f"{head} is on {node} ({row.word}{', ' + row.says if row.says else ''}) because: {state.why}")
            if row.resting:
                who = " and ".join(PAUSED_BY[by] for by in row.resting)
                lines.append(f"{head} is paused by {who}; it keeps its slot and its memory there")
        elif isinstance(state, t.Done):
            node = self.names.get(state.node, state.node)
            lines.append(
                f"{head} ran on {node}{', ' + state.resumed if state.resumed else ''} because: {state.why}"
                if node
                else f"{head} was answered from the store: equal task, same result"
            )
        elif isinstance(state, t.GivenUp):
            lines.append(f"{head} was given up: {state.reason}")
        elif isinstance(state, t.Suspended):
            at = f"at {row.save.work / 1e9:.2f} Gop" if row.save is not None else "before it was saved"
            lines.append(f"{head} is suspended {at}: ipos resume {self.id}.{row.i} goes on")
        elif isinstance(state, t.Cancelled) and row.i in self.info.handed:
            lines.append(f"{head} was handed over: {self.info.handed[row.i]}")
        elif isinstance(state, t.Held):
            where = f"/job/{self.id}/{row.i}"
            until = f"{where}/stdin is written and closed" if self.open_stdin else f"start is written to {where}/ctl"
            lines.append(f"{head} is held until {until}")
        elif isinstance(state, t.Cancelled):
            lines.append(f"{head} was cancelled")
        else:
            choice = self.waits.get(row.i)
            lines.append(f"{head} waits: {'its turn has not come' if choice is None else choice.sentence()}")
        return "\n".join(lines) + "\n"

    def _snapshot(self) -> list[str]:
        lines = [{"event": "job", **self.status()}]
        lines += [{"event": "task", **self.line(row)} for row in self.rows if not isinstance(row.state, t.Pending)]
        if self.over:
            lines.append({"event": "end", **self.status()})
        return [msgspec.json.encode(line).decode() for line in lines]
