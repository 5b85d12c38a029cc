"""reserve: some disk that is held for the moment when there is none, so that a node whose disk is full can still write down that it is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 1 << 20
SPARE_BYTES: Final = 8 << 20  # it is taken again when so much is free besides


class Reserve:
    """A file of zeros at `path`. Thread-safe: each call is one or two calls of the kernel."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.take()

    def take(self) -> None:
        """Hold it, if it is not held and there is enough."""
        with contextlib.suppress(OSError):
            if self._path.exists():
                return
            free = os.statvfs(self._path.parent)
            if free.f_bavail * free.f_frsize < SPARE_BYTES + RESERVE_BYTES:
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)

    def give(self) -> bool:
        """Let go of it: whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
