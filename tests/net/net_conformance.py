"""What every NetEngine promises, as stories about two or three of them. Each takes a `Net`: real processes, or memory under virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from ipos.net.engine import NetEngine, PeerSeen
from ipos.store import cid as c
from ipos.store.blocks import MemoryStore
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

ECHO = "/ipos/test/echo/1"
TAKE = "/ipos/test/take/1"


class Net:
    """Some engines, what they hold, and what they give to whom. `end` ends one of them."""

    def __init__(
        self, engines: Sequence[NetEngine], stores: Sequence[MemoryStore], end: Callable[[int], Awaitable[None]]
    ) -> None:
        self.engines, self.stores, self.end = list(engines), list(stores), end
        self.denied: set[tuple[str, bytes]] = set()

    def may(self, peer: str, cid: bytes) -> bool:
        return (peer, cid) not in self.denied

    def hold(self, which: int, block: bytes) -> bytes:
        cid = c.of_raw(block)
        self.stores[which].put([(cid, block)])
        return cid


class Far(asyncio.Protocol):
    """One end of a stream, with all that happened to it."""

    def __init__(self, echo: bool = False, half: bool = False) -> None:
        self.echo = echo
        self.half = half  # goes on writing after the other end has ended its direction
        self.got = bytearray()
        self.over = asyncio.Event()
        self.ended = asyncio.Event()
        self.free = asyncio.Event()
        self.free.set()
        self.pauses = 0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.echo:
            self.transport.write(data)

    def eof_received(self) -> bool:
        self.ended.set()
        return self.half

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()
        self.ended.set()

    def pause_writing(self) -> None:
        self.pauses += 1
        self.free.clear()

    def resume_writing(self) -> None:
        self.free.set()

    async def has(self, size: int) -> None:
        await until(lambda: len(self.got) >= size)


async def until(true: Callable[[], bool], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)


async def call(a: NetEngine, b: NetEngine, protocol: str = ECHO) -> Far:
    """A stream, as soon as the other end serves the protocol (`listen` does not wait)."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, far = await a.dial(b.peer, protocol, Far, b.addresses())
            except Refused as refused:
                if isinstance(refused, Gone) or "does not serve" not in str(refused):
                    raise
                await asyncio.sleep(0.02)
            else:
                assert isinstance(far, Far)
                return far


async def next_of(events: AsyncIterator[PeerSeen], kind: str, peer: str) -> PeerSeen:
    async with asyncio.timeout(20):
        async for seen in events:
            if (seen.kind, seen.peer) == (kind, peer):
                return seen
    raise AssertionError("the events ended")


# ---- streams


async def bytes_arrive_in_order(net: Net) -> None:
    a, b = net.engines[:2]
    came: list[str] = []
    ends: list[Far] = []

    def accept(peer: str) -> Far:
        came.append(peer)
        ends.append(Far(echo=True))
        return ends[-1]

    b.listen(ECHO, accept)
    far = await call(a, b)
    sent = b"".join(i.to_bytes(4, "big") for i in range(5000))
    for at in range(0, len(sent), 997):
        far.transport.write(sent[at : at + 997])
    await far.has(len(sent))
    assert bytes(far.got) == sent == bytes(ends[0].got)
    assert came == [a.peer], "the peer that proved its key"
    assert a.peer != b.peer
    far.transport.close()
    await ends[0].over.wait()


async def what_was_written_before_a_close_arrives(net: Net) -> None:
    a, b = net.engines[:2]
    end = Far()
    b.listen(TAKE, lambda _: end)
    far = await call(a, b, TAKE)
    far.transport.write(b"x" * 100_000)
    far.transport.close()
    await asyncio.wait_for(end.over.wait(), 20)
    assert len(end.got) == 100_000


async def one_direction_may_end_alone(net: Net) -> None:
    a, b = net.engines[:2]
    end = Far(half=True)
    b.listen(TAKE, lambda _: end)
    far = await call(a, b, TAKE)
    far.transport.write(b"question")
    far.transport.write_eof()
    await asyncio.wait_for(end.ended.wait(), 20)
    assert not end.over.is_set()
    end.transport.write(b"answer")
    await far.has(6)
    assert (bytes(end.got), bytes(far.got)) == (b"question", b"answer")
    end.transport.close()
    await asyncio.wait_for(far.over.wait(), 20)


async def a_paused_reader_pauses_the_writer_and_loses_nothing(net: Net) -> None:
    a, b = net.engines[:2]
    end = Far()
    b.listen(TAKE, lambda _: end)
    far = await call(a, b, TAKE)
    await until(lambda: end.transport is not None)
    end.transport.pause_reading()
    sent = 0
    while far.free.is_set() and sent < 128 << 20:
        far.transport.write(bytes(1 << 20))
        sent += 1 << 20
        await asyncio.sleep(0.001)
    assert far.pauses, "128 MiB were taken while nobody read"
    end.transport.resume_reading()
    await asyncio.wait_for(far.free.wait(), 20)
    far.transport.close()
    await asyncio.wait_for(end.over.wait(), 20)
    assert len(end.got) == sent


async def a_stream_may_be_declined(net: Net) -> None:
    a, b = net.engines[:2]
    b.listen(TAKE, lambda _: None)
    far = await call(a, b, TAKE)
    await asyncio.wait_for(far.ended.wait(), 20)
    assert not far.got
    far.transport.close()


async def who_is_not_there_is_gone(net: Net) -> None:
    a, b = net.engines[:2]
    with pytest.raises(Refused, match="does not serve") as refused:
        await a.dial(b.peer, "/ipos/test/nobody/1", Far, b.addresses())
    assert not isinstance(refused.value, Gone), "the peer is there"
    with pytest.raises(Refused, match="is this node itself"):
        await a.dial(a.peer, ECHO, Far)
    await net.end(1)
    with pytest.raises(Gone, match=f"{b.peer} is out of reach"):
        await a.dial(b.peer, ECHO, Far)


# ---- peers


async def events_tell_the_state_and_then_each_change(net: Net) -> None:
    a, b = net.engines[:2]
    b.listen(ECHO, lambda _: Far(echo=True))
    early, theirs = a.events(), b.events()
    assert (await a.way(b.peer)).kind == "none"
    far = await call(a, b)
    await next_of(early, "connected", b.peer)
    await next_of(theirs, "connected", a.peer)
    await next_of(a.events(), "connected", b.peer)  # who asks later is told what is
    way = await a.way(b.peer)
    assert (way.kind, way.via) == ("direct", "")
    assert way.why
    await net.end(1)
    await next_of(early, "gone", b.peer)
    await asyncio.wait_for(far.over.wait(), 20)
    assert (await a.way(b.peer)).kind == "none"


# ---- blocks


async def blocks_come_from_who_has_them(net: Net) -> None:
    a, b = net.engines[:2]
    await connected(net, 0, 1)
    cids = [net.hold(1, bytes([i]) * 1000) for i in range(20)]
    await a.fetch(cids, [b.peer], 20)
    assert all(net.stores[0].has(cid) for cid in cids)
    missing = c.of_raw(b"nobody has this")
    with pytest.raises(Refused, match=c.text(missing)):
        await a.fetch([missing], [b.peer], 0.3)


async def a_denied_block_is_never_given(net: Net) -> None:
    """Neither to who asks, nor, if it was asked for while nobody had it, when it comes (notes/netd.md, trap 1)."""
    a, b = net.engines[:2]
    await connected(net, 0, 1)
    secret, late = b"secret", b"secret that comes later"
    net.denied = {(a.peer, c.of_raw(secret)), (a.peer, c.of_raw(late))}
    net.hold(1, secret)
    waiting = asyncio.create_task(a.fetch([c.of_raw(late)], [b.peer], 1.5))
    with pytest.raises(Refused, match="may give it"):
        await a.fetch([c.of_raw(secret)], [b.peer], 0.5)
    net.hold(1, late)
    with pytest.raises(Refused, match="may give it"):
        await waiting
    assert not any(net.stores[0].has(c.of_raw(block)) for block in (secret, late))


async def connected(net: Net, one: int, other: int) -> None:
    a, b = net.engines[one], net.engines[other]
    b.listen(ECHO, lambda _: Far(echo=True))
    far = await call(a, b)
    far.transport.close()


# ---- routing


async def whoever_provides_is_found(net: Net) -> None:
    a, _, third = net.engines
    await connected(net, 0, 1)
    await connected(net, 2, 1)
    cid = net.hold(0, b"public")
    await a.provide(cid)
    async with asyncio.timeout(20):
        while a.peer not in (found := await third.providers(cid)):
            await asyncio.sleep(0.1)
    assert isinstance(found[a.peer], tuple)
    assert not await third.providers(c.of_raw(b"nobody provides this"))


async def a_peer_of_a_peer_is_reached(net: Net) -> None:
    """By its id alone."""
    a, _, third = net.engines
    await connected(net, 2, 1)
    await connected(net, 0, 1)
    third.listen(TAKE, lambda _: Far(echo=True))
    await asyncio.sleep(0.2)
    _, far = await a.dial(third.peer, TAKE, Far)
    assert isinstance(far, Far)
    far.transport.write(b"hello")
    await far.has(5)
    far.transport.close()


async def a_record_is_its_authors(net: Net) -> None:
    a, b, _ = net.engines
    await connected(net, 0, 1)
    with pytest.raises(Refused, match="no record"):
        await b.record(a.peer, "offer")
    await a.publish("offer", b"one")
    await b.publish("offer", b"of b")
    await a.publish("offer", b"two \x00\xff")
    assert await b.record(a.peer, "offer") == b"two \x00\xff"
    assert await a.record(b.peer, "offer") == b"of b"
    for name, value in (("", b"x"), ("a/b", b"x"), ("a b", b"x"), ("n" * 101, b"x"), ("n", b""), ("n", bytes(5000))):
        with pytest.raises(Refused, match="a record has a name"):
            await a.publish(name, value)


# ---- topics


async def messages_reach_the_others(net: Net) -> None:
    a, b, third = net.engines
    await connected(net, 0, 1)
    await connected(net, 2, 1)
    topics = [await engine.join("news") for engine in (a, b, third)]
    with pytest.raises(Refused, match="has been joined already"):
        await a.join("news")
    heard: list[list[tuple[str, bytes]]] = [[], [], []]

    async def listen(i: int) -> None:
        async for message in topics[i]:
            heard[i].append((message.author, message.body))

    listening = [asyncio.create_task(listen(i)) for i in range(3)]
    sent = 0
    async with asyncio.timeout(20):
        while not (heard[1] and heard[2]):  # until they have heard of each other's subscriptions
            await topics[0].publish(b"number %d" % sent)
            sent += 1
            await asyncio.sleep(0.1)
    await topics[2].publish(b"from the third")
    await until(lambda: (third.peer, b"from the third") in heard[0])
    assert all(author == a.peer for author, _ in heard[1] if author != third.peer)
    assert not any(author == a.peer for author, _ in heard[0]), "one's own messages are no news"
    with pytest.raises(Refused, match="a topic takes"):
        await topics[0].publish(bytes(limits.topic_message_bytes + 1))
    for task in listening:
        task.cancel()
    for topic in topics:
        await topic.close()
    again = await a.join("news")
    await again.close()


Story = Callable[[Net], Awaitable[None]]
STORIES: dict[str, Story] = {
    story.__name__: story
    for story in (
        bytes_arrive_in_order, what_was_written_before_a_close_arrives, one_direction_may_end_alone,
        a_paused_reader_pauses_the_writer_and_loses_nothing, a_stream_may_be_declined, who_is_not_there_is_gone,
        events_tell_the_state_and_then_each_change, blocks_come_from_who_has_them, a_denied_block_is_never_given,
        whoever_provides_is_found, a_peer_of_a_peer_is_reached, a_record_is_its_authors, messages_reach_the_others,
    )
}  # fmt: skip
