"""bulk: per machine a second session for what may be large (/n, output that is looked at), so that none of it stands before control's messages.

Streams of one connection share it fairly, bytes of one stream do not: what is written first arrives first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ipos.tree.ninep.client import Client


class Bulk:
    """`dial` opens a stream of its own to a machine and attaches; `Gone` if that cannot be."""

    def __init__(self, dial: Callable[[str], Awaitable[Client]]) -> None:
        self._dial = dial
        self._clients: dict[str, Client] = {}
        self._dialling: dict[str, asyncio.Lock] = {}

    async def client(self, peer: str) -> Client:
        """The session of now, made if there is none."""
        async with self._dialling.setdefault(peer, asyncio.Lock()):
            client = self._clients.get(peer)
            if client is None or client.lost is not None:
                client = self._clients[peer] = await self._dial(peer)
            return client

    def shut(self, peer: str) -> None:
        """Whoever is no machine of mine any more has no session."""
        if (client := self._clients.pop(peer, None)) is not None:
            client.close()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
