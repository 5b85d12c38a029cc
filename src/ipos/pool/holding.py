"""holding: the node that does the work. It drives one `holder` machine per lease, shares out its slots, and tells coordinators.

It serves three things to the file tree (`procfs`): deals come in, lines of control come in, events go out. Coordinators are told apart
by the peer id that their connection proved; none sees or touches another's leases.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import msgspec

from ipos.pool import data, saves
from ipos.pool import holder as h
from ipos.pool.execute import Executor
from ipos.pool.held import Held, process_name
from ipos.pool.image import called
from ipos.pool.journal import Journal, Offload
from ipos.pool.lending import Lending
from ipos.pool.offering import Offering, figures, saved, stopped
from ipos.pool.pinning import Pinning
from ipos.pool.receipt import Receipts
from ipos.pool.records import Deal, Result
from ipos.pool.running import Running, fault, result_of
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.tree.file import Caller
from ipos.tree.synthetic import Events
from ipos.wire import limits
from ipos.wire.clock import Clock
from ipos.wire.errors import Refused
from ipos.wire.record import decode

log = logging.getLogger("ipos.holding")

TICK_S = 1.0
T = TypeVar("T")


class Load(Protocol):
    """What this machine has to give at the moment; `node.machine` measures it."""

    @property
    def slots(self) -> int: ...

    @property
    def declined(self) -> str:
        """Why no native program may run here, "" if one may."""
        ...

    def figures(self, busy: int) -> dict[str, Any]:
        """The fields of a beat: cores, slots, said, speed, memory_free, memory_total, foreign, platform, declined."""
        ...


class Holding:
    """All leases that this node holds, for whichever coordinator."""

    def __init__(
        self,
        *,
        clock: Clock,
        store: BlockStore,
        journal: Journal,
        executor: Executor,
        load: Load,
        fetch: data.Fetch,
        holds: saves.Holds,
        pinning: Pinning,
        receipts: Receipts,
        offload: Offload,
        node: str,
    ) -> None:
        self.clock = clock
        self.store = store
        self.journal = journal
        self.executor = executor
        self.load = load
        self.boot = os.urandom(8).hex()
        self.leases: dict[tuple[str, str], Held] = {}
        self._events: dict[str, Events] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_beat = 0.0
        self.offering = Offering(store, holds, receipts, offload, self._tell, self._spawn)
        self._running = Running(
            clock=clock, store=store, journal=journal, executor=executor, fetch=fetch, node=node, receipts=receipts,
            offering=self.offering, pinning=pinning, tell=self._tell, spawn=self._spawn, turns=self._turns,
        )  # fmt: skip
        self._pinning = pinning
        self._offload = offload
        self._closing = False
        self._forgotten: Counter[str] = Counter()  # how often a caller was turned away
        self.lending = Lending(store)
        self.guest: Callable[[str], tuple[str, int] | None] = _nobody
        """(account, slots) of the node of a friend, None for my own: what guests may have at once is less than what there is."""

    # ---- what the tree calls

    def events(self, caller: Caller) -> Events:
        """The caller's event source: first what it holds here, then every change, and a beat at least every `limits.beat_s`, four in the shortest grace."""
        if caller.node not in self._events:
            self._events[caller.node] = Events(lambda: self._snapshot(caller.node))
        return self._events[caller.node]

    async def deal(self, caller: Caller, message: bytes) -> str:
        """A Deal record. The answer is the lease's directory in /proc. Dealing a lease again that is held changes nothing."""
        deal = decode(Deal, message)
        key = (caller.node, deal.id)
        if key in self.leases:
            return self.name(self.leases[key])
        if len(self.leases) >= limits.leases_per_node:
            raise Refused(f"this node holds {len(self.leases)} leases already, the most is {limits.leases_per_node}")
        if self.load.declined and not deal.task.in_engine:
            raise Refused(f"{self.load.declined}: run it with --wasm, or on another machine", errno.EACCES)
        highest = self._epochs.get((caller.node, deal.job), 0)
        if deal.epoch < highest:
            raise Refused(f"job {deal.job} has a newer coordinator (epoch {highest}, this deal says {deal.epoch})")
        self._epochs[caller.node, deal.job] = deal.epoch
        turned_away = self._forgotten[caller.node]
        before = [c.parse(deal.ext["receipt"])] if "receipt" in deal.ext else []
        if deal.blocks:  # off the loop: the store may be waiting for the disk
            await self._offload(lambda: data.take(self.store, [*data.roots(deal.task), *before], deal.blocks))
        if self._forgotten[caller.node] != turned_away:
            raise Refused("this coordinator may use the node no more", errno.EACCES)
        if key in self.leases:  # it was dealt twice, and the other came first
            return self.name(self.leases[key])
        held = Held(caller.node, deal, self.clock.now())
        self.leases[key] = held
        self._tell(held, {"event": "lease", "lease": deal.id, "state": "queued"})
        self._turns()
        return self.name(held)

    async def tell(self, caller: Caller, line: str) -> None:
        """`hear`, and with a LEASE `release`, `drop`, `stop`, `pause`, `resume`, `kept`: the commands of /proc/ctl."""
        now = self.clock.now()
        match line.split():
            case ["hear"]:
                pass
            case ["release", id]:
                self._step_id(caller.node, id, h.Released())
            case ["drop", id]:
                self._step_id(caller.node, id, h.Dropped())
            case ["stop", id]:
                if (held := self.leases.get((caller.node, id))) is not None:
                    self._stop(held)
            case ["pause", id]:
                if (held := self.leases.get((caller.node, id))) is not None:
                    self.rest(held, h.JOB)
            case ["resume", id]:
                if (held := self.leases.get((caller.node, id))) is not None:
                    self.rouse(held, h.JOB)
            case ["kept", id]:
                if (held := self.leases.get((caller.node, id))) is not None:
                    held.offered = None
            case []:
                return
            case words:
                known = "hear, and with a LEASE: release, drop, stop, pause, resume, kept"
                raise Refused(f"'{words[0]}' is not a command of /proc/ctl; it knows {known}")
        for held in [held for held in self.leases.values() if held.caller == caller.node]:
            self._step(held, h.Heard(now))

    def forget(self, caller: str) -> None:
        """This coordinator may use the node no more: what it runs here ends, and it is told nothing."""
        self._forgotten[caller] += 1
        for held in [held for held in self.leases.values() if held.caller == caller]:
            self._step(held, h.Dropped())
        self.lending.forget(caller)
        if (events := self._events.pop(caller, None)) is not None:
            events.end()

    def name(self, held: Held) -> str:
        return process_name(held.deal.id, held.caller)

    @property
    def busy(self) -> int:
        return sum(isinstance(held.state, (h.Busy, h.Paused)) and not held.off for held in self.leases.values())

    def guests_busy(self, account: str) -> int:
        """How many tasks of a friend run here."""
        return sum(
            isinstance(held.state, (h.Busy, h.Paused))
            and not held.off
            and (self.guest(held.caller) or ("",))[0] == account
            for held in self.leases.values()
        )

    # ---- life

    async def run(self) -> None:
        """Tick until cancelled; then kill what runs. What was kept for coordinators is lost and will be asked for again."""
        try:
            while True:
                await self.clock.sleep(min(TICK_S, self._beat_s()))
                now = self.clock.now()
                for held in list(self.leases.values()):
                    self._step(held, h.Ticked(now))
                    if held.run is not None and not held.off and isinstance(held.state, (h.Busy, h.Paused)):
                        self.offering.look(held, held.run)
                self._turns()
                if now - self._last_beat >= self._beat_s():
                    self.beat()
        finally:
            self._closing = True
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _beat_s(self) -> float:
        """How often to speak: a lease with a short grace must not end because nothing was due to be said."""
        shortest = min((held.deal.grace_ms for held in self.leases.values()), default=0) / 1000
        return min(limits.beat_s, shortest / limits.beats_per_grace) if shortest else limits.beat_s

    def beat(self) -> None:
        """Say to every coordinator that we are here and what we have to give."""
        self._last_beat = self.clock.now()
        for caller, events in self._events.items():
            events.emit(self._line(self._beat(caller)))

    def _beat(self, caller: str) -> dict[str, Any]:
        yours = sum(
            held.caller == caller and isinstance(held.state, (h.Busy, h.Paused)) for held in self.leases.values()
        )
        figures = self.load.figures(self.busy)
        figures["foreign"] = figures["foreign"] + self.busy - yours
        if (guest := self.guest(caller)) is not None:
            figures["slots"], figures["said"] = min(figures["slots"], guest[1]), True
        return {"event": "beat", **figures}

    # ---- machine and driver

    def _step_id(self, caller: str, id: str, event: h.Event) -> None:
        held = self.leases.get((caller, id))
        if held is not None:
            self._step(held, event)

    def _step(self, held: Held, event: h.Event) -> None:
        held.state, instructions = h.holder.step(held.state, event)
        for each in instructions:
            match each:
                case h.Start():
                    self._spawn(self._work(held))
                    self._tell(held, {"event": "lease", "lease": held.deal.id, "state": "running"})
                case h.Pause():
                    if held.run is not None:
                        held.run.pause()
                    if not held.resting:
                        held.says = f"paused: its coordinator was not heard for {held.deal.grace_ms / 2000:g} s"
                        log.warning("%s %s", held.deal.id, held.says)
                case h.Continue():
                    if held.run is not None:
                        held.run.resume()
                    held.says = "goes on"
                case h.Kill():
                    if held.work is not None:
                        held.work.cancel()
                case h.Report():
                    assert held.outcome is not None
                    self._tell(held, held.outcome)
                    held.stir()
                case h.Forget():
                    held.stir()
                    self._spawn(self.offering.let_go(held))
                    self._pinning.let_go(result_of(held))
                    del self.leases[held.caller, held.deal.id]
                    self.lending.end(held.caller, held.deal.id)
                    if held.ready is not None and held.work is None:
                        self._spawn(self._running.unready(held))
                    self._turns()
                case _:
                    pass

    def offer_anew(self) -> None:
        """The owner gives more or less than before: coordinators hear it at once. What runs goes on; what waits for a slot goes back if
        none is given any more."""
        if self.load.slots == 0:
            for held in [held for held in self.leases.values() if isinstance(held.state, h.Queued)]:
                reason = "its owner gives no processor to tasks now"
                held.outcome = {"event": "declined", "lease": held.deal.id, "reason": reason}
                self._step(held, h.Exited(self.clock.now()))
        self.beat()
        self._turns()

    def _turns(self) -> None:
        if self._closing:
            return
        free = self.load.slots - self.busy
        now = self.clock.now()
        queued = [held for held in self.leases.values() if isinstance(held.state, h.Queued)]
        for held in queued:
            if free <= 0:
                break
            if (guest := self.guest(held.caller)) is not None and self.guests_busy(guest[0]) >= guest[1]:
                continue
            self._step(held, h.Turn(now))
            free -= isinstance(held.state, h.Busy)
        for held in queued[: 2 * self.load.slots]:  # the next in line: a slot that gets free finds all laid out
            if held.ready is None and isinstance(held.state, h.Queued):
                held.ready = self._spawn(self._running.readied(held))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; a lease that was taken back has nobody who does

    async def _work(self, held: Held) -> None:
        held.work = asyncio.current_task()
        held.began = self.clock.now()
        key = self.name(held)
        try:
            try:
                held.outcome = await self._running.outcome(held, key)
                await self._pinning.settled()  # before the coordinator is told to fetch it
            except OSError as error:
                held.outcome = fault(held, str(error))
            except Exception as error:
                log.exception("task %s", held.deal.id)
                held.outcome = fault(held, f"a mistake in IPOS: {type(error).__name__}: {error}")
            self._step(held, h.Exited(self.clock.now()))
            self._turns()
        finally:
            if held.run is not None:
                await asyncio.shield(held.run.kill())
            await asyncio.shield(self.executor.discard(key))
            self._turns()

    def _stop(self, held: Held) -> None:
        """Save the task, and end: somebody else goes on with it, or nobody for now."""
        if held.stopping:
            return
        held.stopping = True
        if held.run is not None:
            held.run.stop()
        elif isinstance(held.state, h.Queued):
            held.outcome = stopped(held, None)
            self._step(held, h.Exited(self.clock.now()))

    # ---- what its owners say to a process

    def rest(self, held: Held, by: str) -> None:
        """Pause it, for `holder.JOB` or `holder.OWNER`."""
        self._at_rest(held, h.Rest(by))

    def rouse(self, held: Held, by: str) -> None:
        """It goes on, as far as this one is concerned."""
        self._at_rest(held, h.Rouse(by, self.clock.now()))

    def _at_rest(self, held: Held, event: h.Event) -> None:
        before = held.resting
        self._step(held, event)
        if held.resting == before:
            return
        words = {h.JOB: "its job's owner", h.OWNER: "the owner of this machine"}
        held.says = f"paused by {' and '.join(words[by] for by in held.resting)}" if held.resting else "goes on"
        state = type(held.state).__name__.lower()
        self._tell(held, {"event": "lease", "lease": held.deal.id, "state": state, "resting": held.resting})
        held.stir()
        self._turns()

    def take(self, held: Held) -> None:
        """End its process: its coordinator is to give the task to somebody else."""
        held.taken = "the owner of that machine ended it there"
        if held.run is not None:
            self._spawn(held.run.kill())
        elif isinstance(held.state, h.Queued):
            held.outcome = fault(held, held.taken)
            self._step(held, h.Exited(self.clock.now()))

    # ---- events

    def _tell(self, held: Held, event: dict[str, Any]) -> None:
        if event["event"] in ("save", "stopped", "ended") and self.guest(held.caller) is not None:
            self.lending.lend(held.caller, held.deal.id, _named(event))
        if (events := self._events.get(held.caller)) is not None:
            events.emit(self._line(event))

    def _snapshot(self, caller: str) -> list[str]:
        mine = [held for held in self.leases.values() if held.caller == caller]
        states = [
            {
                "lease": held.deal.id, "state": type(held.state).__name__.lower(), "text": held.says,
                "resting": held.resting,
            }
            for held in mine
        ]  # fmt: skip
        lines = [self._line({"event": "here", "boot": self.boot, "leases": states}), self._line(self._beat(caller))]
        lines += [self._line(saved(held, held.offered)) for held in mine if held.offered is not None]
        lines += [self._line(held.outcome) for held in mine if isinstance(held.state, h.Kept) and held.outcome]
        return lines

    @staticmethod
    def _line(event: dict[str, Any]) -> str:
        return msgspec.json.encode(event).decode()

    def listing(self) -> list[dict[str, Any]]:
        """For `ipos ps`: what runs and waits here."""
        return [self._row(held) for held in self.leases.values()]

    def _row(self, held: Held) -> dict[str, Any]:
        progress = held.run.progress() if held.run is not None else None
        known = figures(progress) if progress is not None else {"work": None, "speed": None, "save_age_s": None}
        return {
            "pid": self.name(held),
            "task": c.text(held.task_cid),
            "name": called(held.deal.task),
            "job": held.deal.job,
            "state": held.word,
            "seconds": round(self.clock.now() - held.began, 1) if held.began is not None else 0.0,
            "says": held.says,
            **{key: known[key] for key in ("work", "speed", "save_age_s")},
        }


def _nobody(peer: str) -> tuple[str, int] | None:
    """Of a node without friends."""
    return None


def _named(event: dict[str, Any]) -> list[bytes]:
    """What its coordinator will fetch."""
    if event["event"] == "ended":
        return data.results(decode(Result, base64.b64decode(event["result"])))
    return [c.parse(event["save"])] if event["save"] is not None else []
