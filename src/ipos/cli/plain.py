"""The commands that start, stop, join, and look."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

from ipos.cli.connect import begin, node
from ipos.cli.printed import safe
from ipos.cli.stdin import ask
from ipos.node.home import BARE, Home
from ipos.tree.ninep.client import Client, connect_unix
from ipos.wire.errors import Gone, Refused
from ipos.wire.text import parse

Arguments = argparse.Namespace


def show(arguments: Arguments, value: object, words: str) -> None:
    print(json.dumps(value) if arguments.json else safe(words, "\n\t"), flush=True)


def typed(value: str) -> object:
    """A status file's value as JSON has it."""
    if value in ("yes", "no"):
        return value == "yes"
    if value == "":
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


async def pairs(client: Client, path: str) -> dict[str, object]:
    return {key: typed(value) for key, value in parse((await client.read(path)).decode()).items()}


async def rows(client: Client, path: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (await client.read(path)).decode().splitlines()]


async def up(arguments: Arguments) -> int:
    home = Home()
    home.create()
    changes = {
        key: getattr(arguments, key) for key in ("name", "cores", "listen") if getattr(arguments, key) is not None
    }
    if changes:
        from ipos.node.settings import change  # heavier than all other commands together

        change(home.toml, changes)
    home.settings()
    with contextlib.suppress(Gone):
        (await connect_unix(home.socket)).close()
        raise Refused(f"a node is up on {home.path} already (pid {home.pid()}): ipos down ends it")
    if arguments.foreground:
        os.execv(sys.executable, [sys.executable, "-m", "ipos.node"])
    began = time.monotonic()
    await begin(home)
    async with node(own=False) as client:
        status = await pairs(client, "/status")
    status["ready_s"] = round(time.monotonic() - began, 2)
    show(arguments, status, f"up: {status['name']} (ipos invite lets another machine join)")
    return 0


async def down(arguments: Arguments) -> int:
    home = Home()
    async with node(own=False, aname=BARE) as client:
        pid = home.pid()
        await client.write("/ctl", b"down")
    deadline = time.monotonic() + 20
    while home.pid() is not None and pid is not None and os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > deadline:
            raise Refused(f"the node (pid {pid}) does not end; its log is {home.path / 'log'}")
        await asyncio.sleep(0.02)
    show(arguments, {"down": True}, "down")
    return 0


async def status(arguments: Arguments) -> int:
    async with node(own=False) as client:
        show(arguments, await pairs(client, "/status"), (await client.read("/status")).decode().rstrip())
    return 0


async def doctor(arguments: Arguments) -> int:
    """1 if something that is needed is missing."""
    async with node(make=True) as client:
        seen = await rows(client, "/doctor")
    for row in seen:
        mend = f" (to mend: {row['fix']})" if row["fix"] else ""
        show(
            arguments,
            row,
            f"{'yes' if row['ok'] else 'NO' if row['needed'] else 'no'}\t{row['what']}: {row['says']}{mend}",
        )
    return int(any(row["needed"] and not row["ok"] for row in seen))


async def invite(arguments: Arguments) -> int:
    async with node(own=False) as client:
        at_once = arguments.yes or arguments.json
        async with client.open("/pool/invites") as events, client.open("/pool/invite", os.O_RDWR) as file:
            friend = arguments.kind == "friend"
            await file.write_at(0, ("yes" if at_once else "ask").encode() + (b" friend" if friend else b""))
            made = json.loads(await file.read_at(0, 1 << 16))
            show(
                arguments,
                {"code": made["code"], "qr": made["qr"], "expires": made["expires_s"], "as": arguments.kind},
                f"say on the other machine:  ipos join {'--as friend ' if friend else ''}{made['code']}",
            )
            if at_once:
                return 0
            print(_qr(made["qr"]) + made["qr"], flush=True)
            number = int(made["code"].split("-")[0])
            async for line in events.lines():
                event = json.loads(line)
                if event.get("number") != number:
                    continue
                match event["event"]:
                    case "words":
                        print(f"a machine has the code; it must show the words '{event['words']}'", flush=True)
                    case "ask":
                        yes = False
                        try:
                            wish = "to be a friend (another account)" if friend else "to join"
                            yes = await ask(f"{event['machine']} wants {wish}. Does it show '{event['words']}'?")
                        finally:  # Ctrl-C is a no
                            await client.write("/pool/ctl", f"{'confirm' if yes else 'deny'} {number}".encode())
                    case "joined":
                        print(f"{event['machine']} {'is a friend' if friend else 'has joined'}")
                        return 0
                    case "failed":
                        raise Refused(event["reason"])
                    case _:
                        pass
    return 1


def _qr(text: str) -> str:
    import io

    import segno

    out = io.StringIO()
    segno.make(text, error="l").terminal(out, compact=True)
    return out.getvalue()


async def join(arguments: Arguments) -> int:
    async with node(own=False) as client, client.open("/pool/join", os.O_RDWR) as file:
        wanted = ["as", arguments.kind] if arguments.kind else []
        await file.write_at(0, " ".join([*wanted, *arguments.code]).encode())
        begun = json.loads(await file.read_at(0, 1 << 16))

        async def answer(word: str) -> bytes:
            await file.write_at(0, f"{word} {begun['id']}".encode())
            return await file.read_at(0, 1 << 16)

        try:
            what = "It invites another account, as a friend. " if begun["as"] == "friend" else ""
            question = f"{what}The other machine shows two words. Are they '{begun['words']}'?"
            yes = arguments.yes or await ask(question)
        except asyncio.CancelledError:  # Ctrl-C is a no
            with contextlib.suppress(Refused):
                await answer("no")
            raise
        done = json.loads(await answer("yes" if yes else "no"))
        told = f"joined: {', '.join(done['machines'])} are one computer now"
        if done["friend"]:
            told = f"{done['friend']} is a friend: ipos friends grant {done['friend']} lets them run programs here"
        show(arguments, {**done, "words": begun["words"]}, told)
    return 0


def size(count: object) -> str:
    return f"{round(int(str(count)) / (1 << 30))} GiB"


async def pool(arguments: Arguments) -> int:
    async with node(own=False) as client:
        whole, members = await pairs(client, "/pool/status"), await rows(client, "/pool/members")
    if arguments.json:
        print(json.dumps({**whole, "members": members}))
        return 0
    machines, nodes = whole["machines"], whole["nodes"]
    words = f"{machines} machine{'s' if machines != 1 else ''}, {whole['cores']} cores, {size(whole['memory_bytes'])}"
    print(words + (f" ({nodes} nodes)" if nodes != machines else ""))
    for member in members:
        state = (
            f"{member['slots']} slots, speed {member['speed']}, {member['leases']} tasks"
            if member["connected"]
            else f"last seen {member['last_seen_s']} s ago: {member['why_not']}" if member["last_seen_s"] is not None
            else str(member["why_not"])
        )  # fmt: skip
        print(f"  {member['name']}{' (here)' if member['here'] else ''}: {state}")
    return 0


async def jobs(arguments: Arguments) -> int:
    async with node() as client:
        if arguments.number is not None:
            listed = await rows(client, f"/job/{arguments.number}/tasks")
            whole = await pairs(client, f"/job/{arguments.number}/status")
            if arguments.json:
                print(json.dumps({**whole, "tasks": listed}))
            else:
                print(safe((await client.read(f"/job/{arguments.number}/status")).decode().rstrip(), "\n"))
                for row in listed:
                    print(
                        safe(f"  {row['i']} {row['name']} {row['state']} {row.get('node') or row.get('reason') or ''}")
                    )
            return 0
        numbers = sorted(int(entry.name) for entry in await client.ls("/job") if entry.name.isdigit())
        for number in numbers:
            one = await pairs(client, f"/job/{number}/status")
            ended = f"{one['done']} of {one['total']} done" + (f", {one['failed']} failed" if one["failed"] else "")
            ended += f", {one['handed_over']} handed over" if one.get("handed_over") else ""
            show(arguments, one, f"{number} {one['state']}: {os.path.basename(str(one['program']))}, {ended}")
    return 0


async def ps(arguments: Arguments) -> int:
    async with node() as client:
        listed = await rows(client, "/proc/list")
    if arguments.json:
        print(json.dumps(listed))
    else:
        for row in listed:
            far = f" {int(str(row['work'])) / 1e9:.1f} Gop" if row["work"] else ""
            far += f", saved {row['save_age_s']} s ago" if row["save_age_s"] is not None else ""
            print(safe(f"{row['pid']} {row['state']} {row['seconds']} s{far} {row['name']} {row['says']}"))
    return 0


async def why(arguments: Arguments) -> int:
    async with node() as client:
        if arguments.task is None:
            text = (await client.read(f"/job/{arguments.job}/why")).decode()
        else:
            number = arguments.task
            for row in await rows(client, f"/job/{arguments.job}/tasks"):
                if row["name"] == number:
                    number = row["i"]
            text = (await client.read(f"/job/{arguments.job}/{number}/why")).decode()
    show(arguments, {"why": text.splitlines()}, text.rstrip())
    return 0


async def cancel(arguments: Arguments) -> int:
    async with node() as client:
        await client.write(f"/job/{arguments.job}/ctl", b"cancel")
    show(arguments, {"cancelled": arguments.job}, f"job {arguments.job} is cancelled")
    return 0


COMMANDS: dict[str, Callable[[Arguments], Awaitable[int]]] = {
    "up": up, "down": down, "status": status, "doctor": doctor, "invite": invite, "join": join, "pool": pool, "jobs": jobs, "ps": ps,
    "why": why, "cancel": cancel,
}  # fmt: skip
