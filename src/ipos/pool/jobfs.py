"""/job: handing in, watching and cancelling jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ipos.pool import task as t
from ipos.pool.coordinator import Coordinator
from ipos.pool.handin import Drafts, Submit
from ipos.pool.jobs import Job, Row
from ipos.pool.journal import Offload
from ipos.pool.receipt import describe
from ipos.pool.records import Receipt, Result
from ipos.pool.steering import Steering
from ipos.pool.taskfiles import task_files
from ipos.pool.verdict import describe_verification
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.tree.file import Caller, File
from ipos.tree.synthetic import Blob, Clone, Dir, Text
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.record import decode
from ipos.wire.text import lines

Answer = Callable[[Caller, bytes], Awaitable[str]]
Marks = Callable[[BlockStore, Row], Awaitable[str]]
More = Callable[[Job, Row], Mapping[str, File]]


def jobs_dir(
    steering: Steering, submit: Submit, offload: Offload, home: Path, answers: Mapping[str, Answer], marks: Marks
) -> Dir:
    """The directory /job; `answers`: files beside `clone` that take a question each."""
    coordinator = steering.coordinator
    made: dict[int, Dir] = {}
    drafts = Drafts(submit, coordinator.number)

    def more(job: Job, row: Row) -> dict[str, File]:
        return task_files(steering, offload, home, job, row)

    def find(name: str) -> File | None:
        if not name.isdigit():
            return None
        job = coordinator.jobs.get(int(name))
        if job is None:
            return drafts.find(int(name))
        if job.id not in made:
            made[job.id] = _job_dir(steering, job, more, marks)
        return made[job.id]

    files: dict[str, File] = {name: Clone(answer, limits.ctl_line_bytes) for name, answer in answers.items()}
    files["clone"] = drafts.clone
    return Dir(files, lambda: map(str, [*coordinator.jobs, *drafts.numbers]), find)


def _job_dir(steering: Steering, job: Job, more: More, marks: Marks) -> Dir:
    coordinator, store = steering.coordinator, steering.store
    made: dict[int, Dir] = {}

    def find(name: str) -> File | None:
        if not name.isdigit() or int(name) >= len(job.rows):
            return None
        row = job.rows[int(name)]
        if row.i not in made:
            made[row.i] = _task_dir(coordinator, job, row, store, marks, more(job, row))
        return made[row.i]

    def begun(caller: Caller, line: str) -> None:
        raise Refused(f"job {job.id} has begun: a number from /job/clone is for another one")

    files: dict[str, File] = {
        "ctl": Text(None, lambda caller, line: steering.job(job, line, caller.local)),
        "status": Text(lambda: lines(job.status())),
        "spec": Text(lambda: job.spec_bytes, begun),
        "why": Text(lambda: "".join(job.why(row) for row in job.rows)),
        "tasks": Text(lambda: "".join(msgspec.json.encode(job.line(row)).decode() + "\n" for row in job.rows)),
        "events": job.events,
    }
    return Dir(files, lambda: (str(i) for i in range(len(job.rows))), find)


def _task_dir(
    coordinator: Coordinator, job: Job, row: Row, store: BlockStore, marks: Marks, more: Mapping[str, File]
) -> Dir:
    def result() -> Result | None:
        return decode(Result, store.get(c.parse(row.state.result))) if isinstance(row.state, t.Done) else None

    def output(which: str) -> Blob:
        def cid() -> bytes | None:
            ended = result()
            return None if ended is None else ended.stdout if which == "stdout" else ended.stderr

        async def read(offset: int, count: int) -> bytes:
            """What is there, also of a task that runs; waits for more until the task has ended."""
            while (found := cid()) is None:
                piece = await coordinator.peek(row, which, offset, count)
                ended = job.over or isinstance(row.state, (t.GivenUp, t.Cancelled, t.Suspended))
                if piece or (ended and cid() is None):
                    return piece
            return unixfs.read(store, found, offset, count)

        def size() -> int:
            found = cid()
            return 0 if found is None else unixfs.size(store, found)

        return Blob(read, size)

    def signed() -> dict[str, Any]:
        """Whose the result is, and how sure."""
        state = row.state
        if not state.receipt:
            return {"receipt": None, "verified": state.verified or None}
        receipt = decode(Receipt, store.get(c.parse(state.receipt)))
        by = job.names.get(receipt.node, receipt.node)
        return {"receipt": state.receipt, "by": by, "account": receipt.account, "verified": state.verified}

    def receipt() -> str:
        state = row.state
        if not isinstance(state, t.Done) or not state.receipt:
            return ""
        return lines(describe(store, c.parse(state.receipt)))

    def verdict() -> str:
        ended = result()
        return describe_verification(store, ended) if ended is not None else ""

    def status() -> str:
        ended = result()
        pairs = {**job.line(row), "task": c.text(row.cid), "attempts": row.state.attempt}
        if ended is not None:
            pairs |= {
                "exit": ended.exit,
                "killed": ended.killed,
                "stdout": c.text(ended.stdout),
                "stderr": c.text(ended.stderr),
                "dir": c.text(ended.dir) if ended.dir is not None else None,
                "cpu_s": ended.cpu_ms / 1000,
                "rss_bytes": ended.rss_bytes,
                "cached": not row.state.node,
                **{key: int(ended.ext[key]) for key in ("work", "page_work", "resumed_at") if key in ended.ext},
                "root": ended.ext.get("root"),
                "note": ended.ext.get("note"),
                **signed(),
            }
        return lines(pairs)

    return Dir(
        {
            "status": Text(status),
            "why": Text(lambda: job.why(row)),
            "cmd": Text(lambda: " ".join([row.task.name, *row.task.args]) + "\n"),
            "stdout": output("stdout"),
            "stderr": output("stderr"),
            "marks": Text(lambda: marks(store, row)),
            "verdict": Text(verdict),
            "receipt": Text(receipt),
            **more,
        }
    )
