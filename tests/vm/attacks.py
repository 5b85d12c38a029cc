"""Run inside a worker that was taken over (test_overtaken.py): everything that its program must not be able to do, tried. One JSON line each on
standard output: what was tried, the layer that stops it, and "" if it worked, otherwise the error."""

import ctypes
import json
import mmap
import os
import platform
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

AIM: dict[str, object] = json.loads(os.read(0, 1 << 16))
HOME, CACHE, NODE, SIBLING = (
    Path(str(AIM["home"])),
    Path(str(AIM["cache"])),
    int(str(AIM["node"])),
    int(str(AIM["sibling"])),
)
SAVES, OUT = 4, 6
X86 = platform.machine() == "x86_64"
libc = ctypes.CDLL(None, use_errno=True)


def call(x86: int, arm: int, *arguments: object) -> None:
    if libc.syscall(ctypes.c_long(x86 if X86 else arm), *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def attempt(name: str, layer: str, act: Callable[[], object]) -> None:
    try:
        act()
        error = ""
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    os.write(1, json.dumps([name, layer, error]).encode() + b"\n")


def fill() -> None:
    fd = os.open("big", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=SAVES)
    try:
        for _ in range(64):
            if os.write(fd, bytes(1 << 20)) < 1 << 20:
                raise OSError("short")
    finally:
        os.unlink("big", dir_fd=SAVES)


def look(path: str | Path) -> Callable[[], object]:
    return lambda: os.read(os.open(path, os.O_RDONLY), 10)


def peek_at(pid: int) -> Callable[[], None]:
    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]

    room = ctypes.create_string_buffer(8)
    here, there = Span(ctypes.addressof(room), 8), Span(id(None), 8)
    return lambda: call(310, 270, pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def bomb() -> None:
    threading.stack_size(1 << 16)
    hold = threading.Event()
    some = [threading.Thread(target=hold.wait, daemon=True) for _ in range(50)]
    try:
        for one in some:
            one.start()
    finally:
        hold.set()


def send_descriptor() -> None:
    ours, theirs = socket.socket(fileno=os.dup(3)), 0
    try:
        socket.send_fds(ours, [b"x"], [theirs])
    finally:
        ours.detach()


def inherited() -> None:
    """More descriptors than it was given: its seven, those of its program."""
    strange = [fd for fd in range(7, 4096) if open_(fd) and not is_memory(fd)]
    if not strange:
        raise OSError("none")


def open_(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def is_memory(fd: int) -> bool:
    return os.fstat(fd).st_nlink == 0  # a memfd has no name


def environment() -> None:
    if not os.environ:
        raise OSError("empty")


attempt("a descriptor that was inherited", "", inherited)
attempt("internet socket", "calls", lambda: socket.socket(socket.AF_INET))
attempt("unix socket", "calls", lambda: socket.socket(socket.AF_UNIX))
attempt("netlink socket", "calls", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("pass a descriptor on", "calls", send_descriptor)
attempt("the run key", "files", look(HOME / "keys" / "run"))
attempt(
    "the run key, from a directory of its own", "files", lambda: os.open("../../../keys/run", os.O_RDONLY, dir_fd=SAVES)
)
attempt("the journal", "files", look(HOME / "journal.sqlite"))
attempt("the store", "files", lambda: os.scandir(HOME / "store"))
attempt("the log", "files", lambda: os.open(HOME / "log", os.O_WRONLY))
attempt("/etc/passwd", "files", look("/etc/passwd"))
attempt(
    "/etc/passwd, by a symlink",
    "files",
    lambda: os.symlink("/etc/passwd", "x", dir_fd=SAVES) or os.open("x", os.O_RDONLY, dir_fd=SAVES),
)
attempt(
    "a file in /tmp",
    "files",
    lambda: os.unlink(
        os.open(f"/tmp/ipos-overtaken-{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
        and f"/tmp/ipos-overtaken-{os.getpid()}"
    ),
)
attempt("the user's directory", "files", lambda: list(os.scandir(os.path.expanduser("~"))))
attempt("the MAC key", "files", look(CACHE / "key"))
attempt("compiled code", "files", lambda: os.open(CACHE / ("0" * 64), os.O_WRONLY | os.O_CREAT, 0o600))
attempt("its own code", "files", lambda: os.open("/proc/self/mem", os.O_RDWR))
attempt("trace the parent", "calls", lambda: call(101, 117, 16, os.getppid(), 0, 0))
attempt("read the parent's memory", "calls", peek_at(os.getppid()))
attempt("read a sibling's memory", "calls", peek_at(SIBLING))
attempt("signal the node", "calls", lambda: os.kill(NODE, signal.SIGCONT))
attempt("signal the parent", "calls", lambda: os.kill(os.getppid(), signal.SIGCONT))
attempt("signal a sibling", "calls", lambda: os.kill(SIBLING, signal.SIGCONT))
attempt("signal everybody", "calls", lambda: os.kill(-1, signal.SIGCONT))
attempt("fork", "calls", fork)
attempt(
    "memory that is code", "calls", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
)
attempt("more open files", "limits", lambda: [os.dup(0) for _ in range(4096)])
os.closerange(7, 4096)
attempt("fill the disk", "limits", fill)
attempt(
    "fill the memory",
    "limits",
    lambda: mmap.mmap(-1, int(str(AIM["too_much"])), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
)
attempt("raise a limit", "calls", lambda: call(302, 261, 0, 1, struct.pack("=QQ", 1 << 20, 1 << 62), None))
attempt("become root", "calls", lambda: os.setuid(0))
if AIM["own_uid"]:
    attempt("many threads", "uid", bomb)
attempt("an environment", "", environment)
for name, x86, arm in (
    ("mount", 165, 40), ("unshare", 272, 97), ("bpf", 321, 280), ("keyctl", 250, 219), ("open by handle", 304, 265),
    ("io_uring", 425, 425), ("userfaultfd", 323, 282), ("perf events", 298, 241), ("memfd_create", 319, 279),
    ("pidfd_open", 434, 434), ("chroot", 161, 51), ("prctl", 157, 167), ("personality", 135, 92), ("seccomp", 317, 277),
    ("setns", 308, 268), ("ptrace", 101, 117), ("reboot", 169, 142), ("init_module", 175, 105), ("shmget", 29, 194),
    ("mq_open", 240, 180), ("capset", 126, 91), ("pkey_mprotect", 329, 288), ("vmsplice", 278, 75), ("chmod", 91, 52),
):  # fmt: skip
    attempt(name, "calls", lambda x86=x86, arm=arm: call(x86, arm, -1, -1, -1, -1, -1, -1))
attempt("run another program", "calls", lambda: os.execv("/bin/echo", ["echo", '["run another program", "calls", ""]']))
