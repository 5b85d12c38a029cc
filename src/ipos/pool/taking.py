"""taking: what a holder sends with a result or a save, judged and stored off the loop, in one write to the disk."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from typing import Any, Final

from ipos.pool import data
from ipos.pool.journal import Offload
from ipos.pool.receipt import Receipts
from ipos.pool.records import Result
from ipos.pool.saves import Save
from ipos.store import cid as c
from ipos.store.blocks import Block, BlockStore, put_soon
from ipos.wire.clock import Clock
from ipos.wire.errors import BadRecord

log = logging.getLogger("ipos.coordinator")

STORE_S: Final = 3.0  # until a store that could not take a result is asked again

Event = dict[str, Any]


class Taking:
    """Of one coordinator."""

    def __init__(self, store: BlockStore, receipts: Receipts, offload: Offload, clock: Clock) -> None:
        self._store = store
        self._receipts = receipts
        self._offload = offload
        self._clock = clock

    async def save(self, event: Event, task: bytes, node: str) -> Save:
        """What an event offers. A receipt that is none is left away: the save is of use all the same, by its own root."""

        def take() -> bytes | None:
            blocks = self._receipt(event, task, None, node)
            put_soon(self._store, blocks)
            return blocks[0][0] if blocks else None

        return Save(c.parse(event["save"]), event["work"], await self._offload(take))

    async def result(self, event: Event, result: Result, say: Callable[[str], None]) -> tuple[bytes | None, bool]:
        """A result and what came with it are in the store: (CID of its receipt if there is one to believe, whether all that the result
        names is here). A disk that is full is asked again and again: the holder keeps the result meanwhile. `BadRecord` if a block is none."""
        while True:
            try:
                return await self._offload(lambda: self._take(event, result))
            except BadRecord:
                raise
            except OSError as error:
                log.warning("the result of %s cannot be stored: %s", event["lease"], error)
                say(f"its result cannot be stored: {error}")
                await self._clock.sleep(STORE_S)

    def _take(self, event: Event, result: Result) -> tuple[bytes | None, bool]:
        cid, body = data.record_block(result)
        named = data.results(result)
        came = [(data.named(named, block), block) for block in map(base64.b64decode, event["blocks"])]
        receipt = self._receipt(event, result.task, cid, result.node)
        put_soon(self._store, [(cid, body), *came, *receipt])  # the journal's commit sees to the disk
        return receipt[0][0] if receipt else None, all(data.complete(self._store, each) for each in named)

    def _receipt(self, event: Event, task: bytes, result: bytes | None, node: str) -> list[Block]:
        """The receipt in an event, and what it names; nothing if there is none that can be believed."""
        if not event.get("receipt"):
            return []
        try:
            body, machines = (base64.b64decode(event[key]) for key in ("receipt", "machines"))
            return self._receipts.accept(body, machines, task, result, node)
        except OSError as error:
            log.warning("the receipt of %s for %s: %s", node, event["lease"], error)
            return []
