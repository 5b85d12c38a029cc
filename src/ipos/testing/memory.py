"""A network in memory: streams with delay, partitions, machines that sleep or vanish. Implements `NetEngine`.

What a partition or a sleeping machine holds back is not lost but late, as with TCP; a connection that is held back longer than `DEAF_S` is
closed at both ends, as the real network process does when pings go unanswered. A machine that is unplugged says nothing to anybody.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from ipos.net.engine import Accept, PeerSeen
from ipos.store.blocks import BlockStore
from ipos.testing.time import WorldClock
from ipos.wire.errors import Gone, Refused

DEAF_S = 13.0
CHECK_S = 0.25
BYTES_S = 20e6


class Wires:
    """All links between all machines."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.nets: dict[str, MemoryNet] = {}
        self.cut: set[frozenset[str]] = set()
        self.stream_bytes_s = math.inf  # of each stream in each direction: they share a connection fairly

    def open(self, a: str, b: str) -> bool:
        """Whether a message can pass now."""
        if frozenset((a, b)) in self.cut:
            return False
        return all(peer in self.nets and not self.nets[peer].clock.frozen for peer in (a, b))

    def delay(self) -> float:
        return self.dice.uniform(0.0005, 0.02)


class _End(asyncio.Transport):
    """One end of a stream."""

    def __init__(self, wires: Wires, me: str, other: str, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.wires, self.me, self.peer = wires, me, other
        self.protocol: Any = protocol
        self.twin: _End | None = None
        self.queue: deque[tuple[float, bytes | None]] = deque()
        self.moving = False
        self.sent_at = 0.0  # when the last byte of what is queued has left
        self.closed = False
        self.reading = asyncio.Event()
        self.reading.set()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self.closed:
            self._push(bytes(data))

    def _push(self, data: bytes | None) -> None:
        now = asyncio.get_running_loop().time()
        self.sent_at = max(now, self.sent_at) + len(data or b"") / self.wires.stream_bytes_s
        self.queue.append((self.sent_at + self.wires.delay(), data))
        if not self.moving:
            self.moving = True
            self.wires.nets[self.me].spawn(self._move())

    async def _move(self) -> None:
        """Carry what is queued to the other end, in order, when the way is free; many messages are on their way at once."""
        held = 0.0
        loop = asyncio.get_running_loop()
        while self.queue:
            await asyncio.sleep(max(0.0, self.queue[0][0] - loop.time()))
            while not self.wires.open(self.me, self.peer):
                await asyncio.sleep(CHECK_S)
                held += CHECK_S
                if held > DEAF_S:
                    self.lose()
                    return
            held = 0.0
            twin = self.twin
            assert twin is not None
            await twin.reading.wait()
            _, data = self.queue.popleft()
            if data is None:
                twin.lost()
                return
            if not twin.closed:
                twin.protocol.data_received(data)
        self.moving = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._push(None)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def lost(self) -> None:
        """The other end closed, or is gone."""
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(None)

    def lose(self) -> None:
        self.lost()
        if self.twin is not None:
            self.twin.lost()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading.clear()

    def resume_reading(self) -> None:
        self.reading.set()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def pipe(wires: Wires, a: str, b: str, first: asyncio.BaseProtocol, second: asyncio.BaseProtocol) -> _End:
    """A stream between two protocols; the first's end."""
    one, two = _End(wires, a, b, first), _End(wires, b, a, second)
    one.twin, two.twin = two, one
    for end in (one, two):
        wires.nets[end.me].ends.add(end)
    second.connection_made(two)
    first.connection_made(one)
    return one


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
        self.ends: set[_End] = set()
        self._accepts: dict[str, Accept] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        wires.nets[peer] = self

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def addresses(self) -> tuple[str, ...]:
        return (f"/memory/{self.peer}",)

    async def dial(
        self, peer: str, protocol: str, factory: Callable[[], asyncio.BaseProtocol], addresses: Sequence[str] = ()
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        waited = 0.0
        await asyncio.sleep(self.wires.delay() * 2)
        while not self.wires.open(self.peer, peer):
            await asyncio.sleep(CHECK_S)
            waited += CHECK_S
            if waited > 5.0:
                raise Gone(f"cannot reach {peer}: no answer")
        other = self.wires.nets[peer]
        accept = other._accepts.get(protocol)
        theirs = accept(self.peer) if accept is not None else None
        if theirs is None:
            raise Gone(f"cannot reach {peer}: it does not serve {protocol}")
        mine = factory()
        return pipe(self.wires, self.peer, peer, mine, theirs), mine

    def pool(self, peers: Iterable[str]) -> None: ...

    def listen(self, protocol: str, accept: Accept) -> None:
        self._accepts[protocol] = accept

    async def events(self) -> AsyncIterator[PeerSeen]:
        await asyncio.Event().wait()
        yield PeerSeen("never", "")

    async def fetch(self, cids: Sequence[bytes], peers: Sequence[str], timeout_s: float) -> None:
        deadline = self.clock.now() + timeout_s
        for cid in cids:
            while not self.store.has(cid):
                await self.clock.sleep(self.wires.delay() * 2)
                for peer in peers:
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
                    raise Refused(f"a block did not come from {len(peers)} peer(s) within {timeout_s:.0f} s")

    def vanish(self, silent: bool) -> None:
        """The machine is off. `silent`: nobody is told (a pulled plug); otherwise its connections close (a killed process)."""
        self.wires.nets.pop(self.peer, None)
        for task in self._tasks:
            task.cancel()
        for end in self.ends:
            end.closed = True
            twin = end.twin
            if twin is not None and not twin.closed:
                loop = asyncio.get_running_loop()
                loop.call_later(DEAF_S if silent else 0.01, twin.lost)
