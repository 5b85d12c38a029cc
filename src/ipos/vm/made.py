"""made: the files that a program made or changed, written below a directory of the host."""

from __future__ import annotations

import os
from collections.abc import Callable

from ipos.vm.wasi import output
from ipos.vm.wasi.boot import Directory, File, Symlink

Read = Callable[[int, int, int], bytes]
"""(number of an input file, offset, length) -> its bytes."""


def write(made: output.OutputDirectory, was: Directory | None, to: int, read: Read) -> bool:
    """What the program made or changed, as files below the directory `to`; `was`: what the input root had at this place. Whether there
    was anything."""
    some = False
    for name, node in made.entries():
        before = was.entries.get(name) if was is not None else None
        match node:
            case output.OutputDirectory():
                known = before if isinstance(before, Directory) else None
                os.mkdir(name, dir_fd=to)
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=to)
                kept = write(node, known, below, read) or known is None
                os.close(below)
                if not kept:
                    os.rmdir(name, dir_fd=to)
                some |= kept
            case output.OutputFile() if not _same(node, before):
                with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=to), "wb") as stream:
                    for piece in node.content(read):
                        stream.write(piece)
                some = True
            case output.OutputSymlink(target) if before != Symlink(target):
                os.symlink(target, name, dir_fd=to)
                some = True
            case _:
                pass
    return some


def _same(node: output.OutputFile, before: Directory | File | Symlink | None) -> bool:
    """Whether it is still the input file of this name."""
    if not isinstance(before, File):
        return False
    if node.size == 0:
        return not node.changed and before.size == 0
    return bool(node.untouched) and node.untouched == before.number
