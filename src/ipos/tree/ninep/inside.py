"""A connection whose two ends are in this process: a node is a client of its own tree as of anybody's, without the kernel in between."""

from __future__ import annotations

import asyncio
from typing import Any

from ipos.tree.ninep.client import Client
from ipos.tree.ninep.transport import ServerProtocol
from ipos.wire import limits
from ipos.wire.errors import Gone


class End(asyncio.Transport):
    """What is written here arrives at the twin's protocol in the loop's next turn. Behind `limits.write_buffer_bytes` that the twin does
    not read, the writer is told to pause."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._twin: End | None = None
        self._pieces: list[bytes] = []
        self._waiting = 0  # bytes of them
        self._due = False
        self._reading = True
        self._full = False
        self._closing = False

    @staticmethod
    def pair(one: asyncio.Protocol, other: asyncio.Protocol) -> tuple[End, End]:
        """Connected, and both told so."""
        ends = End(one), End(other)
        ends[0]._twin, ends[1]._twin = ends[1], ends[0]
        for end in ends:
            end._protocol.connection_made(end)
        return ends

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._closing or not data:
            return
        self._pieces.append(bytes(data))
        self._waiting += len(data)
        self._soon()
        if self._waiting > limits.write_buffer_bytes and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._due = False
        twin = self._twin
        if twin is None or twin._closing or not twin._reading or not self._pieces:
            return
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        twin._protocol.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._full:
            self._full = False
            self._protocol.resume_writing()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._twin is not None:
            self._twin._soon()

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """What was written still arrives; then both ends are told."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._end)

    abort = close

    def _end(self) -> None:
        self._deliver()
        twin, self._twin = self._twin, None
        self._protocol.connection_lost(None)
        if twin is not None and not twin._closing:
            twin._closing = True
            twin._twin = None
            twin._protocol.connection_lost(None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        raise NotImplementedError

    def get_write_buffer_size(self) -> int:
        return self._waiting

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def connect_inside(served: ServerProtocol, aname: str = "") -> Client:
    """An attached client of a session in this process."""
    client = Client()
    End.pair(served, client)
    try:
        return await client.attach(aname)
    except Gone:
        client.close()
        raise
