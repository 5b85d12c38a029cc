"""Removing what a task left, whatever modes it gave to it. Nothing of the task may run any more: nobody changes the tree meanwhile."""

from __future__ import annotations

import os
import stat


def remove(directory: str) -> None:
    """The directory and all that is in it; nothing if there is none."""
    try:
        empty(directory)
        os.rmdir(directory)
    except FileNotFoundError:
        return


def empty(directory: str) -> None:
    """All that is in it. A quarter of what shutil.rmtree takes, which guards against processes that change the tree."""
    try:
        _empty(directory)
    except PermissionError:
        open_up(directory)
        _empty(directory)


def _empty(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _empty(entry.path)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)


def open_up(directory: str) -> int:
    """Give its owner back the permission to read and change all that is in it. Symbolic links are never followed. Returns how many entries
    there are in `directory` itself."""
    if stat.S_IMODE(os.lstat(directory).st_mode) & 0o700 != 0o700:
        os.chmod(directory, 0o700)
    count = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            count += 1
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                open_up(entry.path)
            elif stat.S_ISREG(mode) and not mode & 0o400:
                os.chmod(entry.path, 0o400)
    return count
