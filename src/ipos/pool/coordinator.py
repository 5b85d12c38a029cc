"""coordinator: the node that a job was handed to. It drives the `job`, `task` and `lease` machines over its members.

The order is always: a machine decides, the journal has it on disk, then somebody is told. What is volatile (who was heard when, which
lease has begun) is not journaled: after a restart every open lease is *Silent* with its full grace, and the holders say the rest.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ipos.pool import data, estimate, friendly, holder, verified
from ipos.pool import job as j
from ipos.pool import lease as l
from ipos.pool import task as t
from ipos.pool.dealing import Dealing
from ipos.pool.held import process_name
from ipos.pool.jobs import Job, Row
from ipos.pool.journal import Answer, Journal, Offload
from ipos.pool.keeping import Keeping
from ipos.pool.lending import Lending
from ipos.pool.machine import Ignored, Instruction
from ipos.pool.member import Member
from ipos.pool.pinning import Pinning
from ipos.pool.receipt import Receipts
from ipos.pool.records import Deal, Result
from ipos.pool.records import Task as TaskRecord
from ipos.pool.saves import Holds, Save
from ipos.pool.taking import Taking
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.wire.clock import Clock
from ipos.wire.errors import BadRecord, Gone, Refused
from ipos.wire.record import decode

log = logging.getLogger("ipos.coordinator")

TICK_S = 1.0
PEEK_S = 0.1  # between two looks at the output of a task that runs

Decided = tuple[Job, Row, Instruction]


class Coordinator:
    """All jobs of this node, and the members they run on."""

    def __init__(
        self,
        *,
        clock: Clock,
        store: BlockStore,
        journal: Journal,
        fetch: data.Fetch,
        holds: Holds,
        pinning: Pinning,
        receipts: Receipts,
        offload: Offload,
        node: str,
        deliver: Callable[[Job, Row], Awaitable[None]],
    ) -> None:
        self.clock = clock
        self.store = store
        self.journal = journal
        self.fetch = fetch
        self.node = node
        self.receipts = receipts
        self.jobs: dict[int, Job] = {}
        self.members: dict[str, Member] = {}
        self.lending = Lending(store)
        self.level: Callable[[str], str] = lambda account: "none"
        """How far results of another account are believed: none, receipt or full."""
        self.trouble = ""  # the sentence of what keeps the coordinator from going on, for /status
        self._deliver = deliver
        self._taking = Taking(store, receipts, offload, clock)
        self._leases: dict[str, tuple[Job, Row]] = {}
        self._numbered = 0
        self._decided: list[Decided] = []
        self._dealing = Dealing(self.jobs, self.members, self._leases, self._apply, self._count, clock)
        self.keeping = Keeping(
            store=store, journal=journal, holds=holds, pinning=pinning, fetch=fetch, offload=offload, clock=clock,
            saved=self._saved,
        )  # fmt: skip
        self._pinning = pinning
        self._wake = asyncio.Event()
        self._place_due = False
        self._fetching: set[str] = set()
        self._redeliver: list[tuple[Job, Row]] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- jobs

    def load(self) -> None:
        """Read the journal of an earlier life: open leases get their full grace, ended jobs are there to look at."""
        now = self.clock.now()
        for row in self.journal.jobs():
            job = Job(row.id, row.spec, row.state, row.note)
            self.jobs[row.id] = job
            if isinstance(row.state, j.Preparing):
                continue
            for each in self.journal.tasks(row.id):
                task = Row(each.i, each.name, decode(TaskRecord, each.record), each.state)
                job.rows.append(task)
                if isinstance(each.state, t.Leased):
                    self._leases[each.state.lease.id] = job, task
                    self._apply(job, task, t.OfLease(each.state.lease.id, l.Restarted(now)), count=False)
            job.index()
            self.keeping.load(job)
            if isinstance(row.state, j.Working):
                self._mend(job)
                for each in job.rows:
                    if isinstance(each.state, t.Done):
                        self._redeliver.append((job, each))
        self._pinning.load(self.jobs)
        self._count()

    def _mend(self, job: Job) -> None:
        """A crash may fall between a task's last state and its job's: count again what the tasks say."""
        state = job.state
        assert isinstance(state, j.Working)
        done = [row.state for row in job.rows if isinstance(row.state, t.Done)]
        counts = j.Counts(
            len(job.rows),
            sum(s.ok for s in done),
            sum(not s.ok for s in done),
            sum(isinstance(row.state, t.GivenUp) for row in job.rows),
            sum(isinstance(row.state, t.Cancelled) for row in job.rows),
            sum(not s.node for s in done),
        )
        if counts.ended == counts.total:
            job.state = j.Finished(counts, state.began, self.clock.wall())
            self._save(job)
        else:
            job.state = j.Working(counts, state.began)
        self._place_due = True
        self._wake.set()

    def number(self) -> int:
        """Of a new job."""
        self._numbered = max(self.journal.last_job(), self._numbered, *self.jobs, 0) + 1
        return self._numbered

    def add(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.journal.job(job.id, job.spec_bytes, job.state, job.note())

    def prepared(self, job: Job, rows: list[Row], known: dict[int, Answer]) -> None:
        """The tasks of a job; `known`: those that have a result already, by index, in the store."""
        if not isinstance(job.state, j.Preparing):
            return
        job.rows = rows
        job.index()
        for row in rows:
            self.journal.task(job.id, row.i, row.name, row.record, row.state)
        self._step_job(job, j.Prepared(len(rows), self.clock.wall()))
        for i, answer in known.items():
            self.answered(job, rows[i], answer)
        job.stir()
        self._wake.set()

    def answered(self, job: Job, row: Row, answer: Answer) -> None:
        """The result of a task is known, and in the store."""
        cid, result = c.of_dag_cbor(answer.result), decode(Result, answer.result)
        receipt = c.of_dag_cbor(answer.receipt) if answer.receipt is not None else None
        self._pinning.result(job.id, cid, result, receipt)
        words = c.text(receipt) if receipt is not None else ""
        now = self.clock.now()
        self._apply(job, row, t.Resulted("", "", c.text(cid), result.ok, now, receipt=words, verified=answer.verified))

    def unprepared(self, job: Job, sentence: str) -> None:
        self._step_job(job, j.Unprepared(sentence, self.clock.wall()))

    def cancel(self, job: Job) -> None:
        """The job ends; of one that is over, what was kept to go on with goes."""
        for row in job.rows if job.over else ():
            self.keeping.forget(job, row)
        self._step_job(job, j.Cancel(self.clock.wall()))

    def suspend(self, job: Job, row: Row) -> None:
        """Save the task and stop it: `Suspended`, soon, with its newest save kept here."""
        self._apply(job, row, t.Suspend(self.clock.now()))

    def pause(self, job: Job, row: Row) -> None:
        """Let the task rest where it is; one that nobody has is held."""
        job.info.rested = True
        self._apply(job, row, t.Pause(self.clock.now()))

    def become(self, job: Job, row: Row, task: TaskRecord) -> None:
        """A task that nobody has been dealt becomes another one; what it names is in the store."""
        row.become(task)
        self._pinning.inputs(job.id, [task])
        self.journal.task(job.id, row.i, row.name, row.record, row.state)

    def limit_wall(self, job: Job, row: Row, seconds: float) -> None:
        """For the leases to come; the one of now is told by who asks."""
        job.info.wall_s[str(row.i)] = seconds
        self._save(job)

    def go_on(self, job: Job, row: Row) -> None:
        """With a task that is suspended, held or paused."""
        self._apply(job, row, t.Resume(self.clock.now()))
        self._place_due = True
        self._wake.set()

    def end(self, job: Job, row: Row, where: str = "") -> None:
        """The task is none of this job any more: it was handed over (`where`: in words, for its owner), or killed."""
        if where:
            job.info.handed[row.i] = where
        self._apply(job, row, t.Cancel(self.clock.now()))
        self.keeping.forget(job, row)
        self._step_job(job, j.TaskEnded("cancelled", False, self.clock.wall()))

    def _step_job(self, job: Job, event: j.Event) -> None:
        job.state, instructions = j.job.step(job.state, event)
        if isinstance(job.state, j.Finished) and isinstance(event, j.TaskEnded):
            self._learn(job, job.state)
        for each in instructions:
            match each:
                case j.Place():
                    self._place_due = True
                case j.CancelTasks():
                    for row in job.rows:
                        self._apply(job, row, t.Cancel(self.clock.now()))
                        self.keeping.forget(job, row)
                case j.Close():
                    self._decided.append((job, Row.none(), each))
                case Ignored(sentence):
                    log.debug("job %d: %s", job.id, sentence)
                case _:
                    pass
        self._save(job)
        self._wake.set()

    def _learn(self, job: Job, state: j.Finished) -> None:
        """From a job that had the pool for itself and no mishap: how much longer it took than its tasks alone explain."""
        alone = not any(isinstance(other.state, j.Working) for other in self.jobs.values())
        smooth = state.counts.done == state.counts.total <= estimate.LESSON_TASKS
        mishap = job.info.moved or job.info.tried_again or job.info.rested
        if not alone or not smooth or state.counts.from_store or mishap or job.spec.hold:
            return
        program = job.rows[0].task.program
        offers = [member.offer(0) for member in self.members.values()]
        fit = [offer for offer in offers if not job.spec.nodes or offer.name in job.spec.nodes]
        played = estimate.job(self.journal.times(program), [job.size(row) for row in job.dealt()], fit)
        if played is not None:
            lesson = estimate.lesson(played, state.ended - state.began)
            self.journal.time(estimate.jobs_of(program), lesson, 0.0)

    def _save(self, job: Job) -> None:
        self.journal.job_state(job.id, job.state, job.note())

    # ---- tasks

    def _apply(self, job: Job, row: Row, event: t.Event, count: bool = True) -> None:
        old = row.state
        row.state, instructions = t.task.step(old, event)
        if type(old) is not type(row.state) or isinstance(event, t.Dealt):
            self.journal.task_state(job.id, row.i, row.state)
            job.changed(row, old)
            if isinstance(old, t.Leased):
                self._leases.pop(old.lease.id, None)
                row.resting = ()
                self.lending.end(old.lease.node, old.lease.id)
            if isinstance(row.state, t.Leased):
                self._leases[row.state.lease.id] = job, row
            if count:
                self._count()
        elif isinstance(event, t.OfLease) and isinstance(event.event, l.Started):
            self.journal.task_state(job.id, row.i, row.state)  # so that a restart still knows what a lost lease cost
        elif isinstance(event, (t.Pause, t.Resume, t.Suspend)):  # what its owner said outlives this node
            self.journal.task_state(job.id, row.i, row.state)
            job.emit({"event": "task", **job.line(row)})
        for each in instructions:
            self._decided.append((job, row, each))
        if instructions:
            self._wake.set()

    def _count(self) -> None:
        for member in self.members.values():
            member.ours = 0
        for _, row in self._leases.values():
            state = row.state
            if isinstance(state, t.Leased) and (member := self.members.get(state.lease.node)) is not None:
                member.ours += 1

    async def run(self) -> None:
        """Carry out what the machines decide, after the journal has it; tick; until cancelled."""
        ticker = asyncio.create_task(self._tick())
        for job, row in self._redeliver:  # a crash may have come between a result and its file
            await self._deliver(job, row)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._place_due:
                    self._place_due = False
                    self._dealing.place()
                decided, self._decided = self._decided, []
                try:
                    await self.journal.commit()
                    self.trouble = ""
                except Refused as refused:
                    self.trouble = str(refused)
                    log.error("%s", refused)
                    self._decided = decided + self._decided
                    await self.clock.sleep(1.0)
                    self._wake.set()
                    continue
                for job, row, instruction in decided:
                    self._carry_out(job, row, instruction)
        finally:
            for task in [ticker, *self._tasks]:
                task.cancel()
            await asyncio.gather(ticker, *self._tasks, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await self.clock.sleep(TICK_S)
            now = self.clock.now()
            for id, (job, row) in list(self._leases.items()):
                if id not in self._fetching:
                    self._apply(job, row, t.OfLease(id, l.Ticked(now)))
            self._place_due = True
            self._wake.set()

    def _carry_out(self, job: Job, row: Row, instruction: Instruction) -> None:
        match instruction:
            case t.Deal(id, node):
                if isinstance(row.state, t.Leased) and row.state.lease.id == id:
                    self._deal(job, row, self.members[node], id)
            case t.Queue(_, reason, wasted):
                if reason == t.TRIED_AGAIN:
                    job.tried_again(row)
                elif reason != t.TAKEN_BACK:
                    job.moved(row, reason, wasted)
                self._place_due = True
                self._wake.set()
            case t.Confirm(id, node):
                self._tell(node, f"release {id}")
            case t.Recall(id, node):
                self._tell(node, f"drop {id}")
            case t.Halt(id, node):
                self._tell(node, f"stop {id}")
            case t.Rest(id, node):
                self._tell(node, f"pause {id}")
            case t.Rouse(id, node):
                self._tell(node, f"resume {id}")
            case t.Deliver(_, ok):
                self._spawn(self._delivered(job, row, "done" if ok else "failed"))
            case t.Abandon(_):
                self._step_job(job, j.TaskEnded("given_up", False, self.clock.wall()))
            case j.Close():
                job.close()
            case _:
                pass

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _delivered(self, job: Job, row: Row, how: str) -> None:
        """The job counts a task when its output is where its owner wants it."""
        await self._deliver(job, row)
        state = row.state
        self._step_job(job, j.TaskEnded(how, isinstance(state, t.Done) and not state.node, self.clock.wall()))
        self._place_due = True
        self._wake.set()

    def _tell(self, node: str, line: str) -> None:
        if (member := self.members.get(node)) is not None:
            member.tell(line)

    def _deal(self, job: Job, row: Row, member: Member, id: str) -> None:
        blocks = data.inline(self.store, row.task, member.known)
        ext = {"verified": job.spec.verified} if job.spec.verified != verified.NONE else {}
        receipt = self.keeping.dealt(job, row.save) if row.save is not None else None
        if receipt is not None:
            blocks = (*blocks, self.store.get(receipt))
            ext["receipt"] = c.text(receipt)
        if (wall_s := job.info.wall_s.get(str(row.i))) is not None:
            ext["wall_ms"] = str(round(wall_s * 1000))
        member.known.update(data.roots(row.task))
        if member.account:
            self.lending.lend(
                member.node, id, [*data.roots(row.task), *([row.save.cid] if row.save is not None else [])]
            )
        member.deal(
            Deal(
                id=id,
                job=f"{job.id}",
                epoch=1,
                grace_ms=round(job.spec.grace_s * 1000),
                task=row.task,
                fresh=job.spec.fresh,
                blocks=blocks,
                save=row.save.cid if row.save is not None else None,
                save_every_ms=round(job.spec.save_every_s * 1000),
                ext=ext,
            )
        )

    async def peek(self, row: Row, which: str, offset: int, count: int) -> bytes:
        """What a running task has written so far to "stdout" or "stderr"; empty after a while if there is nothing."""
        state = row.state
        if isinstance(state, t.Leased) and isinstance(state.lease, l.Running):
            member = self.members.get(state.lease.node)
            if member is not None:
                path = f"/proc/{process_name(state.lease.id, self.node)}/{which}"
                try:
                    async with (await member.bulk()).open(path) as file:
                        if piece := await file.read_at(offset, count):
                            return piece
                except OSError as error:
                    log.debug("%s on %s: %s", path, member.name, error)
        await self.clock.sleep(PEEK_S)
        return b""

    # ---- what members say

    def join(self, member: Member) -> None:
        self.members[member.node] = member
        self._place_due = True
        self._wake.set()

    def leave(self, node: str, reason: str) -> None:
        """The node is none of the pool any more: what it has goes to others at once."""
        member = self.members.pop(node, None)
        for id, (job, row) in list(self._leases.items()):
            if isinstance(row.state, t.Leased) and row.state.lease.node == node:
                why = f"{member.name if member is not None else node} {reason}"
                self._apply(job, row, t.OfLease(id, l.GivenBack(self.clock.now(), why, False)))

    def hushed(self, member: Member) -> None:
        for id, (job, row) in list(self._leases.items()):
            if isinstance(row.state, t.Leased) and row.state.lease.node == member.node:
                self._apply(job, row, t.OfLease(id, l.Hushed(self.clock.now())))

    def heard(self, member: Member, event: dict[str, Any]) -> None:
        if not member.account:
            return self._heard(member, event)
        try:
            if (counts := friendly.its_own(member.node, event, self._holder)) is not None:
                self._heard(member, counts)
            else:
                member.tell(f"drop {event['lease']}")
        except friendly.NONSENSE as error:
            raise Gone(f"what {member.name} says makes no sense: {event['event']!r} ({type(error).__name__})") from None

    def _holder(self, lease: str) -> str | None:
        found = self._leases.get(lease)
        return found[1].state.lease.node if found is not None and isinstance(found[1].state, t.Leased) else None

    def _heard(self, member: Member, event: dict[str, Any]) -> None:
        now = self.clock.now()
        for id, (job, row) in list(self._leases.items()):
            if isinstance(row.state, t.Leased) and row.state.lease.node == member.node:
                self._apply(job, row, t.OfLease(id, l.Heard(now)))
        match event["event"]:
            case "here":
                self._here(member, event["leases"], now)
            case "lease":
                self._lease(member, event["lease"], event["state"], now)
                self._rests(member, event["lease"], event.get("resting", []))
            case "says":
                self._says(event["lease"], event["text"])
            case "ended":
                self._ended(member, event)
            case "progress":
                if (found := self._leases.get(event["lease"])) is not None:
                    found[0].progressed(found[1], event)
            case "save":
                self._spawn(self._offered(member, event))
            case "stopped":
                self._spawn(self._stopped(member, event))
            case "fault" | "declined":
                self._of_lease(event["lease"], l.GivenBack(now, event["reason"], event["event"] == "fault"))
                member.tell(f"release {event['lease']}")
                member.tell(f"drop {event['lease']}")
            case _:
                self._place_due = True
                self._wake.set()

    def _here(self, member: Member, leases: list[dict[str, Any]], now: float) -> None:
        held = {each["lease"]: each for each in leases}
        for id, (_, row) in list(self._leases.items()):
            if isinstance(row.state, t.Leased) and row.state.lease.node == member.node and id not in held:
                self._of_lease(id, l.Missing(now))
        for id, each in held.items():
            self._lease(member, id, each["state"], now)
            self._rests(member, id, each.get("resting", []))
        self._place_due = True
        self._wake.set()

    def _lease(self, member: Member, id: str, state: str, now: float) -> None:
        if id not in self._leases:
            member.tell(f"drop {id}")
        elif state == "queued":
            self._of_lease(id, l.Accepted(now))
        elif state in ("running", "busy", "paused"):
            self._of_lease(id, l.Started(now))

    def _rests(self, member: Member, id: str, by: list[str]) -> None:
        """Who has paused it there. What did not reach the holder, because it was away or had not been dealt it, is said again."""
        if (found := self._leases.get(id)) is None:
            return
        job, row = found
        if row.state.paused != (holder.JOB in by):
            member.tell(f"{'pause' if row.state.paused else 'resume'} {id}")
        if row.resting != tuple(by):
            row.resting = tuple(by)
            job.info.rested = True
            job.emit({"event": "task", **job.line(row)})

    async def _offered(self, member: Member, event: dict[str, Any]) -> None:
        """A holder has a newer save. It may offer the next one when this one is here, or of no use."""
        id: str = event["lease"]
        if (found := self._leases.get(id)) is not None:
            await self.keeping.keep(*found, await self._taking.save(event, found[1].cid, member.node), member.node)
        member.tell(f"kept {id}")

    async def _stopped(self, member: Member, event: dict[str, Any]) -> None:
        """A holder has stopped a task on its owner's word."""
        id: str = event["lease"]
        if id in self._fetching:
            return
        self._fetching.add(id)
        try:
            if (found := self._leases.get(id)) is not None and event["save"] is not None:
                await self.keeping.keep(*found, await self._taking.save(event, found[1].cid, member.node), member.node)
        finally:
            self._fetching.discard(id)
        self._of_lease(id, l.GivenBack(self.clock.now(), "stopped by its owner", False))
        await self.journal.commit()
        member.tell(f"release {id}")

    def _saved(self, job: Job, row: Row) -> None:
        """What is saved need not be repeated."""
        if isinstance(row.state, t.Leased):
            self._apply(job, row, t.OfLease(row.state.lease.id, l.Saved(self.clock.now())))
        job.stir()

    def _says(self, id: str, text: str) -> None:
        if (found := self._leases.get(id)) is not None:
            found[0].say(found[1], text)

    def _of_lease(self, id: str, event: Any) -> None:
        if (found := self._leases.get(id)) is not None:
            self._apply(*found, t.OfLease(id, event))

    def _ended(self, member: Member, event: dict[str, Any]) -> None:
        """A result. What it names is brought here before anybody is told that it counts."""
        id: str = event["lease"]
        found = self._leases.get(id) or self._of_id(id)
        if found is None or id in self._fetching:
            if found is None:
                member.tell(f"drop {id}")
            return
        job, row = found
        result = decode(Result, base64.b64decode(event["result"]))
        if result.task != row.cid:
            self._of_lease(id, l.GivenBack(self.clock.now(), "it answered with the result of another task", True))
            return
        self._fetching.add(id)
        self._spawn(self._bring(member, job, row, event, result))

    async def _bring(self, member: Member, job: Job, row: Row, event: dict[str, Any], result: Result) -> None:
        id: str = event["lease"]
        try:
            receipt, complete = await self._taking.result(event, result, lambda text: job.say(row, text))
            for cid in data.results(result) if not complete else ():
                await data.bring(self.store, cid, self.fetch, (member.node,), self.clock)
        except (BadRecord, *friendly.NONSENSE) as error:
            if not (member.account or isinstance(error, BadRecord)):
                raise  # of my own machines it is a mistake in IPOS
            self._of_lease(id, l.GivenBack(self.clock.now(), f"its result is none: {error}", True))
            return
        except OSError as error:
            log.warning("result of %s on %s: %s", id, member.name, error)
            job.say(row, f"its result could not be fetched: {error}")
            return
        finally:
            self._fetching.discard(id)
        if self.members.get(member.node) is member:  # not removed meanwhile
            self._resulted(member, job, row, event, result, receipt)

    def _of_id(self, id: str) -> tuple[Job, Row] | None:
        """The task of a lease that was given up: first result wins."""
        parts = id.split(".")
        job = self.jobs.get(int(parts[0])) if len(parts) == 3 and parts[0].isdigit() else None
        if job is None or not parts[1].isdigit() or int(parts[1]) >= len(job.rows):
            return None
        return job, job.rows[int(parts[1])]

    def _resulted(
        self, member: Member, job: Job, row: Row, said: dict[str, Any], result: Result, receipt: bytes | None
    ) -> None:
        """All of it is in the store."""
        id: str = said["lease"]
        cid, body = data.record_block(result)
        if member.account and (
            objection := friendly.unbelieved(self.level(member.account), member.node, result, receipt)
        ):
            self._of_lease(id, l.GivenBack(self.clock.now(), objection, True))
            member.tell(f"release {id}")
            return
        self._pinning.result(job.id, cid, result, receipt)
        own = result.ext.get("verified", verified.RECEIPT)  # the word of a machine of this account
        level = verified.NONE if receipt is None else own if not member.account else verified.RECEIPT
        wall = result.wall_ms / 1000
        if result.ok:
            signed = self.store.get(receipt) if receipt is not None else None
            whose = (
                self.receipts.account if self.level(member.account) == "full" or not member.account else member.account
            )
            self.journal.answer(result.task, Answer(body, signed, whose, level))
            beat = member.beat
            alone = wall * beat.speed * estimate.share(beat.cores, min(member.ours, beat.slots), beat.foreign)
            self.journal.time(row.task.program, job.size(row), alone)
            job.measured(alone)
        failures = sum("the program failed" in past.reason for past in row.state.past)
        retry = not result.ok and failures < job.spec.retries
        resumed = _resumed(result)
        if resumed and not retry:
            job.info.resumed += 1
        if "save" in result.ext:
            self.keeping.put(job, row, Save(c.parse(result.ext["save"]), int(result.ext["save_work"]), receipt))
        elif not retry:
            self.keeping.forget(job, row)
        event = t.Resulted(
            id, member.node, c.text(cid), result.ok, self.clock.now(), wall, retry, resumed,
            c.text(receipt) if receipt is not None else "", level,
        )  # fmt: skip
        self._apply(job, row, event)


def _resumed(result: Result) -> str:
    """From where a task went on, in words; "" if it ran in one piece."""
    at, work = int(result.ext.get("resumed_at", "0")), int(result.ext.get("work", "0"))
    return f"resumed at {100 * at / work:.0f} % ({at / 1e9:.2f} of {work / 1e9:.2f} Gop)" if at and work else ""
