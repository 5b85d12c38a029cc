"""A session on a connection: framing and back-pressure on any asyncio transport, and the sockets of a node."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipos.tree.file import Caller
from ipos.tree.ninep.codec import Framer, ProtocolError
from ipos.tree.ninep.session import LONG, Attach, Session
from ipos.wire import limits
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.ninep")

UNIX_PATH_BYTES = 107  # sockaddr_un, less its final zero
_CRED = struct.Struct("3i")
_TFLUSH = 108
_SEND_AT = 128 << 10  # answers are collected up to so many bytes, then sent
_AT_A_STRETCH = 64  # messages, before the loop has its turn


class ServerProtocol(asyncio.Protocol):
    """One connection. Bytes that are no 9P end it; what its session has under way is cancelled when it ends.

    A client that only is fast waits: while `limits.requests_in_flight` requests or `limits.bytes_in_flight` bytes are under way, the
    next are kept back (a Tflush among them is heard), and behind `limits.requests_waiting` of them nothing more is read. A client that
    does not take its answers is not read from either.
    """

    def __init__(self, attach: Attach, caller: Caller, closed: Callable[[ServerProtocol], None] | None = None) -> None:
        self._framer = Framer(limits.msize_bytes)
        self._transport: asyncio.Transport | None = None
        self._closed = closed
        self._blocked = False
        self._paused = False
        self._pumping = False
        self._again = False
        self._kept: deque[memoryview] = deque()  # whole messages that wait
        self._kept_bytes = 0
        self._spare: deque[memoryview] = deque()  # what came although reading was paused
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._sending = False
        self.session = Session(attach, caller, self._send)
        self.session.idle = self._go_on

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        with contextlib.suppress(NotImplementedError):  # of a transport that keeps nothing itself
            transport.set_write_buffer_limits(high=limits.write_buffer_bytes)

    # ---- in

    def data_received(self, data: bytes) -> None:
        self._spare.append(memoryview(data))
        self._pump()

    def get_buffer(self) -> memoryview:
        return self._framer.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._framer.filled(nbytes)
        self._pump()

    @property
    def _stopped(self) -> bool:
        return (
            self._blocked
            or len(self._kept) >= limits.requests_waiting
            or self._kept_bytes >= limits.bytes_in_flight
            or self._again
        )

    def _pump(self) -> None:
        if self._pumping or self._transport is None or self._transport.is_closing():
            return
        self._pumping = True
        try:
            self._take()
        except ProtocolError as error:
            log.info("a 9P client was cut off: %s", error)
            self._flush_out()
            self.abort()
        finally:
            self._pumping = False
        self._flush_out()
        self._pace()

    def _take(self) -> None:
        session, budget = self.session, _AT_A_STRETCH
        while not self._blocked and budget > 0:
            budget -= 1
            if self._kept and not session.full:
                message = self._kept.popleft()
                self._kept_bytes -= len(message)
                session.message(message)
                continue
            if self._stopped:
                return
            message = self._framer.next()
            if message is None:
                if not self._spare:
                    return
                self._fill()
            elif not session.full and not self._kept:
                session.message(message)
            elif message[4] == _TFLUSH:
                self._flush_kept(message)
            else:
                self._kept.append(message)
                self._kept_bytes += len(message)
        if budget <= 0 and not self._again:
            self._again = True
            asyncio.get_running_loop().call_soon(self._take_again)

    def _take_again(self) -> None:
        self._again = False
        self._pump()

    def _fill(self) -> None:
        into, data = self._framer.buffer(), self._spare[0]
        count = min(len(into), len(data))
        into[:count] = data[:count]
        self._framer.filled(count)
        if count == len(data):
            self._spare.popleft()
        else:
            self._spare[0] = data[count:]

    def _flush_kept(self, message: memoryview) -> None:
        """A request that has not begun is just forgotten."""
        old = bytes(message[7:9])
        for i, kept in enumerate(self._kept):
            if bytes(kept[5:7]) == old:
                self._kept_bytes -= len(kept)
                del self._kept[i]
                break
        self.session.message(message)

    def _pace(self) -> None:
        """Read on only while there is room for what comes."""
        if self._transport is None or self._transport.is_closing() or self._stopped == self._paused:
            return
        self._paused = self._stopped
        if self._paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _go_on(self) -> None:
        if self._kept or self._paused:
            self._pump()

    # ---- out

    def _send(self, message: bytes) -> None:
        self._out.append(message)
        self._out_bytes += len(message)
        if self._out_bytes >= _SEND_AT:
            self._flush_out()
        elif not self._pumping and not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send_soon)

    def _send_soon(self) -> None:
        self._sending = False
        self._flush_out()

    def _flush_out(self) -> None:
        """Small answers leave together; a long one is not copied."""
        out, self._out, self._out_bytes = self._out, [], 0
        if self._transport is None or self._transport.is_closing() or not out:
            return
        small: list[bytes] = []
        for piece in out:
            if len(piece) < LONG:
                small.append(piece)
                continue
            if small:
                self._transport.write(b"".join(small))
                small = []
            self._transport.write(piece)
        if small:
            self._transport.write(small[0] if len(small) == 1 else b"".join(small))

    def pause_writing(self) -> None:
        self._blocked = True
        self._pace()

    def resume_writing(self) -> None:
        self._blocked = False
        self._pump()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._kept.clear()
        self._spare.clear()
        self.session.reset()
        if self._closed is not None:
            self._closed(self)


class _Socket(asyncio.BufferedProtocol):
    """A `ServerProtocol` on a socket: bytes are received where they stay."""

    def __init__(self, served: ServerProtocol) -> None:
        self.served = served
        self.connection_made = served.connection_made
        self.buffer_updated = served.buffer_updated
        self.pause_writing = served.pause_writing
        self.resume_writing = served.resume_writing
        self.connection_lost = served.connection_lost

    def get_buffer(self, sizehint: int) -> memoryview:  # type: ignore[override]
        return self.served.get_buffer()


class _Door(asyncio.Protocol):
    """Looks who is calling before a session exists."""

    def __init__(self, factory: Callable[[], ServerProtocol], allowed: Callable[[asyncio.BaseTransport], bool]) -> None:
        self._factory = factory
        self._allowed = allowed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._allowed(transport):
            transport.close()
            return
        protocol = _Socket(self._factory())
        assert isinstance(transport, asyncio.Transport)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def peer_uid(transport: asyncio.BaseTransport) -> int:
    """The user at the other end of a unix socket, as the kernel says."""
    sock: socket.socket = transport.get_extra_info("socket")
    return _CRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CRED.size))[1]


def _ours(uid: int | None, where: str) -> bool:
    if uid in (os.getuid(), 0):
        return True
    log.warning("user %s tried to use this node's %s", "unknown" if uid is None else uid, where)
    return False


async def serve_unix(path: Path, factory: Callable[[], ServerProtocol]) -> asyncio.Server:
    """Listen on a unix socket that only this user (and root) may use; a stale socket file of a dead process is replaced."""
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise Refused(
            f"the socket path {path} is longer than {UNIX_PATH_BYTES} bytes: set XDG_RUNTIME_DIR to a shorter one"
        )
    path.unlink(missing_ok=True)
    server = await asyncio.get_running_loop().create_unix_server(
        lambda: _Door(factory, lambda transport: _ours(peer_uid(transport), "socket")), path
    )
    path.chmod(0o600)
    return server


# ---- loopback TCP


def _tcp_row(address: str, port: int) -> str:
    """An address as /proc/net/tcp and tcp6 write it."""
    packed = ipaddress.ip_address(address).packed
    words = [packed[i : i + 4][::-1].hex().upper() for i in range(0, len(packed), 4)]
    return f"{''.join(words)}:{port:04X}"


def tcp_uid(transport: asyncio.BaseTransport) -> int | None:
    """The user whose socket is at the other end of a loopback connection, as the kernel's table says; None if it is not there."""
    peer: Any = transport.get_extra_info("peername")
    mine: Any = transport.get_extra_info("sockname")
    theirs, ours = _tcp_row(*peer[:2]), _tcp_row(*mine[:2])
    table = Path("/proc/net/tcp6" if ":" in peer[0] else "/proc/net/tcp")
    for row in table.read_text().splitlines()[1:]:
        words = row.split()
        if words[1] == theirs and words[2] == ours:
            return int(words[7])
    return None


def loopback(address: str) -> tuple[str, int]:
    """`127.0.0.1:5640` or `[::1]:5640`, checked: any other than a loopback address is `Refused`."""
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise Refused(f"{address!r} is not an address like 127.0.0.1:5640 (names are not looked up)") from None
    if not ip.is_loopback:
        raise Refused(
            f"{address}: 9P over TCP is not encrypted, so only loopback addresses (127.0.0.1, ::1) are served"
        )
    if not port.isdecimal() or not 0 <= int(port) < 65536:
        raise Refused(f"{address}: {port!r} is not a port")
    return str(ip), int(port)


def owned_tcp(transport: asyncio.BaseTransport) -> bool:
    """Whether the other end of a loopback connection is this user's or root's."""
    return _ours(tcp_uid(transport), "TCP port")


async def serve_tcp(address: str, factory: Callable[[], ServerProtocol]) -> asyncio.Server:
    """Listen on a loopback address; only sockets of this user and root are served, as on the unix socket."""
    host, port = loopback(address)
    try:
        return await asyncio.get_running_loop().create_server(lambda: _Door(factory, owned_tcp), host, port)
    except OSError as error:
        raise Refused(f"{address}: {os.strerror(error.errno or 0)}", error.errno or 0) from None
