"""The home of a node (IPOS_HOME): its files, its one lock, its settings; and the short directory where its sockets are."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import os
import socket
import tomllib
from pathlib import Path

import msgspec

from ipos.wire.errors import Refused


class Settings(msgspec.Struct, kw_only=True):
    """`ipos.toml`. Every key has a default.

    `name`: what people call this machine; `cores`: processes it gives to tasks (0: every core); `listen`: "lan" (all addresses, found by
    mDNS) or "local" (loopback only, no mDNS); `native`: whether native work of the own account may run here; `store_bytes`: the most that
    blocks may take (0: as much as the disk has); from 90 % of it on, what no pin keeps is deleted without being asked for; `tcp`: a
    loopback address such as "127.0.0.1:5640" where 9P is served to programs of this user and root, as on the node's socket ("": nowhere).
    """

    name: str = ""
    cores: int = 0
    listen: str = "lan"
    native: bool = True
    store_bytes: int = 0
    tcp: str = ""


def runtime_root() -> Path:
    """The directory of all nodes' sockets of this user: $XDG_RUNTIME_DIR/ipos, else /tmp/ipos-<uid>; ours alone, or refused."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    root = Path(base) / "ipos" if base else Path(f"/tmp/ipos-{os.getuid()}")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    st = root.lstat()
    if st.st_uid != os.getuid() or st.st_mode & 0o077 or root.is_symlink():
        raise Refused(f"{root} belongs to somebody else or is open to others: remove it, or set XDG_RUNTIME_DIR")
    return root


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

    def create(self) -> None:
        try:
            for directory in (self.path, self.handed, *(self.path / name for name in ("keys", "work", "env", "home"))):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        self.run_dir.mkdir(mode=0o700, exist_ok=True)

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
        (self.path / "node.pid").unlink(missing_ok=True)
        for name in ("9p", "where"):
            with contextlib.suppress(OSError):
                (self.run_dir / name).unlink()
        if self._lock is not None:
            os.close(self._lock)

    def pid(self) -> int | None:
        try:
            return int((self.path / "node.pid").read_text())
        except (OSError, ValueError):
            return None

    def settings(self) -> Settings:
        """What ipos.toml says. An unknown key is refused, with the nearest known one."""
        from ipos.identity.machines import tidy, valid_name  # not for every command

        path = self.path / "ipos.toml"
        try:
            table = tomllib.loads(path.read_text())
        except FileNotFoundError:
            table = {}
        except tomllib.TOMLDecodeError as error:
            raise Refused(f"{path} cannot be read: {error}") from None
        known = [field.name for field in msgspec.structs.fields(Settings)]
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                raise Refused(
                    f"{path}: unknown key {key!r}"
                    + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}")
                )
        try:
            settings = msgspec.convert(table, Settings)
        except msgspec.ValidationError as error:
            raise Refused(f"{path}: {error}") from None
        settings.name = settings.name or tidy(socket.gethostname())
        if not valid_name(settings.name):
            raise Refused(f"{path}: {settings.name!r} cannot be a name: small letters, digits and '-', at most 32")
        if settings.listen not in ("lan", "local"):
            raise Refused(f"{path}: listen is 'lan' or 'local', not {settings.listen!r}")
        if settings.tcp:
            from ipos.tree.ninep.transport import loopback

            loopback(settings.tcp)
        return settings

    def change(self, **values: object) -> None:
        """Write settings to ipos.toml, keeping the others."""
        path = self.path / "ipos.toml"
        table = tomllib.loads(path.read_text()) if path.exists() else {}
        table |= values
        new = path.with_name("ipos.toml.new")
        new.write_text("".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in table.items()))
        new.replace(path)
        self.settings()
