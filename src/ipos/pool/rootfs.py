"""rootfs: what a program in the engine sees as its files, as a namespace text and as one directory of the store.

Such a program is repeatable only if its files can never be others, so its namespace is made of `/ipfs` alone, and is evaluated once, before it
runs: to the CID of a UnixFS directory. Equal namespaces are the same directory, however they were written, and so the same task.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ipos.pool.records import Task
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.tree.file import DIRECTORY, Attr, Caller, Directory, File, Handle, writable
from ipos.tree.namespace import Bind, Clear, Line, Member, Path, Place, Search, Table, Unmount, numbered, written
from ipos.tree.synthetic import new_qid
from ipos.wire.errors import Refused

IPFS = "ipfs"
Content = Callable[[bytes], Awaitable[File]]
"""The file of a CID, as `/ipfs` has it."""


def compose(store: BlockStore, text: str) -> bytes:
    """The CID of the directory that a namespace comes to, which is put into the store. `Refused` names the line: it is no command, it
    binds what can change, or what is not here. Mount points need not be there: they are made."""
    table = Table()
    for number, line in numbered(text):
        try:
            table = _apply(store, table, line)
        except OSError as error:
            raise Refused(f"line {number}: {error}", error.errno or errno.EINVAL) from None
    made = _Composer(store, table).seen((), ())
    if made is None:
        return unixfs.add_links(store, ())
    if not unixfs.is_dir(store, made):
        raise Refused("a file is bound to /, which is a directory")
    return made


def _apply(store: BlockStore, table: Table, line: Line) -> Table:
    match line:
        case Clear():
            return Table()
        case Unmount(new, old):
            places = [member.place for cross in (False, True) for member in _source(store, table, new, cross)]
            return table.unmount(line, tuple(places), _search(store, table, old, False)[0].place)
        case Bind():
            if line.word == "mount":
                raise Refused(
                    f"{line.new}: what a file server gives can change, and a program in the engine sees only what cannot: copy it to a directory, {_REMEDY}"
                )
            found = _source(store, table, line.new, True)
            for member in found:
                _immutable(store, table, line.new, member.place)
            (on,) = _search(store, table, line.old, False)
            if on.place == (IPFS,):
                raise Refused(f"{line.old}: nothing is mounted there: it is where content comes from")
            return table.bind(line, found, on.place)


_REMEDY = "ipos add it first, which prints its CID, and bind /ipfs/CID instead"


def _immutable(store: BlockStore, table: Table, path: Path, place: Place) -> None:
    if place[:1] != (IPFS,):
        if place and not table.busy(place):
            raise Refused(f"{path} can change, and a program in the engine sees only what cannot: {_REMEDY}")
        return
    if len(place) < 2:
        raise Refused(f"{path}: bind one thing of it, /ipfs/CID")
    root = c.parse(place[1])
    cid = unixfs.resolve(store, root, place[2:])
    if absent := len(unixfs.missing(store, cid)):
        raise Refused(
            f"{path}: {absent} of its blocks are not on this machine: ipos get {c.text(cid)} brings them", errno.ENOENT
        )


def _source(store: BlockStore, table: Table, path: Path | None, cross: bool) -> tuple[Member, ...]:
    """Where NEW is: `/ipfs` means content also when something is bound to `/`."""
    if path is None:
        return ()
    return _search(store, table, path._replace(bare=True) if path.names[:1] == (IPFS,) else path, cross)


def _search(store: BlockStore, table: Table, path: Path, cross: bool) -> tuple[Member, ...]:
    search: Search = table.found(path, cross)
    try:
        places, name = next(search)
        while True:
            has = (place for place in places if _raw(store, (*place, name)) is not None or table.busy((*place, name)))
            places, name = search.send(next(has, places[0]))
    except StopIteration as found:
        return found.value


def _raw(store: BlockStore, place: Place) -> bytes | None:
    """The content at a place of the bare tree; None: there is none, but something may be mounted there."""
    if place[:1] != (IPFS,) or len(place) < 2:
        return None
    try:
        return unixfs.resolve(store, c.parse(place[1]), place[2:])
    except Refused as refused:
        if refused.errno != errno.ENOENT:
            raise
        return None


class _Composer:
    """Evaluates a table; `within`: the places that are being looked at, to find one that contains itself."""

    def __init__(self, store: BlockStore, table: Table) -> None:
        self._store, self._table = store, table

    def seen(self, place: Place, within: tuple[Place, ...]) -> bytes | None:
        """What is found at a place."""
        members = self._table.heads.get(place)
        if members is None:
            return self._bare(place, within)
        if len(members) == 1:
            return self._bare(members[0].place, within)
        links = dict[str, bytes]()
        for member in members:
            cid = self._bare(member.place, within)
            for link in () if cid is None else unixfs.entries(self._store, cid):
                links.setdefault(link.name, link.cid)
        return self._directory(links)

    def _bare(self, place: Place, within: tuple[Place, ...]) -> bytes | None:
        """What is at a place of the bare tree, with what is mounted below it."""
        if place in within:
            raise Refused(
                f"/{'/'.join(place)} is bound into itself: such a namespace has no end, and a directory of the store must have one"
            )
        content = _raw(self._store, place)
        depth = len(place)
        names = dict.fromkeys(head[depth] for head in self._table.heads if len(head) > depth and head[:depth] == place)
        if not place:
            names.pop(IPFS, None)  # a program sees what is bound, not where it comes from
        if not names:
            return content
        links = {} if content is None else {link.name: link.cid for link in unixfs.entries(self._store, content)}
        for name in names:
            made = self.seen((*place, name), (*within, place))
            if made is not None:
                links[name] = made
        return self._directory(links)

    def _directory(self, links: Mapping[str, bytes]) -> bytes:
        store = self._store
        return unixfs.add_links(
            store, (unixfs.Link(cid, name, unixfs.total(store, cid)) for name, cid in links.items())
        )


# ---- a task's own


def text(task: Task) -> str:
    """The namespace of a task. Given to `ipos run --wasm --ns`, it makes the same root again."""
    out = list[str]()
    if not task.in_engine:
        out.append("# a native program sees the files of its machine; its directory began with these")
    for name, cid in sorted(task.files.items()):
        line = written(Bind(Path((IPFS, c.text(cid))), Path((name,))))
        out.append(line if line.isprintable() else f"# {name!r}: such a name cannot be written here")
    return "".join(f"{line}\n" for line in out)


class Root(Directory):
    """The directory that a program began with."""

    def __init__(self, files: Mapping[str, bytes], content: Content) -> None:
        self.qid = new_qid(DIRECTORY)
        self.files, self.content = files, content

    async def attr(self) -> Attr:
        return Attr(stat.S_IFDIR | 0o555, nlink=2)

    async def walk(self, name: str) -> File:
        if name not in self.files:
            raise Refused(f"{name}: no such file", errno.ENOENT)
        return await self.content(self.files[name])

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags):
            raise Refused("a directory cannot be opened for writing", errno.EISDIR)
        return _RootListing(self)


class _RootListing(Handle):
    whole = True

    def __init__(self, root: Root) -> None:
        self._root = root

    async def entries(self) -> Sequence[tuple[str, File]]:
        return [(name, await self._root.content(cid)) for name, cid in self._root.files.items()]
