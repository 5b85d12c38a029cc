"""What a native task cannot reach: the node's home (keys, journal, store) and the directory of the nodes' sockets.

The warm parent goes once into a user and mount namespace of its own, hides both under empty file systems, and gives up every capability,
so that what it starts cannot undo it; that costs a task nothing. docs/security.md says what this does not cover. Linux only.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 4096, 16384, 1 << 18, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 4, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECURE_NOROOT_LOCKED = 0b11  # a program that runs as uid 0 gets no capabilities by it, and cannot change that
LAST_CAP = 63

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None, flags, data.encode() or None)
    if _libc.mount(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount {target}: {os.strerror(error)}")


def harden() -> None:
    """For the node itself: no other process of this user may read its memory or trace it (prctl(2), PR_SET_DUMPABLE)."""
    prctl(PR_SET_DUMPABLE, 0)


def isolate(home: Path, shown: tuple[str, ...], hidden: tuple[Path, ...]) -> str:
    """Hide `home` but for its directories `shown`, and each of `hidden`. "" if it worked, otherwise why not.

    Every step before the first mount can fail without harm; a failure after it ends the process, for half of it is not isolation.
    """
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        return f"this kernel refuses user namespaces ({os.strerror(ctypes.get_errno())})"
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    kept = {name: os.open(home / name, os.O_PATH | os.O_DIRECTORY) for name in shown}
    _mount("none", str(home), "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755")
    for name, fd in kept.items():
        (home / name).mkdir()
        _mount(f"/proc/self/fd/{fd}", str(home / name), None, MS_BIND)
        os.close(fd)
    for path in hidden:
        if path.is_dir():
            _mount("none", str(path), "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,mode=0555")
    return ""


def drop_privileges() -> None:
    """Nothing started from here can gain a capability or a user id, whoever it runs as."""
    try:
        prctl(PR_SET_SECUREBITS, SECURE_NOROOT_LOCKED)
        for cap in range(LAST_CAP + 1):
            if _libc.prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0:
                break  # past the last one that this kernel knows
    except OSError:
        pass  # no capabilities to give up: an ordinary user without a namespace
    prctl(PR_SET_NO_NEW_PRIVS, 1)
