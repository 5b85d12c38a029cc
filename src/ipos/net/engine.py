"""NetEngine: what a node needs of a network. `netd` is the real one, `ipos.testing.memory` the one under virtual time.

A stream is an asyncio transport and protocol, like those of `loop.create_connection`: bytes in order, back-pressure by
`pause_reading` and `pause_writing`, `connection_lost` when either end closes or the peer is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

PeerId = str  # libp2p peer id, base58 text ("12D3Koo..."): the name of a transport key
CID = bytes

Accept = Callable[[PeerId], asyncio.BaseProtocol | None]
"""Called for each stream that comes in, with the peer that proved its key; None closes the stream."""


class PeerSeen(NamedTuple):
    """Something changed about a peer. `kind`: "connected", "gone" (no connection left) or "found" (mDNS saw it)."""

    kind: str
    peer: PeerId
    addresses: tuple[str, ...] = ()


class Way(NamedTuple):
    """How a peer is reached. `kind`: "direct", "relay" or "none"; `via`: the relay; `why`: a sentence; `rtt_ms`: of the last ping, None before."""

    kind: str
    via: PeerId = ""
    why: str = ""
    rtt_ms: float | None = None


class Message(NamedTuple):
    """What somebody published; `author` has signed it."""

    author: PeerId
    body: bytes


class Topic(Protocol):
    """A topic that was joined. A slow reader misses messages, and so does who is cut off; none is forged; between authors there is no order."""

    async def publish(self, body: bytes) -> None:
        """To whoever has joined and is in reach now. `Refused` above `limits.topic_message_bytes`."""
        ...

    def __aiter__(self) -> AsyncIterator[Message]:
        """Messages of others, since it was joined."""
        ...

    async def close(self) -> None: ...


class Peers(Protocol):
    """Who I am, who is there, and how they are reached."""

    @property
    def peer(self) -> PeerId:
        """My own id; constant for the life of the home."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs under which I am reached now, without /p2p/; those by way of a relay have /p2p-circuit in them."""
        ...

    def pool(self, peers: Iterable[PeerId]) -> None:
        """The machines that work together with this one, from now on: their relays are used, and they may use mine."""
        ...

    def events(self) -> AsyncIterator[PeerSeen]:
        """What is (who is connected, whom mDNS has found), then every change, for each iterator separately; after a restart, the whole state anew."""
        ...

    async def way(self, peer: PeerId) -> Way:
        """How a peer is reached now; connects to nobody."""
        ...


class Streams(Protocol):
    """Bytes in order between two peers. `Gone` when the peer is out of reach."""

    async def dial(
        self, peer: PeerId, protocol: str, factory: Callable[[], asyncio.BaseProtocol], addresses: Sequence[str] = ()
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """A new stream. `addresses` are tried besides what is known of the peer. `Refused` if it is there but does not serve the protocol."""
        ...

    def listen(self, protocol: str, accept: Accept) -> None:
        """From now on `accept` gets the streams of `protocol`, also after a restart of the network process."""
        ...


class Blocks(Protocol):
    """Blocks between the stores of peers."""

    async def fetch(self, cids: Sequence[CID], peers: Sequence[PeerId], timeout_s: float) -> None:
        """Bring these blocks into this node's store, from peers that have and allow them. `Refused` names the first missing one."""
        ...


class Routing(Protocol):
    """What all nodes together know: who has a block, and small records that only the holder of a key can write. `Refused` when nobody knows."""

    async def provide(self, cid: CID) -> None:
        """Tell that this node has a block, and gives it to anybody."""
        ...

    async def providers(self, cid: CID, most: int = 20) -> dict[PeerId, tuple[str, ...]]:
        """Who says so, and where they are reached; it may be nobody, and they may lie."""
        ...

    async def publish(self, name: str, value: bytes) -> None:
        """My record of that name (at most 100 characters, no /), instead of an older one; `limits.route_value_bytes` at most."""
        ...

    async def record(self, peer: PeerId, name: str) -> bytes:
        """The newest record of a peer that was found; signed by it."""
        ...


class PubSub(Protocol):
    async def join(self, topic: str) -> Topic:
        """`Refused` if this node has joined it already."""
        ...


class NetEngine(Peers, Streams, Blocks, Routing, PubSub, Protocol):
    """One host on the network. Methods raise `Gone` when the network process is out of reach for `limits.outage_s`."""
