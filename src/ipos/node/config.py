"""The settings of a node that is up: changed through files of its tree, remembered in ipos.toml, in force at once where they can be."""

from __future__ import annotations

import asyncio
import errno
import logging
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ipos.node.settings import KEYS, Disk, Settings, change, disk_of, document
from ipos.pool.journal import Offload
from ipos.tree.file import Caller
from ipos.tree.synthetic import Text
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.node")


class Config:
    """`now`: what is in force; `next`: what ipos.toml says, which is in force from the next start on. `changed` is called after each change."""

    def __init__(self, path: Path, settings: Settings, offload: Offload) -> None:
        self.now = self.next = settings
        self.changed: list[Callable[[], None]] = []
        self._path = path
        self._offload = offload
        self._turn = asyncio.Lock()

    async def change(self, values: Mapping[str, Any], disks: Mapping[str, Disk | None] | None = None) -> None:
        """On disk when it returns. `Refused`: nothing has changed."""
        async with self._turn:
            made: Settings = await self._offload(lambda: change(self._path, values, disks))
            live = {name: getattr(made, name) for name, key in KEYS.items() if key.live}
            self.next, self.now = made, msgspec.structs.replace(self.now, **live, disk=made.disk)
            words = [f"{name} = {value!r}" for name, value in values.items()]
            words += [
                f"/disk/{name} {f'shows {disk.path}' if disk else 'is no more'}" for name, disk in (disks or {}).items()
            ]
            log.info("settings: %s", ", ".join(words))
            for each in self.changed:
                each()

    # ---- /config

    def file(self) -> Text:
        return Text(lambda: document(self.next), self._write)

    async def _write(self, caller: Caller, line: str) -> None:
        owner(caller, "settings are changed")
        if not line.strip() or line.lstrip().startswith("#"):
            return
        try:
            table = tomllib.loads(line)
        except tomllib.TOMLDecodeError as error:
            raise Refused(f"{line!r} is no setting ({error}); one is written as share = 50") from None
        shown = table.pop("disk", {})
        if not isinstance(shown, dict):
            raise Refused(f'{line!r} is no setting; a directory is shown by disk.NAME = "/a/path"')
        disks = {str(name): disk_of(str(name), value, self._path) for name, value in shown.items()}
        await self.change(table, disks)


def owner(caller: Caller, what: str) -> None:
    """`Refused` for everybody but the owner on this machine's own socket."""
    if not caller.local:
        raise Refused(f"{what} on this machine's own socket only", errno.EPERM)
