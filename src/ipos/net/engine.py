"""NetEngine: what a node needs of a network. `netd` is the real one, `ipos.testing.memory` the one under virtual time.

A stream is an asyncio transport and protocol, like those of `loop.create_connection`: bytes in order, back-pressure by
`pause_reading` and `pause_writing`, `connection_lost` when either end closes or the peer is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
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


class NetEngine(Protocol):
    """One host on the network. Methods raise `Gone` when the peer, or the network process, is out of reach."""

    @property
    def peer(self) -> PeerId:
        """My own id; constant for the life of the home."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs under which I listen now, without /p2p/."""
        ...

    async def dial(
        self, peer: PeerId, protocol: str, factory: Callable[[], asyncio.BaseProtocol], addresses: Sequence[str] = ()
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """A new stream. `addresses` are tried besides what is known of the peer."""
        ...

    def listen(self, protocol: str, accept: Accept) -> None:
        """From now on `accept` gets the streams of `protocol`, also after a restart of the network process."""
        ...

    def events(self) -> AsyncIterator[PeerSeen]:
        """What is (who is connected, whom mDNS has found), then every change, for each iterator separately; after a restart, the whole state anew."""
        ...

    async def fetch(self, cids: Sequence[CID], peers: Sequence[PeerId], timeout_s: float) -> None:
        """Bring these blocks into this node's store, from peers that have and allow them. `Refused` names the first missing one."""
        ...
