"""landlock: from here on this process and its children reach no file but below directories that it names now (landlock(7)).

Descriptors that are open already stay as they are. What the running kernel does not know of is left out; `abi` says what it knows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import Final

from ipos.vm.sandbox import linux

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # on every architecture
VERSION_FLAG, PATH_BENEATH = 1, 1

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG, MAKE_SYM, TRUNCATE = 1 << 7, 1 << 8, 1 << 12, 1 << 14

READ: Final = READ_FILE | READ_DIR
KEEP: Final = READ | WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE
MAKE: Final = READ_DIR | WRITE_FILE | MAKE_REG | MAKE_DIR | MAKE_SYM | REMOVE_DIR

_FILES: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP: Final = 0b11  # bind, connect: since ABI 4
_SCOPE: Final = 0b11  # abstract unix sockets, signals, of processes outside: since ABI 6


def abi() -> int:
    """Of the running kernel; 0: it has no Landlock, or it was not switched on at boot."""
    try:
        return linux.call(CREATE_RULESET, None, 0, VERSION_FLAG)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def restrict(allowed: Iterable[tuple[int, int]]) -> None:
    """`allowed`: (descriptor of a directory, rights below it). Nothing else can be opened, bound, connected or signalled any more, by this
    thread and by those that it will start. Needs no_new_privs. OSError if the kernel has no Landlock."""
    version = abi()
    if not version:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no Landlock")
    files = _FILES[min(version, max(_FILES))]
    attributes = struct.pack("=Q", files)
    if version >= 4:
        attributes += struct.pack("=Q", _TCP)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPE)
    ruleset = linux.call(CREATE_RULESET, ctypes.c_char_p(attributes), len(attributes), 0)
    try:
        for fd, rights in allowed:
            rule = struct.pack("=Qi", rights & files, fd)
            linux.call(ADD_RULE, ruleset, PATH_BENEATH, ctypes.c_char_p(rule), 0)
        linux.call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
