"""ipos net, ping, relay: how this machine and others are reached. Everything is read from /net, and written there."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable

from ipos.cli.connect import node
from ipos.cli.plain import rows, show, typed
from ipos.tree.ninep.client import Client
from ipos.wire.errors import Gone, Refused
from ipos.wire.text import parse

Arguments = argparse.Namespace
Status = dict[str, object]

UPGRADE_S = 4.0  # how long a ping that went through a relay waits for the direct way
LOOK_S = 0.02
WORDS = {
    "public": "others can dial this machine",
    "private": "behind a NAT: others reach it through a hole that both punch, or a relay",
    "unknown": "nobody has told yet whether others can dial this machine",
}


async def _status(client: Client, path: str) -> Status:
    return {key: typed(value) for key, value in parse((await client.read(path)).decode()).items()}


async def _names(client: Client) -> dict[str, str]:
    """Peer id -> name, this machine included."""
    return {str(row["peer"]): str(row["name"]) for row in await rows(client, "/pool/members")}


async def _peer(client: Client, peer: str, names: dict[str, str]) -> Status:
    status = await _status(client, f"/net/peers/{peer}/status")
    kind, _, via = str(status["path"]).partition(" ")
    return {
        "peer": peer, "name": names.get(peer), "path": kind, "via": names.get(via, via) or None, "why": status["why"],
        "transport": status["transport"], "rtt_ms": status.get("rtt_ms"), "addresses": str(status["addresses"]).split(),
        "relays": status["relays"] == "true", "score": status["score"],
    }  # fmt: skip


def _way(peer: Status) -> str:
    rtt = f" {peer['rtt_ms']} ms" if peer["rtt_ms"] is not None else ""
    return f"via relay {peer['via']}{rtt}" if peer["path"] == "relay" else f"{peer['path']}{rtt}"


def _serving(relay: Status) -> str:
    if relay["service"] == "off":
        return "for nobody (ipos relay on)"
    limit = f"{int(str(relay['limit_bytes_s'])) / 1e6:g} MB/s" if relay["limit_bytes_s"] else "without a limit"
    return (
        f"for {relay['for']}, {limit}: {relay['places']} have a place, {relay['circuits']} circuits open, "
        f"{int(str(relay['bytes'])) / 1e6:.1f} MB carried"
    )


async def net(arguments: Arguments) -> int:
    async with node(own=False) as client:
        names = await _names(client)
        status, relay = await _status(client, "/net/status"), await _status(client, "/net/relay")
        peers = [await _peer(client, entry.name, names) for entry in await client.ls("/net/peers")]
        missing = [row for row in await rows(client, "/pool/members") if not row["connected"]]
        blocked = (await client.read("/net/blocked")).decode().splitlines()
    used = {names.get(key[6:], key[6:]): value for key, value in status.items() if key.startswith("relay_")}
    seen = {
        "peer": status["peer"], "reachability": status["reachability"], "punches_holes": status["punches_holes"] == "true",
        "addresses": str(status["addresses"]).split(), "relays_used": used, "relay": relay, "peers": peers,
        "out_of_reach": [{"name": row["name"], "why": row["why_not"]} for row in missing], "blocked": blocked,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(seen))
        return 0
    print(f"reachability  {seen['reachability']}: {WORDS[str(seen['reachability'])]}")
    for address in str(status["addresses"]).split():
        print(f"address       {address}")
    print(f"relays used   {', '.join(f'{name} (a place for {left} s)' for name, left in used.items()) or 'none'}")
    print(f"relaying      {_serving(relay)}")
    for peer in peers:
        print(f"{peer['name'] or peer['peer']}  {_way(peer)}  {peer['transport']}: {peer['why']}")
    for row in missing:
        print(f"{row['name']}  out of reach: {row['why_not']}")
    for line in blocked:
        print(f"cut off  {line}")
    return 0


async def ping(arguments: Arguments) -> int:
    async with node(own=False) as client:
        names = await _names(client)
        peer = next((peer for peer, name in names.items() if name == arguments.node), arguments.node)
        if peer == arguments.node and not peer.startswith(("12D3", "Qm", "16U")):
            raise Refused(
                f"no machine of this account is called {peer!r}: there are {', '.join(sorted(names.values()))}"
            )
        known = json.loads(await client.read("/pool/addresses")).get(peer, [])
        words = " ".join(["connect", f"/p2p/{peer}", *(f"{address}/p2p/{peer}" for address in known)])
        await client.write("/net/ctl", words.encode())
        first = await _pinged(client, peer, names)
        now = first
        deadline = asyncio.get_running_loop().time() + UPGRADE_S
        while now["path"] == "relay" and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(LOOK_S)
            now = await _peer(client, peer, names)
        if now["path"] != first["path"]:
            now = await _pinged(client, peer, names)
    sentence = f"{arguments.node}: {_way(first)}"
    if now["path"] != first["path"]:
        sentence += f", now {_way(now)}"
    elif now["path"] == "relay":
        sentence += f", not direct: {now['why']}"
    show(arguments, {"node": arguments.node, "peer": peer, "first": first, "now": now}, sentence)
    return 0


async def _pinged(client: Client, peer: str, names: dict[str, str]) -> Status:
    """How it is reached, with the time of a ping there and back."""
    try:
        words = (await client.read_once(f"/net/peers/{peer}/ping")).decode()
    except Refused as refused:
        raise Gone(f"{names.get(peer, peer)} does not answer: {refused}") from None
    return {**await _peer(client, peer, names), "rtt_ms": float(words.split()[0])}


async def relay(arguments: Arguments) -> int:
    """`on` and `off` are remembered in ipos.toml, once the network process has taken them."""
    async with node(own=False) as client:
        command = ""
        if arguments.what == "on":
            limit = ["limit", arguments.limit] if arguments.limit else []
            command = " ".join(["on", *limit, "for", arguments.for_])
        if arguments.what != "status":
            await client.write("/net/relay", (command or "off").encode())
            await client.write("/config", f'relay = "{command}"'.encode())
        now = await _status(client, "/net/relay")
    words = f"this machine relays {_serving(now)}"
    show(arguments, now, words)
    return 0


COMMANDS: dict[str, Callable[[Arguments], Awaitable[int]]] = {"net": net, "ping": ping, "relay": relay}
