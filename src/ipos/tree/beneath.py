"""openat2(2): open a name in a directory and nowhere else. Python has no call for it, so it is made by number.

`RESOLVE_BENEATH` makes the kernel itself refuse whatever would leave the directory, `RESOLVE_NO_SYMLINKS` whatever would go through a link.
A kernel before 5.6, or a seccomp filter that does not know the call, leaves O_NOFOLLOW: names are single components here, so that is as tight.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_OPENAT2 = 437  # on every architecture
_HOW = struct.Struct("<QQQ")  # flags, mode, resolve
_RESOLVE = 0x02 | 0x04 | 0x08  # no magic links, no symbolic links, beneath
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
_MISSING = (errno.ENOSYS, errno.EPERM, errno.E2BIG)


def _open_beneath(directory: int, name: str, flags: int, mode: int = 0) -> int:
    how = _HOW.pack(flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode if flags & os.O_CREAT else 0, _RESOLVE)
    while True:
        fd: int = _syscall(_OPENAT2, directory, os.fsencode(name), how, _HOW.size)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename was under way and the kernel could not be sure
            raise OSError(number, os.strerror(number), name)


def open_walked(directory: int, name: str, flags: int, mode: int = 0) -> int:
    """The same for a kernel without the call."""
    return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=directory)


def _kernel_has() -> bool:
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(_open_beneath(here, ".", os.O_PATH))
    except OSError as error:
        return error.errno not in _MISSING
    finally:
        os.close(here)
    return True


HAS_OPENAT2 = _kernel_has()
_open = _open_beneath if HAS_OPENAT2 else open_walked


def open_in(directory: int, name: str, flags: int, mode: int = 0) -> int:
    """A descriptor of the entry `name`, a single component, of an open directory. A symbolic link is not followed: ELOOP, or with O_PATH
    the link itself. `OSError` otherwise as open(2)."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return _open(directory, name, flags, mode)
