"""Streams and blocks between two real netds with Python at both ends, against raw loopback TCP in the same run.

.venv/bin/python bench/streams.py
"""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ipos.net.netd import Netd
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore

MIB = 1 << 20
COUNT = 400


class Sink(asyncio.Protocol):
    """Counts bytes; says when `want` have come."""

    def __init__(self, want: int) -> None:
        self.want, self.got = want, 0
        self.done = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        if self.got >= self.want:
            self.done.set()


class Source(asyncio.Protocol):
    """Sends as fast as the other end takes it."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=4 * MIB)

    def pause_writing(self) -> None:
        self.free.clear()

    def resume_writing(self) -> None:
        self.free.set()

    async def send(self, block: bytes, count: int) -> None:
        for _ in range(count):
            await self.free.wait()
            self.transport.write(block)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Caller(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.answer: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        assert self.answer is not None
        self.answer.set_result(None)

    async def call(self) -> float:
        began = time.perf_counter()
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(b"x" * 64)
        await self.answer
        return time.perf_counter() - began


async def rate(source: Source, sink: Sink) -> float:
    began = time.perf_counter()
    await source.send(os.urandom(MIB), COUNT)
    await sink.done.wait()
    return COUNT * MIB / 1e6 / (time.perf_counter() - began)


async def main() -> None:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="ib") as scratch:
        nets: list[Netd] = []
        stores = [MemoryStore(), MemoryStore()]
        for i in range(2):
            directory = Path(scratch) / str(i)
            directory.mkdir()
            listen = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1")
            net = Netd(
                key=directory / "key",
                run_dir=directory,
                listen=listen,
                mdns=False,
                store=stores[i],
                may=lambda p, c: True,
            )
            await net.start()
            nets.append(net)
        a, b = nets
        sinks: list[Sink] = []

        def sink(_: str) -> Sink:
            sinks.append(Sink(COUNT * MIB))
            return sinks[-1]

        b.listen("/bench/sink", sink)
        b.listen("/bench/echo", lambda _: Echo())
        await asyncio.sleep(0.2)
        raw = Sink(COUNT * MIB)
        server = await loop.create_server(lambda: raw, "127.0.0.1", 0)
        _, source = await loop.create_connection(Source, *server.sockets[0].getsockname())
        print(f"raw loopback TCP, Python at both ends   {await rate(source, raw):6.0f} MB/s")
        for name in ("tcp", "quic"):
            addresses = [address for address in b.addresses() if name in address]
            began = time.perf_counter()
            _, source = await a.dial(b.peer, "/bench/sink", Source, addresses)
            connect = (time.perf_counter() - began) * 1e3
            assert isinstance(source, Source)
            while not sinks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            print(
                f"netd, one {name:4} stream                  {await rate(source, sinks.pop()):6.0f} MB/s, connected in {connect:.0f} ms"
            )
            if name == "tcp":
                _, caller = await a.dial(b.peer, "/bench/echo", Caller)
                assert isinstance(caller, Caller)
                times = [await caller.call() for _ in range(500)]
                print(f"netd, 64 bytes there and back           {statistics.median(times) * 1e3:6.2f} ms, median")
                root, _ = unixfs.add_stream(stores[1], io.BytesIO(os.urandom(200 * MIB)))
                began = time.perf_counter()
                while missing := unixfs.missing(stores[0], root):
                    await a.fetch(missing, [b.peer], 60)
                print(
                    f"netd, blocks of 1 MiB by bitswap        {200 * MIB / 1e6 / (time.perf_counter() - began):6.0f} MB/s"
                )
            client = await a.client()
            await client.write("/ctl", f"disconnect {b.peer}".encode())
        await asyncio.gather(a.close(), b.close())
        server.close()


asyncio.run(main())
