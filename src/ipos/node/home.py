"""The home of a node (IPOS_HOME): its files, its format, its one lock; and the short directory where its sockets are."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ipos.identity.private import write_private
from ipos.wire.errors import Refused

if TYPE_CHECKING:  # every command has a home, few look at its settings
    from ipos.node.settings import Settings

BARE: Final = "#/"  # the attach name of the tree without anybody's namespace


def runtime_root() -> Path:
    """The directory of all nodes' sockets of this user: $XDG_RUNTIME_DIR/ipos, else /tmp/ipos-<uid>; ours alone, or refused."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    root = Path(base) / "ipos" if base else Path(f"/tmp/ipos-{os.getuid()}")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    st = root.lstat()
    if st.st_uid != os.getuid() or st.st_mode & 0o077 or root.is_symlink():
        raise Refused(f"{root} belongs to somebody else or is open to others: remove it, or set XDG_RUNTIME_DIR")
    return root


FORMAT: Final = 2
"""Of a home. 1: homes without a number, whose account key may lie in `keys/account` in the clear; 2: keys under keystore v3 alone."""


def _keystore(home: Path) -> None:
    from ipos.identity import accounts  # heavy, and needed once

    accounts.take_over(home / "keys")


STEPS: Final[dict[int, Callable[[Path], object]]] = {1: _keystore}
"""What makes a home of one format one of the next. Each may be killed anywhere, and begins again then."""

NO_HOME: Final = {
    "ipos.toml",
    "ipos.toml.new",
    "format",
    "format.new",
    "lost+found",
}  # what a directory may have that becomes a home


class Home:
    """`path`: $IPOS_HOME, default ~/.ipos. Nothing is made before `create`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or Path(os.environ.get("IPOS_HOME") or "~/.ipos").expanduser()).resolve()
        self._lock: int | None = None

    @property
    def run_dir(self) -> Path:
        return runtime_root() / hashlib.blake2s(str(self.path).encode(), digest_size=5).hexdigest()

    @property
    def socket(self) -> Path:
        return self.run_dir / "9p"

    @property
    def handed(self) -> Path:
        """Where commands leave what a job needs and no file of the user holds; the node takes it away when it has read it."""
        return self.path / "handed"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def there(self) -> bool:
        """Whether a node has lived here."""
        return (self.path / "keys").is_dir()

    def create(self) -> bool:
        """Make what is missing; whether it was no home before. `Refused` where something else lives."""
        fresh = not self.there
        try:
            strange = (
                sorted({entry.name for entry in self.path.iterdir()} - NO_HOME) if fresh and self.path.exists() else []
            )
        except OSError as error:
            raise self._unwritable(error) from None
        if strange:
            raise Refused(
                f"{self.path} is no home of a node, and it has other files ({strange[0]}): IPOS_HOME names a new or an empty directory"
            )
        try:
            if fresh:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_private(self.path / "format", f"{FORMAT}\n".encode())
                if not self.toml.exists():
                    from ipos.node.settings import document

                    write_private(self.toml, document().encode())
            for directory in (self.path, self.handed, *(self.path / name for name in ("keys", "work", "env", "home"))):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        self.run_dir.mkdir(mode=0o700, exist_ok=True)
        return fresh

    def upgrade(self) -> None:
        """Make a home of an earlier format one of this. Called under the lock; `Refused` for a home of a newer IPOS, which is left alone."""
        path = self.path / "format"
        try:
            text = path.read_text().strip()
        except FileNotFoundError:
            text = "1"
        if not text.isdecimal() or int(text) < 1:
            raise Refused(
                f"{path} says {text[:40]!r}, which is no format of a home: put it back from a copy of the home"
            )
        found = int(text)
        if found > FORMAT:
            raise Refused(
                f"the home {self.path} was made by a newer IPOS (format {found}, this one knows {FORMAT}): update IPOS, or let IPOS_HOME name another"
            )
        for number in range(found, FORMAT):
            STEPS[number](self.path)
            write_private(path, f"{number + 1}\n".encode())

    def _unwritable(self, error: OSError) -> Refused:
        why = os.strerror(error.errno or 0)
        return Refused(f"the home {self.path} cannot be written: {why}; IPOS_HOME names another", error.errno or 0)

    def lock(self) -> None:
        """One node per home. The lock goes with the process, however it ends."""
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Refused(
                f"a node is up on {self.path} already (pid {self.pid() or 'unknown'}): ipos down ends it"
            ) from None
        self._lock = fd
        (self.path / "node.pid").write_text(f"{os.getpid()}\n")

    def unlock(self) -> None:
        if self._lock is None:  # the home is another node's
            return
        (self.path / "node.pid").unlink(missing_ok=True)
        for name in ("9p", "where"):
            with contextlib.suppress(OSError):
                (self.run_dir / name).unlink()
        os.close(self._lock)
        self._lock = None

    def pid(self) -> int | None:
        try:
            return int((self.path / "node.pid").read_text())
        except (OSError, ValueError):
            return None

    @property
    def toml(self) -> Path:
        return self.path / "ipos.toml"

    def settings(self) -> Settings:
        """What ipos.toml says."""
        from ipos.node.settings import read

        return read(self.toml)
