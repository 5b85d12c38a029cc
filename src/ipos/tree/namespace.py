"""namespace: which file is found under which name. The mount table of Plan 9 (bind(1), namespace(6)), pure.

A *place* is where a file really is: its names from the root of the bare tree, the one that nobody has changed. The table maps mount points,
which are places, to what is found there instead: one or more members, searched in order (a union). It never looks at a file. Where a path
leads through a union only files can tell which member has the next name, so `found` asks: it yields the places to be tried and the name, and is
sent the place that has it. A file tree answers for people (`union`), a store for programs that must be repeatable (`pool.rootfs`).

As in Plan 9 the paths of a command are evaluated when it is given, not when its mount point is used; what is mounted upon is the original
file, not what hides it; binding a union copies all of it; and in a mounted directory files are made only where a member has `-c`. Other than in
Plan 9 a mount point is known by its place, not by its qid: who renames a directory leaves behind what was mounted in it.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable, Mapping
from enum import Enum
from typing import Final, NamedTuple

from ipos.wire import limits
from ipos.wire.errors import Refused

Place = tuple[str, ...]
Search = Generator[tuple[tuple[Place, ...], str], Place, "tuple[Member, ...]"]
"""Yields (places, name): which of them has an entry of that name? Sent the place. Returns where the path leads."""

BARE: Final = "#"
"""Before a path: from the bare tree, whatever is mounted; as Plan 9's `#` names what a namespace cannot hide."""


class Order(Enum):
    REPLACE = ""
    BEFORE = "b"
    AFTER = "a"


class Member(NamedTuple):
    """One directory of a union, or what hides a file. `create`: new files may be made here."""

    place: Place
    create: bool = False


class Path(NamedTuple):
    """A path of a command: `bare` if it was written `#/...`."""

    names: Place
    bare: bool = False

    def __str__(self) -> str:
        return f"{BARE if self.bare else ''}/{'/'.join(self.names)}"


class Bind(NamedTuple):
    """`bind [-abc] NEW OLD`; `mount [-abc] /srv/NAME OLD` is the same of a posted file server."""

    new: Path
    old: Path
    order: Order = Order.REPLACE
    create: bool = False
    word: str = "bind"


class Unmount(NamedTuple):
    """`unmount [NEW] OLD`: without NEW, all that is mounted on OLD."""

    new: Path | None
    old: Path


class Clear(NamedTuple):
    """`clear`: the bare tree again."""


Line = Bind | Unmount | Clear


# ---- the table


class Table:
    """An immutable mount table, so a fork is the same object. `heads`: mount point -> members, in the order of first mounting."""

    __slots__ = ("above", "heads")

    def __init__(self, heads: Mapping[Place, tuple[Member, ...]] | None = None) -> None:
        self.heads: Final = dict(heads or {})
        self.above: Final = frozenset(place[:-1] for place in self.heads if place)
        """The directories that have mount points as entries."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.heads == other.heads

    def __hash__(self) -> int:
        return hash(frozenset(self.heads.items()))

    def __repr__(self) -> str:
        return f"Table({self.heads!r})"

    def crossed(self, place: Place) -> tuple[Member, ...]:
        """What is found at a place: its members, or itself."""
        return self.heads.get(place) or (Member(place, create=True),)

    def busy(self, place: Place) -> bool:
        """Whether something is mounted at or below a place."""
        return any(head[: len(place)] == place for head in self.heads)

    def found(self, path: Path, cross: bool = True) -> Search:
        """Where a path leads. Without `cross` its last name is not looked up in the table: what is mounted upon is the original."""
        if path.bare:
            return (Member(path.names, create=True),)
        if not path.names:
            return self.crossed(()) if cross else (Member(()),)
        members = self.crossed(())
        for name in path.names[:-1]:
            members = self.crossed((*(yield from _of(members, name)), name))
        last = (*(yield from _of(members, path.names[-1])), path.names[-1])
        return self.crossed(last) if cross else (Member(last),)

    def bind(self, line: Bind, new: tuple[Member, ...], old: Place) -> Table:
        """`new` as `found` gave it with `cross`, `old` without."""
        first, *more = new
        if line.create and (more or not first.create):
            raise Refused(
                f"{line.new}: it is mounted upon, so -c cannot tell where to create: bind one of its members with -c"
            )
        added = (Member(first.place, line.create), *(Member(member.place) for member in more))
        was = self.heads.get(old, () if line.order is Order.REPLACE else (Member(old),))
        match line.order:
            case Order.REPLACE:
                members = added
            case Order.BEFORE:
                members = (*added, *was)
            case Order.AFTER:
                members = (*was, *added)
        if len(members) > limits.union_members:
            raise Refused(f"{line.old}: a union of more than {limits.union_members} members", errno.ENOSPC)
        if old not in self.heads and len(self.heads) >= limits.mount_points:
            raise Refused(f"{line.old}: more than {limits.mount_points} mount points: unmount some", errno.ENOSPC)
        return Table({**self.heads, old: members})

    def unmount(self, line: Unmount, new: tuple[Place, ...], old: Place) -> Table:
        """`new`: the places that NEW may mean, the likelier first; empty without NEW."""
        if old not in self.heads:
            raise Refused(f"{line.old}: nothing is mounted there")
        rest = {place: members for place, members in self.heads.items() if place != old}
        if line.new is None:
            return Table(rest)
        places = [member.place for member in self.heads[old]]
        gone = next((place for place in new if place in places), None)
        if gone is None:
            raise Refused(f"{line.new} is not mounted on {line.old}: {', '.join(map(_path, places))}")
        at = places.index(gone)
        left = (*self.heads[old][:at], *self.heads[old][at + 1 :])
        if not left or left == (Member(old),):  # nothing is left of what was done to it
            return Table(rest)
        return Table({**self.heads, old: left})

    def __str__(self) -> str:
        """Commands that give this table again from an empty one, without asking. A path is bare where it would lead elsewhere by then."""
        out, so_far = list[str](), Table()
        for old, members in self.heads.items():
            for order, member in _again(old, members):
                srv = len(member.place) == 2 and member.place[0] == "srv"
                plain = member.place not in so_far.heads and so_far.known(Path(member.place)) == (member.place,)
                new = Path(member.place, not plain)
                on = Path(old, so_far.known(Path(old), cross=False) != (old,))
                line = Bind(new, on, order, member.create, "mount" if srv and not new.bare else "bind")
                so_far = so_far.bind(line, (Member(member.place, create=True),), old)
                out.append(written(line) + "\n")
        return "".join(out)

    def known(self, path: Path, cross: bool = True) -> tuple[Place, ...] | None:
        """Where a path leads, as far as that is known without looking at files; None: a union is on its way."""
        search = self.found(path, cross)
        try:
            next(search)
        except StopIteration as found:
            return tuple(member.place for member in found.value)
        return None


def _of(members: tuple[Member, ...], name: str) -> Generator[tuple[tuple[Place, ...], str], Place, Place]:
    if len(members) == 1:
        return members[0].place
    return (yield tuple(member.place for member in members), name)


def _again(old: Place, members: tuple[Member, ...]) -> Iterable[tuple[Order, Member]]:
    """How a union comes about from nothing: its own directory is in it unless the first bind replaces it."""
    own = members.index(Member(old)) if len(members) > 1 and Member(old) in members else None
    if own is None:
        return [(Order.AFTER if i else Order.REPLACE, member) for i, member in enumerate(members)]
    before, after = members[:own], members[own + 1 :]
    return [*((Order.BEFORE, member) for member in reversed(before)), *((Order.AFTER, member) for member in after)]


# ---- the text


def parse(text: str) -> list[Line]:
    """The commands of a namespace file. `Refused` names the line and what is wrong in it; empty lines and `# comments` are none."""
    return [line for _, line in numbered(text)]


def numbered(text: str) -> list[tuple[int, Line]]:
    """The commands, each with the number of its line."""
    out = list[tuple[int, Line]]()
    for number, line in enumerate(text.split("\n"), 1):
        try:
            made = command(line)
        except Refused as refused:
            raise Refused(f"line {number}: {refused}") from None
        if made is not None:
            out.append((number, made))
        if len(out) > limits.namespace_lines:
            raise Refused(f"line {number}: a namespace of more than {limits.namespace_lines} commands", errno.EFBIG)
    return out


def command(line: str) -> Line | None:
    """One command; None if there is none in this line."""
    words = _words(line)
    if not words or words[0].startswith(BARE):
        return None
    word, *rest = words
    flags = list[str]()
    while rest and rest[0].startswith("-"):
        flags.append(rest.pop(0))
    match word, rest:
        case (("bind" | "mount"), [new, old]):
            return _bind(word, flags, path_of(new), path_of(old))
        case "mount", [_, _, spec]:
            raise Refused(f"{spec!r}: the tree that a server is asked for is named when it is posted (aname=...)")
        case "unmount", [old] if not flags:
            return Unmount(None, path_of(old))
        case "unmount", [new, old] if not flags:
            return Unmount(path_of(new), path_of(old))
        case "clear", [] if not flags:
            return Clear()
        case (("bind" | "mount" | "unmount" | "clear"), _):
            raise Refused(f"{line.strip()[:200]!r}: it is {USAGE[word]}")
        case _:
            raise Refused(f"{word[:80]!r} is not a command of a namespace; it knows {', '.join(USAGE)}")


USAGE: Final = {
    "bind": "bind [-abc] NEW OLD",
    "mount": "mount [-abc] /srv/NAME OLD",
    "unmount": "unmount [NEW] OLD",
    "clear": "clear",
}


def _bind(word: str, flags: list[str], new: Path, old: Path) -> Bind:
    letters = "".join(flag[1:] for flag in flags)
    if wrong := next((flag for flag in flags if not flag[1:] or set(flag[1:]) - set("abc")), None):
        raise Refused(f"{wrong[:20]!r} is not a flag; -b is before, -a after, -c lets files be created")
    if {"a", "b"} <= set(letters):
        raise Refused("-a and -b: a directory is put either before or after the others")
    if word == "mount" and (len(new.names) != 2 or new.names[0] != "srv"):
        raise Refused(f"{new}: what is mounted is a posted file server, /srv/NAME; a directory is bound")
    order = Order.BEFORE if "b" in letters else Order.AFTER if "a" in letters else Order.REPLACE
    return Bind(new, old, order, "c" in letters, word)


def path_of(word: str) -> Path:
    """A path as it is written in a command. `..` is taken out by name, as Plan 9 does; it stops at the root."""
    bare = word.startswith(BARE)
    text = word.removeprefix(BARE)
    if not text.startswith("/"):
        raise Refused(f"{word[:80]!r} is not a path from the root: /home/x")
    names = list[str]()
    for name in text.split("/"):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
            _check(name)
    if len(names) > limits.path_names:
        raise Refused(f"a path of {len(names)} names; the most is {limits.path_names}", errno.ENAMETOOLONG)
    return Path(tuple(names), bare)


def _check(name: str) -> None:
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise Refused(f"{name[:80]!r} is not a name that 9P can carry") from None
    if length > limits.name_bytes:
        raise Refused(
            f"{name[:40]!r}...: a name of {length} bytes; the most is {limits.name_bytes}", errno.ENAMETOOLONG
        )
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise Refused(f"{name[:80]!r} has a control character, which cannot be written in a namespace")


def _words(line: str) -> list[str]:
    """rc's quoting: 'a b' is one word, '' in it is a quote."""
    out, word, quoted, i = list[str](), None, False, 0
    while i < len(line):
        letter = line[i]
        if quoted and letter == "'" and line[i + 1 : i + 2] == "'":
            word, i = (word or "") + "'", i + 1
        elif letter == "'":
            quoted, word = not quoted, word or ""
        elif not quoted and letter in " \t\r":
            out, word = ([*out, word] if word is not None else out), None
        else:
            word = (word or "") + letter
        i += 1
    if quoted:
        raise Refused(f"{line.strip()[:200]!r}: a quote that does not end")
    return out if word is None else [*out, word]


def _quoted(path: Path) -> str:
    text = str(path)
    return "'" + text.replace("'", "''") + "'" if set(text) & set(" '") else text


def written(line: Line) -> str:
    """A command as it is read again."""
    match line:
        case Bind(new, old, order, create, word):
            flags = order.value + ("c" if create else "")
            return " ".join([word, *([f"-{flags}"] if flags else []), _quoted(new), _quoted(old)])
        case Unmount(None, old):
            return f"unmount {_quoted(old)}"
        case Unmount(new, old):
            assert new is not None
            return f"unmount {_quoted(new)} {_quoted(old)}"
        case Clear():
            return "clear"


def _path(place: Place) -> str:
    return _quoted(Path(place))
