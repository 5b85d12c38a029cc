"""/disk: directories of this machine that its owner shows, by name; `/disk/ctl` adds and removes them while the node is up."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
from pathlib import Path

from ipos.node.config import Config, owner
from ipos.node.home import runtime_root
from ipos.node.settings import Disk, disk_of
from ipos.tree.file import DIRECTORY, Attr, Caller, Directory, File, Handle
from ipos.tree.local import local
from ipos.tree.readonly import read_only
from ipos.tree.synthetic import Dir, Text, new_qid
from ipos.wire.errors import Refused

KNOWN = "add NAME PATH [ro], rm NAME"


class Disks(Dir):
    """Opened by name, at each walk: a directory that is not there now (a disk that was unplugged) says so and keeps its name."""

    def __init__(self, home: Path, config: Config) -> None:
        super().__init__({"ctl": Text(None, self._ctl)})
        self._home = home
        self._config = config
        self._shown: dict[str, _Shown] = {}

    async def walk(self, name: str) -> File:
        disk = self._config.now.disk.get(name)
        if disk is None:
            return await super().walk(name)
        try:
            return await self.opened(name, disk)
        except Refused as refused:  # a walk that falls short says nothing in 9P; an open does
            if refused.errno != errno.ENODEV:
                raise
            return self._shown.setdefault(name, _Shown(self, name))

    async def opened(self, name: str, disk: Disk | None = None) -> File:
        """The directory itself; `Refused` (ENODEV) if it is not there now."""
        disk = disk or self._config.now.disk.get(name)
        if disk is None:
            raise Refused(f"/disk/{name} is shown no more", errno.ENOENT)
        return await asyncio.to_thread(self._open, name, disk)

    def _open(self, name: str, disk: Disk) -> File:
        self._harmless(disk.path)
        try:
            found = local(Path(disk.path))
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise Refused(f"/disk/{name} shows {disk.path}, which is not there now: {why}", errno.ENODEV) from None
        return read_only(found) if disk.ro else found

    def _harmless(self, path: str) -> None:
        """The node's keys and sockets are in no directory that is shown, nor above one."""
        real = Path(path).resolve()
        for ours, what in (
            (self._home, "this node's home, with its keys"),
            (runtime_root(), "the sockets of this user's nodes"),
        ):
            if real == ours or ours in real.parents or real in ours.parents:
                raise Refused(
                    f"{path} cannot be shown: it would show {ours}, {what}; show directories beside it", errno.EACCES
                )

    def listing(self) -> list[tuple[str, File]]:
        shown = self._config.now.disk
        self._shown = {name: self._shown.get(name) or _Shown(self, name) for name in shown}
        return [*self.files.items(), *self._shown.items()]

    async def _ctl(self, caller: Caller, line: str) -> None:
        owner(caller, "directories are shown")
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise Refused(f"{line!r}: {error}") from None
        match words:
            case ["add", name, path, *rest] if rest in ([], ["ro"]):
                disk = disk_of(name, Disk(path, bool(rest)), self._home / "ipos.toml")
                if name in self._config.now.disk:
                    raise Refused(f"/disk/{name} shows {self._config.now.disk[name].path} already: rm {name} first")
                await self.opened(name, disk)
                await self._config.change({}, {name: disk})
            case ["rm", name]:
                if name not in self._config.now.disk:
                    shown = ", ".join(self._config.now.disk) or "nothing"
                    raise Refused(f"/disk has no {name}; it shows {shown}", errno.ENOENT)
                await self._config.change({}, {name: None})
            case []:
                return
            case _:
                raise Refused(f"{line!r} is not a command of /disk/ctl; it knows {KNOWN}")


class _Shown(Directory):
    """A name, opened when somebody wants more of it; and what a directory is that is not there."""

    def __init__(self, disks: Disks, name: str) -> None:
        self._disks, self._name = disks, name
        self.qid = new_qid(DIRECTORY)

    async def attr(self) -> Attr:
        try:
            return await (await self._disks.opened(self._name)).attr()
        except Refused:
            return Attr(0o040000)  # not there now: a listing is not spoiled by it

    async def walk(self, name: str) -> File:
        return await (await self._disks.opened(self._name)).walk(name)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return await (await self._disks.opened(self._name)).open(caller, flags)
