"""The cables between simulated machines: delay, loss, partitions, NATs, relays, all from one seed; and the streams that run over them.

What a partition, a lost packet or a sleeping machine holds back is not lost but late, as with TCP; a connection that is held back longer than
`DEAF_S` is closed at both ends, as the real network process does when pings go unanswered. A machine that is unplugged says nothing to anybody.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from typing import TYPE_CHECKING, Any

from ipos.net.engine import Way

if TYPE_CHECKING:
    from ipos.testing.memory import MemoryNet, MemoryTopic

DEAF_S = 13.0
CHECK_S = 0.25
HIGH_BYTES = 256 << 10  # of a stream that the other end has not taken: then its writer is paused
LOW_BYTES = 64 << 10
AGAIN_S = 0.3  # what one lost packet costs


class Wires:
    """All links between all machines. May be changed at any time: `cut`, `loss` (chance that a message is late by a retransmission),
    `slowest_s` (one way), `stream_bytes_s`, `nats` (peer -> "open", "cone" or "symmetric") and `relays` (peers that relay for those who cannot dial each other)."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.loss = 0.0
        self.slowest_s = 0.02
        self.stream_bytes_s = math.inf  # of each stream in each direction: they share a connection fairly
        self.nets: dict[str, MemoryNet] = {}
        self.cut: set[frozenset[str]] = set()
        self.nats: dict[str, str] = {}
        self.relays: set[str] = set()
        self.links: dict[frozenset[str], str] = {}  # who is connected -> the relay between them, or ""
        self.providers: dict[bytes, set[str]] = {}
        self.records: dict[tuple[str, str], bytes] = {}
        self.topics: dict[str, set[MemoryTopic]] = {}

    def awake(self, peer: str) -> bool:
        return peer in self.nets and not self.nets[peer].clock.frozen

    def open(self, a: str, b: str) -> bool:
        """Whether a message can pass now."""
        if not self.awake(a) or not self.awake(b):
            return False
        pair = frozenset((a, b))
        if relay := self.links.get(pair):
            return self.open(a, relay) and self.open(relay, b)
        return pair not in self.cut

    def delay(self) -> float:
        late = AGAIN_S if self.loss and self.dice.random() < self.loss else 0.0
        return self.dice.uniform(0.0005, self.slowest_s) + late

    def way(self, a: str, b: str) -> Way:
        """How a would reach b now, connected or not."""
        kinds = {self.nats.get(a, "open"), self.nats.get(b, "open")}
        if not self.awake(b):
            return Way("none", why="no answer")
        if "open" in kinds and frozenset((a, b)) not in self.cut:
            return Way("direct", why="one end can be dialled by the other")
        for relay in sorted(self.relays - {a, b}):
            if all(self.awake(relay) and frozenset((relay, end)) not in self.cut for end in (a, b)):
                if "symmetric" in kinds or frozenset((a, b)) in self.cut:
                    return Way("relay", relay, "the NATs between let nobody in")
                return Way("direct", why="a hole was punched after it was reached through a relay")
        return Way("none", why="no answer" if "open" in kinds else "both are behind NATs, and no relay is known")

    def link(self, a: str, b: str, via: str) -> None:
        """They are connected from now on, and both are told."""
        pair = frozenset((a, b))
        if a != b and pair not in self.links:
            self.links[pair] = via
            for me, other in ((a, b), (b, a)):
                self.nets[me].tell("connected", other, (f"/memory/{other}",))

    def unlink(self, a: str, b: str) -> None:
        if self.links.pop(frozenset((a, b)), None) is not None:
            for me, other in ((a, b), (b, a)):
                if me in self.nets:
                    self.nets[me].tell("gone", other)

    def linked(self, peer: str) -> list[str]:
        return [other for pair in self.links if peer in pair for other in pair - {peer}]


class End(asyncio.Transport):
    """One end of a stream."""

    def __init__(self, wires: Wires, me: str, other: str, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.wires, self.me, self.peer = wires, me, other
        self.protocol: Any = protocol
        self.twin: End | None = None
        self.queue: deque[tuple[float, bytes | None]] = deque()  # b"": its writer is done; None: it is closed
        self.waiting = 0
        self.sent_at = 0.0  # when the last byte of what is queued has left
        self.paused = False
        self.moving = False
        self.closed = False
        self.done = False
        self.reading = asyncio.Event()
        self.reading.set()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if data and not self.closed and not self.done:
            self._push(bytes(data))
            if self.waiting > HIGH_BYTES and not self.paused:
                self.paused = True
                self.protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self.closed and not self.done:
            self.done = True
            self._push(b"")

    def _push(self, data: bytes | None) -> None:
        self.waiting += len(data or b"")
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
            if not self.queue:
                break
            _, data = self.queue.popleft()
            if data is None:
                twin.lost()
                return
            if not twin.closed:
                self._arrive(twin, data)
        self.moving = False

    def _arrive(self, twin: End, data: bytes) -> None:
        if data:
            twin.protocol.data_received(data)
        elif not twin.protocol.eof_received():
            twin.close()
        self.waiting -= len(data)
        if self.paused and self.waiting < LOW_BYTES:
            self.paused = False
            self.protocol.resume_writing()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._push(None)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.queue.clear()
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


def pipe(wires: Wires, a: str, b: str, first: asyncio.BaseProtocol, second: asyncio.BaseProtocol) -> End:
    """A stream between two protocols; the first's end."""
    one, two = End(wires, a, b, first), End(wires, b, a, second)
    one.twin, two.twin = two, one
    for end in (one, two):
        wires.nets[end.me].ends.add(end)
    second.connection_made(two)
    first.connection_made(one)
    return one
