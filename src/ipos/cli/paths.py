"""Paths on the command line: which are of the tree and which of this disk, patterns, and names that are safe to print."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from typing import NamedTuple

from ipos.store import cid as c
from ipos.tree.ninep.client import Client, split
from ipos.wire.errors import Refused

_NAMES = """apps chain chat cpu ctl dev disk doctor grants home image ipfs ipns job keys locks log market mem n names net pool proc rights
sales snap srv status store trust wallet"""
ROOT = frozenset(_NAMES.split())
"""The names of the tree's root: a path that begins with one is of the tree, whether this node serves it or not, so that no copy lands on the
disk because a part of the node is down. `file:/home/x` is the host's."""

_MAGIC = re.compile(r"[*?[]")


def tree_path(words: str) -> str:
    """`CID[/path]` (or ipfs://CID/path) is a path in /ipfs; every other path is itself."""
    words = words.removeprefix("ipfs://")
    try:
        c.parse(words.partition("/")[0])
    except Refused:
        return words
    return f"/ipfs/{words}"


class Place(NamedTuple):
    """`path` of the tree, or of the host's disk."""

    tree: bool
    path: str

    def __str__(self) -> str:
        return self.path if self.tree or not _is_tree(self.path) else f"file:{self.path}"


def _is_tree(path: str) -> bool:
    return path.startswith("/") and (not split(path) or split(path)[0] in ROOT)


def place(words: str) -> Place:
    """`/home/x`, a CID: of the tree; `file:/home/x`, `/tmp/x`, `x`: of the disk. The root alone is the tree's."""
    if words.startswith("file:"):
        return Place(False, words.removeprefix("file:").removeprefix("//") or ".")
    path = tree_path(words)
    return Place(path != words or _is_tree(path), path)


def of_tree(words: str) -> str:
    """A path that can only be one of the tree. `Refused` for others, with what would do."""
    if words.startswith("file:"):
        raise Refused(f"{words} is on the disk of this machine: ls(1), cat(1) and rm(1) are for that; ipos cp copies")
    path = "/" + "/".join(split(tree_path(words)))
    names = split(path)
    if names and names[0] not in ROOT and not is_pattern(names[0]):
        raise Refused(f"{words}: the tree has no /{names[0]} (ipos ls / shows it)", errno.ENOENT)
    return path


def is_pattern(path: str) -> bool:
    return _MAGIC.search(path) is not None


async def expand(client: Client, path: str) -> list[str]:
    """The tree's files that a pattern means, in order, as a shell has it: `*` is no `/` and no dot at the beginning, `[*]` is a star. A
    pattern that nothing matches stays as it is, for there may be a file of that name."""
    if not is_pattern(path):
        return [path]
    found: list[tuple[str, ...]] = [()]
    for step in split(path):
        if not is_pattern(step):
            found = [(*names, step) for names in found]
            continue
        more = list[tuple[str, ...]]()
        for names in found:
            try:
                entries = await client.ls("/".join(names))
            except Refused as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    continue
                raise
            listed = sorted(entry.name for entry in entries if step.startswith(".") or not entry.name.startswith("."))
            more += [(*names, name) for name in listed if fnmatch.fnmatchcase(name, step)]
        found = more
    there = ["/" + "/".join(names) for names in found]
    if there and not is_pattern(split(path)[-1]):  # `*/x`: only where there is an x
        there = [one for one in there if await exists(client, one)]
    return there or [path]


async def exists(client: Client, path: str) -> bool:
    try:
        await client.stat(path)
    except Refused as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return False
    return True


def join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"


def base(path: str) -> str:
    """The last name of a path; `Refused` if it has none."""
    name = os.path.basename(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise Refused(f"{path} has no name of its own: say what the copy is called")
    return name
