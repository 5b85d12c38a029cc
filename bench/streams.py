"""Streams and blocks between two real netds with Python at both ends, against raw loopback TCP in the same run: the rows of notes/net.md 1 and 2.

.venv/bin/python bench/streams.py [MiB]   how much each transfer moves; 200 unless said
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ipos.net.netd import Netd
from ipos.store import cid as c
from ipos.store.blocks import BlockStore, MemoryStore
from ipos.store.pack import PackStore

MIB = 1 << 20
COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 200
LISTEN = tuple(
    f"/ip4/127.0.0.1/{how}"
    for how in ("tcp/0", "udp/0/quic-v1", "tcp/0/ws", "udp/0/quic-v1/webtransport", "udp/0/webrtc-direct")
)
TRANSPORTS = {
    "tcp": "/tcp/",
    "ws": "/ws",
    "quic": "/quic-v1",
    "webtransport": "/webtransport",
    "webrtc-direct": "/webrtc-direct",
}


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


def cpu(net: Netd) -> float:
    fields = Path(f"/proc/{net.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(net: Netd) -> int:
    return int(Path(f"/proc/{net.pid}/status").read_text().split("VmRSS:")[1].split()[0]) // 1024


def only(addresses: tuple[str, ...], transport: str) -> list[str]:
    """The addresses of one transport: /tcp/ is in those of /ws too, /quic-v1 in those of /webtransport."""
    kinds = [kind for kind in TRANSPORTS.values() if kind != TRANSPORTS[transport]]
    part = TRANSPORTS[transport]
    return [
        a
        for a in addresses
        if part in a and not any(kind in a and kind not in part and part in ("/tcp/", "/quic-v1") for kind in kinds)
    ]


async def pair(scratch: str, name: str, stores: list[BlockStore]) -> list[Netd]:
    nets: list[Netd] = []
    for i, store in enumerate(stores):
        directory = Path(scratch) / f"{name}{i}"
        directory.mkdir()
        net = Netd(
            key=directory / "key", run_dir=directory, listen=LISTEN, mdns=False, store=store, may=lambda p, c: True
        )
        await net.start()
        nets.append(net)
    return nets


async def streams(a: Netd, b: Netd) -> None:
    loop = asyncio.get_running_loop()
    sinks: list[Sink] = []

    def sink(_: str) -> Sink:
        sinks.append(Sink(COUNT * MIB))
        return sinks[-1]

    b.listen("/bench/sink", sink)
    b.listen("/bench/echo", lambda _: Echo())
    await asyncio.sleep(0.3)
    raw = Sink(COUNT * MIB)
    server = await loop.create_server(lambda: raw, "127.0.0.1", 0)
    _, source = await loop.create_connection(Source, *server.sockets[0].getsockname())
    print(f"{'raw loopback TCP, Python at both ends':42} {await rate(source, raw):6.0f} MB/s")
    server.close()
    for name in TRANSPORTS:
        sinks.clear()
        size = COUNT if name != "webrtc-direct" else COUNT // 8
        began, busy = time.perf_counter(), cpu(a) + cpu(b)
        _, source = await a.dial(b.peer, "/bench/sink", Source, only(b.addresses(), name))
        connect = (time.perf_counter() - began) * 1e3
        assert isinstance(source, Source)
        while not sinks:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        sinks[0].want = size * MIB
        began = time.perf_counter()
        await source.send(os.urandom(MIB), size)
        await sinks[0].done.wait()
        speed = size * MIB / 1e6 / (time.perf_counter() - began)
        busy = (cpu(a) + cpu(b) - busy) * 1e3 / (size * MIB / 1e6)
        print(
            f"{'one ' + name + ' stream':42} {speed:6.0f} MB/s, {busy:.1f} ms of CPU a MB in both netds, connected in {connect:.0f} ms"
        )
        if name in ("tcp", "quic"):
            await calls(a, b, name)
        client = await a.client()
        await client.write("/ctl", f"disconnect {b.peer}".encode())
        await asyncio.sleep(0.2)


async def calls(a: Netd, b: Netd, name: str) -> None:
    _, caller = await a.dial(b.peer, "/bench/echo", Caller)
    assert isinstance(caller, Caller)
    times = sorted([await caller.call() for _ in range(1000)])
    print(
        f"{name + ', 64 bytes there and back':42} {statistics.median(times) * 1e3:6.2f} ms median, {times[100] * 1e3:.2f} the best tenth"
    )
    fresh: list[float] = []
    for _ in range(100):
        began = time.perf_counter()
        _, one = await a.dial(b.peer, "/bench/echo", Caller)
        assert isinstance(one, Caller)
        await one.call()
        fresh.append(time.perf_counter() - began)
        one.transport.close()
    print(f"{name + ', the same on a stream of its own':42} {statistics.median(fresh) * 1e3:6.2f} ms median")


async def blocks(scratch: str, name: str, stores: list[BlockStore], transport: str, chunk: int) -> None:
    a, b = await pair(scratch, name + transport + str(chunk), stores)
    cids: list[bytes] = []
    for _ in range(0, COUNT * MIB, chunk):
        block = os.urandom(chunk)
        stores[1].put([(cid := c.of_raw(block), block)])
        cids.append(cid)
    client = await a.client()
    await client.write(
        "/ctl", " ".join(["connect", *(f"{x}/p2p/{b.peer}" for x in only(b.addresses(), transport))]).encode()
    )
    began, busy = time.perf_counter(), cpu(a) + cpu(b)
    await a.fetch(cids, [b.peer], 120)
    took = time.perf_counter() - began
    busy = (cpu(a) + cpu(b) - busy) * 1e3 / (COUNT * MIB / 1e6)
    words = f"blocks of {chunk >> 10} KiB by {transport}, {name}"
    print(
        f"{words:42} {COUNT * MIB / 1e6 / took:6.0f} MB/s, {busy:.1f} ms of CPU a MB in both netds, receiver's memory {memory(a)} MB"
    )
    if name == "memory" and transport == "tcp" and chunk == MIB:
        small: list[float] = []
        for i in range(100):
            block = f"small {i}".encode()
            stores[1].put([(cid := c.of_raw(block), block)])
            began = time.perf_counter()
            await a.fetch([cid], [b.peer], 10)
            small.append(time.perf_counter() - began)
        print(
            f"{'one small block':42} {statistics.median(small) * 1e3:6.2f} ms median, {sorted(small)[10] * 1e3:.2f} the best tenth"
        )
    await asyncio.gather(a.close(), b.close())


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ib") as scratch:
        a, b = await pair(scratch, "s", [MemoryStore(), MemoryStore()])
        await streams(a, b)
        print(f"{'memory of a netd after that':42} {memory(a):6} MB")
        await asyncio.gather(a.close(), b.close())
        for transport, chunk in (("tcp", MIB), ("tcp", MIB // 4), ("quic", MIB)):
            await blocks(scratch, "memory", [MemoryStore(), MemoryStore()], transport, chunk)
        packs = [PackStore(Path(scratch) / f"packs{i}") for i in range(2)]
        await blocks(scratch, "on disk", list(packs), "tcp", MIB)
        for store in packs:
            store.close()


asyncio.run(main())
