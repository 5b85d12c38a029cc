"""One suite for every NetEngine, and builds of the one in memory that break a promise each: the suite must say so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from net_conformance import STORIES, Net, Story
from netds import netds

from ipos.net.engine import Message, PeerSeen
from ipos.store.blocks import MemoryStore
from ipos.testing.memory import MemoryNet, MemoryTopic
from ipos.testing.time import WorldClock, run
from ipos.testing.wires import End, Wires
from ipos.wire.errors import Gone, Refused

PEERS = ("peer-a", "peer-b", "peer-c")


async def in_memory(story: Story, kind: type[MemoryNet] = MemoryNet, seed: int = 1) -> None:
    wires = Wires(random.Random(seed))
    wires.loss = 0.02
    stores = [MemoryStore() for _ in PEERS]
    denied: list[Net] = []

    def may(peer: str, cid: bytes) -> bool:
        return denied[0].may(peer, cid)

    engines = [
        kind(wires, peer, WorldClock(wires.dice.uniform(0, 1e6)), store, may)
        for peer, store in zip(PEERS, stores, strict=True)
    ]

    async def end(i: int) -> None:
        engines[i].vanish(silent=False)

    net = Net(engines, stores, end)
    denied.append(net)
    async with asyncio.timeout(200):
        await story(net)


async def with_netd(story: Story) -> None:
    stores = [MemoryStore() for _ in range(3)]
    nets: list[Net] = []

    def may(peer: str, cid: bytes) -> bool:
        return nets[0].may(peer, cid)

    options = [{"store": store, "may": may} for store in stores]
    async with netds(*options) as engines:

        async def end(i: int) -> None:
            await engines[i].close()

        nets.append(Net(engines, stores, end))
        async with asyncio.timeout(60):
            await story(nets[0])


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("seed", range(3))
def test_memory(name: str, seed: int) -> None:
    run(in_memory(STORIES[name], seed=seed))


@pytest.mark.real
@pytest.mark.parametrize("name", STORIES)
def test_netd(name: str) -> None:
    asyncio.run(with_netd(STORIES[name]))


# ---- planted bugs


class OutOfOrder(MemoryNet):
    async def dial(self, *args: Any, **options: Any) -> Any:
        end, mine = await super().dial(*args, **options)
        assert isinstance(end, End)
        push = end._push

        def swapped(data: bytes | None) -> None:
            push(data)
            if len(end.queue) > 2:
                end.queue[-1], end.queue[-2] = end.queue[-2], end.queue[-1]

        end._push = swapped  # type: ignore[method-assign]
        return end, mine


class ForgetsAtClose(MemoryNet):
    async def dial(self, *args: Any, **options: Any) -> Any:
        end, mine = await super().dial(*args, **options)
        assert isinstance(end, End)
        end.close = end.abort  # type: ignore[method-assign]
        abort = End.close

        def close() -> None:
            end.queue.clear()
            abort(end)

        end.close = close  # type: ignore[method-assign]
        return end, mine


class EndsBothDirections(MemoryNet):
    async def dial(self, *args: Any, **options: Any) -> Any:
        end, mine = await super().dial(*args, **options)
        assert isinstance(end, End)
        end.write_eof = end.close  # type: ignore[method-assign]
        return end, mine


class NeverPauses(MemoryNet):
    async def dial(self, *args: Any, **options: Any) -> Any:
        end, mine = await super().dial(*args, **options)
        assert isinstance(end, End)
        end.paused = True
        return end, mine


class SomebodyElse(MemoryNet):
    def listen(self, protocol: str, accept: Any) -> None:
        super().listen(protocol, lambda _: accept("peer-x"))


class CannotDecline(MemoryNet):
    def listen(self, protocol: str, accept: Any) -> None:
        super().listen(protocol, lambda peer: accept(peer) or asyncio.Protocol())


class GoneForRefused(MemoryNet):
    async def dial(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().dial(*args, **options)
        except Refused as refused:
            raise Gone(str(refused)) from None


class NoStateForLatecomers(MemoryNet):
    def events(self) -> AsyncIterator[PeerSeen]:
        links, self.wires.links = self.wires.links, {}
        try:
            return super().events()
        finally:
            self.wires.links = links


class NeverTellsOfTheEnd(MemoryNet):
    def tell(self, kind: str, peer: str, addresses: tuple[str, ...] = ()) -> None:
        if kind != "gone":
            super().tell(kind, peer, addresses)


class GivesToAnybody(MemoryNet):
    async def fetch(self, cids: Any, peers: Any, timeout_s: float) -> None:
        for peer in peers:
            self.wires.nets[peer].may = lambda peer, cid: True
        await super().fetch(cids, peers, timeout_s)


class AsksOnce(MemoryNet):
    """The filter bypass of boxo: what was permitted when it was asked for comes later, whatever has been decided since."""

    async def fetch(self, cids: Any, peers: Any, timeout_s: float) -> None:
        others = [self.wires.nets[peer] for peer in peers]
        absent = {cid for other in others for cid in cids if not other.store.has(cid)}
        for other in others:
            before = other.may
            other.may = lambda peer, cid, before=before: cid in absent or before(peer, cid)
        await super().fetch(cids, peers, timeout_s)


class SaysFetched(MemoryNet):
    async def fetch(self, cids: Any, peers: Any, timeout_s: float) -> None:
        try:
            await super().fetch(cids, peers, timeout_s)
        except Refused:
            return


class FindsNobody(MemoryNet):
    async def providers(self, cid: bytes, most: int = 20) -> dict[str, tuple[str, ...]]:
        return {"peer-a": ()} if cid not in self.wires.providers else await super().providers(cid, most)


class OneShelf(MemoryNet):
    """Records by name alone: anybody overwrites them."""

    async def publish(self, name: str, value: bytes) -> None:
        await super().publish(name, value)
        for peer in PEERS:
            self.wires.records[peer, name] = value


class HearsItself(MemoryNet):
    async def join(self, topic: str) -> MemoryTopic:
        made = await super().join(topic)
        publish = made.publish

        async def twice(body: bytes) -> None:
            await publish(body)
            made.inbox.put_nowait(Message(self.peer, body))

        made.publish = twice  # type: ignore[method-assign]
        return made


BUGS: dict[type[MemoryNet], str] = {
    OutOfOrder: "bytes_arrive_in_order",
    SomebodyElse: "bytes_arrive_in_order",
    ForgetsAtClose: "what_was_written_before_a_close_arrives",
    EndsBothDirections: "one_direction_may_end_alone",
    NeverPauses: "a_paused_reader_pauses_the_writer_and_loses_nothing",
    CannotDecline: "a_stream_may_be_declined",
    GoneForRefused: "who_is_not_there_is_gone",
    NoStateForLatecomers: "events_tell_the_state_and_then_each_change",
    NeverTellsOfTheEnd: "events_tell_the_state_and_then_each_change",
    GivesToAnybody: "a_denied_block_is_never_given",
    AsksOnce: "a_denied_block_is_never_given",
    SaysFetched: "blocks_come_from_who_has_them",
    FindsNobody: "whoever_provides_is_found",
    OneShelf: "a_record_is_its_authors",
    HearsItself: "messages_reach_the_others",
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: type[MemoryNet]) -> None:
    def fails(kind: type[MemoryNet]) -> bool:
        try:
            run(in_memory(STORIES[BUGS[bug]], kind))
        except (AssertionError, TimeoutError, Refused, RuntimeError, pytest.fail.Exception):
            return True
        return False

    assert not fails(MemoryNet)
    assert fails(bug)
