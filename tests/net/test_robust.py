"""The list of notes/net.md 4 and what else goes wrong over a long life: silent peers, many connections, a network process that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from netds import ECHO, echo, netds, seen, serve, stream, until

from ipos.store import cid as c
from ipos.store.blocks import MemoryStore
from ipos.wire.errors import Gone

pytestmark = pytest.mark.real


def test_netd_is_killed_under_load() -> None:
    """Streams see their end, fetches go on in the next life, topics are joined again: nothing is lost, nothing hangs."""

    async def main() -> None:
        there, here = MemoryStore(), MemoryStore()
        blocks = [os.urandom(1 << 20) for _ in range(60)]
        cids = [c.of_raw(block) for block in blocks]
        there.put(zip(cids, blocks, strict=True))
        async with netds({"store": here}, {"store": there}) as (a, b):
            serve(b, echo)
            reader, writer = await stream(a, b)
            topics = [await net.join("news") for net in (a, b)]
            fetching = asyncio.create_task(a.fetch(cids, [b.peer], 60))
            await until(lambda: any(here.has(cid) for cid in cids) or fetching.done())
            assert a.pid is not None
            assert not fetching.done(), "too fast to be killed in the middle"
            os.kill(a.pid, signal.SIGKILL)
            await asyncio.wait_for(fetching, 60)
            assert all(here.get(cid) == block for cid, block in zip(cids, blocks, strict=True))
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
                    await asyncio.wait_for(reader.readexactly(65536), 10)
            assert a.starts == 2
            hearing = asyncio.create_task(anext(aiter(topics[1])))
            async with asyncio.timeout(20):
                while not hearing.done():
                    with contextlib.suppress(Gone):  # it is being joined again
                        await topics[0].publish(b"again")
                    await asyncio.sleep(0.1)
            assert hearing.result().body == b"again"
            reader, writer = await stream(a, b)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            for topic in topics:
                await topic.close()

    asyncio.run(main())


@pytest.mark.slow
def test_a_silent_peer_is_noticed_within_20_seconds() -> None:
    async def main() -> None:
        async with netds({}, {}) as (a, b):
            serve(b, echo)
            reader, _ = await stream(a, b)
            events = a.events()
            assert b.pid is not None
            os.kill(b.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                await seen(events, "gone", b.peer, within_s=25)
                assert time.monotonic() - began < 20
                assert await asyncio.wait_for(reader.read(), 5) == b""
            finally:
                os.kill(b.pid, signal.SIGCONT)

    asyncio.run(main())


@pytest.mark.slow
def test_ten_thousand_connections_come_in_over_a_life() -> None:
    """And leave nothing behind: memory after ten thousand is that after one thousand."""

    def resident(pid: int | None) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) >> 10

    async def main() -> None:
        async with netds({}, {}, {}) as (a, b, target):
            clients = [await net.client() for net in (a, b)]

            async def knock(client: object, times: int) -> None:
                for _ in range(times):
                    await client.write("/ctl", f"connect {target.addresses()[0]}/p2p/{target.peer}".encode())  # type: ignore[attr-defined]
                    await client.write("/ctl", f"disconnect {target.peer}".encode())  # type: ignore[attr-defined]

            await asyncio.gather(*(knock(client, 500) for client in clients))
            early = resident(target.pid)
            await asyncio.gather(*(knock(client, 4500) for client in clients))
            late = resident(target.pid)
            print(f"{early} MiB after 1,000 connections, {late} MiB after 10,000")
            assert late < early + 40
            serve(target, echo)
            reader, writer = await stream(a, target)
            writer.write(b"still there")
            assert await reader.readexactly(11) == b"still there"
            writer.close()
            assert target.starts == 1

    asyncio.run(main())


def test_an_address_of_another_pool_is_named() -> None:
    """Whoever answers at a remembered address must prove the key that was asked for."""

    async def main() -> None:
        async with netds({}, {}, {}) as (a, b, stranger):
            serve(stranger, echo)
            with pytest.raises(Gone, match=f"{stranger.peer} answers there"):
                await a.dial(b.peer, ECHO, asyncio.Protocol, stranger.addresses())

    asyncio.run(main())
