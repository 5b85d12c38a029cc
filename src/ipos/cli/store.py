"""Content: ipos add, get, cat with ranges, and the commands of the store. All of them read and write files of the tree."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ipos.cli.connect import node
from ipos.cli.paths import tree_path
from ipos.cli.plain import pairs, rows, show
from ipos.cli.printed import safe
from ipos.cli.progress import Progress
from ipos.tree.ninep.client import Client
from ipos.wire import limits
from ipos.wire.errors import Refused

Arguments = argparse.Namespace
AT_ONCE = 16  # files that are read at the same time
SHOWN = 3  # reasons of one root
LEVELS = ("private", "pool", "public")


async def ask(client: Client, path: str, question: Mapping[str, object]) -> AsyncIterator[dict[str, Any]]:
    """The lines that a work file answers with."""
    async with client.open(path, os.O_RDWR) as file:
        await file.write(json.dumps(question).encode())
        async for line in file.lines():
            yield json.loads(line)


async def add(arguments: Arguments) -> int:
    paths = [os.path.abspath(path) for path in arguments.path]
    question = {
        "paths": paths, "profile": arguments.profile, "nocopy": arguments.nocopy, "visibility": arguments.visibility,
    }  # fmt: skip
    progress = Progress()
    left_out = 0
    added: list[dict[str, Any]] = []
    async with node(make=True) as client:
        try:
            async for line in ask(client, "/store/add", question):
                if "cid" in line:
                    added.append(line)
                elif "left_out" in line:
                    left_out += 1
                    progress.close()
                    print(f"left out, for it is no file or directory: {line['left_out']}", file=sys.stderr)
                else:
                    progress.show(line["bytes"])
        finally:
            progress.close()
    for line, name in zip(added, arguments.path, strict=True):
        show(arguments, {**line, "path": name, "visibility": arguments.visibility}, f"{line['cid']} {name}")
    return 0


async def get(arguments: Arguments) -> int:
    """Into a directory of its own beside the goal first: there is all of it, or nothing."""
    source = tree_path(arguments.path)
    target = Path(arguments.output or source.rstrip("/").rpartition("/")[2])
    if os.path.lexists(target):
        raise Refused(f"{target} is there already: -o names another place")
    if not target.absolute().parent.is_dir():
        raise Refused(f"{target}: there is no such directory to put it in")
    progress = Progress()
    count = 0

    def more(size: int) -> None:
        nonlocal count
        count += size
        progress.show(count)

    try:
        async with node() as client:
            scratch = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=".ipos-"))
            try:
                await _fetch(client, source, scratch / "it", asyncio.Semaphore(AT_ONCE), more)
                os.rename(scratch / "it", target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{target} cannot be written: {os.strerror(error.errno or 0)}") from None
    finally:
        progress.close()
    show(arguments, {"path": str(target), "bytes": count}, str(target))
    return 0


async def _fetch(client: Client, path: str, target: Path, free: asyncio.Semaphore, more: Callable[[int], None]) -> None:
    async with free:
        attr = await client.stat(path)
        if stat.S_ISLNK(attr.mode):
            os.symlink(os.fsdecode(await client.read(path)), target)
            return
        if not attr.directory:
            with open(target, "xb") as out:  # noqa: ASYNC230  (a command has nothing else to do)
                async with client.open(path) as file:
                    while piece := await file.read():
                        out.write(piece)
                        more(len(piece))
                out.flush()
                os.fsync(out.fileno())
            return
        target.mkdir()
        names = [entry.name for entry in await client.ls(path)]
        for name in names:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise Refused(f"{path} has an entry {name!r}, which cannot be the name of a file")
    at_once = 4 * AT_ONCE
    for first in range(0, len(names), at_once):  # a directory of a million files is not a million tasks
        some = names[first : first + at_once]
        await asyncio.gather(*(_fetch(client, f"{path}/{name}", target / name, free, more) for name in some))


# ---- ipos store ...


def size(count: object) -> str:
    """Bytes as people read them; ? for what is not known."""
    if not isinstance(count, int):
        return "?"
    power = 0 if count < 1024 else 1 if count < limits.MiB else 2 if count < limits.GiB else 3
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


async def pins(arguments: Arguments) -> int:
    async with node() as client:
        listed = await rows(client, "/store/pins")
    if arguments.json:
        for row in listed:
            print(json.dumps(row))
        return 0
    for rows_ in _by_root(listed):
        first = rows_[0]
        reasons = list(dict.fromkeys(str(row["why"]) for row in rows_))
        more = f" and {len(reasons) - SHOWN} more reasons (--json)" if len(reasons) > SHOWN else ""
        seen = max((str(row["visibility"]) for row in rows_), key=LEVELS.index)
        print(safe(f"{first['cid']} {seen} {size(first['bytes'])} {'; '.join(reasons[:SHOWN])}{more}"))
    return 0


def _by_root(pins: Iterable[dict[str, object]]) -> Iterable[list[dict[str, object]]]:
    found: dict[object, list[dict[str, object]]] = {}
    for row in pins:
        found.setdefault(row["cid"], []).append(row)
    return found.values()


async def pin(arguments: Arguments) -> int:
    async with node() as client:
        await client.write("/store/ctl", f"pin {arguments.cid} {arguments.visibility} {arguments.why}".encode())
    pinned = {"cid": arguments.cid, "visibility": arguments.visibility, "why": arguments.why}
    show(arguments, pinned, f"{arguments.cid} is kept ({arguments.visibility})")
    return 0


async def unpin(arguments: Arguments) -> int:
    why = arguments.why
    if (arguments.cid is None) == (why is None):
        raise Refused("say a CID, or --why with the reason that ipos store pins shows")
    async with node() as client:
        await client.write(
            "/store/ctl", f"unpin {arguments.cid}".encode() if why is None else f"unpin why {why}".encode()
        )
    show(arguments, {"unpinned": arguments.cid or why}, "unpinned: ipos store gc gives its disk back")
    return 0


async def gc(arguments: Arguments) -> int:
    async with node() as client:
        done: dict[str, Any] = {}
        async for line in ask(client, "/store/gc", {}):
            if "trouble" in line:
                print(line["trouble"], file=sys.stderr)
            else:
                done = line
    show(arguments, done, f"{done['blocks']} blocks, {size(done['bytes'])} that no pin kept are gone")
    return 0


async def du(arguments: Arguments) -> int:
    async with node() as client:
        figures = await pairs(client, "/store/status")
    limit = figures["limit_bytes"]
    words = (
        f"{figures['blocks']} blocks, {size(figures['bytes'])}, in {figures['packs']} packs; "
        f"{size(figures['disk_bytes'])} of disk ({size(figures['index_bytes'])} are the index); "
        f"{figures['pins']} pins; " + (f"the most is {size(limit)}" if limit else "no limit but the disk's")
    )
    show(arguments, figures, words)
    return 0


async def import_(arguments: Arguments) -> int:
    question = {"path": os.path.abspath(arguments.path), "visibility": arguments.visibility}
    async with node(make=True) as client:
        took = [line async for line in ask(client, "/store/import", question)][-1]
    show(arguments, took, "\n".join([*took["roots"], f"{took['blocks']} blocks, {size(took['bytes'])}"]))
    return 0


async def export(arguments: Arguments) -> int:
    question = {"path": os.path.abspath(arguments.output), "cids": arguments.cid}
    async with node() as client:
        made = [line async for line in ask(client, "/store/export", question)][-1]
    show(arguments, {**made, "path": arguments.output}, f"{arguments.output}: {size(made['bytes'])}")
    return 0


STORE: dict[str, Callable[[Arguments], Awaitable[int]]] = {
    "pins": pins, "pin": pin, "unpin": unpin, "gc": gc, "du": du, "import": import_, "export": export,
}  # fmt: skip


async def store(arguments: Arguments) -> int:
    return await STORE[arguments.what](arguments)


COMMANDS: dict[str, Callable[[Arguments], Awaitable[int]]] = {"add": add, "get": get, "store": store}
