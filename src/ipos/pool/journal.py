"""journal: what a node must not forget, in one SQLite file: its jobs, the state of each task, results by task, times by program.

The coordinator writes what it decided *before* anybody is told (a task is dealt after its lease is on disk, a result confirmed after it
is), so that a node killed at any instruction reads a past that the rest of the pool agrees with. Writes are collected and committed
together: `commit` returns when everything noted before it is on disk. One commit costs one fsync, however many tasks it is about.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ipos.pool import job as j
from ipos.pool import task as t
from ipos.pool.reserve import Reserve
from ipos.wire import limits
from ipos.wire.errors import Refused

SCHEMA = 3  # 2: saves of tasks, suspended tasks; 3: whose a result is and how it was verified
TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, spec BLOB NOT NULL, state BLOB NOT NULL, note BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (job INTEGER, i INTEGER, name TEXT NOT NULL, record BLOB NOT NULL, state BLOB NOT NULL,
                                  PRIMARY KEY (job, i)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS saves (job INTEGER, i INTEGER, save BLOB NOT NULL, work INTEGER NOT NULL, receipt BLOB, PRIMARY KEY (job, i)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (task BLOB PRIMARY KEY, result BLOB NOT NULL, receipt BLOB, account TEXT NOT NULL,
                                    verified TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS times (program BLOB PRIMARY KEY, n INTEGER, sx REAL, sy REAL, sxx REAL, sxy REAL) WITHOUT ROWID;
"""

OLDER = f"""
BEGIN;
DROP TABLE IF EXISTS results; -- nobody noted whose they were
DROP TABLE saves;
CREATE TABLE saves (job INTEGER, i INTEGER, save BLOB NOT NULL, work INTEGER NOT NULL, receipt BLOB, PRIMARY KEY (job, i)) WITHOUT ROWID;
UPDATE meta SET value='{SCHEMA}' WHERE key='schema';
COMMIT;
"""

JobState = j.Preparing | j.Working | j.Finished | j.Stopped | j.Refused
TaskState = t.Pending | t.Leased | t.Suspended | t.Held | t.Done | t.GivenUp | t.Cancelled

_jobs: msgspec.json.Decoder[JobState] = msgspec.json.Decoder(JobState)
_tasks: msgspec.json.Decoder[TaskState] = msgspec.json.Decoder(TaskState)

Offload = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a blocking function off the loop: `asyncio.to_thread` in a node, the function itself under virtual time."""


class JobRow(NamedTuple):
    id: int
    spec: bytes
    state: JobState
    note: bytes


class TaskRow(NamedTuple):
    i: int
    name: str
    record: bytes
    state: TaskState


class Times(NamedTuple):
    """Sums over earlier runs of a program: x = bytes of input, y = seconds at speed 1.0 on a core of its own (see `estimate`)."""

    n: int = 0
    sx: float = 0.0
    sy: float = 0.0
    sxx: float = 0.0
    sxy: float = 0.0


class Answer(NamedTuple):
    """A result that is known: its record, the record of its receipt, the account that computed it, and how it was verified (`verified`)."""

    result: bytes
    receipt: bytes | None = None
    account: str = ""
    verified: str = "none"


class Journal:
    """Owned by one node: the home's lock sees to that. Methods that read do so at once; methods that write only note.

    `first` runs before a commit, off the loop: what notes speak of is on disk before they are (`blocks.settle` of the node's store).
    """

    def __init__(
        self, path: Path | str, offload: Offload, durable: bool = True, first: Callable[[], None] = lambda: None
    ) -> None:
        self._offload = offload
        self._first = first
        self._notes: list[tuple[str, tuple[Any, ...]]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._lock = self._reading = threading.Lock()
        self._reserve = Reserve(path.with_name(path.name + ".reserve")) if isinstance(path, Path) else None
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        self._db.executescript(TABLES)
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
        self._read = (
            self._db if isinstance(path, str) else sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        )
        if self._read is not self._db:
            self._reading = threading.Lock()  # who reads does not wait while a batch is synced to the disk
        if self.meta("schema") in ("1", "2"):
            self._db.executescript(OLDER)
        found = self.meta("schema")
        if found != str(SCHEMA):
            raise Refused(f"{path} was written by a newer IPOS (schema {found}, this one reads {SCHEMA}): update IPOS")

    # ---- notes

    def job(self, id: int, spec: bytes, state: j.State, note: bytes) -> None:
        self._note("INSERT OR REPLACE INTO jobs VALUES (?,?,?,?)", id, spec, msgspec.json.encode(state), note)

    def job_state(self, id: int, state: j.State, note: bytes) -> None:
        self._note("UPDATE jobs SET state=?, note=? WHERE id=?", msgspec.json.encode(state), note, id)

    def task(self, job: int, i: int, name: str, record: bytes, state: t.State) -> None:
        self._note("INSERT OR REPLACE INTO tasks VALUES (?,?,?,?,?)", job, i, name, record, msgspec.json.encode(state))

    def task_state(self, job: int, i: int, state: t.State) -> None:
        self._note("UPDATE tasks SET state=? WHERE job=? AND i=?", msgspec.json.encode(state), job, i)

    def save(self, job: int, i: int, save: bytes, work: int, receipt: bytes | None = None) -> None:
        self._note("INSERT OR REPLACE INTO saves VALUES (?,?,?,?,?)", job, i, save, work, receipt)

    def forget_save(self, job: int, i: int) -> None:
        self._note("DELETE FROM saves WHERE job=? AND i=?", job, i)

    def answer(self, task: bytes, answer: Answer) -> None:
        self._note("INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?)", task, *answer)

    def forget_answer(self, task: bytes) -> None:
        self._note("DELETE FROM answers WHERE task=?", task)

    def time(self, program: bytes, size: float, seconds: float) -> None:
        self._note(
            "INSERT INTO times VALUES (?,1,?,?,?,?) ON CONFLICT (program) DO UPDATE SET "
            "n=n+1, sx=sx+excluded.sx, sy=sy+excluded.sy, sxx=sxx+excluded.sxx, sxy=sxy+excluded.sxy",
            program, size, seconds, size * size, size * seconds,
        )  # fmt: skip

    def note(self, key: str, value: str) -> None:
        self._note("INSERT OR REPLACE INTO meta VALUES (?,?)", key, value)

    def _note(self, sql: str, *values: Any) -> None:
        self._notes.append((sql, values))

    # ---- reads

    def meta(self, key: str) -> str | None:
        with self._reading:
            row = self._read.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    def jobs(self, last: int = limits.jobs_kept) -> list[JobRow]:
        """The newest `last` jobs, oldest first."""
        with self._reading:
            rows = self._read.execute("SELECT * FROM jobs ORDER BY id DESC LIMIT ?", (last,)).fetchall()
        return [JobRow(id, spec, _jobs.decode(state), note) for id, spec, state, note in reversed(rows)]

    def tasks(self, job: int) -> list[TaskRow]:
        with self._reading:
            rows = self._read.execute(
                "SELECT i, name, record, state FROM tasks WHERE job=? ORDER BY i", (job,)
            ).fetchall()
        return [TaskRow(i, name, record, _tasks.decode(state)) for i, name, record, state in rows]

    def saves(self, job: int) -> dict[int, tuple[bytes, int, bytes | None]]:
        """(CID, work, CID of the receipt up to it) of the saves of a job's tasks, by index."""
        with self._reading:
            rows = self._read.execute("SELECT i, save, work, receipt FROM saves WHERE job=?", (job,)).fetchall()
        return {i: (save, work, receipt) for i, save, work, receipt in rows}

    def last_job(self) -> int:
        with self._reading:
            row = self._read.execute("SELECT max(id) FROM jobs").fetchone()
        return row[0] or 0

    def answer_of(self, task: bytes) -> Answer | None:
        with self._reading:
            row = self._read.execute(
                "SELECT result, receipt, account, verified FROM answers WHERE task=?", (task,)
            ).fetchone()
        return Answer(*row) if row else None

    def times(self, program: bytes) -> Times:
        with self._reading:
            row = self._read.execute("SELECT n, sx, sy, sxx, sxy FROM times WHERE program=?", (program,)).fetchone()
        return Times(*row) if row else Times()

    # ---- commit

    async def commit(self) -> None:
        """Return when all that was noted is on disk. `Refused` if it cannot be written: then nothing of the batch is."""
        if not self._notes and self._task is None:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if self._task is None:
            self._task = asyncio.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        try:
            while self._waiting:
                notes, self._notes = self._notes, []
                waiting, self._waiting = self._waiting, []
                try:
                    await self._offload(lambda notes=notes: self._write(notes))
                except (sqlite3.Error, OSError) as error:
                    self._notes = notes + self._notes  # kept: the next commit tries again
                    refused = Refused(f"the journal cannot be written ({error}): free some disk and try again")
                    for each in waiting:
                        if not each.done():
                            each.set_exception(refused)
                else:
                    for each in waiting:
                        if not each.done():
                            each.set_result(None)
        finally:
            self._task = None

    def _write(self, notes: list[tuple[str, tuple[Any, ...]]]) -> None:
        self._first()
        with self._lock:
            try:
                self._transact(notes)
            except sqlite3.OperationalError:
                if self._reserve is None or not self._reserve.give():
                    raise
                self._transact(notes)  # the disk is full, and now a little less so
            else:
                if self._reserve is not None:
                    self._reserve.take()

    def _transact(self, notes: list[tuple[str, tuple[Any, ...]]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in notes:
                self._db.execute(sql, values)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has rolled it back already
                self._db.execute("ROLLBACK")
            raise

    def die(self) -> None:
        """Nothing is written from here on: what a kill -9 at this moment leaves. For `ipos.testing`."""
        self._write = lambda notes: None
        self._notes = []

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._read is not self._db:
                self._read.close()
