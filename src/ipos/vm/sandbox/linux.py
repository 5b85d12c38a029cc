"""linux: the calls of the kernel that Python's `os` does not have."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any, Final

PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 3, 4, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 36, 38, 39

MACHINE: Final = platform.machine()

_libc = ctypes.CDLL(None, use_errno=True)


def failed() -> OSError:
    """Of the last call of this thread."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def prctl(option: int, value: int = 0) -> int:
    """prctl(2)."""
    result = _libc.prctl(option, value, 0, 0, 0)
    if result < 0:
        raise failed()
    return result


def call(number: int, *arguments: Any) -> int:
    """syscall(2); integers are passed as 64 bits."""
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise failed()
    return result


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(flags) != 0:
        raise failed()


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None, flags, data.encode() or None)
    if _libc.mount(*arguments) != 0:
        error = failed()
        raise OSError(error.errno, f"mount {target}: {error.strerror}")
