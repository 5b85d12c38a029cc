"""Two machines behind NATs, and a third one with a public address that relays for them: docs/protocols/netd.md has the table of pairs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from natlab import Lab
from netds import echo, netd, serve, short_directory

from ipos.net.netd import Netd

pytestmark = pytest.mark.real

ANY = ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1")
TRY = "/ipos/test/echo/1"

# (one end, the other end, whether they can do without the relay)
PAIRS = [
    ("open", "cone", True),
    ("firewall", "cone", True),
    ("full cone", "symmetric", True),
    ("address-restricted", "symmetric", True),
    ("cone", "cone", True),
    ("double", "cone", True),
    ("tcp only", "tcp only", True),
    ("same router", "same router", True),
    ("cone", "symmetric", False),
    ("symmetric", "symmetric", False),
]
QUICK = [("cone", "cone", True), ("symmetric", "symmetric", False)]


async def reached(net: Netd, peer: str, within_s: float) -> float:
    """When the way was direct, in seconds from now; asserts that it was in time."""
    began = time.monotonic()
    while (way := await net.way(peer)).kind != "direct":
        assert time.monotonic() - began < within_s, way
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def placed(net: Netd, relay: Netd) -> None:
    """Wait until it has a place at the relay."""
    async with asyncio.timeout(10):
        while not any("p2p-circuit" in address for address in net.addresses()):
            await asyncio.sleep(0.02)


async def meet(home: Path, lab: Lab, one: str, other: str, direct: bool) -> str:
    """Each comes up knowing the relay alone; one dials the other by its id. What came of it, in words."""
    vps = netd(home / "r", listen=ANY, relay="on limit 50M for pool", place=lab.machine("open"))
    await vps.start()
    nets = [vps]
    try:
        public = [f"{address}/p2p/{vps.peer}" for address in vps.addresses() if "/44." in address]
        if one == "same router":
            router = lab.router("cone")
            places = [lab.behind(router), lab.behind(router)]
        else:
            places = [lab.machine(one), lab.machine(other)]
        ends = [
            netd(home / name, listen=ANY, bootstrap=public, place=place)
            for name, place in zip("ab", places, strict=True)
        ]
        nets += ends
        began = time.monotonic()
        await asyncio.gather(*(end.start() for end in ends))
        a, b = ends
        for net in nets:
            net.pool(each.peer for each in nets)
        serve(b, echo, TRY)
        await placed(b, vps)
        ready = time.monotonic() - began
        began = time.monotonic()
        reader = asyncio.StreamReader()
        known = b.addresses() if one == "same router" else ()  # as machines of a pool tell each other
        transport, _ = await a.dial(b.peer, TRY, lambda: asyncio.StreamReaderProtocol(reader), known)
        transport.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        took = time.monotonic() - began
        assert took < 3, f"{one} to {other}: the first bytes took {took:.1f} s"
        transport.close()
        if direct:
            after = took + await reached(a, b.peer, 5 - took)
            words = f"direct after {after:.2f} s"
        else:
            await asyncio.sleep(0.5)
            way = await a.way(b.peer)
            assert (way.kind, way.via) == ("relay", vps.peer), way
            assert way.why
            words = f"relayed: {way.why[:60]}"
        return f"{one} to {other}: place at the relay after {ready:.2f} s, first bytes after {took:.2f} s, {words}"
    finally:
        await asyncio.gather(*(net.close() for net in nets))


def run(one: str, other: str, direct: bool) -> None:
    async def main() -> None:
        async with short_directory() as home:
            with Lab() as lab:
                print(await meet(home, lab, one, other, direct))

    asyncio.run(main())


@pytest.mark.parametrize(("one", "other", "direct"), QUICK)
def test_two_machines_behind_nats_reach_each_other(one: str, other: str, direct: bool) -> None:
    run(one, other, direct)


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other", "direct"), PAIRS)
def test_every_pair_of_nats_is_connected(one: str, other: str, direct: bool) -> None:
    run(one, other, direct)
