"""replicate: one task of the engine on several workers, driven by the machines `quorum`, `handover`, `lease` and `dispute`.

The workers are processes on this machine, each with a home, a store and a key of its own; a keeper and the judges are such processes too.
Nothing passes between them but through their pipes. As everywhere: a machine decides, the book has it on disk, then somebody is told. What
is due after a restart the machines say themselves (`Restarted`).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ipos.pool import agreement, data, signing
from ipos.pool import dispute as d
from ipos.pool import handover as h
from ipos.pool import lease as l
from ipos.pool import quorum as q
from ipos.pool.agreement import Agreement
from ipos.pool.bench import Bench
from ipos.pool.book import Book, Shelf
from ipos.pool.commitment import Claim
from ipos.pool.judging import Judging
from ipos.pool.machine import Event, Ignored, Instruction
from ipos.pool.records import Task
from ipos.pool.signing import Signer
from ipos.pool.workers import Command, Worker, seat
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.wire.clock import Clock, SystemClock
from ipos.wire.errors import BadRecord, Gone, Refused
from ipos.wire.record import decode

log = logging.getLogger("ipos.replicate")

TICK_S: Final = 0.2
LOCAL: Final = ("node",)  # on one machine no two seats may be the same process; that is all that can be had
RETURNS: Final = 3  # how often a worker that has committed is started again to open what it committed to


class Replication:
    """One task. `directory`: its book and the homes of its workers, to go on after a crash; the task and all that it names are in
    `store`. `key` signs verdicts. `say`: what happens, in sentences. `run` may be called once; cancelling it stops everything, and another
    Replication with the same directory goes on."""

    def __init__(
        self,
        *,
        directory: Path,
        task: bytes,
        store: BlockStore,
        key: Signer,
        policy: q.Policy,
        command: Command = seat,
        every_s: float = 2.0,
        grace_s: float = 10.0,
        clock: Clock | None = None,
        say: Callable[[str], None] = log.info,
    ) -> None:
        self.task = task
        self.record = decode(Task, store.get(task))
        self.every_s, self.grace_s = every_s, grace_s
        self.clock = clock if clock is not None else SystemClock()
        self.progress: dict[str, tuple[int, int]] = {}  # seat -> work, speed
        self.began: dict[str, int] = {}  # run address -> the work at which it says that it began
        self._store, self._key, self._policy, self._say = store, key, policy, say
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._shelf = Shelf(directory / "book.db")
        self._dirty = self._paused = False
        self._decided: list[tuple[str, Instruction]] = []
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pulls: dict[str, asyncio.Lock] = {}
        self._returns: dict[str, int] = {}
        self._over: asyncio.Future[Agreement] = asyncio.get_running_loop().create_future()
        found = self._shelf.read()
        self._fresh = found is None
        self.book = found or Book(q.New(c.text(task), policy))
        self.bench = Bench(directory, command, self._heard, self.book)
        self._judging = Judging(self.book, self.bench, task, self.record, store, key, self._case, say)

    # ---- life

    async def run(self) -> Agreement:
        """What most seats agree on. `Refused`: there is no such thing, in a sentence."""
        try:
            await self.bench.open()
            self._begin()
            drive = [self._spawn(self._drive()), self._spawn(self._tick())]
            await asyncio.wait((self._over, *drive), return_when=asyncio.FIRST_COMPLETED)
            for task in drive:
                if task.done():
                    task.result()  # a mistake of ours, or a full disk
            return await self._over
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.bench.close()
            if self.book.done:
                await asyncio.to_thread(self.bench.remove)
            self._shelf.close()

    def leave(self, id: str) -> None:
        """The worker of this seat shall hand over."""
        self._chain(id, h.Leave())

    def pause(self) -> None:
        """Every process of it stops using the machine. No lease runs out meanwhile."""
        self._paused = True
        self.bench.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._paused = False
        self.bench.signal(signal.SIGCONT)
        now = self.clock.now()
        for id, lease in self.book.leases.items():
            if isinstance(lease, l.Open):
                self._lease(id, l.Restarted(now))
        if isinstance(self.book.quorum, q.Revealing):
            self._quorum(q.Restarted(now))

    def _begin(self) -> None:
        now = self.clock.now()
        if self._fresh:
            self._quorum(q.Opened())
            return
        state = self.book.quorum
        for each in state.counting:
            if each.worker is not None and each.claim is None and isinstance(state, q.Open):
                self._lease(each.id, l.Restarted(now))
                self._spawn(self._return(each.id, each.worker.node))
        for id in self.book.chains:
            self._chain(id, h.Restarted())
        for id in self.book.cases:
            self._case(id, d.Restarted())
        self._quorum(q.Restarted(now))
        if isinstance(state, q.Undecided):
            self._over.set_exception(Refused(state.sentence))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- machines

    def _decide(self, id: str, said: list[Instruction]) -> None:
        for each in said:
            if isinstance(each, (Ignored, q.Reject, h.Reject, d.Reject)):
                log.debug("seat %s: %s", id, each.sentence)
            else:
                self._decided.append((id, each))
        self._dirty = True
        self._wake.set()

    def _quorum(self, event: Event) -> None:
        self.book.quorum, said = q.quorum.step(self.book.quorum, event)  # pyright: ignore[reportAttributeAccessIssue]
        self._decide("", said)

    def _chain(self, id: str, event: Event) -> None:
        self.book.chains[id], said = h.handover.step(self.book.chains[id], event)  # pyright: ignore[reportArgumentType]
        self._decide(id, said)

    def _case(self, id: str, event: Event) -> None:
        self.book.cases[id], said = d.dispute.step(self.book.cases[id], event)  # pyright: ignore[reportArgumentType]
        self._decide(id, said)

    def _lease(self, id: str, event: Event) -> None:
        before = self.book.leases[id]
        after, said = l.lease.step(before, event)
        self.book.leases[id] = after  # pyright: ignore[reportArgumentType]
        if said or type(before) is not type(after):
            self._decide(id, said)

    async def _drive(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            decided, self._decided = self._decided, []
            if self._dirty:
                self._dirty = False
                await asyncio.to_thread(self._shelf.write, self.book)
            for id, instruction in decided:
                self._carry_out(id, instruction)

    async def _tick(self) -> None:
        while True:
            await self.clock.sleep(TICK_S)
            if self._paused:
                continue
            now = self.clock.now()
            for id, lease in list(self.book.leases.items()):
                if isinstance(lease, l.Open):
                    self._lease(id, l.Ticked(now))
            if isinstance(self.book.quorum, q.Revealing):
                self._quorum(q.Ticked(now))

    def _carry_out(self, id: str, instruction: Instruction) -> None:
        match instruction:
            case q.Fill(id):
                self._spawn(self._fill(id))
            case q.AskReveal(id, node):
                self._tell(node, "reveal", id)
            case q.Dispute():
                self._judging.open(instruction)
            case q.Expose(id, node, sentence):
                self.book.exposed[id] = f"{self.book.name(node)} (seat {id}) lied: {sentence}"
                if not any(lie.seat == id for verdict in agreement.verdicts(self.book) for lie in verdict.liars):
                    self._say(self.book.exposed[id])
            case q.Dismiss(id, _):
                self._dismiss(id)
            case q.Accept():
                self._spawn(self._finish(instruction))
            case q.Abandon(sentence) if not self._over.done():
                self._over.set_exception(Refused(sentence))
            case h.Pull(node, save, _):
                self._spawn(self._pull(id, node, save))
            case h.Halt(node):
                self._tell(node, "leave", id)
            case h.Release(node, _):
                self._lease(id, l.Saved(self.clock.now()))
                self._tell(node, "signed", id)
            case h.Dismiss(node, reason):
                self._lost(id, node, reason, True)
            case l.Requeue(node, reason, fault, _):
                self._lost(id, node, reason, fault)
            case d.Appoint(barred):
                self._spawn(self._judging.appoint(id, barred))
            case d.Reexecute(judge, index, before):
                self._spawn(self._judging.reexecute(id, judge, index, before))
            case d.Trace(judge, seat, suspect, save):
                self._spawn(self._judging.trace(id, judge, seat, suspect, save))
            case d.Proclaim(right, liars, judge):
                self._judging.proclaim(id, right, liars, judge)
                self._quorum(q.Judged(id, self.book.cases[id].index, right, self.clock.now()))
            case d.GiveUp(reason):
                self._say(f"nobody could judge seat {id}: {reason}")
                self._quorum(q.Unjudged(id, reason, self.clock.now()))
            case _:
                pass

    # ---- workers

    def _seat_of(self, node: str) -> q.Seat | None:
        return next((s for s in self.book.quorum.counting if s.worker is not None and s.worker.node == node), None)

    def _tell(self, node: str, op: str, id: str) -> None:
        lease = self.book.leases[id]

        async def told() -> None:
            if (worker := self.bench.seated.get(node)) is not None:
                with suppress(OSError):  # what a worker that is gone was to be told, the next one is told
                    await worker.ask(op, lease=lease.id)

        self._spawn(told())

    async def _fill(self, id: str) -> None:
        """A worker for a seat: it goes on from the newest save that a keeper signed for."""
        try:
            worker = await self.bench.worker()
        except OSError as error:
            self._quorum(q.Unfillable(id, str(error)))
            return
        machine = self.bench.machine(worker)
        if id not in self.book.chains:
            barred = tuple(s.worker.machine for s in self.book.quorum.seats if s.worker is not None)
            self.book.chains[id] = h.Vacant(id, barred)
        self._quorum(q.Seated(id, q.Worker(worker.node, "own", "here", machine)))
        taken = self._seat_of(worker.node)
        if taken is None or taken.id != id:
            self.bench.seated.pop(worker.node)
            await worker.kill()
            return
        self._chain(id, h.Taken(worker.node, machine))
        for other in self.book.chains:
            self._chain(other, h.Barred(machine))
        now = self.clock.now()
        self.book.leases[id] = l.Offered(f"{id}.{worker.number}", worker.node, self.grace_s, now, now)
        await self._start(id, worker)

    async def _return(self, id: str, node: str) -> None:
        """The worker that has the seat already is started again in its home."""
        try:
            worker = await self.bench.again(node)
        except OSError as error:
            self._lost(id, node, str(error), True)
            return
        await self._start(id, worker)

    async def _start(self, id: str, worker: Worker) -> None:
        lease, chain = self.book.leases[id], self.book.chains[id]
        save = chain.signed.cid if chain.signed is not None else None
        await asyncio.to_thread(self._shelf.write, self.book)  # before anybody works for it
        try:
            for root in (self.task, *data.roots(self.record)):
                await worker.give(c.text(root), self._store)
            if save is not None:
                await worker.give(save, await self.bench.keeper())
                self._moved(id, worker, chain)
            await worker.ask("start", lease=lease.id, seat=id, task=c.text(self.task), save=save, every_s=self.every_s)
        except OSError as error:
            if worker.node in self.bench.seated:
                self._lease(id, l.GivenBack(self.clock.now(), str(error), True))

    def _moved(self, id: str, worker: Worker, chain: h.Chain) -> None:
        last = chain.segments[-1].node
        if chain.signed is not None and last != worker.node:
            words = f"{self.book.name(worker.node)} goes on with seat {id} from {self.book.name(last)}'s save at {chain.signed.work / 1e9:.2f} Gop"
            if words not in self.book.moved:
                self.book.moved.append(words)
                self._say(words)

    def _lost(self, id: str, node: str, reason: str, fault: bool) -> None:
        """A worker is gone, or is to go."""
        worker = self.bench.seated.pop(node, None)
        if worker is not None:
            self._spawn(worker.kill())
        held = self._seat_of(node)
        self._chain(id, h.Lost(node, reason))
        if held is None:
            return
        if not held.commitment:
            self._say(f"seat {id} lost {self.book.name(node)}: {reason}")
            self._quorum(q.Vacated(id, node, reason, fault))
        elif self._returns.get(node, 0) < RETURNS:
            self._returns[node] = self._returns.get(node, 0) + 1
            now = self.clock.now()
            lease = self.book.leases[id]
            self.book.leases[id] = l.Silent(lease.id, node, self.grace_s, now, now, None)
            self._spawn(self._return(id, node))
        else:
            self._quorum(q.Lapsed(id, node, reason, self.clock.now()))

    def _dismiss(self, id: str) -> None:
        seat = self.book.quorum.seat(id)
        if id in self.book.leases:
            self._lease(id, l.Recalled(self.clock.now()))
        if seat is not None and seat.worker is not None:
            worker = self.bench.seated.pop(seat.worker.node, None)
            if worker is not None:
                self._spawn(worker.kill())

    # ---- what workers say

    def _heard(self, worker: Worker, message: dict[str, Any]) -> None:
        """A message of a worker in a seat; others are told nothing and believed nothing."""
        held = self._seat_of(worker.node)
        if held is None or self.bench.seated.get(worker.node) is not worker or held.id not in self.book.leases:
            return
        try:
            self._event(held, worker, message)
        except (KeyError, TypeError, ValueError, Refused) as error:
            self._lease(held.id, l.GivenBack(self.clock.now(), f"it does not keep to the protocol: {error}", True))

    def _event(self, held: q.Seat, worker: Worker, message: dict[str, Any]) -> None:
        id, node, now = held.id, worker.node, self.clock.now()
        lease = self.book.leases[id]
        if message["event"] == "gone":
            credited = any(segment.node == node for segment in self.book.chains[id].segments)
            self._lease(id, l.GivenBack(now, str(message["reason"]), not credited and not held.commitment))
            return
        if message.get("lease", lease.id) != lease.id:
            return
        self._lease(id, l.Accepted(now) if isinstance(lease, (l.Offered, l.Silent)) else l.Heard(now))
        match message["event"]:
            case "running":
                self.began[node] = int(message["work"])
                self._lease(id, l.Started(now))
            case "progress":
                self.progress[id] = (int(message["work"]), int(message["speed"]))
            case "saved":
                self._chain(id, h.Offered(node, h.Save(message["save"], message["work"], message["root"])))
            case "committed":
                names = {"task": c.text(self.task), "seat": id, "commitment": bytes.fromhex(message["commitment"])}
                signing.check(node, message["signature"], signing.COMMITMENT, **names)
                self._quorum(q.Committed(id, node, message["commitment"], now))
                if isinstance(self.book.quorum, q.Revealing):
                    self._tell(node, "reveal", id)
            case "revealed":
                self._revealed(held, node, message, now)
            case "left":
                self._say(f"{self.book.name(node)} hands over seat {id} at {message['work'] / 1e9:.2f} Gop")
                self._chain(id, h.Left(node))
                self._lease(id, l.GivenBack(now, "it left", False))
            case "fault":
                self._lease(id, l.GivenBack(now, str(message["reason"]), True))
            case _:
                pass

    def _revealed(self, held: q.Seat, node: str, message: dict[str, Any], now: float) -> None:
        salt, body = bytes.fromhex(message["salt"]), bytes.fromhex(message["claim"])
        names = {"task": c.text(self.task), "seat": held.id, "salt": salt, "claim": body}
        signing.check(node, message["signature"], signing.OPENING, **names)
        claim = decode(Claim, body)
        marks = tuple((int(work), str(root)) for work, root in message["marks"])
        self._quorum(q.Revealed(held.id, node, claim, marks, salt, now))
        kept = self.book.quorum.seat(held.id)
        if kept is not None and kept.claim is not None and not isinstance(self.book.leases[held.id], l.Finished):
            self._chain(held.id, h.Finished(node, claim.ending.work))
            self._lease(held.id, l.Ended(now))

    # ---- saves

    async def _pull(self, id: str, node: str, save: h.Save) -> None:
        async with self._pulls.setdefault(id, asyncio.Lock()):
            worker = self.bench.seated.get(node)
            try:
                if worker is None:
                    raise Gone(f"{self.book.name(node)} is gone")
                keeper = await self.bench.keeper()
                await keeper.give(save.cid, worker)
                await self.bench.kept(keeper, self.task, save, node)
            except OSError as error:
                self._chain(id, h.Failed(save, str(error), isinstance(error, BadRecord)))
                return
            self._chain(id, h.Signed(keeper.node, self.bench.machine(keeper), save))

    # ---- the end

    async def _finish(self, accepted: q.Accept) -> None:
        """The outputs come from a seat that won; each block is checked against what all winners agree on."""
        wanted = [accepted.ending.stdout, accepted.ending.stderr]
        wanted += [accepted.ending.dir] if accepted.ending.dir is not None else []
        why = "nobody has its outputs"
        for id in () if self.book.done else accepted.winners:
            seat = self.book.quorum.seat(id)
            assert seat is not None
            assert seat.worker is not None
            try:
                node = seat.worker.node
                worker = self.bench.seated.get(node) or await self.bench.again(node)
                for cid in wanted:
                    await worker.bring(cid, self._store, unixfs.missing)
                self.book.done = True
                break
            except OSError as error:
                why = str(error)
        if not self.book.done:
            if not self._over.done():
                self._over.set_exception(Refused(f"the agreed outputs are lost: {why}"))
            return
        await asyncio.to_thread(self._shelf.write, self.book)
        if not self._over.done():
            self._over.set_result(agreement.of(self.book, accepted.ending, accepted.winners, accepted.use))


def forget(directory: Path) -> None:
    """What a replication left: it is not gone on with."""
    shutil.rmtree(directory, ignore_errors=True)
