"""Streams between two network processes, and the tree they are made in."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import pytest
from netds import ECHO, QUIC, TCP, announced, echo, netds, seen, serve, stream, until

from ipos.tree.ninep.client import Client
from ipos.wire.errors import Gone, Refused

pytestmark = pytest.mark.real


def test_a_stream_carries_bytes_both_ways_and_the_tree_tells_of_it() -> None:
    async def main() -> None:
        async with netds({"listen": (TCP, QUIC)}, {"listen": (TCP, QUIC)}) as (a, b):
            came, events = serve(b, echo), b.events()
            reader, writer = await stream(a, b)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert came == [a.peer]
            assert (await seen(events, "connected", a.peer)).addresses[0].startswith("/ip4/127.0.0.1/tcp/")
            client = await a.client()
            status = (await client.read("/status")).decode()
            assert f"peer {a.peer}\n" in status
            assert "connections 1\n" in status
            assert tuple((await client.read("/addrs")).decode().split()) == a.addresses()
            assert len(a.addresses()) == 2
            peer = (await client.read(f"/peers/{b.peer}/status")).decode()
            assert "transport tcp\n" in peer, "TCP is faster than QUIC and is tried first"
            assert "direction outbound\n" in peer
            assert (await client.read(f"/peers/{b.peer}/ping")).decode().endswith(" ms\n")
            assert "rtt_ms" in (await client.read(f"/peers/{b.peer}/status")).decode()
            assert [entry.name for entry in await client.ls("/peers")] == [b.peer]
            writer.close()

    asyncio.run(main())


def test_quic_carries_a_stream_where_there_is_nothing_else() -> None:
    async def main() -> None:
        async with netds({"listen": (QUIC,)}, {"listen": (QUIC,)}) as (a, b):
            serve(b, echo)
            reader, writer = await stream(a, b)
            writer.write(b"x" * 100_000)
            assert await reader.readexactly(100_000) == b"x" * 100_000
            writer.close()
            status = await (await a.client()).read(f"/peers/{b.peer}/status")
            assert b"transport quic-v1\n" in status

    asyncio.run(main())


async def transfer(size: int) -> None:
    """`size` random bytes arrive as they were sent."""
    piece = os.urandom(1 << 20)
    arrived: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total, digest = 0, hashlib.sha256()
        while data := await reader.read(1 << 20):
            digest.update(data)
            total += len(data)
        writer.close()
        arrived.set_result((total, digest.hexdigest()))

    async with netds({}, {}) as (a, b):
        serve(b, take)
        _, writer = await stream(a, b)
        digest, left = hashlib.sha256(), size
        while left:
            chunk = piece[: min(left, len(piece) - left % 7)]
            digest.update(chunk)
            writer.write(chunk)
            await writer.drain()
            left -= len(chunk)
        writer.write_eof()
        assert await arrived == (size, digest.hexdigest())
        writer.close()


def test_20_megabytes_arrive_as_they_were_sent() -> None:
    asyncio.run(transfer(20_000_000))


@pytest.mark.slow
def test_200_megabytes_arrive_as_they_were_sent() -> None:
    asyncio.run(transfer(200_000_000))


def test_the_end_of_one_direction_leaves_the_other_open() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read(-1)  # to the end
        writer.write(b"you said " + question)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    async def main() -> None:
        async with netds({}, {}) as (a, b):
            serve(b, answer)
            for _ in range(3):
                reader, writer = await stream(a, b)
                writer.write(b"question")
                writer.write_eof()
                assert await reader.read(-1) == b"you said question"
                writer.close()
            await conversations(await a.client(), 0)
            await conversations(await b.client(), 1)  # the announcement

    asyncio.run(main())


async def conversations(client: Client, expected: int) -> None:
    """Wait until there are so many."""
    async with asyncio.timeout(10):
        while f"conversations {expected}\n".encode() not in await client.read("/status"):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["close", "abort", "half-closed, then closed"])
def test_an_end_that_is_closed_ends_the_other(how: str) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.read(-1)
                while not writer.is_closing():  # nobody reads: a writer learns it
                    writer.write(b"x" * 65536)
                    await writer.drain()
            except ConnectionError:
                pass
            writer.close()
            ended.set()

        async with netds({}, {}) as (a, b):
            serve(b, wait)
            _, writer = await stream(a, b)
            writer.write(b"hello")
            if how == "half-closed, then closed":
                writer.write_eof()
                await asyncio.sleep(0)
                writer.close()
            elif how == "close":
                writer.close()
            else:
                writer.transport.abort()
            await asyncio.wait_for(ended.wait(), 10)
            await conversations(await a.client(), 0)
            await conversations(await b.client(), 1)

    asyncio.run(main())


async def paused_reader(seconds: float) -> None:
    """A reader that pauses loses nothing, holds up no other stream, and costs no more than the windows on the way."""
    go_on, arrived = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
        arrived.set_result(total)
        writer.close()

    async with netds({}, {}) as (a, b):
        serve(b, take, "/ipos/test/take/1")
        serve(b, echo)
        _, writer = await stream(a, b, "/ipos/test/take/1")
        size, piece = 64 << 20, bytes(1 << 20)

        async def push() -> None:
            for _ in range(size >> 20):
                writer.write(piece)
                await writer.drain()
            writer.write_eof()

        pushing = asyncio.create_task(push())
        reader, other = await stream(a, b)
        for _ in range(10):
            other.write(b"ping")
            assert await asyncio.wait_for(reader.readexactly(4), 2) == b"ping"
            await asyncio.sleep(seconds / 10)
        assert not pushing.done(), "64 MiB are more than all buffers: somebody kept them without bound"
        go_on.set()
        assert await asyncio.wait_for(arrived, 30) == size
        await pushing
        writer.close()
        other.close()


def test_a_paused_reader_loses_nothing() -> None:
    asyncio.run(paused_reader(2))


@pytest.mark.slow
def test_a_reader_that_pauses_for_25_seconds_loses_nothing() -> None:
    asyncio.run(paused_reader(25))


def test_who_cannot_be_reached_is_gone_and_says_why() -> None:
    async def main() -> None:
        stranger = "12D3KooWB2127hQmrNLBWSfyiMZm61jP1E25ZzuoVEZpUwpwrFBF"
        async with netds({}, {}) as (a, b):
            with pytest.raises(Gone, match=f"{stranger} is out of reach .no address of it is known"):
                await a.dial(stranger, ECHO, asyncio.Protocol)
            with pytest.raises(Gone, match=r"/ip4/127\.0\.0\.1/tcp/1.*refused"):
                await a.dial(stranger, ECHO, asyncio.Protocol, ["/ip4/127.0.0.1/tcp/1"])
            with pytest.raises(Gone, match=f"{b.peer} answers there"):
                await a.dial(stranger, ECHO, asyncio.Protocol, b.addresses())
            with pytest.raises(Refused, match=f"{b.peer} does not serve {ECHO}") as refused:
                await a.dial(b.peer, ECHO, asyncio.Protocol, b.addresses())
            assert not isinstance(refused.value, Gone), "the peer is there"
            with pytest.raises(Refused, match="is this node itself"):
                await a.dial(a.peer, ECHO, asyncio.Protocol)
            with pytest.raises(Refused, match='"nonsense" is not a peer id'):
                await a.dial("nonsense", ECHO, asyncio.Protocol)
            with pytest.raises(Refused, match="not every one of"):
                await a.dial(b.peer, ECHO, asyncio.Protocol, ["127.0.0.1:4001"])

    asyncio.run(main())


def test_a_node_may_decline_a_stream() -> None:
    async def main() -> None:
        async with netds({}, {}) as (a, b):
            asked: list[str] = []

            def decline(peer: str) -> None:
                asked.append(peer)

            b.listen(ECHO, decline)
            reader, writer = await stream(a, b)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            assert asked == [a.peer]
            writer.close()
            serve(b, echo)  # another mind, from now on
            reader, writer = await stream(a, b)
            writer.write(b"now?")
            assert await reader.readexactly(4) == b"now?"
            writer.close()

    asyncio.run(main())


def test_many_streams_at_once_keep_their_bytes_apart() -> None:
    async def main() -> None:
        async with netds({}, {}) as (a, b):
            serve(b, echo)

            async def one(i: int) -> None:
                reader, writer = await stream(a, b)
                text = f"stream {i} ".encode() * 1000
                writer.write(text)
                writer.write_eof()
                assert await reader.read(-1) == text
                writer.close()

            await asyncio.gather(*(one(i) for i in range(100)))
            await conversations(await a.client(), 0)

    asyncio.run(main())


def test_a_stream_by_9p_reads_and_writes() -> None:
    async def main() -> None:
        async with netds({}, {}) as (a, b):
            serve(b, echo)
            client, other = await a.client(), await b.client()
            async with client.open("/clone", os.O_RDWR) as ctl:
                n = (await ctl.read_at(0, 32)).decode().strip()
                with pytest.raises(Refused, match="is not connected"):
                    await client.read(f"/{n}/bulk")
                addresses = " ".join(b.addresses())
                await announced(b)
                await ctl.write_at(0, f"connect {b.peer} {ECHO} {addresses}".encode())
                with pytest.raises(Refused, match="is established already"):
                    await ctl.write_at(0, f"announce {ECHO}".encode())
                assert (await client.read(f"/{n}/status")).decode().startswith(f"state Established\nprotocol {ECHO}\n")
                assert (await client.read(f"/{n}/remote")).decode().split()[0] == b.peer
                async with client.open(f"/{n}/data", os.O_RDWR) as data:
                    await data.write(b"by hand")
                    assert await data.read(100) == b"by hand"
                    waiting = asyncio.create_task(data.read(100))
                    await client.read("/status")
                    waiting.cancel()  # Tflush: the stream is as it was
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
                    await data.write(b"again")
                    assert await data.read(100) == b"again"
                    big, got = os.urandom(3 << 20), b""
                    async with client.open(f"/{n}/data") as second:  # one fid would wait for itself
                        writing = asyncio.create_task(data.write(big))
                        while len(got) < len(big):
                            got += await second.read(1 << 20)
                        await writing
                    assert got == big
                    path = (await client.read(f"/{n}/bulk")).decode().strip()
                    assert Path(path).parent.stat().st_mode & 0o777 == 0o700
                    with pytest.raises(Refused, match="is at its bulk socket"):
                        await data.read(1)
                    assert (await client.read(f"/{n}/bulk")).decode().strip() == path
                    _, writer = await asyncio.open_unix_connection(path)
                    await until(lambda: not Path(path).exists())
                    writer.close()
            with pytest.raises(Refused) as missing:
                await client.read("/99/status")
            assert missing.value.errno == errno.ENOENT
            await conversations(other, 1)

    asyncio.run(main())


def test_a_conversation_ends_with_its_last_open_file() -> None:
    async def main() -> None:
        async with netds({}) as (a,):
            client = await a.client()
            fid, _ = await client.walk(("clone",))
            await client.all(client.send_open(fid, os.O_RDWR))
            n = (await client.rpc("Tread", fid, 0, 32))[0].decode().strip()
            async with client.open(f"/{n}/status") as status:
                await client.rpc("Tclunk", fid)
                assert (await status.read()).startswith(b"state Idle")
                await conversations(client, 1)
            await conversations(client, 0)
            async with client.open("/clone", os.O_RDWR) as ctl:
                assert (await ctl.read_at(0, 32)).decode().strip() != n, "a number is never used twice"
                await ctl.write_at(0, f"announce {ECHO}".encode())
                async with client.open("/clone", os.O_RDWR) as second:
                    with pytest.raises(Refused, match=f"{ECHO} is announced already"):
                        await second.write_at(0, f"announce {ECHO}".encode())
                    with pytest.raises(Refused, match="a protocol is named like"):
                        await second.write_at(0, b"announce echo")
                    with pytest.raises(Refused, match="is not a command of a conversation"):
                        await second.write_at(0, b"dance")
                    with pytest.raises(Refused, match="has announced nothing"):
                        await client.read("/2/listen")
            await conversations(client, 0)
            async with client.open("/clone", os.O_RDWR) as ctl:  # the name is free again
                await ctl.write_at(0, f"announce {ECHO}".encode())

    asyncio.run(main())


def test_commands_of_the_whole() -> None:
    async def main() -> None:
        async with netds({}, {}) as (a, b):
            client, events = await a.client(), a.events()
            await client.write("/ctl", f"connect {b.addresses()[0]}/p2p/{b.peer}\n".encode())
            await seen(events, "connected", b.peer)
            await seen(a.events(), "connected", b.peer)  # who comes late is told what is
            await client.write("/ctl", f"protect {b.peer}\nunprotect {b.peer}\ndisconnect {b.peer}\n".encode())
            await seen(events, "gone", b.peer)
            for wrong in (
                b"connect",
                b"connect /ip4/127.0.0.1/tcp/1",
                b"dance",
                b"protect x y",
                b"disconnect nobody",
                b"dance x",
            ):
                with pytest.raises(
                    Refused, match=r"is not a command|is not a peer id|takes addresses of one peer"
                ) as refused:
                    await client.write("/ctl", wrong)
                assert wrong.split()[0].decode() in str(refused.value) or b"nobody" in wrong
            with pytest.raises(Refused, match="a command of 70000 bytes"):
                await client.write("/ctl", b"x" * 70_000)

    asyncio.run(main())


def test_three_hundred_and_more_connections_come_in_over_a_life() -> None:
    async def main() -> None:
        async with netds({}, {}) as (a, b):
            client, events = await a.client(), b.events()
            for _ in range(320):
                await client.write("/ctl", f"connect {b.addresses()[0]}/p2p/{b.peer}".encode())
                await client.write("/ctl", f"disconnect {b.peer}".encode())
            for _ in range(3):
                await seen(events, "gone", a.peer)
            serve(b, echo)
            reader, writer = await stream(a, b)
            writer.write(b"still there")
            assert await reader.readexactly(11) == b"still there"
            writer.close()

    asyncio.run(main())
