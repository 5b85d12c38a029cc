"""Unfinished tasks that are stopped, gone on with, and carried to another home in a file (docs/protocols/engine.md, "Saves that travel")."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ipos.pool import data, evidence
from ipos.pool import task as t
from ipos.pool.image import called
from ipos.pool.jobs import Job, Row
from ipos.pool.receipt import describe
from ipos.pool.records import EngineRun, Result, Task
from ipos.pool.saves import HandOver, Save, engine_run, head_of, identity, verified
from ipos.pool.spec import JobSpec, Resume, Wasm
from ipos.pool.steering import Steering
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.store.car import Reader, write_file
from ipos.tree.file import Caller
from ipos.vm.version import version
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import Record, cid_of, decode

if TYPE_CHECKING:
    from ipos.node.daemon import Node

STOP_S = 60.0  # how long a holder may take to save and stop before its older save is taken
LOOK_S = 0.05
PREFIX = 8  # so many characters of a task's CID name it
BATCH_BYTES = 8 << 20


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`task`: as people name it; `path`: of a CAR, absolute; `work`: the most it may use from now on, 0 = as before; `nodes`: names of the
    machines where a task from a CAR may go on, () = here."""

    task: str = ""
    path: str = ""
    work: int = 0
    nodes: tuple[str, ...] = ()


class HandOvers:
    """/job/find, suspend, resume, handover, evidence: a question in JSON, an answer in JSON."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.steering = Steering(node.coordinator, node.store, self.to_file)

    def answers(self) -> dict[str, Any]:
        """Name of the file -> what answers it."""
        return {
            "find": self.find, "suspend": self.suspend, "resume": self.resume, "handover": self.hand_over,
            "evidence": self.evidence,
        }  # fmt: skip

    @staticmethod
    def _question(caller: Caller, body: bytes) -> Question:
        if not caller.local:
            raise Refused("tasks are stopped, resumed and handed over by their owner, on the node's own socket")
        try:
            return msgspec.json.decode(body, type=Question)
        except msgspec.MsgspecError as error:
            raise Refused(f"not a question about a task: {error}") from None

    def _find(self, words: str) -> tuple[Job, Row]:
        """`7`, `7.3`, a pid, or a task's CID or its beginning: the newest task of this name."""
        jobs = self._node.coordinator.jobs
        parts = words.partition("@")[0].split(".")
        if all(part.isdigit() for part in parts):
            job = jobs.get(int(parts[0]))
            i = int(parts[1]) if len(parts) > 1 else 0
            if job is None or i >= len(job.rows):
                raise Refused(f"there is no task {words} here: ipos jobs lists the jobs")
            if len(parts) == 1 and len(job.rows) > 1:
                raise Refused(f"job {job.id} has {len(job.rows)} tasks: say which one, as {job.id}.0")
            return job, job.rows[i]
        if len(words) >= PREFIX:
            for job in reversed(jobs.values()):
                for row in job.rows:
                    if c.text(row.cid).startswith(words):
                        return job, row
        raise Refused(f"no task {words!r} is known here: a job's number, 7.3, or {PREFIX} characters of a task's CID")

    @staticmethod
    def _answer(job: Job, row: Row, **more: Any) -> str:
        work = row.save.work if row.save is not None else 0
        answer = {"job": job.id, "i": row.i, "task": c.text(row.cid), "state": row.word, "work": work} | more
        return msgspec.json.encode(answer).decode()

    async def find(self, caller: Caller, body: bytes) -> str:
        return self._answer(*self._find(self._question(caller, body).task))

    async def evidence(self, caller: Caller, body: bytes) -> str:
        """A task's receipt; with a `path`, it and all that it names in a CAR there."""
        question = self._question(caller, body)
        job, row = self._find(question.task)
        if not isinstance(row.state, t.Done):
            raise Refused(f"task {job.id}.{row.i} has no receipt: it is {row.word}")
        if not row.state.receipt:
            raise Refused(
                f"task {job.id}.{row.i} has no receipt: nobody signed its result (ipos run --fresh runs it again)"
            )
        receipt = c.parse(row.state.receipt)
        answer = {**describe(self._node.store, receipt), "name": called(row.task)}
        answer["node_name"] = self._node.names().get(answer["node"], answer["node"])
        if question.path:
            path = Path(question.path)
            if not path.parent.is_dir():
                raise Refused(f"{question.path}: there is no such directory to write the CAR to")
            task = (row.cid, row.record)
            await self._node.offload(lambda: self._node.store.put([task]))
            count = await self._node.offload(lambda: evidence.pack(self._node.store, receipt, path))
            answer |= {"path": str(path), "bytes": count}
        return self._answer(job, row, **answer)

    # ---- stop

    async def suspend(self, caller: Caller, body: bytes) -> str:
        job, row = self._find(self._question(caller, body).task)
        await self._stop(job, row)
        return self._answer(job, row)

    async def _stop(self, job: Job, row: Row) -> None:
        engine_run(self._node.store, row.task)
        if not isinstance(row.state, (t.Pending, t.Leased, t.Suspended, t.Held)):
            raise Refused(f"task {job.id}.{row.i} has ended ({row.word}): its result is in /job/{job.id}/{row.i}")
        self._node.coordinator.suspend(job, row)
        deadline = self._node.clock.now() + STOP_S
        while isinstance(row.state, t.Leased):
            if self._node.clock.now() > deadline:
                holder = self._node.names().get(row.state.lease.node, row.state.lease.node)
                raise Refused(
                    f"{holder}, which has task {job.id}.{row.i}, does not answer; it stops when its lease ends"
                )
            await self._node.clock.sleep(LOOK_S)
        if not isinstance(row.state, t.Suspended):
            raise Refused(f"task {job.id}.{row.i} had ended ({row.word}) before it could be stopped")
        await self._node.journal.commit()

    # ---- go on

    async def resume(self, caller: Caller, body: bytes) -> str:
        question = self._question(caller, body)
        if question.path:
            return await self._from_car(Path(question.path), question.work, question.nodes)
        job, row = self._find(question.task)
        waits = isinstance(row.state, t.Held) or (isinstance(row.state, t.Leased) and row.state.paused)
        if waits and not question.work:
            await self.steering.resume(job, [row])
            return self._answer(job, row)
        task = f"task {job.id}.{row.i}"
        run = engine_run(self._node.store, row.task)
        match row.state:
            case t.Suspended() if not question.work:
                self._node.coordinator.go_on(job, row)
                return self._answer(job, row)
            case t.Suspended():
                again = await self._again(job, row, self._raised(task, run, question.work), row.save)
                self._node.coordinator.end(job, row, "it goes on as a job of its own, with more work allowed")
                return again
            case t.Pending() | t.Leased():
                return self._answer(job, row)  # it goes on already
            case t.GivenUp():
                more = self._raised(task, run, question.work) if question.work else run
                return await self._again(job, row, more, row.save)
            case t.Done() if not row.state.ok and row.save is not None:
                return await self._again(job, row, self._raised(task, run, question.work), row.save)
            case _:
                raise Refused(f"{task} has ended ({row.word}): there is nothing to go on with; ipos run runs it again")

    @staticmethod
    def _raised(task: str, run: EngineRun, work: int) -> EngineRun:
        if run.work and work <= run.work:
            raise Refused(f"{task} was allowed {run.work / 1e9:g} Gop: say --work with more than that")
        return msgspec.structs.replace(run, work=work)

    async def _again(self, job: Job, row: Row, run: EngineRun, save: Save | None) -> str:
        """A job of its own for a task that goes on under other conditions, or after its job has ended."""
        store = self._node.store
        task = msgspec.structs.replace(row.task, environment=cid_of(run))
        blocks = [data.record_block(run), data.record_block(task)]
        await self._node.offload(lambda: store.put(blocks))
        spec = msgspec.structs.replace(job.spec, over=None, out=None, stdin=None, root=None, resume=_resume(task, save))
        return await self._submit(spec, task, save)

    async def _submit(self, spec: JobSpec, task: Task, save: Save | None) -> str:
        job = await self._node.submit(msgspec.json.encode(spec))
        work = save.work if save is not None else 0
        return msgspec.json.encode(
            {"job": job.id, "i": 0, "task": c.text(cid_of(task)), "state": "pending", "work": work}
        ).decode()

    # ---- in a file

    async def hand_over(self, caller: Caller, body: bytes) -> str:
        question = self._question(caller, body)
        job, row = self._find(question.task)
        return await self.to_file(job, row, question.path)

    async def to_file(self, job: Job, row: Row, name: str) -> str:
        """Stop a task and put it into a CAR of this name; the answer of /job/handover."""
        path = Path(name)
        if not name or not path.parent.is_dir():
            raise Refused(f"{name or 'no file'}: there is no such directory to write the CAR to")
        await self._stop(job, row)
        store, save, task = self._node.store, row.save, row.task
        record = HandOver(
            task=row.cid, save=save.cid if save else None, work=save.work if save else 0, engine=version(),
            ext={"receipt": c.text(save.receipt)} if save is not None and save.receipt is not None else {},
        )  # fmt: skip
        blocks = [data.record_block(record), (row.cid, row.record)]

        def pack() -> int:
            store.put(blocks)
            roots = [cid for cid, _ in blocks] + data.roots(task) + ([save.cid] if save is not None else [])
            cids = [cid for root in roots for cid in unixfs.reach(store, root)]
            if save is not None and save.receipt is not None:
                cids += evidence.reach(store, save.receipt)
            return write_file(path, blocks[0][0], cids, store)

        count = await self._node.offload(pack)
        answer = self._answer(job, row, path=str(path), bytes=count)
        self._node.coordinator.end(job, row, f"ipos resume {path} goes on with it")
        await self._node.journal.commit()
        return answer

    async def _from_car(self, path: Path, work: int, nodes: tuple[str, ...]) -> str:
        store = self._node.store
        scratch = self._node.home / "env"
        record, task, run = await self._node.offload(lambda: _import(store, path, scratch))
        if work:
            run = self._raised(str(path), run, work)
        elif run.work and record.save is not None and record.work >= run.work:
            raise Refused(f"{path}: the task has used up its {run.work / 1e9:g} Gop: say --work with more than that")
        task = msgspec.structs.replace(task, environment=cid_of(run))
        blocks: list[tuple[bytes, bytes]] = [data.record_block(each) for each in _records(run, task)]
        await self._node.offload(lambda: store.put(blocks))
        receipt = c.parse(record.ext["receipt"]) if "receipt" in record.ext else None
        save = Save(record.save, record.work, receipt) if record.save is not None else None
        wasm = Wasm(memory_bytes=run.memory_bytes, work=run.work, mark_every=run.mark_every, seed=run.seed, env=run.env)
        spec = JobSpec(
            program=f"/{called(task)}", wasm=wasm, resume=_resume(task, save), nodes=nodes or (self._node.name,)
        )
        return await self._submit(spec, task, save)


def _records(*records: Record) -> tuple[Record, ...]:
    return records


def _resume(task: Task, save: Save | None) -> Resume:
    if save is None:
        return Resume(c.text(cid_of(task)), None, 0)
    return Resume(
        c.text(cid_of(task)), c.text(save.cid), save.work, c.text(save.receipt) if save.receipt is not None else None
    )


def _import(store: BlockStore, path: Path, scratch: Path) -> tuple[HandOver, Task, EngineRun]:
    """In a thread. Nothing is kept of a file that has anything wrong with it."""
    try:
        size = path.stat().st_size
        if size > limits.car_bytes:
            raise Refused(f"{path} has {size} bytes, the most is {limits.car_bytes}")
        with open(path, "rb") as stream:
            for _ in Reader(stream, str(path)).blocks():
                pass  # every block hashes to its CID, before the first is kept
        with open(path, "rb") as stream:
            reader, batch, held = Reader(stream, str(path)), list[tuple[bytes, bytes]](), 0
            for cid, block in reader.blocks():
                batch.append((cid, block))
                held += len(block)
                if held >= BATCH_BYTES:
                    store.put(batch)
                    batch, held = [], 0
            store.put(batch)
    except OSError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None
    try:
        record = decode(HandOver, store.get(reader.root))
        task = decode(Task, store.get(record.task))
        run = engine_run(store, task)
        if record.engine != version():
            raise Refused(
                f"{path} is for engine {record.engine}, this IPOS has {version()}: go on with it where that one is"
            )
        for root in [*data.roots(task), *([record.save] if record.save is not None else [])]:
            if missing := unixfs.missing(store, root):
                raise Refused(f"{path} is not whole: block {c.text(missing[0])} is not in it")
        if "receipt" in record.ext:
            _check_receipt(store, c.parse(record.ext["receipt"]), task, run, record)
        if record.save is not None and verified(store, record.save, scratch).work != record.work:
            raise BadRecord("work", "not that of the save")
    except BadRecord as bad:
        raise Refused(f"{path} is no handed-over task: {bad}") from None
    return record, task, run


def _check_receipt(store: BlockStore, cid: bytes, task: Task, run: EngineRun, record: HandOver) -> None:
    """`BadRecord` unless it says who computed this task up to this save."""
    receipt = evidence.chain(store, cid)[0]
    other = decode(Task, store.get(receipt.task))
    if identity(other, engine_run(store, other)) != identity(task, run) or receipt.work != record.work:
        raise BadRecord("ext.receipt", "it is for another task, or for another moment of it")


async def marks(store: BlockStore, row: Row) -> str:
    """Lines `work root` of a task's marks, as far as this node knows them."""
    if isinstance(row.state, t.Done):
        listed = decode(Result, store.get(c.parse(row.state.result))).ext.get("marks")
        return unixfs.read(store, c.parse(listed)).decode() if listed is not None else ""
    if row.save is None:
        return ""
    cid = row.save.cid
    head = await asyncio.to_thread(lambda: head_of(store, cid))
    return "".join(f"{work} {root.hex()}\n" for work, root in head.marks)
