"""Namespaces of this node: one for each attach of its owner, begun with the home's own, which is the text file `$IPOS_HOME/ns`.

`/ns` is the attach's own and ends with it; `/lib/namespace` is the home's, kept on disk, with which later attaches begin. The attach name
`#/` gives the bare tree: what the node itself uses, and what nobody can hide from himself. Other machines always get that, without `/ns`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ipos.tree.file import Attr, Caller, Directory, File, Handle
from ipos.tree.namespace import Table, numbered
from ipos.tree.synthetic import Dir
from ipos.tree.union import Namespace, NamespaceFile
from ipos.wire import limits
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.namespace")


class HomeNamespace:
    """`path`: the text file; `bare`: the tree it is about. `trouble`: why the file is not in force, "" if it is."""

    def __init__(self, path: Path, bare: File) -> None:
        self.path = path
        self.trouble = ""
        self._bare = bare
        self._table = Table()
        self._seen: tuple[int, ...] | None = None
        self._changing = asyncio.Lock()
        self.file = NamespaceFile(self._text, self.change)

    async def table(self) -> Table:
        """What an attach begins with, as the file is now; empty if it is damaged, and `trouble` says so."""
        try:
            st = os.stat(self.path)
            seen = st.st_mtime_ns, st.st_size, st.st_ino
        except FileNotFoundError:
            seen = ()
        except OSError as error:
            seen = (error.errno or 0,)
        if seen != self._seen:
            async with self._changing:
                await self._load()
                self._seen = seen
        return self._table

    async def _load(self) -> None:
        try:
            self._table, self.trouble = await self._read(), ""
        except FileNotFoundError:
            self._table, self.trouble = Table(), ""
        except (OSError, UnicodeDecodeError) as error:
            why = (
                str(error)
                if isinstance(error, Refused)
                else "it is not text"
                if isinstance(error, ValueError)
                else os.strerror(error.errno or 0)
            )
            self._table = Table()
            self.trouble = f"{self.path}: {why}; nothing is mounted until it is mended (ipos ns clear empties it)"
            log.warning("%s", self.trouble)

    async def _read(self) -> Table:
        """What is bound need not be in reach now: it may come."""
        text = await asyncio.to_thread(_text, self.path)
        table, namespace = Table(), Namespace(self._bare)
        for number, line in numbered(text):
            try:
                table = await namespace.apply(table, line, look=False)
            except OSError as error:
                raise Refused(f"line {number}: {error}", error.errno or errno.EINVAL) from None
        return table

    async def _text(self) -> str:
        return str(await self.table())

    async def change(self, text: str) -> None:
        """Commands, as of `Namespace.change`; what comes of them is on disk when this returns."""
        await self.table()
        if self.trouble and not text.lstrip().startswith("clear"):
            raise Refused(self.trouble)
        async with self._changing:
            namespace = Namespace(self._bare, self._table)
            await namespace.change(text)
            body = str(namespace.table).encode()
            await asyncio.to_thread(_replace, self.path, body)
            st = os.stat(self.path)
            self._seen = st.st_mtime_ns, st.st_size, st.st_ino
            self._table, self.trouble = namespace.table, ""


def _text(path: Path) -> str:
    with open(path, "rb") as stream:
        body = stream.read(limits.namespace_bytes + 1)
    if len(body) > limits.namespace_bytes:
        raise Refused(f"more than {limits.namespace_bytes} bytes")
    return body.decode()


def _replace(path: Path, body: bytes) -> None:
    """Whole or not at all, also through a crash."""
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise Refused(f"{path} cannot be written: {os.strerror(error.errno or 0)}", error.errno or 0) from None


class AttachRoot(Directory):
    """The root of one attach: the tree, and the attach's own `/ns`."""

    prompt = True

    def __init__(self, tree: Dir, table: Table) -> None:
        self.qid = tree.qid
        self.tree = tree
        self.namespace = Namespace(self, table)
        self.ns = NamespaceFile(self._text, self.namespace.change)

    async def _text(self) -> str:
        return str(self.namespace.table)

    async def attr(self) -> Attr:
        return await self.tree.attr()

    async def walk(self, name: str) -> File:
        return self.ns if name == "ns" else await self.tree.walk(name)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _Listing(await self.tree.open(caller, flags), self.ns)


class _Listing(Handle):
    whole = True

    def __init__(self, handle: Handle, ns: File) -> None:
        self._handle, self._ns = handle, ns

    async def entries(self) -> Sequence[tuple[str, File]]:
        return [*await self._handle.entries(), ("ns", self._ns)]
