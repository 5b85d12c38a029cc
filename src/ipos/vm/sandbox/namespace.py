"""What a native task, and the parent of the engine's workers, cannot reach: the node's home (keys, journal, store), the nodes' sockets, and, the
engine's, any network.

The warm parent goes once into namespaces of its own, hides the directories under empty file systems, and gives up its capabilities, so that
what it starts cannot undo it; that costs a task nothing. docs/security.md says what this does not cover. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from ipos.vm.sandbox import linux
from ipos.vm.sandbox.linux import mount, prctl

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 4096, 16384, 1 << 18, 2, 4
SECURE_NOROOT_LOCKED = 0b11  # a program that runs as uid 0 gets no capabilities by it, and cannot change that
LAST_CAP = 63
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID, CAP_SETUID = 0, 1, 5, 6, 7
CAPSET: Final = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION = 0x20080522


def harden() -> None:
    """No other process of this user may read this one's memory or trace it (prctl(2), PR_SET_DUMPABLE)."""
    prctl(linux.PR_SET_DUMPABLE, 0)


def isolate(
    home: Path | None, shown: tuple[str, ...], hidden: tuple[Path, ...], also: int = 0, user: bool = True
) -> str:
    """Hide `home` but for its directories `shown`, and each of `hidden`; `also`: more namespaces; `user`: in a user namespace, without
    which one must be root. "" if it worked, otherwise why not.

    Every step before the first mount can fail without harm; a failure after it ends the process, for half of it is not isolation.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        linux.unshare((CLONE_NEWUSER if user else 0) | CLONE_NEWNS | also)
    except OSError as error:
        return f"this kernel refuses {'user ' if user else ''}namespaces ({error.strerror})"
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    if home is not None:
        _hide_but(home, shown)
    for path in hidden:
        if path.is_dir():
            mount("none", str(path), "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,mode=0555")
    return ""


def _hide_but(home: Path, shown: tuple[str, ...]) -> None:
    kept = {name: os.open(home / name, os.O_PATH | os.O_DIRECTORY) for name in shown}
    mount("none", str(home), "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755")
    for name, fd in kept.items():
        (home / name).mkdir()
        mount(f"/proc/self/fd/{fd}", str(home / name), None, MS_BIND)
        os.close(fd)


def drop_privileges() -> None:
    """Nothing started from here can gain a capability or a user id, whoever it runs as."""
    try:
        prctl(linux.PR_SET_SECUREBITS, SECURE_NOROOT_LOCKED)
        for cap in range(LAST_CAP + 1):
            prctl(linux.PR_CAPBSET_DROP, cap)
    except OSError:
        pass  # past the last one that this kernel knows; or none to give up: an ordinary user without a namespace
    prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


def keep_only(*caps: int) -> None:
    """This process has these capabilities and no other (capset(2))."""
    if linux.MACHINE in CAPSET:
        kept = sum(1 << cap for cap in caps)
        header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
        sets = struct.pack("=6I", kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable; then of numbers above 31
        linux.call(CAPSET[linux.MACHINE], ctypes.create_string_buffer(header), ctypes.create_string_buffer(sets))
