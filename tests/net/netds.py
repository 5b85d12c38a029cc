"""Real network processes for tests: started on loopback, ended with the test, whatever happens in it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from natlab import inside

from ipos.net.blocks import May
from ipos.net.engine import PeerSeen
from ipos.net.netd import Netd
from ipos.net.process import binary
from ipos.store.blocks import BlockStore, MemoryStore

TCP = "/ip4/127.0.0.1/tcp/0"
QUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
ECHO = "/ipos/test/echo/1"


def netd(
    home: Path,
    *,
    listen: Sequence[str] = (TCP,),
    store: BlockStore | None = None,
    may: May = lambda _, __: True,
    mdns: bool = False,
    bootstrap: Sequence[str] = (),
    relay: str = "",
    place: int | None = None,
) -> Netd:
    """`place`: of `natlab`, where its process runs."""
    home.mkdir(exist_ok=True)
    program = None
    if place is not None:
        program = home / "netd"
        program.write_text(f'#!/bin/sh\nexec {" ".join(inside(place))} {binary()} "$@"\n')
        program.chmod(0o700)
    return Netd(
        key=home / "key", run_dir=home, listen=listen, mdns=mdns, store=store or MemoryStore(), may=may,
        bootstrap=bootstrap, relay=lambda: relay, program=program,
    )  # fmt: skip


@asynccontextmanager
async def short_directory() -> AsyncIterator[Path]:
    """Sockets have short paths; pytest's directories have not."""
    path = Path(tempfile.mkdtemp(prefix="ipos-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def netds(*options: dict[str, object]) -> AsyncIterator[list[Netd]]:
    """One running netd for each set of options of `netd`."""
    async with short_directory() as home:
        nets = [netd(home / str(i), **each) for i, each in enumerate(options)]  # type: ignore[arg-type]
        try:
            await asyncio.gather(*(net.start() for net in nets))
            yield nets
        finally:
            await asyncio.gather(*(net.close() for net in nets))


Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def serve(net: Netd, served: Served, protocol: str = ECHO) -> list[str]:
    """Serve a protocol with stream pairs; the list grows by each peer that came."""
    came: list[str] = []

    def accept(peer: str) -> asyncio.BaseProtocol:
        came.append(peer)
        reader = asyncio.StreamReader(1 << 20)
        return asyncio.StreamReaderProtocol(reader, served)

    net.listen(protocol, accept)
    return came


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()
    writer.close()


async def stream(net: Netd, to: Netd, protocol: str = ECHO) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Dial, as soon as the other end has announced the protocol."""
    await announced(to, protocol)
    reader = asyncio.StreamReader(1 << 20)
    transport, proto = await net.dial(to.peer, protocol, lambda: asyncio.StreamReaderProtocol(reader), to.addresses())
    assert isinstance(proto, asyncio.StreamReaderProtocol)
    return reader, asyncio.StreamWriter(transport, proto, reader, asyncio.get_running_loop())


async def announced(net: Netd, protocol: str = ECHO) -> None:
    """`listen` returns before netd knows of it; here the test waits for netd."""
    async with asyncio.timeout(10):
        while True:
            client = await net.client()
            for entry in await client.ls("/"):
                if entry.name.isdigit():
                    status = (await client.read(f"/{entry.name}/status")).decode()
                    if "Announced" in status and protocol in status:
                        return


async def seen(events: AsyncIterator[PeerSeen], kind: str, peer: str, within_s: float = 10) -> PeerSeen:
    """The next event of this kind about this peer."""
    async with asyncio.timeout(within_s):
        async for event in events:
            if (event.kind, event.peer) == (kind, peer):
                return event
    raise AssertionError("the events ended")


async def until(true: Callable[[], bool], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)
