"""The commands about images: `ipos image build`, `ls`, `rm`. Each is a client of /image."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable

from ipos.cli.connect import node
from ipos.cli.plain import rows, show

Arguments = argparse.Namespace


async def build(arguments: Arguments) -> int:
    """The CID of the image, made unless it is here."""
    names = " ".join(arguments.modules).replace(",", " ")
    async with node(make=True) as client:
        here = [sorted(one["modules"]) for one in await rows(client, "/image/list") if one["current"]]  # pyright: ignore[reportArgumentType]
        if sorted(set(names.split())) not in here:
            print("building the Python image, once; CPython may have to be fetched and compiled", file=sys.stderr)
        async with client.open("/image/build", os.O_RDWR) as file:
            await file.write_at(0, names.encode() or b" ")
            made = json.loads(await file.read_at(0, 1 << 16))
    show(arguments, made, made["image"])
    return 0


async def ls(arguments: Arguments) -> int:
    async with node() as client:
        listed = await rows(client, "/image/list")
    for one in listed:
        modules = one["modules"]
        kind = (
            ""
            if one["current"]
            else f" (of engine {one['engine']}: ipos image build makes it anew, ipos image rm removes it)"
        )
        besides = " + " + ", ".join(modules) if isinstance(modules, list) and modules else ""
        show(
            arguments,
            one,
            f"{one['image']}  Python {one['python']}{besides}  {int(str(one['bytes'])) / 1e6:.1f} MB{kind}",
        )
    return 0


async def rm(arguments: Arguments) -> int:
    async with node() as client:
        await client.write("/image/ctl", f"rm {arguments.image}".encode())
    show(arguments, {"removed": arguments.image}, f"removed {arguments.image}")
    return 0


COMMANDS: dict[str, Callable[[Arguments], Awaitable[int]]] = {"build": build, "ls": ls, "rm": rm}
