"""The namespace of this home: what `ipos ls` and every later attach of its owner begins with. Each command is an attach of its own, so what a
command changes is kept in `$IPOS_HOME/ns`; a program that wants one for itself writes to the `/ns` of its own attach."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from ipos.cli.connect import node
from ipos.cli.stdin import read
from ipos.node.home import BARE
from ipos.tree.namespace import Bind, Clear, Order, Unmount, parse, path_of, written
from ipos.tree.ninep.client import Client
from ipos.wire.errors import Refused

FILE = "/lib/namespace"


async def ns(arguments: argparse.Namespace) -> int:
    """Print it, or change it."""
    text = await _commands(arguments)
    async with node(make=text is not None, aname=BARE) as client:  # nobody hides his namespace from himself
        if text is not None:
            await _change(client, text)
        if text is None or arguments.json:
            said = (await client.read(FILE)).decode()
            sys.stdout.write(json.dumps({"namespace": said.splitlines()}) + "\n" if arguments.json else said)
    return 0


async def _commands(arguments: argparse.Namespace) -> str | None:
    """What is to be written; None: nothing, it is printed."""
    match arguments.action:
        case "bind" | "mount" as word:
            if arguments.before and arguments.after:
                raise Refused("-a and -b: a directory is put either before or after the others")
            order = Order.BEFORE if arguments.before else Order.AFTER if arguments.after else Order.REPLACE
            return written(Bind(path_of(arguments.new), path_of(arguments.old), order, arguments.create, word))
        case "unmount":
            *new, old = map(path_of, arguments.path)
            if len(new) > 1:
                raise Refused(f"{len(arguments.path)} paths: it is unmount [NEW] OLD")
            return written(Unmount(new[0] if new else None, old))
        case "clear":
            return written(Clear())
        case "load":
            return f"clear\n{await text_of(arguments.file)}"
        case _:
            return None


async def text_of(file: str) -> str:
    """A namespace from a file of this host, `-` is the standard input; its lines are looked at here, so that they have their numbers."""
    try:
        body = await read() if file == "-" else await asyncio.to_thread(Path(file).read_bytes)
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Refused(f"{file}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise Refused(f"{file} cannot be read: {os.strerror(error.errno or 0)}") from None
    try:
        parse(text)
    except Refused as refused:
        raise Refused(f"{file}, {refused}") from None
    return text


async def _change(client: Client, text: str) -> None:
    async with client.open(FILE, os.O_WRONLY) as file:
        try:
            taken = await file.write_at(0, text.encode())
        except Refused as refused:
            raise Refused(str(refused).removeprefix("line 1: ") if "\n" not in text else str(refused)) from None
    if taken != len(text.encode()):
        raise Refused(f"a namespace of {len(text.encode())} bytes is too long")
