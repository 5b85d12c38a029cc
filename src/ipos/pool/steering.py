"""steering: what a job's owner says to its tasks, in the lines of the ctl files. Each returns when it has happened, or refuses with a sentence.

The coordinator's machines decide what a word means where the task is; this says it, and waits for the holder's answer, for a write that came
back must mean that the process rests, or that the save is on disk. A holder that does not answer is not waited for longer than `ANSWER_S`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from ipos.pool import data, holder, saves, verified
from ipos.pool import job as j
from ipos.pool import lease as l
from ipos.pool import task as t
from ipos.pool.coordinator import Coordinator
from ipos.pool.held import process_name
from ipos.pool.jobs import Job, Row
from ipos.pool.records import Task
from ipos.pool.spec import check_memory
from ipos.store import cid as c
from ipos.store.blocks import BlockStore, put_soon
from ipos.tree.ninep.client import Client
from ipos.wire import text
from ipos.wire.errors import Refused
from ipos.wire.record import cid_of

ANSWER_S: Final = 10.0  # for a holder's answer to pause and resume
SAVE_S: Final = 60.0  # for a save to be made, and to come here

HandOver = Callable[[Job, Row, str], Awaitable[object]]


class Steering:
    """`hand_over` puts an unfinished task into the file of this name."""

    def __init__(self, coordinator: Coordinator, store: BlockStore, hand_over: HandOver) -> None:
        self.coordinator = coordinator
        self.store = store
        self._hand_over = hand_over

    # ---- one line of a ctl file

    async def task(self, job: Job, row: Row, line: str, local: bool) -> None:
        """A line of /job/<n>/<i>/ctl, which a crash does not undo. `local`: it came over the node's own socket."""
        await self._task(job, row, line, local)
        await self.coordinator.journal.commit()

    async def job(self, job: Job, line: str, local: bool) -> None:
        """A line of /job/<n>/ctl: for all tasks of the job that it can mean."""
        await self._job(job, line, local)
        await self.coordinator.journal.commit()

    async def _task(self, job: Job, row: Row, line: str, local: bool) -> None:
        match line.split():
            case ["start"]:
                self._started(job, row)
                await self.resume(job, [row])
            case ["pause"]:
                await self.pause(job, [row])
            case ["resume"]:
                await self.resume(job, [row])
            case ["save"]:
                await self.save(job, row)
            case ["kill"]:
                self._open(job, row)
                self.coordinator.end(job, row)
            case ["handover", *_] if path := _path(line):
                await self._to_file(job, row, path, local)
            case ["limit", what, value]:
                await self.limit(job, row, what, value)
            case []:
                return
            case words:
                known = "start, pause, resume, save, handover PATH, kill, limit work|memory|wall VALUE"
                raise Refused(f"{' '.join(words)!r} is not a command of a task; it knows {known}")

    async def _job(self, job: Job, line: str, local: bool) -> None:
        match line.split():
            case ["cancel"]:
                if job.over and not any(row.save is not None for row in job.rows):
                    raise Refused(f"job {job.id} has ended already")
                self.coordinator.cancel(job)
            case ["start"]:
                await self.resume(job, self._those(job, t.Held))
            case ["pause"]:
                await self.pause(job, self._those(job, t.Pending, t.Leased))
            case ["resume"]:
                await self.resume(job, self._those(job, t.Held, t.Leased, t.Suspended))
            case ["handover", *_] if path := _path(line):
                rows = self._those(job, t.Pending, t.Leased, t.Suspended, t.Held)
                if not os.path.isdir(path):
                    raise Refused(f"{path} is no directory: the tasks of a job go into one, each as {job.id}.I.car")
                for row in rows:
                    await self._to_file(job, row, os.path.join(path, f"{job.id}.{row.i}.car"), local)
            case []:
                return
            case words:
                known = "cancel, start, pause, resume, handover DIRECTORY"
                raise Refused(f"{' '.join(words)!r} is not a command of a job; it knows {known}")

    @staticmethod
    def _those(job: Job, *states: type[t.Task]) -> list[Row]:
        if isinstance(job.state, j.Preparing):
            raise Refused(f"job {job.id} is being prepared: its tasks are there in a moment (or hand it in with hold)")
        rows = [row for row in job.rows if isinstance(row.state, states)]
        if not rows:
            counts = ", ".join(sorted({row.word for row in job.rows})) or job.status()["state"]
            raise Refused(f"job {job.id} has no task that this could be said to: they are {counts}")
        return rows

    @staticmethod
    def _open(job: Job, row: Row) -> None:
        if row.ended or job.over:
            raise Refused(f"task {job.id}.{row.i} has ended ({row.word}): its result is in /job/{job.id}/{row.i}")

    def _started(self, job: Job, row: Row) -> None:
        self._open(job, row)
        if not isinstance(row.state, t.Held):
            raise Refused(f"task {job.id}.{row.i} has started already: it is {row.word}")

    # ---- pause and resume

    async def pause(self, job: Job, rows: Sequence[Row]) -> None:
        """Returns when none of them computes."""
        for row in rows:
            self._open(job, row)
            if isinstance(row.state, t.Suspended):
                raise Refused(f"task {job.id}.{row.i} is suspended: it does not run")
            self.coordinator.pause(job, row)
        await self._answered(
            job, rows, lambda row: isinstance(row.state, t.Leased) and holder.JOB not in row.resting, "rests"
        )

    async def resume(self, job: Job, rows: Sequence[Row]) -> None:
        """Begin or go on. Returns when no holder keeps them on our word."""
        for row in rows:
            self._open(job, row)
            if job.open_stdin and isinstance(row.state, t.Held):
                raise Refused(
                    f"task {job.id}.{row.i} begins when its standard input is closed: write /job/{job.id}/{row.i}/stdin"
                )
            if holder.OWNER in row.resting and not row.state.paused:
                raise Refused(
                    f"task {job.id}.{row.i} was paused by the owner of the machine that has it: "
                    f"write resume to /proc/{self._process(row)}/ctl there"
                )
        for row in rows:
            if isinstance(row.state, t.Held):
                self._known(job, row)
            if not row.ended:
                self.coordinator.go_on(job, row)
        await self._answered(
            job, rows, lambda row: isinstance(row.state, t.Leased) and holder.JOB in row.resting, "goes on"
        )

    def _known(self, job: Job, row: Row) -> None:
        """A task that was held may have been computed since."""
        if job.spec.fresh:
            return
        journal, account = self.coordinator.journal, self.coordinator.receipts.account
        if (answer := verified.known(journal, self.store, row.cid, account, job.spec.verified)) is not None:
            blocks = [body for body in (answer.result, answer.receipt) if body is not None]
            put_soon(self.store, [(c.of_dag_cbor(body), body) for body in blocks])
            self.coordinator.answered(job, row, answer)

    async def _answered(self, job: Job, rows: Iterable[Row], open_: Callable[[Row], bool], does: str) -> None:
        waiting = list(rows)
        if await self._within(ANSWER_S, job, lambda: not any(open_(row) for row in waiting)):
            return
        silent = next(row for row in waiting if open_(row))
        node = job.names.get(silent.state.lease.node, silent.state.lease.node)
        raise Refused(f"{node}, which has task {job.id}.{silent.i}, does not answer; it {does} when it is heard again")

    async def _within(self, seconds: float, job: Job, true: Callable[[], bool]) -> bool:
        """Whether it came true in this time."""
        coming = asyncio.ensure_future(job.until(true))
        timer = asyncio.ensure_future(self.coordinator.clock.sleep(seconds))
        try:
            await asyncio.wait((coming, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            coming.cancel()
            timer.cancel()
        return true()

    # ---- what its process does where it is

    @staticmethod
    def _leased(job: Job, row: Row) -> l.Running:
        state = row.state
        if not isinstance(state, t.Leased) or not isinstance(state.lease, l.Running):
            raise Refused(f"task {job.id}.{row.i} does not run: it is {row.word}")
        return state.lease

    def _process(self, row: Row) -> str:
        return process_name(row.state.lease.id, self.coordinator.node)

    def _holder(self, job: Job, row: Row) -> tuple[Client, str]:
        """A client of the node that runs it, and its directory there."""
        lease = self._leased(job, row)
        member = self.coordinator.members.get(lease.node)
        if member is None or member.client is None:
            why = member.why_not if member is not None else "it is no machine of this account any more"
            raise Refused(f"{job.names.get(lease.node, lease.node)}, which has task {job.id}.{row.i}, is away: {why}")
        return member.client, f"/proc/{self._process(row)}"

    async def save(self, job: Job, row: Row) -> None:
        """Returns when a save of now is on the disk of this node."""
        saves.engine_run(self.store, row.task)
        self._open(job, row)
        client, where = self._holder(job, row)
        await client.write(f"{where}/ctl", b"save")
        said = text.parse((await client.read(f"{where}/status")).decode())
        work = int(said["saved_work"])
        if not await self._within(SAVE_S, job, lambda: row.ended or (row.save is not None and row.save.work >= work)):
            node = job.names.get(row.state.lease.node, row.state.lease.node)
            raise Refused(f"task {job.id}.{row.i} is saved on {node}, and the save did not come here in {SAVE_S:g} s")

    async def memory(self, job: Job, row: Row) -> str:
        """What /job/<n>/<i>/mem says of a task that runs: its holder is asked."""
        client, where = self._holder(job, row)
        return (await client.read(f"{where}/mem")).decode()

    async def _to_file(self, job: Job, row: Row, path: str, local: bool) -> None:
        if not local:
            raise Refused("a task is handed over into a file of this host on the node's own socket only")
        if not os.path.isabs(path):
            raise Refused(f"{path!r} is not an absolute path: the node is in a directory of its own")
        await self._hand_over(job, row, path)

    # ---- limits

    async def limit(self, job: Job, row: Row, what: str, value: str) -> None:
        """`work`, `memory` or `wall`; before it runs any of them, afterwards the last alone."""
        self._open(job, row)
        read: dict[str, Callable[[str], float]] = {"work": text.work, "memory": text.size, "wall": text.duration}
        if what not in read:
            raise Refused(f"{what!r} is no limit of a task; it knows work, memory, wall")
        amount = read[what](value)
        state = row.state
        if isinstance(state, (t.Pending, t.Held)) and row.save is None and not state.attempt:
            self._become(job, row, what, amount)
            return
        if what == "wall" and isinstance(state, t.Leased):
            client, where = self._holder(job, row)
            await client.write(f"{where}/ctl", f"limit wall {amount}".encode())
            self.coordinator.limit_wall(job, row, amount)
            return
        raise Refused(_fixed(job, row, what))

    def _become(self, job: Job, row: Row, what: str, amount: float) -> None:
        """The limits are part of what a task is, so it becomes another one."""
        task = row.task
        if what == "wall":
            limits = msgspec.structs.replace(task.limits, wall_ms=round(amount * 1000))
            self.coordinator.become(job, row, msgspec.structs.replace(task, limits=limits))
        elif not task.in_engine:
            if what == "work":
                raise Refused(f"{task.name} is a native program, whose work is not counted: limit wall, or --wasm")
            limits = msgspec.structs.replace(task.limits, memory_bytes=int(amount))
            self.coordinator.become(job, row, msgspec.structs.replace(task, limits=limits))
        else:
            self.coordinator.become(job, row, self._of_engine(task, what, int(amount)))

    def _of_engine(self, task: Task, what: str, amount: int) -> Task:
        run = saves.engine_run(self.store, task)
        if what == "work":
            run = msgspec.structs.replace(run, work=amount)
        else:
            check_memory(amount)
            run = msgspec.structs.replace(run, memory_bytes=amount)
        put_soon(self.store, [data.record_block(run)])
        return msgspec.structs.replace(task, environment=cid_of(run))


def _fixed(job: Job, row: Row, what: str) -> str:
    """Why a limit cannot be changed now, and what would do."""
    task = f"task {job.id}.{row.i}"
    if what == "wall":
        return f"{task} is {row.word}: its time can be limited before it begins and while it runs"
    if what == "work" and row.task.in_engine:
        raised = f"save it with ipos handover, or stop it, and go on with ipos resume {job.id}.{row.i} --work GOP"
        return f"the work of {task} is fixed since it began: {raised}"
    return f"the {what} of {task} is fixed since it began: kill it, and hand it in again with another limit"


def _path(line: str) -> str:
    """What stands behind the first word: a path may have spaces."""
    return line.strip().partition(" ")[2].strip()
