"""The files of the tree: ls, cat, cp, rm, mkdir, mv, write. Whole sentences for what fails; what one path met does not stop the others."""

from __future__ import annotations

import argparse
import asyncio
import base64
import errno
import json
import os
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ipos.cli import stdin
from ipos.cli.connect import node
from ipos.cli.paths import base, exists, expand, join, of_tree
from ipos.cli.printed import safe
from ipos.tree.copy import each
from ipos.tree.file import APPEND_ONLY, DIRECTORY, Attr
from ipos.tree.ninep.client import Client, Entry, split
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

Arguments = argparse.Namespace
IN_FLIGHT = 250  # questions about files that are asked at once: each is a walk, a stat and a clunk
LOOK_S = 0.5  # between two looks of cat -f
_MISSING = (errno.ENOENT, errno.ENOTDIR)


class Several:
    """Runs a command on each of several paths: the refusal of one is told, and the others go on; with one path it is the command's own."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self.status = 0

    async def run(self, work: Callable[[str], Awaitable[None]]) -> int:
        for path in self.paths:
            try:
                await work(path)
            except Refused as error:
                if isinstance(error, Gone) or len(self.paths) == 1:
                    raise
                print(f"ipos: {safe(str(error))}", file=sys.stderr)
                self.status = 1
        return self.status


async def found(client: Client, words: Sequence[str]) -> list[str]:
    """The paths that are meant, patterns expanded."""
    return [path for one in words for path in await expand(client, of_tree(one))]


# ---- ls


async def ls(arguments: Arguments) -> int:
    async with node() as client:
        several = Several(await found(client, arguments.path))
        headed = len(several.paths) > 1 or arguments.recursive

        async def one(path: str) -> None:
            await _listed(client, path, arguments, headed)

        return await several.run(one)


async def _listed(client: Client, path: str, arguments: Arguments, headed: bool) -> None:
    waiting = [path]
    while waiting:
        path = waiting.pop()
        try:
            entries = await client.ls(path)
        except Refused as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            qid, _ = await client.stat_at(split(path))
            entries, path, headed = [Entry(base(path), qid)], os.path.dirname(path), False
        if arguments.recursive:
            waiting += [join(path, one.name) for one in reversed(entries) if one.directory and _descends(path, one)]
        shown = await details(client, path, entries) if arguments.long else [{"name": one.name} for one in entries]
        if arguments.json:
            names = shown if arguments.long else [one["name"] for one in shown]
            print(json.dumps({"path": path, "entries": names} if headed else names))
            continue
        if headed:
            print(f"{safe(path)}:")
        for line in _long(shown) if arguments.long else [safe(one.name) for one in entries]:
            print(line)
        if headed and waiting:
            print()


def _descends(path: str, entry: Entry) -> bool:
    """Not into /n from a root: behind it is every machine's whole tree, this one's too."""
    names = split(path)
    return entry.name != "n" or any(name != "n" for name in names[::2])


async def details(client: Client, path: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """name, kind, mode, size, mtime (s since 1970; None: it has none), target of a link. All are asked for at once; what goes meanwhile is left out."""
    seen: dict[int, dict[str, Any]] = {}

    async def one(numbered: tuple[int, Entry]) -> None:
        i, entry = numbered
        names = (*split(path), entry.name)
        try:
            attr = await client.stat(join(path, entry.name))
            target = (await client.at(names, "Treadlink"))[0] if stat.S_ISLNK(attr.mode) else None
        except Refused as error:
            if isinstance(error, Gone):
                raise
            if error.errno not in _MISSING:
                seen[i] = {"name": entry.name, "kind": "unknown", "mode": None, "size": None, "mtime": None}
                seen[i]["trouble"] = str(error)
            return
        seen[i] = _described(entry.name, attr, target)

    await each(enumerate(entries), one, min(IN_FLIGHT, max(1, len(entries))))
    return [seen[i] for i in sorted(seen)]


def _described(name: str, attr: Attr, target: str | None) -> dict[str, Any]:
    kind = "directory" if attr.directory else "link" if stat.S_ISLNK(attr.mode) else "file"
    mtime = attr.mtime_ns / 1e9 if attr.mtime_ns else None
    row = {"name": name, "kind": kind, "mode": stat.filemode(attr.mode), "size": attr.size, "mtime": mtime}
    return row | ({"target": target} if target is not None else {})


def _long(rows: Sequence[dict[str, Any]]) -> list[str]:
    width = max((len(str(row["size"])) for row in rows if row["size"] is not None), default=1)
    out = list[str]()
    for row in rows:
        when = "-" if row["mtime"] is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(row["mtime"]))
        size = "?" if row["size"] is None else row["size"]
        link = f" -> {safe(row['target'])}" if row.get("target") is not None else ""
        link += f" ({safe(row['trouble'])})" if "trouble" in row else ""
        out.append(f"{row['mode'] or '?---------'} {size:>{width}} {when:<16} {safe(row['name'])}{link}")
    return out


# ---- cat


async def cat(arguments: Arguments) -> int:
    if arguments.offset < 0 or (arguments.length is not None and arguments.length < 0):
        raise Refused("--offset and --length count bytes from the beginning: they cannot be negative")
    if arguments.follow and (arguments.length is not None or arguments.json or len(arguments.path) > 1):
        raise Refused("-f follows one file to no end: it goes with neither --length, --json nor a second path")
    async with node() as client:
        several = Several(await found(client, arguments.path))

        async def one(path: str) -> None:
            if arguments.json:
                await _told(client, path, arguments)
            elif arguments.follow:
                await _follow(client, path, arguments.offset)
            else:
                await pour(client, path, arguments.offset, arguments.length)

        return await several.run(one)


async def pour(client: Client, path: str, offset: int, left: int | None = None) -> int:
    """To standard output, as it comes. Where it ended."""
    file, qid = await client.opened(split(path), os.O_RDONLY)
    try:
        if qid.type & DIRECTORY:
            raise Refused(f"{path} is a directory: ipos ls lists it", errno.EISDIR)
        file.offset = offset
        while left is None or left > 0:
            piece = await file.read(limits.MiB if left is None else min(left, limits.MiB))
            if not piece:
                break
            left = None if left is None else left - len(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return file.offset
    finally:
        file.stop()
        client.clunk(file.fid)


async def _follow(client: Client, path: str, at: int) -> None:
    """What is there and what is added, like tail -F: a file that is replaced or became shorter is begun anew. Events end by themselves."""
    was, _ = await client.stat_at(split(path))
    while True:
        at = await pour(client, path, at)
        if was.type & APPEND_ONLY:
            return
        await asyncio.sleep(LOOK_S)
        qid, attr = await client.stat_at(split(path))
        if qid.path != was.path or (attr.size and attr.size < at):
            at, was = 0, qid


async def _told(client: Client, path: str, arguments: Arguments) -> None:
    body = await client.read(path)
    end = None if arguments.length is None else arguments.offset + arguments.length
    body = body[arguments.offset : end]
    try:
        answer = {"path": path, "bytes": len(body), "text": body.decode()}
    except UnicodeDecodeError:
        answer = {"path": path, "bytes": len(body), "base64": base64.b64encode(body).decode()}
    print(json.dumps(answer))


# ---- write


async def write(arguments: Arguments) -> int:
    """One message where it fits one, for a control file takes each write as one question."""
    path = of_tree(arguments.path)
    body = (" ".join(arguments.text) + "\n").encode() if arguments.text else await stdin.read()
    async with node() as client:
        if arguments.answer:
            async with client.open(path, os.O_RDWR) as file:
                await file.write(body)
                file.offset = 0
                while piece := await file.read():
                    sys.stdout.buffer.write(piece)
                    sys.stdout.buffer.flush()
            return 0
        try:
            await client.write(path, body, os.O_WRONLY | (os.O_APPEND if arguments.append else os.O_TRUNC))
        except Refused as error:
            if error.errno != errno.ENOENT:
                raise
            await client.create(path, body)
    if arguments.json:
        print(json.dumps({"path": path, "bytes": len(body)}))
    return 0


# ---- rm, mkdir, mv


async def rm(arguments: Arguments) -> int:
    removed = 0
    async with node() as client:
        several = Several(await found(client, arguments.path))

        async def one(path: str) -> None:
            nonlocal removed
            try:
                attr = await client.stat(path)
            except Refused as error:
                if arguments.force and error.errno in _MISSING:
                    return
                raise
            if not attr.directory:
                await client.remove(path)
                removed += 1
            elif not arguments.recursive:
                raise Refused(f"{path} is a directory: -r removes it with all that is in it", errno.EISDIR)
            else:
                await _may_go(client, path)
                removed += await clear(client, path)

        status = await several.run(one)
    if arguments.json:
        print(json.dumps({"removed": removed}))
    return status


async def _may_go(client: Client, path: str) -> None:
    """Before anything in it is removed: whether the directory itself could be."""
    above = os.path.dirname(path.rstrip("/")) or "/"
    if not split(path) or not (await client.stat(above)).mode & 0o222:
        raise Refused(f"{path}: nothing can be removed from {above}, so nothing in it was", errno.EROFS)


async def clear(client: Client, path: str) -> int:
    """Remove a directory and what is in it, no link followed. How many files and directories there were."""
    directories, count = [path], 0
    for directory in directories:
        entries = await client.ls(directory)
        directories += [join(directory, one.name) for one in entries if one.directory]
        files = [join(directory, one.name) for one in entries if not one.directory]
        await each(files, client.remove, IN_FLIGHT)
        count += len(files)
    for directory in reversed(directories):
        await client.remove(directory, directory=True)
    return count + len(directories)


async def mkdir(arguments: Arguments) -> int:
    async with node() as client:
        several = Several([of_tree(words) for words in arguments.path])

        async def one(path: str) -> None:
            names = split(path)
            for depth in range(1 if arguments.parents else len(names), len(names) + 1):
                await _made("/" + "/".join(names[:depth]))
            if arguments.json:
                print(json.dumps({"path": path}))

        async def _made(path: str) -> None:
            try:
                await client.mkdir(path)
            except Refused as error:
                if not arguments.parents or isinstance(error, Gone):
                    raise
                try:
                    there = await client.stat(path)
                except Refused:
                    raise error from None
                if not there.directory:
                    raise Refused(f"{path} is there, and no directory", errno.ENOTDIR) from None

        return await several.run(one)


async def mv(arguments: Arguments) -> int:
    from ipos.cli.copy import across

    async with node() as client:
        sources, target = await found(client, arguments.path), of_tree(arguments.target)
        into = await _is_directory(client, target)
        if len(sources) > 1 and not into:
            raise Refused(f"{target} is no directory: {len(sources)} files cannot all be called so", errno.ENOTDIR)

        async def one(path: str) -> None:
            goal = join(target, base(path)) if into else target
            if arguments.no_clobber and await exists(client, goal):
                raise Refused(f"{goal} is there already, and -n replaces nothing", errno.EEXIST)
            try:
                await client.rename(path, goal)
            except Refused as error:
                if error.errno != errno.EXDEV:
                    raise
                await across(client, path, goal)
            if arguments.json:
                print(json.dumps({"path": path, "to": goal}))

        return await Several(sources).run(one)


async def _is_directory(client: Client, path: str) -> bool:
    try:
        return (await client.stat(path)).directory
    except Refused as error:
        if error.errno not in _MISSING:
            raise
        return False


async def cp(arguments: Arguments) -> int:
    from ipos.cli.copy import cp

    return await cp(arguments)


COMMANDS: dict[str, Callable[[Arguments], Awaitable[int]]] = {
    "ls": ls, "cat": cat, "cp": cp, "rm": rm, "mkdir": mkdir, "mv": mv, "write": write,
}  # fmt: skip
