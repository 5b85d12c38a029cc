"""What a session knows of a file that its client has named, and which names a file may have."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from ipos.tree.file import File, Handle
from ipos.wire import limits
from ipos.wire.errors import Refused


class Step(NamedTuple):
    """A file and its name in the directory of the step before."""

    name: str
    file: File


class Fid:
    """A name that the client gave to a file. `path` leads from the root to it, so `..` needs no name and a rename moves what is below."""

    __slots__ = ("goes", "handle", "listing", "locked", "path", "place")

    def __init__(self, path: tuple[Step, ...], handle: Handle | None = None) -> None:
        self.path = path
        self.handle = handle
        self.listing: list[tuple[str, File]] | None = None
        self.place: tuple[int, int] = (0, 0)  # 9P2000: the next entry of the listing, and the offset it has
        self.locked = False
        self.goes = False  # 9P2000: ORCLOSE

    @property
    def file(self) -> File:
        return self.path[-1].file


def refuse(number: int, what: str = "") -> Refused:
    return Refused(f"{what}: {os.strerror(number)}" if what else os.strerror(number), number)


def checked(name: str) -> str:
    """A name that an entry of a directory may have."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode()) > limits.name_bytes:
        raise refuse(errno.ENAMETOOLONG if len(name.encode()) > limits.name_bytes else errno.EINVAL, repr(name[:80]))
    return name
