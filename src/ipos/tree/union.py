"""Files seen through a namespace: what an attach gives to its owner.

Only directories are wrapped: a file is itself. A `Seen` directory knows its place and asks the table at each step, so a fid that was walked
before a bind meets what was bound. With nothing mounted a step costs one wrapper and no look-up. In a union a name is searched in the
members' order; a member that is out of reach is passed over, and is the reason given if no other has the name: unknown is not gone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence

from ipos.tree.file import (
    DIRECTORY,
    Attr,
    Caller,
    Change,
    Changeable,
    Directory,
    File,
    Handle,
    Statfs,
    readable,
    writable,
)
from ipos.tree.namespace import Bind, Clear, Line, Member, Order, Path, Place, Search, Table, Unmount, numbered
from ipos.tree.remote import RemoteFile
from ipos.tree.synthetic import new_qid
from ipos.wire import limits
from ipos.wire.errors import Refused

FORBIDS = "mounted directory forbids creation"  # Plan 9's own words


class Namespace:
    """One attach's view of the tree below `bare`. `table` is replaced, never changed, so `fork` shares it until one of the two changes."""

    def __init__(self, bare: File, table: Table | None = None) -> None:
        self.bare = bare
        self.table = table or Table()
        self.root = Seen(self, (), bare)
        self._kept: dict[Place, File] = {}
        self._changing = asyncio.Lock()

    def fork(self) -> Namespace:
        """A private copy."""
        return Namespace(self.bare, self.table)

    # ---- changing it

    async def change(self, text: str) -> None:
        """All the commands of a text, or none of them. `Refused` names the line."""
        lines = numbered(text)
        async with self._changing:
            table = self.table
            for number, line in lines:
                try:
                    table = await self.apply(table, line)
                except OSError as error:
                    raise Refused(f"line {number}: {error}", error.errno or errno.EINVAL) from None
            self.table = table

    async def apply(self, table: Table, line: Line, look: bool = True) -> Table:
        """What a table becomes. `look`: what is bound and what is bound upon must be there, and be of one kind."""
        match line:
            case Clear():
                return Table()
            case Unmount(new, old):
                (on,) = await self._search(table.found(old, cross=False))
                places = list[Place]()
                if new is not None:
                    for cross in (False, True):
                        places += [member.place for member in await self._search(table.found(new, cross))]
                return table.unmount(line, tuple(places), on.place)
            case Bind():
                found = await self._search(table.found(line.new))
                (on,) = await self._search(table.found(line.old, cross=False))
                if look:
                    await self._look(line, found, on)
                return table.bind(line, found, on.place)

    async def _look(self, line: Bind, found: tuple[Member, ...], on: Member) -> None:
        new, old = await self._at(line.new, found[0].place), await self._at(line.old, on.place)
        kinds = [file.qid.type & DIRECTORY for file in (new, old)]
        if kinds[0] != kinds[1]:
            file, directory = (line.old, line.new) if kinds[0] else (line.new, line.old)
            raise Refused(f"{file} is a file and {directory} a directory: one cannot stand for the other")
        if not kinds[0] and (line.order is not Order.REPLACE or line.create):
            raise Refused(f"{line.old} is a file: -a, -b and -c are for directories")

    async def _at(self, path: Path, place: Place) -> File:
        try:
            return await self.file(place)
        except OSError as error:
            raise Refused(f"{path}: {error}", error.errno or errno.ENOENT) from None

    async def _search(self, search: Search) -> tuple[Member, ...]:
        try:
            places, name = next(search)
            while True:
                place, _ = await self.first(places, name)
                places, name = search.send(place)
        except StopIteration as found:
            return found.value

    # ---- looking

    async def first(self, places: Iterable[Place], name: str) -> tuple[Place, File]:
        """The first of these directories that has the name, and the file."""
        trouble: OSError | None = None
        try:
            for place in places:
                try:
                    return place, await (await ready(await self.file(place))).walk(name)
                except OSError as error:
                    if error.errno != errno.ENOENT or trouble is None:
                        trouble = error
            assert trouble is not None
            raise trouble
        finally:
            del trouble  # which knows this frame: no cycle may keep what was walked to

    async def file(self, place: Place) -> File:
        """The file at a place of the bare tree. What another server has is kept: it is known there by its name."""
        if (kept := self._kept.get(place)) is not None:
            return kept
        file = self.bare
        for i, name in enumerate(place):
            if not file.qid.type & DIRECTORY:
                raise Refused(f"/{'/'.join(place[:i])} is not a directory", errno.ENOTDIR)
            file = await (await ready(file)).walk(name)
        if isinstance(file, RemoteFile) and len(self._kept) < limits.mount_points:
            self._kept[place] = file
        return file

    async def crossed(self, place: Place, file: File) -> File:
        """What is seen at a place, where the bare tree has `file`."""
        members = self.table.heads.get(place)
        if members is None:
            return Seen(self, place, file) if file.qid.type & DIRECTORY else file
        front = await self.front(members)
        return Seen(self, place, front) if front.qid.type & DIRECTORY else front

    async def front(self, members: Sequence[Member]) -> File:
        """The first member that is in reach; the first one's own refusal if none is."""
        trouble: OSError | None = None
        try:
            for member in members:
                try:
                    return await self.file(member.place)
                except OSError as error:
                    trouble = trouble or error
            assert trouble is not None
            raise trouble
        finally:
            del trouble


async def ready(file: File) -> File:
    """Let what comes next run in a task, if this file needs one: a session begins a `Seen` without, for most of what it leads to needs none."""
    if not file.prompt:
        await asyncio.sleep(0)
    return file


class Seen(Directory, Changeable):
    """A directory at a place of a namespace; `file` is what was there, or mounted there, when it was walked to."""

    def __init__(self, namespace: Namespace, place: Place, file: File) -> None:
        self.namespace = namespace
        self.place = place
        self.file = file
        self.qid = file.qid
        self.prompt = file.prompt

    @property
    def _members(self) -> tuple[Member, ...] | None:
        return self.namespace.table.heads.get(self.place)

    async def walk(self, name: str) -> File:
        namespace, place = self.namespace, (*self.place, name)
        if heads := namespace.table.heads:
            if (members := heads.get(self.place)) is None:
                file = await self.file.walk(name)
            else:
                at, file = await namespace.first((member.place for member in members), name)
                place = (*at, name)
            if place in heads:
                return await namespace.crossed(place, file)
        else:
            file = await self.file.walk(name)
        return Seen(namespace, place, file) if file.qid.type & DIRECTORY else file

    async def _front(self) -> File:
        """The directory that stands for this one: the first of a union."""
        members = self._members
        return self.file if members is None else await ready(await self.namespace.front(members))

    async def attr(self) -> Attr:
        file = await self._front()
        attr = await file.attr()
        self.qid = file.qid
        return attr

    async def open(self, caller: Caller, flags: int) -> Handle:
        members = self._members
        if members is None and self.place not in self.namespace.table.above:
            return await self.file.open(caller, flags)
        if writable(flags):
            raise Refused("a directory cannot be opened for writing", errno.EISDIR)
        return _Union(self.namespace, members or (Member(self.place),), caller)

    async def statfs(self) -> Statfs:
        return await (await self._front()).statfs()

    async def xattrs(self) -> Sequence[str]:
        return await (await self._front()).xattrs()

    async def xattr(self, name: str) -> bytes:
        return await (await self._front()).xattr(name)

    # ---- changes

    async def change(self, caller: Caller, change: Change) -> None:
        file = await self._front()
        if isinstance(file, Changeable):
            await file.change(caller, change)
        elif (change.mode, change.uid, change.gid) != (None, None, None):
            raise Refused("the mode and owner of this file cannot be changed", errno.EPERM)

    async def set_xattr(self, caller: Caller, name: str, value: bytes | None, flags: int) -> None:
        file = await self._front()
        if not isinstance(file, Changeable):
            raise Refused(f"{name}: this file takes no extended attributes", errno.EOPNOTSUPP)
        await file.set_xattr(caller, name, value, flags)

    async def _maker(self) -> tuple[Place, Directory]:
        """Where new files go."""
        members, place, file = self._members, self.place, self.file
        if members is not None:
            chosen = next((member for member in members if member.create), None)
            if chosen is None:
                where = "/" + "/".join(self.place)
                raise Refused(f"{where}: {FORBIDS}: bind a member with -c to say where files are made", errno.EPERM)
            place, file = chosen.place, await ready(await self.namespace.file(chosen.place))
        return place, _changed(file)

    async def _holder(self, name: str) -> tuple[Place, Directory]:
        """The directory that has this entry, to be removed or renamed there."""
        place, file = self.place, self.file
        if (members := self._members) is not None:
            place, _ = await self.namespace.first((member.place for member in members), name)
            file = await self.namespace.file(place)
        if self.namespace.table.busy((*place, name)):
            raise Refused(f"{name}: something is mounted there or below: unmount it first", errno.EBUSY)
        return place, _changed(file)

    async def create(self, caller: Caller, name: str, flags: int, mode: int) -> tuple[File, Handle]:
        """In a union the first that has the name, as create(5) of a name that is there; else where new files go."""
        if (members := self._members) is not None:
            try:
                place, there = await self.namespace.first((member.place for member in members), name)
            except OSError:
                pass  # nobody in reach has it
            else:
                if flags & os.O_EXCL or there.qid.type & DIRECTORY:
                    raise Refused(f"{name}: is there already", errno.EEXIST)
                there = await self.namespace.crossed((*place, name), there)
                return there, await there.open(caller, flags)
        elif self.namespace.table.heads and (*self.place, name) in self.namespace.table.heads:
            there = await self.namespace.crossed((*self.place, name), await self.file.walk(name))
            if flags & os.O_EXCL or there.qid.type & DIRECTORY:
                raise Refused(f"{name}: is there already", errno.EEXIST)
            return there, await there.open(caller, flags)
        _, directory = await self._maker()
        return await directory.create(caller, name, flags, mode)

    async def mkdir(self, caller: Caller, name: str, mode: int) -> File:
        place, directory = await self._maker()
        made = await directory.mkdir(caller, name, mode)
        return Seen(self.namespace, (*place, name), made)

    async def symlink(self, caller: Caller, name: str, target: str) -> File:
        _, directory = await self._maker()
        return await directory.symlink(caller, name, target)

    async def link(self, caller: Caller, name: str, file: File) -> None:
        _, directory = await self._maker()
        await directory.link(caller, name, file)

    async def remove(self, caller: Caller, name: str, directory: bool) -> None:
        _, holder = await self._holder(name)
        await holder.remove(caller, name, directory)

    async def rename(self, caller: Caller, name: str, to: Directory, new: str) -> None:
        place, holder = await self._holder(name)
        target: Directory = to
        if isinstance(to, Seen):
            at, target = (place, holder) if to.place == self.place else await to._maker()  # within a union it stays
            if self.namespace.table.busy((*at, new)):
                raise Refused(f"{new}: something is mounted there: unmount it first", errno.EBUSY)
        await holder.rename(caller, name, target, new)


def _changed(file: File) -> Directory:
    if not isinstance(file, Directory):
        raise Refused("nothing can be changed in this directory", errno.EROFS)
    return file


class _Union(Handle):
    """The listing of a union, or of a directory with mount points in it: each name once, as a walk to it would find it."""

    whole = True

    def __init__(self, namespace: Namespace, members: tuple[Member, ...], caller: Caller) -> None:
        self._namespace, self._members, self._caller = namespace, members, caller

    async def entries(self) -> Sequence[tuple[str, File]]:
        """`Refused` only if no member can be listed."""
        out, trouble, listed = dict[str, File](), None, False
        for member in self._members:
            try:
                found = await self._list(member.place)
            except OSError as error:
                trouble = trouble or error
                continue
            listed = True
            for name, file in found:
                if name not in out:
                    out[name] = await self._fixed((*member.place, name), file)
        if trouble is not None and not listed:
            raise trouble
        return list(out.items())

    async def _list(self, place: Place) -> Sequence[tuple[str, File]]:
        handle = await (await self._namespace.file(place)).open(self._caller, os.O_RDONLY)
        try:
            return await handle.entries()
        finally:
            await handle.close()

    async def _fixed(self, place: Place, file: File) -> File:
        """A mount point is shown as what is mounted there, if that is in reach."""
        members = self._namespace.table.heads.get(place)
        if members is None:
            return file
        try:
            return await self._namespace.front(members)
        except OSError:
            return file

    async def sync(self) -> None:
        """Nothing was written."""


# ---- as a file


class NamespaceFile(File):
    """A namespace as text, and commands to change it: what one write holds is done as a whole or not at all, and only for the owner."""

    def __init__(self, read: Callable[[], Awaitable[str]], write: Callable[[str], Awaitable[None]]) -> None:
        self.qid = new_qid()
        self.read, self.write = read, write

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o644)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags) and not caller.local:
            raise Refused("a namespace is changed by its owner, on the node's own socket", errno.EPERM)
        return _NamespaceText(self, (await self.read()).encode() if readable(flags) else b"", writable(flags))


class _NamespaceText(Handle):
    whole = True

    def __init__(self, file: NamespaceFile, body: bytes, writes: bool) -> None:
        self._file, self._body, self._writes = file, body, writes

    async def read(self, offset: int, count: int) -> bytes:
        return self._body[offset : offset + count]

    async def write(self, offset: int, data: bytes) -> int:
        if not self._writes:
            raise Refused("this file is not open for writing", errno.EBADF)
        if len(data) > limits.namespace_bytes:
            raise Refused(f"{len(data)} bytes of commands; the most is {limits.namespace_bytes}", errno.EMSGSIZE)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise Refused(f"byte {error.start} is not UTF-8 text") from None
        await self._file.write(text)
        return len(data)
