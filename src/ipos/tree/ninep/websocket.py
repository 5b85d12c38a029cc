"""9P over WebSocket, for pages in a browser: the byte stream of 9P in binary frames, cut anywhere. `websockets` speaks RFC 6455, without I/O;
here are the door and the flow.

Three locks on the door, each enough against another attacker: the kernel says whose socket it is (another user of this machine), `Origin` and
`Host` have to be the server's own (a page of somebody else in the owner's browser, also one that gave its name our address), and the path
ends with a secret (anything of the owner that was not given it). No cookie: cookies of 127.0.0.1 go to every port of it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidURI
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol as Listener
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from ipos.tree.ninep.client import Client
from ipos.tree.ninep.transport import ServerProtocol, loopback, owned_tcp
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

log = logging.getLogger("ipos.ninep")

SUBPROTOCOL = Subprotocol("9p")
PATH = "/9p/"  # and the secret behind it
SECRET_CHARACTERS = 22  # at least: 128 bits in base64
_quiet = logging.getLogger("ipos.ninep.websockets")  # paths hold the secret: the library may not log them
_quiet.setLevel(logging.CRITICAL)


class _End(asyncio.Protocol, asyncio.Transport):
    """One end of a WebSocket: to the socket a protocol, to 9P (`served`) a transport."""

    def __init__(self, frames: Listener | ClientProtocol) -> None:
        super().__init__()
        self._frames = frames
        self._socket: asyncio.Transport | None = None
        self._served: asyncio.Protocol | None = None
        self._late: asyncio.TimerHandle | None = None
        self._closing = False

    def greeted(self, greeting: Request | Response) -> None:
        """The other end's half of the handshake has come."""
        raise NotImplementedError

    def serve(self, served: asyncio.Protocol) -> None:
        """The handshake is over."""
        if self._late is not None:
            self._late.cancel()
        self._served = served
        served.connection_made(self)

    # ---- of the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket = transport
        self._late = asyncio.get_running_loop().call_later(limits.handshake_s, self.abort)

    def data_received(self, data: bytes) -> None:
        self._frames.receive_data(data)
        for event in self._frames.events_received():
            if not isinstance(event, Frame):
                self.greeted(event)
            elif event.opcode in (Opcode.BINARY, Opcode.CONT) and self._served is not None:
                self._served.data_received(cast("bytes", event.data))
            elif event.opcode is Opcode.TEXT:
                self._frames.fail(CloseCode.UNSUPPORTED_DATA, "9P is binary")
        self._on()

    def eof_received(self) -> bool:
        self._frames.receive_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket = None
        if self._late is not None:
            self._late.cancel()
        if self._served is not None:
            self._served.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._served is not None:
            self._served.pause_writing()

    def resume_writing(self) -> None:
        if self._served is not None:
            self._served.resume_writing()

    def _on(self) -> None:
        """What the library wants to be sent leaves; where it is done with the connection, that ends."""
        if self._socket is None:
            return
        for data in self._frames.data_to_send():
            if data:
                self._socket.write(data)
        if self._closing or self._frames.close_expected():
            self._closing = True
            self._socket.close()

    # ---- of 9P

    def write(self, data: Any) -> None:
        """In frames that any other end takes."""
        if self.is_closing():
            return
        view = memoryview(data)
        for at in range(0, len(view), limits.msize_bytes):
            self._frames.send_binary(view[at : at + limits.msize_bytes])
        self._on()

    def is_closing(self) -> bool:
        return self._closing or self._socket is None or self._socket.is_closing()

    def close(self) -> None:
        if not self.is_closing():
            self._frames.send_close(CloseCode.NORMAL_CLOSURE)
            self._closing = True
            self._on()

    def abort(self) -> None:
        self._closing = True
        if self._socket is not None:
            self._socket.abort()

    def pause_reading(self) -> None:
        if self._socket is not None:
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        if self._socket is not None:
            self._socket.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._socket is not None:
            self._socket.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._socket is None else self._socket.get_extra_info(name, default)


class _Server(_End):
    """The server's end. `factory` is called once the door is open."""

    def __init__(self, factory: Callable[[], ServerProtocol], secret: str) -> None:
        super().__init__(Listener(subprotocols=[SUBPROTOCOL], max_size=limits.msize_bytes, logger=_quiet))
        self._factory = factory
        self._secret = secret

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not owned_tcp(transport):
            self.abort()

    def greeted(self, greeting: Request | Response) -> None:
        assert isinstance(self._frames, Listener)
        assert isinstance(greeting, Request)
        said = self._refusal(greeting)
        response = self._frames.accept(greeting) if said is None else self._frames.reject(HTTPStatus.FORBIDDEN, said)
        self._frames.send_response(response)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self.serve(self._factory())

    def _refusal(self, request: Request) -> str | None:
        """Why this request may not in; None: it may."""
        assert self._socket is not None
        host, port = self._socket.get_extra_info("sockname")[:2]
        ours = {f"{name}:{port}" for name in (f"[{host}]" if ":" in host else host, "localhost")}
        if (at := _one(request.headers, "Host")) not in ours:
            return f"this is {' or '.join(sorted(ours))}, not {at!r}\n"
        origin = _one(request.headers, "Origin")
        if origin is not None and origin not in {f"http://{where}" for where in ours}:
            log.warning("a page of %s tried to use this node's WebSocket", repr(origin)[:200])
            return f"a page of {origin[:200]!r} may not use this node: only its own may\n"
        if not hmac.compare_digest(request.path.encode(), (PATH + self._secret).encode()):
            return f"the path has to be {PATH} and the node's secret\n"
        return None


def _one(headers: Headers, name: str) -> str | None:
    """The value of a header that may come once; one that comes twice is no value that anybody accepts."""
    found = headers.get_all(name)
    return ", ".join(found) if found else None


class _Client(_End):
    """The client's end: `open` is done when 9P may begin."""

    def __init__(self, frames: ClientProtocol, client: Client) -> None:
        super().__init__(frames)
        self._client = client
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(self._frames, ClientProtocol)
        self._frames.send_request(self._frames.connect())
        self._on()

    def greeted(self, greeting: Request | Response) -> None:
        assert isinstance(greeting, Response)
        wrong = self._frames.handshake_exc
        if wrong is None and self._frames.subprotocol == SUBPROTOCOL:
            self.serve(self._client)
            self.open.set_result(None)
        elif not self.open.done():
            said = bytes(greeting.body or b"").decode(errors="replace").strip()
            self.open.set_exception(
                Refused(f"the server does not take 9P over WebSocket: {said[:200] or wrong or 'no 9p'}")
            )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.open.done():
            self.open.set_exception(Gone("the server hung up before the WebSocket was open"))


async def serve_websocket(address: str, factory: Callable[[], ServerProtocol], secret: str) -> asyncio.Server:
    """Listen on a loopback address (`127.0.0.1:0`: any free port). Clients come to ws://ADDRESS/9p/SECRET with the subprotocol `9p`.
    `Refused`: another address, a port that is taken, a short secret."""
    host, port = loopback(address)
    if (
        len(secret) < SECRET_CHARACTERS
        or not secret.isascii()
        or not secret.replace("-", "").replace("_", "").isalnum()
    ):
        raise Refused(
            f"a WebSocket's secret has at least {SECRET_CHARACTERS} letters and digits (secrets.token_urlsafe()), this one {len(secret)}"
        )
    try:
        return await asyncio.get_running_loop().create_server(lambda: _Server(factory, secret), host, port)
    except OSError as error:
        raise Refused(f"{address}: {os.strerror(error.errno or 0)}", error.errno or 0) from None


async def connect_websocket(url: str, version: str = "9P2000.L.ipos") -> Client:
    """A client attached to the server at `ws://127.0.0.1:5642/9p/SECRET`. `Gone`: nobody answers; `Refused`: it lets nobody in."""
    try:
        uri = parse_uri(url)
    except InvalidURI:
        raise Refused(f"not an address like ws://127.0.0.1:5642{PATH}SECRET") from None
    if uri.secure:
        raise Refused("wss:// is not spoken here: 9P over WebSocket is for this machine's own pages")
    frames = ClientProtocol(uri, subprotocols=[SUBPROTOCOL], max_size=limits.msize_bytes, logger=_quiet)
    client = Client(version)
    try:
        _, end = await asyncio.get_running_loop().create_connection(lambda: _Client(frames, client), uri.host, uri.port)
    except OSError as error:
        raise Gone(f"no node answers at {uri.host}:{uri.port} ({os.strerror(error.errno or 0)})") from None
    try:
        await end.open
        return await client.attach()
    except BaseException:
        end.abort()
        raise
