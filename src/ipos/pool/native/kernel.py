"""The Linux calls that Python 3.11 has no name for. Each raises OSError with what was called; nothing here decides anything."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import NoReturn

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 19
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 4, 15, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CAP_SYS_ADMIN = 21
LAST_CAP = 63
MOUNT_ATTR_RDONLY = 1
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
SECURE_BITS = 0b1100_0011  # NOROOT and NO_CAP_AMBIENT_RAISE, each locked: capabilities(7)
CAPABILITY_V3 = 0x20080522

_CLONE = {"x86_64": 56, "aarch64": 220}  # with all pointers null the argument order of the two is the same
_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Caps(ctypes.Structure):
    _fields_ = [("sets", ctypes.c_uint32 * 6)]


def _fail(what: str) -> NoReturn:
    error = ctypes.get_errno()
    raise OSError(error, f"{what}: {os.strerror(error)}")


def prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        _fail(f"prctl {option}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    encoded = os.fsencode(source), os.fsencode(target), kind.encode() if kind else None, ctypes.c_ulong(flags)
    if _libc.mount(*encoded, options.encode() if options else None) != 0:
        _fail(f"mount {target}")


def unmount(target: str) -> None:
    """umount2(2) with MNT_DETACH: gone from the tree at once, freed when nothing uses it."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH) != 0:
        _fail(f"umount {target}")


def set_read_only(target: str, on: bool, recursive: bool = False) -> None:
    """mount_setattr(2), Linux 5.12: the mount at `target`, and with `recursive` all that are mounted under it."""
    change = _MountAttr(MOUNT_ATTR_RDONLY if on else 0, 0 if on else MOUNT_ATTR_RDONLY, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(change))
    if _libc.syscall(_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), flags, ctypes.byref(change), size) != 0:
        _fail(f"mount_setattr {target}")


def fork(flags: int) -> int:
    """fork(2) into new namespaces: clone(2) has the flags and `os.fork` has not. Only for a process of one thread."""
    number = _CLONE.get(platform.machine())
    if number is None:
        raise OSError(0, f"clone: its number on {platform.machine()} is not known")
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc.syscall(number, ctypes.c_ulong(flags | 17), None, None, None, None)  # 17: SIGCHLD
    error = ctypes.get_errno()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, f"clone: {os.strerror(error)}")
    return int(pid)


def keep_capabilities(mask: int) -> None:
    """This process keeps `mask`; whatever it starts gets none, whoever it runs as, and can gain none: capabilities(7)."""
    for cap in range(LAST_CAP + 1):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(cap), 0, 0, 0) != 0:
            break  # past the last one that this kernel knows, or an ordinary user who has none to drop
    if _libc.prctl(PR_SET_SECUREBITS, ctypes.c_ulong(SECURE_BITS), 0, 0, 0) != 0 and mask:
        _fail("prctl PR_SET_SECUREBITS")
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = _Caps((ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
    if _libc.capset(ctypes.byref(_CapHeader(CAPABILITY_V3, 0)), ctypes.byref(sets)) != 0:
        _fail("capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def sync_disk(path: str) -> None:
    """syncfs(2): all that was written to the file system of `path` is on disk when this returns."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(fd) != 0:
            _fail(f"syncfs {path}")
    finally:
        os.close(fd)


def set_title(title: str) -> None:
    """What `ps` shows: the name of the process and its command line, which is overwritten where the kernel keeps it."""
    name = ctypes.create_string_buffer(title.encode()[:15])
    _libc.prctl(PR_SET_NAME, name, 0, 0, 0)
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as stream:
        fields = stream.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc_pid_stat(5)
    if 0 < start < end:
        ctypes.memmove(start, title.encode().ljust(end - start, b"\0")[: end - start - 1] + b"\0", end - start)
