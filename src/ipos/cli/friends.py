"""ipos friends and ipos trust: other accounts, what they may do on this machine, and how far their results are believed."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

from ipos.cli.connect import node
from ipos.cli.plain import rows, show
from ipos.cli.stdin import ask
from ipos.tree.ninep.client import Client
from ipos.wire.errors import Refused

Arguments = argparse.Namespace


async def _known(client: Client) -> list[dict[str, Any]]:
    return await rows(client, "/friends/list")


async def _one(client: Client, word: str) -> dict[str, Any]:
    for row in await _known(client):
        if word in (row["name"], row["account"]):
            return row
    raise Refused(f"no friend is called {word!r} (any more)")


async def listed(arguments: Arguments) -> int:
    async with node() as client:
        found = await _known(client)
    for row in found:
        show(arguments, row, f"{row['name']:<16} account {row['account']}, their results are believed: {row['trust']}")
        if arguments.json:
            continue
        for given in row["grants"]:
            until = f" for {given['left_s']} s" if given["left_s"] is not None else ""
            print(f"  may run {given['run']} here, {given['cores']} at once{until} (grant {given['id']})")
        for machine in row["machines"]:
            words = "in reach" if machine["connected"] else machine["why_not"] or "not seen yet"
            print(f"  {row['name']}:{machine['name']}: {words}")
    if not found and not arguments.json:
        print("no friends yet: ipos invite --as friend lets another account be one")
    return 0


async def name(arguments: Arguments) -> int:
    async with node() as client:
        await client.write("/friends/ctl", f"name {_word(arguments.old)} {_word(arguments.new)}".encode())
        row = await _one(client, arguments.new)
    show(arguments, row, f"{arguments.old} is called {arguments.new}")
    return 0


async def remove(arguments: Arguments) -> int:
    async with node() as client:
        row = await _one(client, arguments.name)
        question = f"Remove friend {row['name']}? What you granted ends, here; what runs by it ends now."
        if not (arguments.yes or await ask(question)):
            raise Refused("nothing was changed")
        await client.write("/friends/ctl", f"remove {_word(arguments.name)}".encode())
    show(arguments, {"removed": row["name"], "account": row["account"]}, f"{row['name']} is a friend no more")
    return 0


async def grant(arguments: Arguments) -> int:
    async with node() as client:
        row = await _one(client, arguments.name)
        before = {given["id"] for given in row["grants"]}
        question = f"{row['name']}'s programs run on this machine, {arguments.cores} at once, in the engine's sandbox. Grant it?"
        if not (arguments.yes or await ask(question)):
            raise Refused("nothing was changed")
        until = f" for {arguments.time}" if arguments.time else ""
        line = f"run wasm {_word(arguments.name)} cores {arguments.cores}{until}"
        await client.write("/grants/ctl", line.encode())
        made = next(given for given in (await _one(client, arguments.name))["grants"] if given["id"] not in before)
    show(arguments, made, f"granted to {row['name']} ({made['id']}): ipos friends revoke {made['id']} takes it back")
    return 0


async def revoke(arguments: Arguments) -> int:
    """By its id, or all that a friend has."""
    async with node() as client:
        ids = [
            given["id"] for row in await _known(client) for given in row["grants"]
            if arguments.what in (given["id"], row["name"], row["account"])
        ]  # fmt: skip
        if not ids:
            raise Refused(
                f"there is no grant {arguments.what!r}, and none to a friend of this name: ipos friends shows them"
            )
        for id in ids:
            await client.write("/grants/ctl", f"revoke {id}".encode())
    show(arguments, {"revoked": ids}, f"revoked: {', '.join(ids)}")
    return 0


async def trust(arguments: Arguments) -> int:
    async with node() as client:
        if arguments.name is not None and arguments.level is not None:
            await client.write("/trust", f"{_word(arguments.name)} {_word(arguments.level)}".encode())
        found = await _known(client) if arguments.name is None else [await _one(client, arguments.name)]
    for row in found:
        value = {"name": row["name"], "account": row["account"], "trust": row["trust"]}
        show(arguments, value, f"{row['name']}: {WORDS[row['trust']]}")
    return 0


WORDS = {
    "none": "none: no task of yours is dealt to their machines",
    "receipt": "receipt: their results count for the job that asked, with a signed receipt that holds",
    "full": "full: their results count as those of your own machines",
}


def _word(text: str) -> str:
    """One word of a control line."""
    if not text or text.split() != [text]:
        raise Refused(f"{text!r} cannot be a name")
    return text


ACTIONS: dict[str, Callable[[Arguments], Awaitable[int]]] = {
    "list": listed, "name": name, "remove": remove, "grant": grant, "revoke": revoke,
}  # fmt: skip
