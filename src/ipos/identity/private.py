"""Files that only this user may read: written whole or not at all, refused when others can read them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from ipos.wire.errors import Refused


def write_private(path: Path, body: bytes) -> None:
    """Replace a file atomically and durably, mode 0600. On a failure the old file is as it was, and nothing else is left."""
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.unlink(missing_ok=True)  # what a crash left may have another mode
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            rest = memoryview(body)
            while rest:  # a disk that is nearly full takes a part, and says so only the next time
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        why = os.strerror(error.errno or 0)
        raise Refused(f"{path} cannot be written: {why}; what it held is unchanged", error.errno or errno.EIO) from None


def remove_private(path: Path) -> None:
    """The file is gone, also after a power cut; one that is not there is nothing. `Refused` if it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_directory(path.parent)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise Refused(f"{path} cannot be removed: {why}", error.errno or errno.EIO) from None


def read_private(path: Path, most: int) -> bytes | None:
    """What the file holds, None if there is none. `Refused` if others may read it or it is longer than `most` bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {os.strerror(error.errno or 0)}", error.errno or errno.EIO) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{path} is not a plain file")
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise Refused(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}", errno.EACCES)
        if found.st_size > most:
            raise Refused(f"{path} is longer than {most} bytes: it is something else")
        with open(fd, "rb", closefd=False) as stream:
            return stream.read(most)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """After this, names that were made or removed in the directory stay so after a crash."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
