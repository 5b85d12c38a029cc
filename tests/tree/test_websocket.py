"""9P over WebSocket: who may in, what may come, and a client that is not ours. That 9P works over it: every story of `test_ninep`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nine import ME
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ipos.tree.file import Caller, File
from ipos.tree.local import local
from ipos.tree.ninep import transport
from ipos.tree.ninep.codec import ALL
from ipos.tree.ninep.messages import NOFID
from ipos.tree.ninep.transport import ServerProtocol
from ipos.tree.ninep.websocket import connect_websocket, serve_websocket
from ipos.tree.synthetic import Dir, Events, Text
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

SECRET = secrets.token_urlsafe()
T = ALL["9P2000"].by_name
HALF = limits.msize_bytes.to_bytes(4, "little") + bytes(1 << 19)  # of a message that is as long as may be
HELLO = T["Tversion"].encode(0xFFFF, 1 << 20, "9P2000") + T["Tattach"].encode(1, 0, NOFID, "me", "")


class Door:
    """A server on a port of its own."""

    def __init__(self, files: dict[str, File]) -> None:
        self.files = files
        self.protocols: list[ServerProtocol] = []
        self.port = 0

    def url(self, secret: str = SECRET, host: str = "127.0.0.1") -> str:
        return f"ws://{host}:{self.port}/9p/{secret}"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Door]:
        async def attach(caller: Caller, aname: str) -> File:
            return Dir(self.files)

        def make() -> ServerProtocol:
            self.protocols.append(ServerProtocol(attach, ME))
            return self.protocols[-1]

        server = await serve_websocket("127.0.0.1:0", make, SECRET)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await asyncio.sleep(0)


def story(work: Callable[[Door], Awaitable[None]], **files: File) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), Door(files).open() as door:
            await work(door)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:PORT", None, 101),
        ("http://localhost:PORT", None, 101),
        ("http://localhost:PORT", "localhost:PORT", 101),
        (None, None, 101),  # no browser
        ("https://127.0.0.1:PORT", None, 403),
        ("http://127.0.0.1", None, 403),
        ("http://127.0.0.1:1", None, 403),  # another server of this machine
        ("http://evil.example", None, 403),
        ("http://127.0.0.1:PORT.evil.example", None, 403),
        ("null", None, 403),  # a sandboxed frame, a file
        ("", None, 403),
        ("http://evil.example:PORT", "evil.example:PORT", 403),  # a name that was bent to our address
        (None, "evil.example:PORT", 403),
    ],
)
def test_origins(origin: str | None, host: str | None, status: int) -> None:
    async def work(door: Door) -> None:
        lines = [
            f"GET /9p/{SECRET} HTTP/1.1",
            f"Host: {host or '127.0.0.1:PORT'}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: 9p",
            *([] if origin is None else [f"Origin: {origin}"]),
            "",
            "",
        ]
        assert await said(door, "\r\n".join(lines).replace("PORT", str(door.port)).encode()) == status

    story(work)


async def said(door: Door, request: bytes) -> int:
    """The status that a request is answered with; 0: none. Refused ones are hung up on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(request)
    try:
        line = await reader.readline()
        status = int(line.split()[1]) if line else 0
        if status != 101:
            await reader.read()
        return status
    except ConnectionError:
        return 0
    finally:
        writer.close()


def test_only_who_knows_the_secret_and_speaks_9p() -> None:
    async def work(door: Door) -> None:
        for secret in ("", "x", SECRET[:-1], SECRET + "x", SECRET.swapcase(), "s/../" + SECRET):
            with pytest.raises(InvalidStatus, match="403"):
                await connect(door.url(secret), subprotocols=["9p"]).__aenter__()
        with pytest.raises(InvalidStatus, match="400"):
            await connect(door.url()).__aenter__()  # no subprotocol
        with pytest.raises(InvalidStatus, match="400"):
            await connect(door.url(), subprotocols=["chat"]).__aenter__()
        assert await said(door, f"GET /9p/{SECRET} HTTP/1.1\r\nHost: 127.0.0.1:{door.port}\r\n\r\n".encode()) == 426
        assert await said(door, b"\x13\0\0\0\x64\xff\xff" + bytes(12) + b"\r\n\r\n") in (0, 400)  # 9P itself
        assert await said(door, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n") in (0, 400, 431)
        assert await said(door, b"x" * 100_000) in (0, 400, 414)
        assert door.protocols == []
        with pytest.raises(Refused, match="and the node's secret"):
            await connect_websocket(door.url("wrong"))
        with pytest.raises(Refused, match="not an address like"):
            await connect_websocket("127.0.0.1:5642")
        with pytest.raises(Refused, match="wss"):
            await connect_websocket("wss://127.0.0.1:5642/")

    story(work)


def test_another_user_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(door: Door) -> None:
        monkeypatch.setattr(transport, "tcp_uid", lambda _: 12345)
        with pytest.raises(Gone):
            await connect_websocket(door.url())
        assert door.protocols == []

    story(work)


def test_addresses_and_secrets() -> None:
    async def main() -> None:
        for address in ("0.0.0.0:0", "192.168.1.2:0", "localhost:0"):
            with pytest.raises(Refused, match=r"loopback|is not an address"):
                await serve_websocket(address, lambda: ServerProtocol(None, ME), SECRET)  # type: ignore[arg-type]
        for secret in ("", "short", "s" * 21, "a secret with spaces in it, long", "ü" * 30):
            with pytest.raises(Refused, match="a WebSocket's secret has at least 22"):
                await serve_websocket("127.0.0.1:0", lambda: ServerProtocol(None, ME), secret)  # type: ignore[arg-type]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(Refused, match="in use"):
                await serve_websocket(f"127.0.0.1:{port}", lambda: ServerProtocol(None, ME), SECRET)  # type: ignore[arg-type]

    asyncio.run(main())


def test_frames_are_cut_anywhere() -> None:
    """A foreign client, whose frames begin and end where they like, fragments and pings among them."""

    async def work(door: Door) -> None:
        stream = (
            HELLO + T["Twalk"].encode(2, 0, 1, ("fast",)) + T["Topen"].encode(3, 1, 0) + T["Tread"].encode(4, 1, 0, 100)
        )
        for size in (1, 3, 7, len(stream)):
            async with connect(door.url(), subprotocols=["9p"], compression="deflate") as client:
                assert client.subprotocol == "9p"
                cuts = [stream[i : i + size] for i in range(0, len(stream), size)]
                await client.send(cuts[: len(cuts) // 2])  # one message in fragments
                await (await client.ping())
                for cut in cuts[len(cuts) // 2 :]:
                    await client.send(cut)
                got = b""
                while b"quick" not in got:
                    piece = await client.recv()
                    assert isinstance(piece, bytes)
                    got += piece

    story(work, fast=Text(lambda: "quick"))


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("text", 1003),
        (bytes(limits.msize_bytes + 1), 1009),
        ([HALF, bytes(1 << 19), bytes(1 << 19)], 1009),
        (b"\x03\0\0\0\x64\xff\xff", 1006),
    ],
    ids=["text", "a frame over the limit", "fragments over the limit", "no 9P"],
)
def test_what_ends_a_connection(what: str | bytes | list[bytes], code: int) -> None:
    async def work(door: Door) -> None:
        async with connect(door.url(), subprotocols=["9p"]) as client:
            with pytest.raises(ConnectionClosed) as ended:
                await client.send(what)
                while True:
                    await client.recv()
        assert (ended.value.rcvd.code if ended.value.rcvd is not None else 1006) == code
        async with asyncio.timeout(5):
            while door.protocols[0]._transport is not None:
                await asyncio.sleep(0.001)

    story(work)


def test_who_does_not_shake_hands_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(door: Door) -> None:
        monkeypatch.setattr(limits, "handshake_s", 0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"GET /9p/")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()

    story(work)


def test_a_client_that_takes_nothing_is_not_read_from(tmp_path: Path) -> None:
    """Answers of 256 MiB are asked for and not taken: the server holds a few of them."""
    (tmp_path / "big").write_bytes(bytes(4 << 20))

    async def work(door: Door) -> None:
        client = await connect_websocket(door.url())
        fid, _ = await client.walk(("disk", "big"))
        await client.rpc("Tlopen", fid, 0)
        assert client._transport is not None
        client._transport.pause_reading()
        asked = [client.send("Tread", fid, 0, 1 << 20) for _ in range(256)]
        await asyncio.sleep(0.2)
        served = door.protocols[0]
        assert served._blocked
        transport_ = served._transport
        assert transport_ is not None
        held = transport_._socket.get_write_buffer_size()  # type: ignore[attr-defined]
        assert limits.write_buffer_bytes < held < 4 * limits.MiB
        client._transport.resume_reading()
        answers = await client.all(*asked)
        assert [len(data) for (data,) in answers] == [1 << 20] * 256
        client.close()

    story(work, disk=local(tmp_path))


def test_both_ends_close() -> None:
    async def work(door: Door) -> None:
        client = await connect_websocket(door.url())
        other = await connect_websocket(door.url())
        async with client.open("/events") as file:
            waiting = asyncio.ensure_future(file.read())
            await asyncio.sleep(0.01)
            client.close()
            with pytest.raises(Gone):
                await waiting
        door.protocols[1].abort()
        with pytest.raises(Gone):
            await other.read("/events")
        async with asyncio.timeout(5):
            while any(p.session.fids for p in door.protocols):
                await asyncio.sleep(0.001)

    story(work, events=Events())


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    names = "import ipos.cli.main, ipos.node.daemon, sys; print('websockets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True).stdout == "False\n"
