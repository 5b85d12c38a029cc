"""verdict: from how a process ended to what that means: the program's result, a limit that was hit, or this machine's fault."""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import struct
from pathlib import Path
from typing import NamedTuple

from ipos.pool.native import workdir
from ipos.pool.native.process import Limits
from ipos.wire import limits
from ipos.wire.errors import Refused

OUT_OF_MEMORY = re.compile(
    r"MemoryError|bad_alloc|[Cc]annot allocate memory|[Oo]ut of memory|memory allocation of \d+ bytes failed"
)
MACHINES = {3: "i386", 8: "MIPS", 40: "ARM", 62: "x86_64", 183: "aarch64", 243: "RISC-V"}  # e_machine, elf(5)


class Verdict(NamedTuple):
    fault: str | None = None
    killed: str | None = None


def judge(status: int, asked: Limits, directory: Path, rss_bytes: int, oom_kills: int) -> Verdict:
    """`directory`: HOME/work/KEY; `oom_kills`: how many processes the kernel ended for lack of memory, on this machine, meanwhile."""
    if grown := printed_too_much(asked, directory) or (status and _grown_file(status, asked.output_bytes, directory)):
        return Verdict(killed=f"wrote more than {size(asked.output_bytes)} to {grown}: raise it with --max-output")
    if status == 0:
        return Verdict()
    if status == -signal.SIGXCPU and asked.cpu_s:
        return Verdict(killed=f"used more than {asked.cpu_s} s of processor time")
    if status == -signal.SIGKILL:
        if oom_kills:
            return Verdict(fault="this machine ran out of memory and its kernel ended the task")
        return Verdict(fault="something on this machine that is not the node ended the task (SIGKILL)")
    if asked.memory_bytes and _starved(status, asked.memory_bytes, directory, rss_bytes):
        return Verdict(killed=f"needed more than {size(asked.memory_bytes)} of memory: raise it with --memory")
    if workdir.full(directory):
        return Verdict(fault=f"the disk of {directory.parent} is full, and the task failed")
    return Verdict()


def printed_too_much(asked: Limits, directory: Path) -> str | None:
    """Which of stdout and stderr reached the limit. The kernel lets neither grow past it, so one that just reaches it is cut as well."""
    if asked.output_bytes:
        for name in ("stdout", "stderr"):
            if os.stat(f"{directory}/{name}").st_size >= asked.output_bytes:
                return name
    return None


def _grown_file(status: int, most: int, directory: Path) -> str | None:
    """The file that reached the limit. Programs that ignore SIGXFSZ, as Python does, see an error instead."""
    if not most:
        return None
    for path, _, names in os.walk(directory / "cwd"):
        for name in names:
            if os.lstat(os.path.join(path, name)).st_size >= most:
                return f"the file {name}"
    return "a file" if status == -signal.SIGXFSZ else None


def _starved(status: int, most: int, directory: Path, rss_bytes: int) -> bool:
    """An allocation that fails is reported to the program, not to us; so this is a judgement: it said so, or it crashed near the limit."""
    if OUT_OF_MEMORY.search(tail(directory / "stderr")):
        return True
    return status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS) and rss_bytes > most * 3 // 4


def tail(path: Path) -> str:
    """The end of what it wrote there, `limits.stderr_tail_bytes` at most."""
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - limits.stderr_tail_bytes))
        return stream.read().decode(errors="replace")


def oom_kills() -> int:
    """How many processes this machine's kernel has ended for lack of memory since it booted, in any control group."""
    found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def size(count: int) -> str:
    for unit, name in ((limits.GiB, "GiB"), (limits.MiB, "MiB"), (limits.KiB, "KiB")):
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count} bytes"


# ---- programs that do not start


def why_not(name: str, path: str, error: int, said: str) -> Refused:
    """The sentence for a program that the kernel would not start."""
    match error:
        case errno.ENOENT if not os.path.exists(path):
            sentence = f"{path} does not exist"
        case errno.ENOENT:
            sentence = (
                f"{name} cannot be started here: this machine has no {_interpreter(path) or 'interpreter for it'}"
            )
        case errno.EACCES:
            sentence = f"{name} cannot be started: it is not an executable file"
        case errno.ENOEXEC:
            sentence = (
                f"{name} cannot be started here: it is {_kind(path)}, this machine runs Linux on {platform.machine()}"
            )
        case errno.E2BIG:
            sentence = f"{name} cannot be started: its arguments are longer than this machine takes"
        case errno.ENOSPC:
            sentence = f"{name} cannot be started: the disk is full"
        case _:
            sentence = f"{name} cannot be started here: {said}"
    return Refused(sentence, error)


def _kind(path: str) -> str:
    with open(path, "rb") as stream:
        head = stream.read(20)
    if head[:4] == b"\x7fELF" and len(head) == 20:
        order = ">" if head[5] == 2 else "<"
        machine: int = struct.unpack_from(order + "H", head, 18)[0]
        return f"built for {MACHINES.get(machine, f'ELF machine {machine}')}"
    if head[:2] == b"MZ":
        return "built for Windows"
    if head[:4] in (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xce\xfa\xed\xfe"):
        return "built for macOS"
    return "no program: a script must begin with '#!' and its interpreter"


def _interpreter(path: str) -> str | None:
    """What the kernel looks for before it starts the file: of a script, its first line says it; of an ELF file, PT_INTERP."""
    with open(path, "rb") as stream:
        head = stream.read(4096)
    if head[:2] == b"#!":
        words = head[2:].split(b"\n", 1)[0].split()
        return words[0].decode(errors="replace") if words else None
    if head[:5] == b"\x7fELF\x02" and head[5] == 1:
        start, width, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        for at in range(start, min(start + width * count, len(head) - 56), width):
            kind, offset, length = *struct.unpack_from("<I", head, at), *struct.unpack_from("<Q16xQ", head, at + 8)
            if kind == 3 and offset + length <= len(head):
                return head[offset : offset + length].rstrip(b"\0").decode(errors="replace")
    return None
