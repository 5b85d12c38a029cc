"""seccomp: the calls of the kernel that a worker may still make, as a filter in classic BPF (seccomp(2), bpf(4)).

An allowlist, for the kernel gains calls every year: what is not named here fails with EPERM, and has not happened. It does not kill, because
EPERM gives an attacker no more than death does, and an honest worker whose libc tries something new goes on, or ends with a sentence.
Killed is only who calls through another architecture's door (i386, x32), where the numbers below mean other calls. clone3 fails with ENOSYS:
a filter cannot look at its flags, and libc then falls back to clone, which may only make threads. Memory cannot become code.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

from ipos.vm.sandbox import linux
from ipos.vm.sandbox.linux import MACHINE

ALLOWED: Final = {  # name: (x86-64, aarch64)
    "read": (0, 63), "write": (1, 64), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "lseek": (8, 62), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291),
    "getdents64": (217, 61), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "openat": (257, 56),
    "renameat": (264, 38), "renameat2": (316, 276), "unlinkat": (263, 35), "mkdirat": (258, 34), "symlinkat": (266, 36),
    "readlinkat": (267, 78), "fcntl": (72, 25), "flock": (73, 32), "dup": (32, 23), "fchdir": (81, 50),
    "ppoll": (271, 73), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214),
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "gettid": (186, 178), "getpid": (39, 172), "exit": (60, 93), "exit_group": (231, 94),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "getrandom": (318, 278),
    "restart_syscall": (219, 128), "membarrier": (324, 283), "getrusage": (98, 165),
}  # fmt: skip
ALLOWED_X86: Final = {  # older names of the same, which libc still uses there
    "open": 2, "stat": 4, "lstat": 6, "poll": 7, "rename": 82, "mkdir": 83, "rmdir": 84, "unlink": 87, "symlink": 88,
    "readlink": 89, "dup2": 33,
}  # fmt: skip
SOME: Final = {"mmap": (9, 222), "mprotect": (10, 226), "clone": (56, 220), "clone3": (435, 435), "tgkill": (234, 131), "prlimit64": (302, 261)}  # fmt: skip
"""Allowed with some arguments: see `program`."""

ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
X32_BIT: Final = 0x40000000
PROT_EXEC, CLONE_THREAD = 4, 0x10000

KILL, ALLOW = 0x80000000, 0x7FFF0000
PERMISSION, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of 32 bits; jumps compare with k
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16

SET_MODE_FILTER: Final = 1
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}


class Op(NamedTuple):
    """struct sock_filter."""

    code: int
    k: int
    yes: int = 0
    no: int = 0


def program(machine: str, pid: int) -> list[Op]:
    """The filter for one architecture. `pid`: of the process that it is for; it may signal itself (abort)."""
    column, arch = ARCHITECTURES[machine]

    def low(argument: int) -> Op:
        return Op(LOAD, ARGUMENTS_AT + 8 * argument)

    def high(argument: int) -> Op:
        return Op(LOAD, ARGUMENTS_AT + 8 * argument + 4)

    ops = [Op(LOAD, ARCH_AT), Op(EQUAL, arch, 1, 0), Op(RETURN, KILL), Op(LOAD, NUMBER_AT)]
    if machine == "x86_64":
        ops += [Op(AT_LEAST, X32_BIT, 0, 1), Op(RETURN, KILL)]
    only = {
        "clone3": [Op(RETURN, UNKNOWN)],
        "clone": [low(0), Op(ANY_BIT, CLONE_THREAD, 0, 1), Op(RETURN, ALLOW), Op(RETURN, PERMISSION)],
        "mmap": [low(2), Op(ANY_BIT, PROT_EXEC, 1, 0), Op(RETURN, ALLOW), Op(RETURN, PERMISSION)],
        "tgkill": [low(0), Op(EQUAL, pid, 0, 1), Op(RETURN, ALLOW), Op(RETURN, PERMISSION)],
        # to ask, not to set, and only of itself: (pid, which, new, old)
        "prlimit64": [low(0), Op(EQUAL, 0, 0, 5), low(2), Op(EQUAL, 0, 0, 3), high(2), Op(EQUAL, 0, 0, 1), Op(RETURN, ALLOW), Op(RETURN, PERMISSION)],
    }  # fmt: skip
    only["mprotect"] = only["mmap"]
    for name, body in only.items():
        ops += [Op(EQUAL, SOME[name][column], 0, len(body)), *body]
    numbers = [both[column] for both in ALLOWED.values()]
    if machine == "x86_64":
        numbers += ALLOWED_X86.values()
    numbers.sort()
    for at, number in enumerate(numbers):
        ops.append(Op(EQUAL, number, len(numbers) - at, 0))
    return [*ops, Op(RETURN, PERMISSION), Op(RETURN, ALLOW)]


def offered() -> str:
    """ "" if this kernel can filter calls and this page knows its architecture; otherwise why not."""
    if MACHINE not in ARCHITECTURES:
        return f"no filter is written for {MACHINE}"
    try:
        linux.call(_SECCOMP[MACHINE], 2, 0, ctypes.c_char_p(struct.pack("=I", PERMISSION & 0xFFFF0000)))  # is it known?
    except OSError as error:
        return f"this kernel does not filter calls ({error.strerror})"
    return ""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def restrict() -> None:
    """For this thread and those that it will start, for ever. Needs no_new_privs. OSError if the kernel does not do it."""
    body = b"".join(struct.pack("=HBBI", op.code, op.yes, op.no, op.k) for op in program(MACHINE, os.getpid()))
    whole = _Program(len(body) // 8, body)
    linux.call(_SECCOMP[MACHINE], SET_MODE_FILTER, 0, ctypes.byref(whole))
