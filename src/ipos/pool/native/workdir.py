"""The directory of one task, HOME/work/KEY, and what an earlier life of the node left in HOME/work.

KEY/stdin, stdout, stderr   opened by the seat; the task has them open but cannot reach their names
KEY/cwd                     its working directory, which it sees as HOME/here/cwd
.seats/NAME/tmp, home       TMPDIR and HOME of the tasks of one seat, emptied between two (seen as HOME/here/tmp, HOME/here/home)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ipos.pool.native import clear
from ipos.wire import limits
from ipos.wire.errors import Refused

Source = Path | Callable[[Path], None]
"""Where a file of a task comes from: a file to copy, or a function that makes the file at the path it is given."""

KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
PROCESSES = ".processes"  # in HOME/work: "pid starttime" of every seat
SWEEP_S = 5.0
_FICLONE = 0x40049409


class Mark(NamedTuple):
    """What tells whether an input file is still the one that was laid there."""

    inode: int
    mtime_ns: int
    size: int


def lay(directory: Path, stdin: Source | None, files: Mapping[str, Source]) -> dict[str, Mark]:
    """Make a task's directory with its inputs, read-only copies so that no task can alter the store or another's input. `Refused` if a
    name cannot be, or if the disk is full; then nothing of it is left. What an earlier run with this key left is removed."""
    for name in files:
        if not name or "/" in name or "\0" in name or name in (".", "..") or len(os.fsencode(name)) > limits.name_bytes:
            raise Refused(f"{name!r} cannot be the name of a file in a task's directory")
    try:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            remove(directory)
            os.mkdir(directory, 0o700)
        os.mkdir(directory / "cwd", 0o700)
        if stdin is not None:
            place(stdin, directory / "stdin", 0o444)
        marks: dict[str, Mark] = {}
        for name, source in files.items():
            path = directory / "cwd" / name
            place(source, path, 0o444)
            marks[name] = _mark(path)
    except OSError as error:
        remove(directory)
        raise no_room(directory.parent, error) from None
    return marks


def place(source: Source, path: Path, mode: int) -> None:
    """Make the file `path`, which must not exist."""
    if isinstance(source, Path):
        with open(source, "rb") as old, open(path, "xb") as new:
            try:
                fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            except OSError:
                shutil.copyfileobj(old, new, 1 << 20)
    else:
        source(path)
    path.chmod(mode)


def no_room(work: Path, error: OSError) -> OSError:
    """The sentence for an error met while files were laid out in `work`."""
    if isinstance(error, Refused):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused(f"the disk of {work} is full: the task's files need room there", errno.ENOSPC)
    where = error.filename or work
    return Refused(f"the task's files cannot be laid out: {where}: {error.strerror or error}", error.errno or errno.EIO)


def full(work: Path) -> bool:
    """Whether programs that write there must fail by now."""
    room = os.statvfs(work)
    return room.f_bavail * room.f_frsize < limits.task_disk_margin_bytes or (room.f_files > 0 and room.f_favail == 0)


def left(cwd: Path, given: Mapping[str, Mark]) -> bool:
    """Take away the inputs that are as they were, make the rest readable; whether files are left, that is: the task's output."""
    for name, mark in given.items():
        with contextlib.suppress(FileNotFoundError):
            if _mark(cwd / name) == mark:
                (cwd / name).unlink()
    return clear.open_up(str(cwd)) > 0


def _mark(path: Path) -> Mark:
    its = path.lstat()
    return Mark(its.st_ino, its.st_mtime_ns, its.st_size)


def remove(directory: Path) -> None:
    """Remove a task's directory, whatever modes the task gave to what is in it."""
    clear.remove(str(directory))


# ---- after a crash


def record(work: Path, pid: int) -> None:
    """Note a seat, so that the node's next life can make sure that it is gone."""
    began = started_at(pid)
    if began is not None:
        with open(work / PROCESSES, "a", encoding="ascii") as stream:
            stream.write(f"{pid} {began}\n")


def started_at(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; with the pid it names a process for ever. None if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return None


def sweep(work: Path) -> int:
    """End what an earlier life of this node left running, and remove its directories. Returns how many processes had to be ended."""
    ended = 0
    with contextlib.suppress(FileNotFoundError):
        for line in (work / PROCESSES).read_text(encoding="ascii", errors="replace").splitlines():
            pid, _, began = line.partition(" ")
            if pid.isdigit() and str(started_at(int(pid))) == began:
                ended += end(int(pid))
    ended += end_strays(work)
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove(path)
        else:
            path.unlink()
    return ended


def end(pid: int) -> bool:
    """SIGKILL one process and wait until it is gone: a seat goes only when all of its namespace has gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(SWEEP_S * 1000)
    finally:
        os.close(fd)
    return True


def end_strays(work: Path, key: str = "") -> int:
    """End processes whose environment says that they are a task (the task `key`) of this home and whose seat is gone. Only needed where
    the kernel gave no namespace; a program that cleared its environment escapes it."""
    home = b"IPOS_WORK=" + os.fsencode(work)
    task = b"IPOS_TASK=" + key.encode()
    ended = 0
    again = True
    while again:
        again = False
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                words = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except OSError:
                continue  # gone by now, or not ours
            if home in words and (task in words or not key):
                again = end(int(entry)) or again
                ended += 1
    return ended
