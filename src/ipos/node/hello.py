"""/pool/hello: two nodes with one transport key are noticed by whoever both of them talk to.

A home that was copied has the keys of the other: to everybody the two are one node that answers now here, now there. So each says by an open file, on
each connection that it makes, which run of which process it is; as long as one of them has the file open, another one with the same key is refused.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from pathlib import Path
from typing import Final

from ipos.tree.file import Attr, Caller, File, Handle, writable
from ipos.tree.ninep.client import Client
from ipos.tree.synthetic import new_qid
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.hello")

BOOT: Final = re.compile(r"[0-9a-f]{16}")


class Hello(File):
    """Write: the 16 hex digits of this run of the caller's node. They count while the file is open."""

    def __init__(self) -> None:
        self.qid = new_qid()
        self._open: dict[str, dict[_HelloHandle, str]] = {}  # peer -> open files and what they said

    async def attr(self) -> Attr:
        return Attr(0o100222)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if not writable(flags):
            raise Refused("this file cannot be read", errno.EACCES)
        return _HelloHandle(self, caller)

    def said(self, handle: _HelloHandle, peer: str, boot: str) -> None:
        said = self._open.setdefault(peer, {})
        if any(other != boot for other in said.values()):
            log.warning("two nodes have the transport key of %s: a home was copied", peer)
            raise Refused(
                f"another node with this one's transport key ({peer}) is connected: one of the two homes is a copy; "
                "move keys/transport, keys/run and keys/machines out of it, and let it join",
                errno.EADDRINUSE,
            )
        said[handle] = boot

    def left(self, handle: _HelloHandle, peer: str) -> None:
        said = self._open.get(peer, {})
        said.pop(handle, None)
        if not said:
            self._open.pop(peer, None)


class _HelloHandle(Handle):
    def __init__(self, hello: Hello, caller: Caller) -> None:
        self._hello = hello
        self._peer = caller.node

    async def write(self, offset: int, data: bytes) -> int:
        boot = data.decode(errors="replace").strip()
        if BOOT.fullmatch(boot) is None:
            raise Refused(f"{boot[:40]!r} is not the 16 hexadecimal digits of a run")
        self._hello.said(self, self._peer, boot)
        return len(data)

    async def close(self) -> None:
        self._hello.left(self, self._peer)


async def say(client: Client, boot: str) -> str:
    """Say it on a connection, for as long as that lasts; the sentence of a node that knows another one with this key, else ""."""
    try:
        file, _ = await client.opened(("pool", "hello"), os.O_WRONLY)
        await client.rpc("Twrite", file.fid, 0, boot.encode())
    except Refused as refused:
        if refused.errno == errno.EADDRINUSE:
            return str(refused)
        if refused.errno != errno.ENOENT:  # an older IPOS has no such file
            raise
    return ""


def here(root: Path, peer: str, own: Path) -> int | None:
    """The pid of another node of this user on this computer that has this transport key; `root`: the directory of all nodes' sockets."""
    for where in root.glob("*/where"):
        try:
            entry = json.loads(where.read_text())
            pid = int(entry["pid"])
        except (OSError, ValueError, KeyError):
            continue
        if entry.get("peer") == peer and where.parent != own and Path(f"/proc/{pid}").exists():
            return pid
    return None
