"""running: one lease's work on the node that holds it, from laying out its data to what its coordinator is told it came to."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import Any

from ipos.pool import data, saves, verified
from ipos.pool import holder as h
from ipos.pool.execute import Executor
from ipos.pool.held import Held, process_name
from ipos.pool.journal import Answer, Journal
from ipos.pool.offering import Offering, signed, stopped
from ipos.pool.pinning import Pinning
from ipos.pool.receipt import Receipts, Segment
from ipos.pool.records import Deal, Receipt, Result
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.wire.clock import Clock
from ipos.wire.record import cid_of, decode, encode

Event = dict[str, Any]


class Running:
    """Of one `Holding`: `tell` says something to a lease's coordinator, `spawn` runs something beside, `turns` gives free slots away."""

    def __init__(
        self,
        *,
        clock: Clock,
        store: BlockStore,
        journal: Journal,
        executor: Executor,
        fetch: data.Fetch,
        node: str,
        receipts: Receipts,
        offering: Offering,
        pinning: Pinning,
        tell: Callable[[Held, Event], None],
        spawn: Callable[[Coroutine[Any, Any, Answer | None]], asyncio.Task[Answer | None]],
        turns: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._store = store
        self._journal = journal
        self._executor = executor
        self._fetch = fetch
        self._node = node
        self._receipts = receipts
        self._offering = offering
        self._pinning = pinning
        self._tell = tell
        self._spawn = spawn
        self._turns = turns
        self._alone: dict[str, asyncio.Lock] = {}

    async def outcome(self, held: Held, key: str) -> dict[str, Any]:
        task = held.deal.task
        if held.ready is None:
            held.ready = self._spawn(self.readied(held))
        if (known := await held.ready) is not None:
            return self._ended(held, known, cached=True)
        if not task.in_engine:
            return await self._run(held, key)
        identity = saves.identity(task, saves.engine_run(self._store, task))
        async with self._alone.setdefault(identity, asyncio.Lock()):  # two runs would write one save
            if not held.deal.fresh and (known := self._known(held.deal, held.task_cid)) is not None:
                return self._ended(held, known, cached=True)
            return await self._run(held, key)

    async def _run(self, held: Held, key: str) -> dict[str, Any]:
        task = held.deal.task
        if held.taken:
            return fault(held, held.taken)
        if held.stopping:
            return stopped(held, None)
        held.says = "runs"
        held.segment = self._segment(held.deal)
        asked = held.deal.ext.get("verified", verified.NONE)
        held.run = await self._executor.start(key, task, held.deal.save, verified.replicas(asked))
        if held.wall_s is not None:
            held.run.limit(held.wall_s)
        if isinstance(held.state, h.Paused):
            held.run.pause()
        if held.stopping:
            held.run.stop()
        if held.taken:  # while it was begun
            await held.run.kill()
        await held.run.exited()
        held.off = True  # its outputs are still to be stored; the next may begin
        self._turns()
        ran = await held.run.wait()
        if held.taken:
            return fault(held, held.taken)
        if ran.fault:
            return fault(held, ran.fault)
        if ran.save is not None:
            await self._offering.hold(held, ran.save)
        if ran.stopped:
            return stopped(held, ran.save)
        ext = dict(ran.ext)
        if ran.save is not None:
            ext |= {"save": c.text(ran.save.cid), "save_work": str(ran.save.work)}
        result = Result(
            task=held.task_cid,
            exit=ran.exit,
            killed=ran.killed,
            stdout=ran.stdout,
            stderr=ran.stderr,
            dir=ran.dir,
            cpu_ms=round(ran.cpu_s * 1000),
            wall_ms=round(ran.wall_s * 1000),
            rss_bytes=ran.rss_bytes,
            node=self._node,
            ext=ext,
        )
        signed = self._receipts.of_result(task, result, held.segment)
        level = result.ext.get("verified", verified.RECEIPT)
        known = Answer(encode(result), encode(signed), signed.account, level)
        if result.ok:
            self._journal.answer(held.task_cid, known)
            await self._journal.commit()
        return self._ended(held, known, cached=False)

    def _segment(self, deal: Deal) -> Segment:
        """Where this node begins: where the receipt before ends. A save that nobody signed for begins nowhere."""
        if "receipt" in deal.ext:
            before = decode(Receipt, self._store.get(c.parse(deal.ext["receipt"])))
            return Segment(before.work, before.root, cid_of(before))
        if deal.save is None:
            return Segment()
        head = saves.head_of(self._store, deal.save) if deal.task.in_engine else None
        return Segment(head.work, head.root.hex()) if head is not None else Segment()

    async def readied(self, held: Held) -> Answer | None:
        """Everything but the running itself, or the result if it is known already."""
        task = held.deal.task
        if not held.deal.fresh and (known := self._known(held.deal, held.task_cid)) is not None:
            return known

        def say(text: str) -> None:
            held.says = text
            self._tell(held, {"event": "says", "lease": held.deal.id, "text": text})

        wanted = data.roots(task) if held.deal.save is None else [*data.roots(task), held.deal.save]
        for cid in wanted:
            await data.bring(self._store, cid, self._fetch, (held.caller,), self._clock)
        await self._executor.prepare(process_name(held.deal.id, held.caller), task, say, held.deal.save_every_ms / 1000)
        return None

    async def unready(self, held: Held) -> None:
        """It was taken back before its turn came."""
        assert held.ready is not None
        held.ready.cancel()
        await asyncio.wait((held.ready,))
        await self._executor.discard(process_name(held.deal.id, held.caller))

    def _known(self, deal: Deal, task: bytes) -> Answer | None:
        return verified.known(
            self._journal, self._store, task, self._receipts.account, deal.ext.get("verified", verified.NONE)
        )

    def _ended(self, held: Held, known: Answer, cached: bool) -> dict[str, Any]:
        result = decode(Result, known.result)
        small = data.small(self._store, data.results(result))
        self._pinning.lease(result_of(held), result)
        named = self._receipts.with_list(known.receipt)
        return {
            "event": "ended",
            "lease": held.deal.id,
            "result": base64.b64encode(known.result).decode(),
            "cached": cached,
            "blocks": [base64.b64encode(block).decode() for block in small],
            **signed(named),
        }


def fault(held: Held, reason: str) -> Event:
    """What the coordinator is told of a node that could not."""
    return {"event": "fault", "lease": held.deal.id, "reason": reason}


def result_of(held: Held) -> str:
    """Why a result is pinned on the node that did the work."""
    return f"result of lease {held.deal.id} of {held.caller}"
