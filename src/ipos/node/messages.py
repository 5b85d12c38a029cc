"""Length-prefixed messages on a stream: how /ipos/join/1 and /ipos/list/1 talk."""

from __future__ import annotations

import asyncio
import contextlib
import struct

from ipos.wire import limits
from ipos.wire.errors import Gone


class Messages(asyncio.Protocol):
    """Length-prefixed messages (u32, little endian) on a stream. `None` in the queue: the stream ended."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:
            (length,) = struct.unpack_from("<I", self._buffer)
            if length > limits.join_message_bytes:
                if self.transport is not None:
                    self.transport.abort()
                return
            if len(self._buffer) < 4 + length:
                return
            self.inbox.put_nowait(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]

    def connection_lost(self, exc: Exception | None) -> None:
        self.inbox.put_nowait(None)

    def send(self, body: bytes) -> None:
        if self.transport is not None:
            self.transport.write(struct.pack("<I", len(body)) + body)

    async def next(self) -> bytes:
        async with asyncio.timeout(limits.join_timeout_s):
            body = await self.inbox.get()
        if body is None:
            raise Gone("the other machine ended the conversation")
        return body

    async def ended(self) -> None:
        """Wait until the other side has read what was sent, and ends the conversation."""
        with contextlib.suppress(Gone, TimeoutError):
            await self.next()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()
