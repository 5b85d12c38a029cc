"""What a native task can reach. Deny by default: a task sees the whole disk, but read-only; it can write to its own directory, /tmp,
/var/tmp and shared memory. The node's home, the directory of the nodes' sockets, and whatever else leads back into the account (the
sockets under /run, raw disks under /dev) are not there. docs/native.md lists what this covers and what it does not.

It is done once per seat (seat.py), in a user, mount and process namespace of its own; a task inherits it for nothing. A kernel or a
container that refuses namespaces gets a seat without them, and a report that says so: isolation is never silently absent.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from ipos.pool.native import kernel as k
from ipos.pool.native.clear import empty

NAMESPACES = k.CLONE_NEWUSER | k.CLONE_NEWNS | k.CLONE_NEWPID
WRITABLE = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")
SHOWN = ("env", "program")  # of the home, read-only; `here` is added for the task's own directory
HERE = "here"
OWN = ("tmp", "home")  # of each seat, in HOME/work/.seats/NAME: TMPDIR and HOME of its tasks
RUN_KEPT = (  # of /run: how names are resolved, and what NixOS keeps its programs in
    "systemd/resolve", "resolvconf", "NetworkManager/resolv.conf", "current-system", "booted-system", "opengl-driver",
)  # fmt: skip
DEVICES = (  # of /dev: what every program may expect, graphics processors, and what nested containers need
    "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue",
    "dri", "kfd", "accel", "dxg", "kvm", "fuse",
)  # fmt: skip
DEVICE_PREFIX = "nvidia"
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
PID_MAX_IS_OURS = (6, 14)  # Linux: before it, kernel.pid_max in any namespace is the whole machine's


def harden() -> None:
    """For the node itself: no other process of this user may read its memory, its descriptors or its environment, or trace it
    (prctl(2), PR_SET_DUMPABLE). Holds for those who are not isolated as well."""
    k.prctl(k.PR_SET_DUMPABLE, 0)


class View:
    """The file system as one seat and its tasks see it. `lacks`: what could not be done, each in words."""

    def __init__(self, home: Path, hide: Sequence[Path], processes: int) -> None:
        self.lacks: list[str] = []
        self._home = home
        self._hide = hide
        self._processes = processes
        self._work = -1
        self._mounted: list[str] = []
        self.cwd = str(home / HERE / "cwd")
        self.tmp, self.own_home = (str(home / HERE / name) for name in OWN)

    def enter(self, name: str, uid: int, gid: int) -> None:
        """In the first process of new namespaces: build the view of the seat `name`. OSError says which step failed; the process must then end."""
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        k.mount("none", "/", None, k.MS_REC | k.MS_SLAVE)  # a disk that its owner ejects is ejected here too
        for path in self._own_mounts():
            k.mount(path, path, None, k.MS_BIND | k.MS_REC)
        work = str(self._home / "work")
        k.mount(work, work, None, k.MS_BIND)
        self._work = os.open(work, os.O_PATH | os.O_DIRECTORY)
        self._devices()
        self._hide_all()
        for each in OWN:
            k.mount(f"/proc/self/fd/{self._work}/.seats/{name}/{each}", f"{self._home}/{HERE}/{each}", None, k.MS_BIND)
        k.set_read_only("/", True, recursive=True)
        for path in (*self._own_mounts(), f"/proc/self/fd/{self._work}", self.tmp, self.own_home):
            k.set_read_only(path, False)
        self._proc(root=uid == 0)
        os.chdir("/")
        k.keep_capabilities(1 << k.CAP_SYS_ADMIN)
        k.prctl(k.PR_SET_DUMPABLE, 0)

    def let_in(self, key: str, writes: Iterable[str]) -> None:
        """Before a task: its directory HOME/work/KEY/cwd becomes HOME/here/cwd, and each of `writes` can be written."""
        self._bind(f"/proc/self/fd/{self._work}/{key}/cwd", self.cwd)
        for path in writes:
            self._bind(path, path)
            k.set_read_only(path, False)
        os.chdir(self.cwd)

    def let_out(self) -> None:
        """After a task."""
        os.chdir("/")
        while self._mounted:
            k.unmount(self._mounted.pop())
        for each in (self.tmp, self.own_home):
            empty(each)

    def open(self, name: str, flags: int) -> int:
        """Open a file under HOME/work, which tasks do not see."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._work)

    def _bind(self, source: str, target: str) -> None:
        k.mount(source, target, None, k.MS_BIND)
        self._mounted.append(target)

    @staticmethod
    def _own_mounts() -> list[str]:
        return sorted({os.path.realpath(path) for path in WRITABLE if os.path.isdir(path)})

    def _hide_all(self) -> None:
        """Cover the home and everything named, then put back what is shown of the home."""
        shown = {name: os.open(self._home / name, os.O_PATH | os.O_DIRECTORY) for name in SHOWN}
        hidden = {path for each in (self._home, *self._hide) for path in other_paths(each)} - {str(self._home)}
        self._run()
        for path in sorted(hidden):
            if os.path.lexists(path):  # it may lie in a directory that is covered already
                _cover(path)
        home = str(self._home)
        os.makedirs(home, exist_ok=True)
        _cover(home)
        for name in ("", "/cwd", *(f"/{each}" for each in OWN)):
            os.mkdir(f"{home}/{HERE}{name}")
        for name, fd in shown.items():
            os.mkdir(f"{home}/{name}")
            k.mount(f"/proc/self/fd/{fd}", f"{home}/{name}", None, k.MS_BIND)
            os.close(fd)

    @staticmethod
    def _run() -> None:
        """/run is full of sockets that act for the account: session bus, agents, container daemons."""
        run = os.path.realpath("/run")
        if not os.path.isdir(run):
            return
        kept = {name: os.open(f"{run}/{name}", os.O_PATH) for name in RUN_KEPT if os.path.exists(f"{run}/{name}")}
        _cover(run)
        for name, fd in kept.items():
            _put_back(fd, f"{run}/{name}")
            os.close(fd)

    @staticmethod
    def _devices() -> None:
        """Whoever runs as root, or is in group `disk`, could read the keys from the raw disk; so /dev is a list of what may be there."""
        kept: dict[str, int] = {}
        for name in sorted(os.listdir("/dev")):
            if (name in DEVICES or name.startswith(DEVICE_PREFIX)) and not os.path.islink(f"/dev/{name}"):
                with contextlib.suppress(OSError):
                    kept[name] = os.open(f"/dev/{name}", os.O_PATH)
        _cover("/dev", 0o755)
        for name, fd in kept.items():
            _put_back(fd, f"/dev/{name}")
            os.close(fd)
        for name, target in DEVICE_LINKS.items():
            os.symlink(target, f"/dev/{name}")
        if "ptmx" not in kept and "pts" in kept:
            os.symlink("pts/ptmx", "/dev/ptmx")

    def _proc(self, root: bool) -> None:
        """A /proc of our own process namespace: the node is not in it. Where an enclosing container has masked parts of /proc, the kernel
        forbids this, and tasks see (but cannot signal or trace) the machine's processes."""
        try:
            k.mount("proc", "/proc", "proc", k.MS_NOSUID | k.MS_NODEV | k.MS_NOEXEC)
        except OSError as error:
            self.lacks.append(f"a /proc of its own ({os.strerror(error.errno or 0)})")
            if not root:
                k.set_read_only("/proc", False)
            return
        release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
        if release >= PID_MAX_IS_OURS:
            _write("/proc/sys/kernel/pid_max", str(self._processes))
        elif root:
            self.lacks.append("a bound on the number of processes (root needs Linux 6.14 for it)")
        if root:
            k.set_read_only("/proc", True)  # uid 0 may write /proc/sys by its uid alone, without any capability


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None


def _cover(path: str, mode: int = 0o555) -> None:
    """Nothing of what is at `path` can be seen any more."""
    if os.path.isdir(path):
        k.mount("none", path, "tmpfs", k.MS_NOSUID | k.MS_NODEV, f"size=1m,mode={mode:o}")
    else:
        k.mount("/dev/null", path, None, k.MS_BIND)


def _put_back(fd: int, target: str) -> None:
    """What was opened as `fd` before its directory was covered appears at `target` again."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
    k.mount(f"/proc/self/fd/{fd}", target, None, k.MS_BIND | k.MS_REC)


def other_paths(path: Path) -> list[str]:
    """Every path at which the file or directory can be reached: one disk may be mounted at several places, and to cover one is not to cover
    the others. Reads /proc/self/mountinfo, proc_pid_mountinfo(5)."""
    mounts: list[tuple[str, str, str]] = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        mounts.append((fields[2], _unescape(fields[3]), _unescape(fields[4])))
    real = os.path.realpath(path)
    below = [mount for mount in mounts if _under(real, mount[2])]
    device, root, point = max(reversed(below), key=lambda mount: len(mount[2]))
    inner = os.path.normpath(os.path.join(root, os.path.relpath(real, point)))
    same = os.stat(real)
    found = [real]
    for other, its_root, its_point in mounts:
        if other == device and _under(inner, its_root):
            alias = os.path.normpath(os.path.join(its_point, os.path.relpath(inner, its_root)))
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(alias), same):
                    found.append(alias)
    return sorted(set(found))


def _under(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _unescape(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
