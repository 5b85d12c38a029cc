"""The journal against a plain model: random notes and commits, a crash at any moment, a new start from what the disk has.

Promised: what a commit reported is there; what is there is what was noted up to the end of some commit, in the order it was noted;
nothing of a commit is there without the rest. A crash is a copy of the files as they are at that instant, of three kinds: the process
is killed (the disk has every write), the power goes (of what was written after the last fsync, only the beginning), or the disk loses the
end of its log although it was synced (then only order and wholeness are claimed). The bugs planted below must each be caught by it.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ipos.pool import job as j
from ipos.pool import lease as l
from ipos.pool import task as t
from ipos.pool.journal import Answer, JobRow, Journal, TaskRow, Times
from ipos.testing.world import inline
from ipos.wire.errors import Refused

JOBS, TASKS = range(1, 4), range(4)
KEYS = (b"a", b"b", b"c" * 36)
WORDS = ("epoch", "addresses")

COUNTS = st.builds(j.Counts, st.integers(0, 1 << 40), st.integers(0, 9))
JOB_STATES = st.one_of(
    st.just(j.Preparing()),
    st.builds(j.Working, COUNTS, st.floats(0, 2e9)),
    st.builds(j.Finished, COUNTS, st.floats(0, 2e9), st.floats(0, 2e9)),
    st.builds(j.Refused, st.text(max_size=20), st.floats(0, 2e9)),
)
LEASES = st.builds(l.Running, st.text(max_size=5), st.just("node"), *[st.floats(0, 1e9)] * 4)
TASK_STATES = st.one_of(
    st.builds(t.Pending, st.integers(0, 5)),
    st.builds(t.Leased, lease=LEASES, why=st.text(max_size=20)),
    st.builds(t.Done, result=st.text(max_size=9), ok=st.booleans(), wall_s=st.floats(0, 1e6)),
    st.builds(t.GivenUp, reason=st.text(max_size=9)),
)
BODIES = st.binary(max_size=30) | st.integers(0, 60_000).map(bytes)  # some larger than a page
ANSWERS = st.builds(Answer, BODIES, st.none() | BODIES, st.text(max_size=9), st.sampled_from(("none", "full")))
NOTES = st.one_of(
    st.tuples(st.just("job"), st.sampled_from(JOBS), BODIES, JOB_STATES, BODIES),
    st.tuples(st.just("job_state"), st.sampled_from(JOBS), JOB_STATES, BODIES),
    st.tuples(st.just("task"), st.sampled_from(JOBS), st.sampled_from(TASKS), st.text(max_size=9), BODIES, TASK_STATES),
    st.tuples(st.just("task_state"), st.sampled_from(JOBS), st.sampled_from(TASKS), TASK_STATES),
    st.tuples(st.just("answer"), st.sampled_from(KEYS), ANSWERS),
    st.tuples(st.just("forget_answer"), st.sampled_from(KEYS)),
    st.tuples(st.just("time"), st.sampled_from(KEYS), st.floats(0, 1e9), st.floats(0, 1e6)),
    st.tuples(st.just("note"), st.sampled_from(WORDS), st.text(max_size=9)),
)


class Plain:
    """What a journal is, without a disk: the notes one after the other."""

    def __init__(self) -> None:
        self.jobs: dict[int, JobRow] = {}
        self.tasks: dict[tuple[int, int], TaskRow] = {}
        self.answers: dict[bytes, Answer] = {}
        self.times: dict[bytes, Times] = {}
        self.words: dict[str, str] = {}

    def apply(self, note: tuple[Any, ...]) -> None:
        match note:
            case ("job", id, spec, state, text):
                self.jobs[id] = JobRow(id, spec, state, text)
            case ("job_state", id, state, text):
                if id in self.jobs:
                    self.jobs[id] = self.jobs[id]._replace(state=state, note=text)
            case ("task", job, i, name, record, state):
                self.tasks[job, i] = TaskRow(i, name, record, state)
            case ("task_state", job, i, state):
                if (job, i) in self.tasks:
                    self.tasks[job, i] = self.tasks[job, i]._replace(state=state)
            case ("answer", task, answer):
                self.answers[task] = answer
            case ("forget_answer", task):
                self.answers.pop(task, None)
            case ("time", program, x, y):
                o = self.times.get(program, Times())
                self.times[program] = Times(o.n + 1, o.sx + x, o.sy + y, o.sxx + x * x, o.sxy + x * y)
            case ("note", key, value):
                self.words[key] = value
            case _:
                raise AssertionError(note)

    def content(self) -> tuple[Any, ...]:
        return (
            [self.jobs[id] for id in sorted(self.jobs)],
            {job: [self.tasks[job, i] for i in TASKS if (job, i) in self.tasks] for job in JOBS},
            [self.answers.get(key) for key in KEYS],
            [self.times.get(key, Times()) for key in KEYS],
            [self.words.get(word) for word in WORDS],
        )


def content(journal: Journal) -> tuple[Any, ...]:
    """The same, as a journal tells it."""
    return (
        journal.jobs(),
        {job: journal.tasks(job) for job in JOBS},
        [journal.answer_of(key) for key in KEYS],
        [journal.times(key) for key in KEYS],
        [journal.meta(word) for word in WORDS],
    )


class Disk(dict[str, bytes]):
    """The files of a journal at one instant: what another process would find."""

    @classmethod
    def of(cls, path: Path) -> Disk:
        return cls({end: body for end in ("", "-wal") if (body := read(path.with_name(path.name + end))) is not None})

    def write(self, path: Path) -> None:
        for end, body in self.items():
            path.with_name(path.name + end).write_bytes(body)

    def torn(self, synced: Disk, share: float) -> Disk:
        """Of what was written to the log after `synced`, only the first `share` arrived. What is in the main file was synced before."""
        new, old = self.get("-wal", b""), synced.get("-wal", b"")
        if self[""] != synced[""]:
            return self
        same = next((i for i, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), min(len(new), len(old)))
        cut = same + round((len(new) - same) * share)
        return Disk({"": self[""], "-wal": new[:cut] + old[cut:]})


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


class Watched:
    """A connection that calls `tick` before and after each statement."""

    def __init__(self, db: sqlite3.Connection, tick: Callable[[], None]) -> None:
        self._db, self._tick = db, tick

    def execute(self, *what: Any) -> sqlite3.Cursor:
        self._tick()
        cursor = self._db.execute(*what)
        self._tick()
        return cursor

    def close(self) -> None:
        self._db.close()


class Story(RuleBasedStateMachine):
    """`made` notes in order; `ends`: after how many of them a write ended or may end; `written`, `reported`: so many are, at least."""

    Kind: type[Journal] = Journal

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="ipos-journal-"))
        self.lives = 0
        self.made: list[tuple[Any, ...]] = []
        self.ends = {0}
        self.written = self.reported = 0
        self.base = 0  # so many notes are in the main file ...
        self.main = b""  # ... which is this one, until the log is brought into it
        self.waiting: list[tuple[asyncio.Task[None], int]] = []
        self.gate: asyncio.Future[None] | None = None
        self.upto = 0
        self.shots: list[Disk] | None = None
        self.db: sqlite3.Connection

    def teardown(self) -> None:
        self.forget()
        self.loop.close()
        shutil.rmtree(self.directory)

    # ---- a journal's life

    @initialize(pages=st.sampled_from((0, 3)), cache=st.sampled_from((1, -2000)))
    def start(self, pages: int, cache: int) -> None:
        """`pages`: how long the log gets before it is brought into the main file (0: never); a `cache` of one page spills early."""
        self.pages, self.cache = pages, cache
        self.path = self.directory / "0"
        self.open()
        self.base, self.main = 0, self.synced[""]

    def open(self) -> None:
        self.journal = self.Kind(self.path, self.offload, durable=False)
        self.db = self.journal._db
        self.db.execute(f"PRAGMA wal_autocheckpoint={self.pages}")
        self.db.execute(f"PRAGMA cache_size={self.cache}")
        self.journal._db = Watched(self.db, self.tick)  # type: ignore[assignment]
        self.synced = Disk.of(self.path)

    def forget(self) -> None:
        """The process is gone: nothing of it is written or reported any more."""
        self.gate = None
        for task in [*(task for task, _ in self.waiting), *asyncio.all_tasks(self.loop)]:
            task.cancel()
        self.settle()
        self.waiting = []
        self.journal._read.close()
        self.db.close()

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    async def offload(self, function: Callable[[], Any]) -> Any:
        """The writing thread: it waits until the story lets it go."""
        self.gate, self.upto = self.loop.create_future(), len(self.made)
        self.ends.add(self.upto)
        await self.gate
        return function()

    def tick(self) -> None:
        if self.shots is not None:
            self.shots.append(Disk.of(self.path))

    def go(self) -> None:
        """Let the writing thread write; hear what was reported."""
        assert self.gate is not None
        gate, upto, self.gate = self.gate, self.upto, None
        full = bool(self.db.execute("PRAGMA query_only").fetchone()[0])
        gate.set_result(None)
        self.settle()
        if not full:
            self.written = upto
            self.synced = Disk.of(self.path)
        self.hear()

    def hear(self) -> None:
        for task, promised in [one for one in self.waiting if one[0].done()]:
            self.waiting.remove((task, promised))
            error = task.exception()
            if error is None:
                self.reported = max(self.reported, promised)
            elif not isinstance(error, Refused):
                raise error

    def restart(self, disk: Disk, least: int) -> None:
        """A new process on what the disk has, which must be all notes up to the end of a write, not before `least`."""
        self.forget()
        self.lives += 1
        self.path = self.directory / str(self.lives)
        disk.write(self.path)
        self.open()
        self.recover(least)

    def recover(self, least: int) -> None:
        try:
            assert self.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found, plain, there = content(self.journal), Plain(), -1
        except sqlite3.DatabaseError as error:
            raise AssertionError(f"what is there cannot be read: {error}") from error
        for n in range(len(self.made) + 1):
            if n:
                plain.apply(self.made[n - 1])
            if n in self.ends and n >= least and plain.content() == found:
                there = n
        assert there >= 0, (
            f"{self.reported} notes were reported; after the crash none of {sorted(self.ends)} is what is there"
        )
        self.made = self.made[:there]
        self.ends = {n for n in self.ends if n <= there}
        self.written = self.reported = there

    # ---- what happens

    @rule(notes=st.lists(NOTES, min_size=1, max_size=5), commit=st.booleans(), write=st.booleans())
    def note(self, notes: list[tuple[Any, ...]], commit: bool, write: bool) -> None:
        for note in notes:
            self.made.append(note)
            getattr(self.journal, note[0])(*note[1:])
        if commit:
            self.commit()
            if write and self.gate is not None:
                self.go()

    @rule()
    def commit(self) -> None:
        self.waiting.append((self.loop.create_task(self.journal.commit()), len(self.made)))
        self.settle()
        self.hear()

    @precondition(lambda self: self.gate is not None)
    @rule()
    def write(self) -> None:
        self.go()

    @precondition(lambda self: self.gate is not None)
    @rule()
    def full_disk(self) -> None:
        self.db.execute("PRAGMA query_only=ON")
        self.go()
        self.db.execute("PRAGMA query_only=OFF")

    @precondition(lambda self: self.waiting)
    @rule()
    def nobody_waits(self) -> None:
        """Whoever asked for a commit is cancelled; the commit goes on."""
        self.waiting[-1][0].cancel()
        self.waiting.pop()
        self.settle()

    @precondition(lambda self: self.gate is not None)
    @rule(moment=st.floats(0, 1) | st.just(1.0), share=st.none() | st.floats(0, 1))
    def killed_while_writing(self, moment: float, share: float | None) -> None:
        """Before, between or after the statements of the write; with a `share` the power goes too, at a random byte of what it wrote."""
        reported, synced = self.reported, self.synced
        self.shots = []
        self.go()
        shots, self.shots = [*self.shots, Disk.of(self.path)], None
        disk = shots[round(moment * (len(shots) - 1))]
        self.restart(disk if share is None else disk.torn(synced, share), reported)

    @rule(how=st.none() | st.just("closed") | st.floats(0, 1))
    def ended(self, how: str | float | None) -> None:
        """Killed; or closed in order, but without a commit; or killed, and so much of the log is left."""
        disk = Disk.of(self.path)
        if how == "closed":
            self.forget()
            self.open()
            self.recover(self.reported)
            self.base, self.main = self.written, self.synced[""]
        elif (
            isinstance(how, float) and disk[""] == self.main
        ):  # once the log was brought into the main file its parts have no order
            log = disk.get("-wal", b"")
            disk["-wal"] = log[: round(len(log) * how)]
            self.restart(disk, self.base)
        else:
            self.restart(disk, self.reported)

    @invariant()
    def reads_tell_what_is_written(self) -> None:
        """No more and no less: a restart would read the same."""
        plain = Plain()
        for note in self.made[: self.written]:
            plain.apply(note)
        assert content(self.journal) == plain.content()


def story(kind: type[Journal]) -> type[Story]:
    return type(f"Of{kind.__name__}", (Story,), {"Kind": kind})


FAST = settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


class TestJournal(Story.TestCase):
    settings = FAST


@pytest.mark.slow
def test_many_stories() -> None:
    run_state_machine_as_test(Story, settings=settings(FAST, max_examples=400, stateful_step_count=60))


# ---- planted bugs: the same machine must catch each


class Hasty(Journal):
    """Reports before the commit."""

    async def commit(self) -> None:
        if self._notes and self._task is None:
            self._waiting.append(asyncio.get_running_loop().create_future())
            self._task = asyncio.create_task(self._flush())


class Piecemeal(Journal):
    """Commits each note by itself."""

    def _write(self, notes: list[tuple[str, tuple[Any, ...]]]) -> None:
        for note in notes:
            super()._write([note])


class Backwards(Journal):
    """Writes the notes of one commit last first."""

    def _write(self, notes: list[tuple[str, tuple[Any, ...]]]) -> None:
        super()._write(notes[::-1])


class Forgetful(Journal):
    """Drops what could not be written."""

    async def _flush(self) -> None:
        try:
            while self._waiting:
                notes, self._notes = self._notes, []
                waiting, self._waiting = self._waiting, []
                try:
                    await self._offload(lambda notes=notes: self._write(notes))
                except sqlite3.Error:
                    refused = Refused("the journal cannot be written")
                    for each in waiting:
                        each.set_exception(refused)
                else:
                    for each in waiting:
                        each.set_result(None)
        finally:
            self._task = None


class Early(Journal):
    """Wakes those who asked while a write was under way when that write ends, though their notes were not in it."""

    async def commit(self) -> None:
        if self._task is None:
            await super().commit()
        else:
            await asyncio.shield(self._task)


@pytest.mark.parametrize("bug", [Hasty, Piecemeal, Backwards, Forgetful, Early])
def test_a_bug_is_caught(bug: type[Journal]) -> None:
    hard = settings(
        FAST, max_examples=400, phases=[Phase.generate], derandomize=True, database=None, report_multiple_bugs=False
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(story(bug), settings=hard)


def test_a_durable_journal_syncs_each_commit(tmp_path: Path) -> None:
    """What copies of files cannot show: SQLite is asked for an fsync at every commit, and of its directory."""
    journal = Journal(tmp_path / "j", inline)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_killed_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy before each statement of the first opening is a journal, empty."""
    shots: list[Disk] = []
    connect = sqlite3.connect

    def watched(path: Path, **how: Any) -> sqlite3.Connection:
        db = connect(path, **how)
        db.set_trace_callback(lambda _: shots.append(Disk.of(path)))
        return db

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", watched)
        Journal(tmp_path / "first", inline).close()
    assert len(shots) >= 8
    dice = random.Random(0)
    for i, shot in enumerate(shots):
        if "-wal" in shot:
            shot["-wal"] = shot["-wal"][: dice.randrange(len(shot["-wal"]) + 1)]
        shot.write(tmp_path / str(i))
        assert content(Journal(tmp_path / str(i), inline)) == Plain().content()
