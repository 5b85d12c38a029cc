"""cp: between the tree and this disk, and within the tree. `ipos.tree.copy` does the copying; here is what people said, and what they are told."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import resource
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from ipos.cli import stdin
from ipos.cli.connect import node
from ipos.cli.files import clear, pour
from ipos.cli.paths import Place, base, expand, is_pattern, place
from ipos.cli.printed import safe
from ipos.cli.progress import Progress
from ipos.tree.copy import Copying
from ipos.tree.file import Attr, Caller, Directory, File, Handle
from ipos.tree.local import local
from ipos.tree.ninep.client import Client, split
from ipos.tree.remote import RemoteFile
from ipos.tree.synthetic import new_qid
from ipos.wire.errors import Gone, Refused

Arguments = argparse.Namespace
_MISSING = (errno.ENOENT, errno.ENOTDIR)


async def cp(arguments: Arguments) -> int:
    """1 if something could not be copied; the rest is."""
    sources = [None if words == "-" else place(words) for words in arguments.path]
    target = None if arguments.target == "-" else place(arguments.target)
    if not any(one is not None and one.tree for one in (*sources, target)):
        raise Refused(f"neither {arguments.path[0]} nor {arguments.target} is a path of the tree: cp(1) is for disks")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 16), hard))
    async with node() as client:
        if target is None:
            return await _to_stdout(client, sources)
        command = _Command(client, arguments)
        try:
            return await command.run(sources, target)
        except asyncio.CancelledError:
            command.progress.close()
            print(f"ipos: interrupted: {command.so_far()}, each of them whole", file=sys.stderr)
            raise
        finally:
            command.progress.close()


async def _to_stdout(client: Client, sources: Sequence[Place | None]) -> int:
    if len(sources) != 1 or sources[0] is None:
        raise Refused("- is the standard output: one file of the tree goes there (ipos cat takes several)")
    await pour(client, sources[0].path, 0)
    return 0


class _Command:
    def __init__(self, client: Client, arguments: Arguments) -> None:
        self.client = client
        self.recursive: bool = arguments.recursive
        self.json: bool = arguments.json
        self.progress = Progress()
        self.status = 0
        self._count = 0
        self.copying = Copying(self._more, self._trouble, keep=arguments.no_clobber)

    async def run(self, sources: Sequence[Place | None], target: Place) -> int:
        places: list[Place | None] = []
        for one in sources:
            tree = one is not None and one.tree and is_pattern(one.path)
            places += [Place(True, path) for path in await expand(self.client, one.path)] if tree and one else [one]
        into, name = await self._goal(target)
        if len(places) > 1 and name is not None:
            raise Refused(f"{target} is no directory: {len(places)} files cannot all be called so", errno.ENOTDIR)
        for one in places:
            try:
                await self._copy(one, into, name, target)
            except OSError as error:
                self.progress.close()
                if isinstance(error, Gone) or len(places) == 1:
                    raise
                self._trouble(None, error)
        if self.json:
            done = self.copying
            counts = {"files": done.files, "directories": done.directories, "links": done.links, "bytes": done.bytes}
            print(json.dumps({**counts, "failed": self.status}))
        return int(self.status > 0)

    async def _copy(self, source: Place | None, into: Directory, name: str | None, target: Place) -> None:
        try:
            if source is None:
                if name is None:
                    raise Refused(f"{target} is a directory: say what the standard input is called there", errno.EISDIR)
                return await self.copying.copy(_Input(), into, name)
            file = await tree_file(self.client, source.path) if source.tree else await _here(source.path)
            if source.tree and self.recursive and not _is_part(source.path):
                raise Refused(f"{source} is a machine's whole tree: say which part of it, as {source}/home")
            called = name or base(os.path.abspath(source.path))
            await self.copying.copy(file, into, called, self.recursive)
        except Gone as gone:
            raise Gone(
                f"{source or '-'}: {gone}; {self.so_far()}, each file at {target} is whole, old or new"
            ) from None
        except OSError as error:
            raise Refused(_sentence(f"{source or '-'}", error), error.errno or errno.EIO) from None
        return None

    async def _goal(self, target: Place) -> tuple[Directory, str | None]:
        """The directory to copy into; and the name there, None: that of the source."""
        if not target.tree:
            path = target.path
            if os.path.isdir(path):
                return local(Path(path)), None
            above = os.path.dirname(os.path.abspath(path))
            if path.endswith("/") or not os.path.isdir(above):
                raise Refused(f"{path if path.endswith('/') else above}: there is no such directory", errno.ENOENT)
            return local(Path(above)), base(path)
        try:
            file = await tree_file(self.client, target.path)
        except Refused as error:
            if error.errno not in _MISSING or target.path.endswith("/"):
                raise
        else:
            if stat.S_ISDIR((await file.attr()).mode):
                return file, None
        above = await tree_file(self.client, os.path.dirname(target.path.rstrip("/")))
        if not (await above.attr()).directory:
            raise Refused(f"{os.path.dirname(target.path)} is no directory", errno.ENOTDIR)
        return above, base(target.path)

    def _more(self, count: int) -> None:
        self._count += count
        self.progress.show(self._count)

    def _trouble(self, path: str | None, error: OSError) -> None:
        self.progress.close()
        words = str(error) if path is None else _sentence(path, error)
        print(f"ipos: {safe(words)}", file=sys.stderr)
        self.status += 1

    def so_far(self) -> str:
        count = self.copying.files
        return f"{count} file{'s are' if count != 1 else ' is'} copied"


def _sentence(path: str, error: OSError) -> str:
    words = str(error) if isinstance(error, Refused) else os.strerror(error.errno or errno.EIO)
    return f"{path}: {words.removeprefix(f'{path}: ').removeprefix(f'{os.path.basename(path)}: ')}"


def _is_part(path: str) -> bool:
    """Not a root, nor /n: behind those are event files without an end, and /n of every machine."""
    names = split(path)
    while names[:1] == ("n",):
        names = names[2:]
    return bool(names)


async def tree_file(client: Client, path: str) -> RemoteFile:
    async def connection() -> Client:
        return client

    qid, _ = await client.stat_at(split(path))
    return RemoteFile(connection, split(path), qid)


async def _here(path: str) -> File:
    """A file of this disk. A link that was named is followed; those inside a directory are not."""
    real = os.path.realpath(path)
    if not os.path.lexists(real):
        raise Refused(f"{path}: there is no such file", errno.ENOENT)
    if os.path.isdir(real):
        return local(Path(real))
    return await local(Path(real).parent).walk(os.path.basename(real))


async def across(client: Client, path: str, goal: str) -> None:
    """A move between two file systems: copied, then removed. A copy that is not whole removes nothing."""
    troubles = list[str]()
    copying = Copying(lambda _: None, lambda where, error: troubles.append(_sentence(where, error)))
    into = await tree_file(client, os.path.dirname(goal))
    await copying.copy(await tree_file(client, path), into, base(goal), recursive=True)
    if troubles:
        raise Refused(f"{path} was copied in part and stays: {troubles[0]}", errno.EIO)
    if (await client.stat(path)).directory:
        await clear(client, path)
    else:
        await client.remove(path)


class _Input(File):
    """The standard input, once, from its beginning to its end."""

    def __init__(self) -> None:
        self.qid = new_qid()

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o644)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _InputHandle()


class _InputHandle(Handle):
    async def read(self, offset: int, count: int) -> bytes:
        return await stdin.piece(count)

    async def close(self) -> None:
        pass
