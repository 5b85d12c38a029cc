"""confine: a worker, just forked, gives up everything but what it was handed. Layer after layer, each where the kernel offers it.

What the kernel does not offer is said, in a sentence, and the others hold all the same; what it offers and then refuses ends the process,
for half a sandbox is none.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from typing import Final, NamedTuple

from ipos.vm.sandbox import landlock, linux, seccomp

GiB: Final = 1 << 30
ENGINE_ADDRESSES: Final = 24 * GiB  # that wasmtime reserves for four memories and their guards, and the stack
ENGINE_MEMORY: Final = 2 * GiB  # stack, interpreter, compiled code
STATES: Final = 10  # times a task's memory: its four memories, and the copies that a save and a restore make
OPEN_FILES: Final = 64
THREADS: Final = 2
UID_BASE: Final = 0x69700000  # a worker of root gets this plus its process id: no two of them ever share a user


class Given(NamedTuple):
    """Descriptors of directories, and what the task may use. `uid`: of the worker; None: that of `parent`, a process id."""

    saves: int
    root: int
    out: int
    memory_bytes: int
    file_bytes: int
    uid: int | None
    parent: int


def _limits(given: Given) -> str:
    memory = STATES * given.memory_bytes
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_FSIZE: given.file_bytes,
        resource.RLIMIT_AS: ENGINE_ADDRESSES + memory,
        resource.RLIMIT_DATA: ENGINE_MEMORY + memory,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if given.uid is not None:  # it counts all processes of a user
        bounds[resource.RLIMIT_NPROC] = THREADS
    for which, value in bounds.items():
        hard = resource.getrlimit(which)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (least, least))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond it fails instead
    return ""


def _own_uid(given: Given) -> str:
    if given.uid is None:
        return "only root can give each worker a user id of its own"
    os.setgroups([])
    os.setresgid(given.uid, given.uid, given.uid)
    os.setresuid(given.uid, given.uid, given.uid)
    return ""


def _tied(given: Given) -> str:
    """After the change of user, which would undo it."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != given.parent:
        os._exit(127)
    return ""


def _no_new_privileges(given: Given) -> str:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    return ""


def _not_traceable(given: Given) -> str:
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    return ""


def _files(given: Given) -> str:
    if not landlock.abi():
        return "this kernel has no Landlock, or it is not in its list of security modules"
    landlock.restrict(
        ((given.saves, landlock.KEEP), (given.root, landlock.READ), (given.out, landlock.MAKE | landlock.READ))
    )
    return ""


def _calls(given: Given) -> str:
    why_not = seccomp.offered()
    if not why_not:
        seccomp.restrict()
    return why_not


def hard_address_space() -> int | None:
    """Bytes that this process may reserve; None: any."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return None if hard == resource.RLIM_INFINITY else hard


LAYERS: dict[str, Callable[[Given], str]] = {
    "limits": _limits,
    "uid": _own_uid,
    "tied": _tied,
    "no_new_privileges": _no_new_privileges,
    "untraceable": _not_traceable,
    "files": _files,
    "calls": _calls,
}
"""In this order: each one still may do what it needs. "" or why this kernel has it not."""


def confine(given: Given) -> dict[str, str]:
    """Of the calling thread and all that it starts: layer -> "" if it is in force, otherwise why not. OSError: it was refused."""
    return {name: layer(given) for name, layer in LAYERS.items()}
