"""A session on a connection: framing and back-pressure on any asyncio transport, and the unix socket of a node."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipos.tree.file import Caller
from ipos.tree.ninep.codec import Framer, ProtocolError
from ipos.tree.ninep.session import Attach, Session
from ipos.wire import limits
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.ninep")

UNIX_PATH_BYTES = 107  # sockaddr_un, less its final zero
_CRED = struct.Struct("3i")


class ServerProtocol(asyncio.Protocol):
    """One connection. Bytes that are no 9P end it; what its session has under way is cancelled when it ends."""

    def __init__(self, attach: Attach, caller: Caller, closed: Callable[[ServerProtocol], None] | None = None) -> None:
        self._framer = Framer(limits.msize_bytes)
        self._transport: asyncio.Transport | None = None
        self._closed = closed
        self._blocked = False
        self._paused = False
        self.session = Session(attach, caller, self._send)
        self.session.idle = self._pace

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._framer.feed(data):
                self.session.message(message)
        except ProtocolError as error:
            log.info("a 9P client was cut off: %s", error)
            self.abort()
        self._pace()

    def _send(self, message: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(message)

    def pause_writing(self) -> None:
        self._blocked = True
        self._pace()

    def resume_writing(self) -> None:
        self._blocked = False
        self._pace()

    def _pace(self) -> None:
        """Read on only while the client takes its answers and has not too much under way."""
        stop = self._blocked or self.session.busy >= limits.requests_in_flight
        if self._transport is None or self._transport.is_closing() or stop == self._paused:
            return
        self._paused = stop
        if stop:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.session.reset()
        if self._closed is not None:
            self._closed(self)


def peer_uid(transport: asyncio.BaseTransport) -> int:
    """The user at the other end of a unix socket, as the kernel says."""
    sock: socket.socket = transport.get_extra_info("socket")
    return _CRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CRED.size))[1]


async def serve_unix(path: Path, factory: Callable[[], ServerProtocol]) -> asyncio.Server:
    """Listen on a unix socket that only this user (and root) may use; a stale socket file of a dead process is replaced."""
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise Refused(
            f"the socket path {path} is longer than {UNIX_PATH_BYTES} bytes: set XDG_RUNTIME_DIR to a shorter one"
        )

    class Owned(asyncio.Protocol):
        """Looks who is calling before a session exists."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            if peer_uid(transport) not in (os.getuid(), 0):
                log.warning("user %d tried to use this node's socket", peer_uid(transport))
                transport.close()
                return
            protocol: Any = factory()
            assert isinstance(transport, asyncio.Transport)
            transport.set_protocol(protocol)
            protocol.connection_made(transport)

    path.unlink(missing_ok=True)
    server = await asyncio.get_running_loop().create_unix_server(Owned, path)
    path.chmod(0o600)
    return server
