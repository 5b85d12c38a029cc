"""The network of one simulated machine, over `ipos.testing.wires`: `NetEngine` in memory and under virtual time.

`tests/net/net_conformance.py` holds it to the same promises as the real network process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from ipos.net.engine import Accept, Message, PeerSeen, Way
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.testing.time import WorldClock
from ipos.testing.wires import CHECK_S, DEAF_S, End, Wires, pipe
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

BYTES_S = 20e6
DIAL_S = 5.0
LOOK_S = DEAF_S / 4  # between looks whether the other end of a link still answers


class MemoryTopic:
    """See `engine.Topic`."""

    def __init__(self, net: MemoryNet, name: str) -> None:
        self.net, self.name = net, name
        self.inbox: asyncio.Queue[Message] = asyncio.Queue(limits.events_waiting)
        net.wires.topics.setdefault(name, set()).add(self)

    async def publish(self, body: bytes) -> None:
        if len(body) > limits.topic_message_bytes:
            raise Refused(f"a message of {len(body)} bytes; a topic takes {limits.topic_message_bytes}")
        for other in list(self.net.wires.topics[self.name]):
            if other.net.peer != self.net.peer and self.net.wires.open(self.net.peer, other.net.peer):
                self.net.spawn(self._carry(other, body))

    async def _carry(self, other: MemoryTopic, body: bytes) -> None:
        await asyncio.sleep(self.net.wires.delay())
        if not other.inbox.full():
            other.inbox.put_nowait(Message(self.net.peer, body))

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            yield await self.inbox.get()

    async def close(self) -> None:
        self.net.wires.topics[self.name].discard(self)


class MemoryNet:
    """`NetEngine` of one simulated machine."""

    def __init__(
        self,
        wires: Wires,
        peer: str,
        clock: WorldClock,
        store: BlockStore,
        may: Callable[[str, bytes], bool] = lambda peer, cid: True,
    ) -> None:
        self.wires, self.peer, self.clock, self.store, self.may = wires, peer, clock, store, may
        self.ends: set[End] = set()
        self.members: frozenset[str] = frozenset()
        self._accepts: dict[str, Accept] = {}
        self._queues: list[asyncio.Queue[PeerSeen]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        wires.nets[peer] = self

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- peers

    def addresses(self) -> tuple[str, ...]:
        return (f"/memory/{self.peer}",)

    def pool(self, peers: Iterable[str]) -> None:
        self.members = frozenset(peers)

    def tell(self, kind: str, peer: str, addresses: tuple[str, ...] = ()) -> None:
        for queue in self._queues:
            queue.put_nowait(PeerSeen(kind, peer, addresses))

    def events(self) -> AsyncIterator[PeerSeen]:
        queue: asyncio.Queue[PeerSeen] = asyncio.Queue()
        for peer in self.wires.linked(self.peer):
            queue.put_nowait(PeerSeen("connected", peer, (f"/memory/{peer}",)))
        self._queues.append(queue)
        return self._drain(queue)

    async def _drain(self, queue: asyncio.Queue[PeerSeen]) -> AsyncIterator[PeerSeen]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.remove(queue)

    async def way(self, peer: str) -> Way:
        via = self.wires.links.get(frozenset((self.peer, peer)))
        if via is None:
            return Way("none", why="not connected")
        way = self.wires.way(self.peer, peer)
        return way if way.kind != "none" else Way("relay" if via else "direct", via, "not heard of for a while")

    async def _keep(self, peer: str) -> None:
        """Watch a link that this end made; after `DEAF_S` without an answer there is none."""
        held = 0.0
        while held <= DEAF_S:
            await asyncio.sleep(LOOK_S)
            held = 0.0 if self.wires.open(self.peer, peer) else held + LOOK_S
            if frozenset((self.peer, peer)) not in self.wires.links:
                return
        self.wires.unlink(self.peer, peer)

    # ---- streams

    async def dial(
        self, peer: str, protocol: str, factory: Callable[[], asyncio.BaseProtocol], addresses: Sequence[str] = ()
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        if peer == self.peer:
            raise Refused(f"{peer} is this node itself")
        waited = 0.0
        await asyncio.sleep(self.wires.delay() * 2)
        while (way := self.wires.way(self.peer, peer)).kind == "none" or not self.wires.awake(self.peer):
            await asyncio.sleep(CHECK_S)
            waited += CHECK_S
            if waited > DIAL_S:
                raise Gone(f"{peer} is out of reach ({way.why})")
        fresh = frozenset((self.peer, peer)) not in self.wires.links
        self.wires.link(self.peer, peer, way.via)
        if fresh:
            self.spawn(self._keep(peer))
        accept = self.wires.nets[peer]._accepts.get(protocol)
        if accept is None:
            raise Refused(f"{peer} does not serve {protocol}")
        theirs = accept(self.peer)
        mine = factory()
        end = pipe(self.wires, self.peer, peer, mine, theirs or asyncio.Protocol())
        if theirs is None:
            assert end.twin is not None
            end.twin.close()
        return end, mine

    def listen(self, protocol: str, accept: Accept) -> None:
        self._accepts[protocol] = accept

    # ---- blocks

    async def fetch(self, cids: Sequence[bytes], peers: Sequence[str], timeout_s: float) -> None:
        deadline = self.clock.now() + timeout_s
        for cid in dict.fromkeys(cids):
            while not self.store.has(cid):
                await self.clock.sleep(self.wires.delay() * 2)
                for peer in peers or self.wires.linked(self.peer):
                    other = self.wires.nets.get(peer)
                    if (
                        other is not None
                        and self.wires.open(self.peer, peer)
                        and other.store.has(cid)
                        and other.may(self.peer, cid)
                    ):
                        block = other.store.get(cid)
                        await self.clock.sleep(len(block) / BYTES_S)
                        self.store.put([(cid, block)])
                        break
                if self.clock.now() > deadline:
                    raise Refused(
                        f"block {c.text(cid)} did not come from {len(peers)} named peers within {timeout_s:.3g} s: nobody "
                        "who was asked has it and may give it"
                    )

    # ---- routing, topics

    async def provide(self, cid: bytes) -> None:
        if not self.wires.linked(self.peer):
            raise Refused(f"{c.text(cid)} cannot be announced: no other node is connected")
        self.wires.providers.setdefault(cid, set()).add(self.peer)

    async def providers(self, cid: bytes, most: int = 20) -> dict[str, tuple[str, ...]]:
        await asyncio.sleep(self.wires.delay() * 2)
        known = sorted(self.wires.providers.get(cid, set()))[:most]
        return {peer: (f"/memory/{peer}",) for peer in known}

    async def publish(self, name: str, value: bytes) -> None:
        if not name or len(name) > 100 or set(name) & set("/ \n\t") or not 1 <= len(value) <= limits.route_value_bytes:
            raise Refused(
                f"a record has a name of 1 to 100 characters without / and spaces, and 1 to {limits.route_value_bytes} "
                f"bytes: not {name[:100]!r} with {len(value)}"
            )
        self.wires.records[self.peer, name] = value

    async def record(self, peer: str, name: str) -> bytes:
        await asyncio.sleep(self.wires.delay() * 2)
        value = self.wires.records.get((peer, name))
        if value is None:
            raise Refused(f"no record {name} of {peer} was found")
        return value

    async def join(self, topic: str) -> MemoryTopic:
        if any(other.net is self for other in self.wires.topics.get(topic, ())):
            raise Refused(f"{topic} has been joined already")
        return MemoryTopic(self, topic)

    # ---- weather

    def vanish(self, silent: bool) -> None:
        """The machine is off. `silent`: nobody is told (a pulled plug); otherwise its connections close (a killed process)."""
        loop = asyncio.get_running_loop()
        self.wires.nets.pop(self.peer, None)
        for task in self._tasks:
            task.cancel()
        for end in self.ends:
            end.closed = True
            twin = end.twin
            if twin is not None and not twin.closed:
                loop.call_later(DEAF_S if silent else 0.01, twin.lost)
        for topic in self.wires.topics.values():
            topic.difference_update({one for one in topic if one.net is self})
        for peer in self.wires.linked(self.peer):
            loop.call_later(DEAF_S if silent else 0.01, self.wires.unlink, self.peer, peer)
