"""ipos.toml: what its owner has decided about a node. One table of keys says what each means, what may stand there, and what it is without.

The file that `ipos up` writes is made of the same table, with every key in a comment; a change keeps what its owner wrote around it.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from ipos.identity.machines import tidy, valid_name
from ipos.identity.private import write_private
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.text import size

DISK_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Disk(msgspec.Struct, frozen=True):
    """A directory of the host that /disk shows; `ro`: nobody writes it through /disk."""

    path: str
    ro: bool = False

    def toml(self) -> str:
        return f"{{ path = {_toml(self.path)}, ro = true }}" if self.ro else _toml(self.path)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The values in force; `KEYS` says what each means. `memory_bytes`: `memory` as a number, None: what is free."""

    name: str
    cores: int
    share: int
    memory: str
    native: bool
    listen: str
    tcp: str
    bootstrap: list[str]
    relay: str
    store_bytes: int
    log_bytes: int
    disk: Mapping[str, Disk]

    @property
    def memory_bytes(self) -> int | None:
        return size(self.memory) if self.memory else None


class Key(NamedTuple):
    """`words`: for ipos.toml and docs/config.md; `allowed`: what may stand there; `live`: a change is in force at once."""

    default: Any
    words: str
    allowed: str
    good: Callable[[Any], bool]
    live: bool = False


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _size(value: Any) -> bool:
    try:
        return value == "" or (isinstance(value, str) and size(value) > 0)
    except Refused:
        return False


def _truth(value: Any) -> bool:
    return type(value) is bool


def _name(value: Any) -> bool:
    return value == "" or (isinstance(value, str) and valid_name(value))


def _listen(value: Any) -> bool:
    return value in ("lan", "local")


def _loopback(value: Any) -> bool:
    from ipos.tree.ninep.transport import loopback

    if value:
        loopback(str(value))
    return isinstance(value, str)


def _peers(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(each, str) and re.fullmatch(r"/\S+/p2p/\w+", each) for each in cast(list[Any], value))


def _relay(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"(on( limit \d+[KMG]?)?( for (pool|anyone))?)?", value))


KEYS: Mapping[str, Key] = {
    "name": Key(
        "",
        "what people call this machine; the name of the host if it is empty",
        "small letters, digits and '-', at most 32",
        _name,
    ),
    "cores": Key(
        0, "processes that it gives to tasks; 0: one for each core", "a whole number, 0 to 4096", _whole(0, 4096), True
    ),
    "share": Key(100, "percent of those that it gives; 0: none for now", "a whole number, 0 to 100", _whole(0, 100), True),
    "memory": Key("", "the most memory that tasks may take together; what is free if it is empty", "a size such as \"8G\" or \"512M\", or \"\"", _size, True),
    "native": Key(True, "whether programs outside the engine may run here", "true or false", _truth, True),
    "listen": Key(
        "lan",
        'where other machines reach it: "lan" on all addresses, found by mDNS; "local" on this machine only',
        '"lan" or "local"',
        _listen,
    ),
    "tcp": Key(
        "",
        'a loopback address such as "127.0.0.1:5640" where the tree is served to programs of this user and root; nowhere if it is empty',
        "a loopback address with a port",
        _loopback,
    ),
    "bootstrap": Key(
        [],
        "nodes to stay connected to, which may be used as relays",
        "a list of multiaddrs that end in /p2p/ and a peer id",
        _peers,
    ),
    "relay": Key(
        "",
        "what is written to /net/relay at the start; this machine relays for nobody if it is empty (ipos relay sets it)",
        '"", or words such as "on limit 10M for pool"',
        _relay,
    ),
    "store_bytes": Key(
        0,
        "the most that blocks may take; 0: as much as the disk has. From 90 % of it on, what no pin keeps is deleted without being asked for",
        "a whole number of bytes",
        _whole(0, 1 << 60),
    ),
    "log_bytes": Key(
        4 * limits.MiB,
        "size of a log file from which on the next is begun; it and two earlier ones are kept",
        "a whole number of bytes, 65536 or more",
        _whole(limits.log_least_bytes, 1 << 40),
    ),
}  # fmt: skip
DISK_WORDS = 'directories of this machine that /disk shows: name = "/a/path", or name = { path = "/a/path", ro = true }'


def read(path: Path) -> Settings:
    """The settings of an ipos.toml, which need not be there. `Refused` names the line, the key or the value that is wrong."""
    try:
        return _checked(_table(path), path)
    except FileNotFoundError:
        return _checked({}, path)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise Refused(f"{path} cannot be read: line {line} is not UTF-8 text; nothing was changed") from None
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path} cannot be read: {_at_line(str(error), path)}; nothing was changed") from None
    except (IsADirectoryError, PermissionError) as error:
        raise Refused(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None


def _at_line(words: str, path: Path) -> str:
    """ "Invalid value (at line 3, column 8)" -> "line 3: invalid value"; at the end of the file it says no number."""
    found = re.search(r"\s*\(at (?:line (\d+), column \d+|end of document)\)", words)
    if found is None:
        return words
    line = found[1] or str(max(1, len(path.read_bytes().splitlines())))
    plain = words[: found.start()]
    return f"line {line}: {plain[:1].lower()}{plain[1:]}"


def _checked(table: Mapping[str, Any], path: Path) -> Settings:
    known = [*KEYS, "disk"]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise Refused(f"{path}: unknown key {key!r}; {meant}")
    values = {name: check(name, table.get(name, key.default), str(path)) for name, key in KEYS.items()}
    values["name"] = values["name"] or tidy(socket.gethostname())
    if not valid_name(values["name"]):
        raise Refused(
            f"{path}: the host's name {values['name']!r} is none for a machine: set name to {KEYS['name'].allowed}"
        )
    return Settings(**values, disk=_disks(table.get("disk", {}), path))


def check(name: str, value: Any, where: str) -> Any:
    """The value, or `Refused` with what may stand there."""
    key = KEYS.get(name)
    if key is None:
        near = difflib.get_close_matches(name, KEYS, 1)
        meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KEYS)}"
        raise Refused(f"{where}: unknown key {name!r}; {meant}")
    try:
        good = key.good(value)
    except Refused as refused:
        raise Refused(f"{where}: {name} = {_toml(value)}: {refused}") from None
    if not good:
        raise Refused(f"{where}: {name} = {_toml(value)} is not possible; it may be {key.allowed}")
    return value


def _disks(value: Any, path: Path) -> dict[str, Disk]:
    if not isinstance(value, dict):
        raise Refused(f"{path}: disk = {_toml(value)} is not possible; [disk] is a table: {DISK_WORDS}")
    return {name: disk_of(name, each, path) for name, each in cast(dict[str, Any], value).items()}


def disk_of(name: str, value: Any, path: Path) -> Disk:
    if not DISK_NAME.fullmatch(name) or name in (".", "..", "ctl"):
        raise Refused(
            f"{path}: {name!r} cannot be a name in [disk]: letters, digits and . _ -, at most 64, and not ctl"
        )
    try:
        disk = Disk(value) if isinstance(value, str) else msgspec.convert(value, Disk)  # a Disk stays what it is
    except msgspec.ValidationError:
        raise Refused(f"{path}: disk.{name} = {_toml(value)} is not possible; it is {DISK_WORDS}") from None
    if not os.path.isabs(disk.path):
        raise Refused(f"{path}: disk.{name} shows {disk.path!r}, which does not begin with /: give the whole path")
    return disk


# ---- writing


def _toml(value: Any) -> str:
    """A value as TOML and JSON have it alike; what JSON has not (dates) as text."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def document(settings: Settings | None = None) -> str:
    """An ipos.toml with every key: those of `settings` in force, or all in comments, with what they are without it."""
    out = ["# ipos.toml: this node's settings. A line without its '#' is in force; docs/config.md says more.\n"]
    for name, key in KEYS.items():
        when = "" if key.live else " (from the next start on)"
        value = _toml(key.default if settings is None else getattr(settings, name))
        out.append(f"# {key.words}{when}\n{'# ' if settings is None else ''}{name} = {value}\n")
    out.append(f"# {DISK_WORDS}\n{'# ' if settings is None else ''}[disk]\n")
    if settings is not None:
        out += [f"{name} = {disk.toml()}\n" for name, disk in settings.disk.items()]
    return "\n".join(out) if settings is None else "".join(out)


def change(path: Path, values: Mapping[str, Any], disks: Mapping[str, Disk | None] | None = None) -> Settings:
    """Write these into an ipos.toml, keeping all else in it, and give what is in force then. None takes a disk away.

    All or nothing, also under `kill -9`: a new file takes the old one's place. `Refused` for a value that may not be, or a disk that is full.
    """
    for name, value in values.items():
        check(name, value, str(path))
    text = path.read_text() if path.exists() else document()
    table = _table(path) if path.exists() else {}
    _checked(table, path)
    wanted = {**table, **values}
    shown: dict[str, Any] = dict(table.get("disk", {}))
    for name, disk in (disks or {}).items():
        shown.pop(name, None)
        if disk is not None:
            shown[name] = {"path": disk.path, "ro": True} if disk.ro else disk.path
    if shown or "disk" in table:
        wanted["disk"] = shown
    settings = _checked(wanted, path)
    for name, value in values.items():
        text = _with_line(text, name, f"{name} = {_toml(value)}", "")
    for name, disk in (disks or {}).items():
        text = _with_line(text, name, None if disk is None else f"{name} = {disk.toml()}", "disk")
    try:
        kept = _same(tomllib.loads(text), wanted)
    except tomllib.TOMLDecodeError:
        kept = False
    if not kept:  # written in a way that lines do not show: the values are kept, the words around them are not
        text = document(settings)
    write_private(path.resolve(), text.encode())  # the file that a link of its owner leads to
    return settings


def _same(made: dict[str, Any], wanted: dict[str, Any]) -> bool:
    made, wanted = dict(made), dict(wanted)
    return made.pop("disk", {}) == wanted.pop("disk", {}) and made == wanted


def _with_line(text: str, name: str, line: str | None, table: str) -> str:
    """The text with this line in its table ("": above the first) in the place of the one, or the comment, that says the key."""
    rows = text.splitlines()
    header = re.compile(r"\s*(#\s*)?\[\s*([A-Za-z0-9_]+)\s*\]\s*(#.*)?")
    heads = [(i, m[2]) for i, row in enumerate(rows) if (m := header.fullmatch(row)) and (not m[1] or m[2] == "disk")]
    if not table:
        start, end = 0, min((i for i, _ in heads), default=len(rows))
    else:
        at = next((i for i, word in heads if word == table), None)
        if at is None:
            rows += ["", f"[{table}]"]
            at = len(rows) - 1
        rows[at] = rows[at].lstrip("# ") if line is not None else rows[at]
        start, end = at + 1, min((i for i, _ in heads if i > at), default=len(rows))
    bare = re.compile(rf"\s*(\"{re.escape(name)}\"|{re.escape(name)})\s*=")
    comment = re.compile(rf"\s*#\s*{re.escape(name)}\s*=")
    found = [i for i in range(start, end) if bare.match(rows[i])]
    if not found and line is not None:
        found = [i for i in range(start, end) if comment.match(rows[i])]
    if found:
        rows[found[0] : found[0] + 1] = [] if line is None else [line]
    elif line is not None:
        rows.insert(end, line)
    return "\n".join(rows) + "\n"
