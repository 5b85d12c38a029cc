"""ipos machines: the machines of the account, as files of the node's /pool say."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

from ipos.cli.connect import node
from ipos.cli.plain import pairs, rows, show
from ipos.cli.stdin import ask
from ipos.wire.errors import Refused

Arguments = argparse.Namespace


async def listed(arguments: Arguments) -> int:
    async with node() as client:
        members, status = await rows(client, "/pool/members"), await pairs(client, "/status")
    for row in members:
        if row["here"]:
            words = str(status["removed"] or "this machine")
        elif row["connected"]:
            words = "in reach"
        else:
            ago = row["last_seen_s"]
            words = f"{f'last seen {ago} s ago' if ago is not None else 'not seen yet'}: {row['why_not']}"
        kept = {
            key: row[key]
            for key in ("name", "peer", "here", "connected", "last_seen_s", "why_not", "machine", "engine")
        }
        value = {**kept, "account": status["account"], "list_version": status["list_version"], "removed": None}
        if row["here"]:
            value["removed"] = status["removed"]
        show(arguments, value, f"{row['name']:<16} {words}")
    if not arguments.json:
        print(f"list version {status['list_version']} of account {status['account']}")
    return 0


async def name(arguments: Arguments) -> int:
    async with node() as client:
        await client.write("/pool/ctl", f"name {_word(arguments.old)} {_word(arguments.new)}".encode())
        version = (await pairs(client, "/status"))["list_version"]
    show(
        arguments,
        {"name": arguments.new, "was": arguments.old, "list_version": version},
        f"{arguments.old} is called {arguments.new} (list version {version})",
    )
    return 0


async def remove(arguments: Arguments) -> int:
    async with node() as client:
        here = next(row for row in await rows(client, "/pool/members") if row["here"])
        itself = arguments.name in (here["name"], here["peer"])
        words = "this machine" if itself else arguments.name
        question = f"Remove {words} from the account? No other machine of yours will let it in, nor it them."
        if not (arguments.yes or await ask(question)):
            raise Refused("nothing was changed")
        await client.write("/pool/ctl", f"remove {_word(arguments.name)}".encode())
        version = (await pairs(client, "/status"))["list_version"]
    show(
        arguments,
        {"removed": arguments.name, "list_version": version},
        f"{arguments.name} is removed (list version {version}); machines that are off hear of it when they are seen next",
    )
    return 0


def _word(text: str) -> str:
    """One word of a control line."""
    if not text or text.split() != [text]:
        raise Refused(f"{text!r} cannot be the name of a machine")
    return text


ACTIONS: dict[str, Callable[[Arguments], Awaitable[int]]] = {"list": listed, "name": name, "remove": remove}
