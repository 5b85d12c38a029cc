"""code: compiled programs, kept per user of the machine, believed only with this user's MAC. Loads nothing of the engine.

Compilation happens in a process of its own with limits on memory and CPU, one module each: a module that is slow to compile costs the node
nothing but that process. What it gives is machine code, and the engine trusts its input; so the key of the MAC stays with the node, and a
worker gets the code itself, in a sealed piece of memory that nobody can write any more.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import resource
import subprocess
import sys
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

from blake3 import blake3

from ipos.vm.version import version
from ipos.wire.errors import Refused

COMPILE_MEMORY_BYTES: Final = 6 << 30  # address space, most of it reserved and never touched
COMPILE_CPU_S: Final = 180
MAC_BYTES: Final = 32
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def key(root: Path) -> bytes:
    """This user's MAC key; made when it is first needed."""
    path = root / "key"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=root, delete=False) as new:
            new.write(os.urandom(MAC_BYTES))
        try:
            os.link(new.name, path)  # the first of two processes wins
        except FileExistsError:
            pass
        finally:
            os.unlink(new.name)
    return path.read_bytes()


@cache
def _processor() -> bytes:
    """What code may depend on besides the program: two machines may share a home."""
    kinds = ("model name", "flags", "CPU part", "Features")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)})).encode()


def name(program: bytes) -> str:
    """Of the code of a program, by this engine, on this processor."""
    return blake3(program + version().encode() + metadata.version("wasmtime").encode() + _processor()).hexdigest()


def compiled(program: bytes, root: Path) -> bytes:
    """The instrumented program as machine code; from the cache in `root` if it is there. May take minutes. `Refused`: not admitted, or
    its limits were exceeded while it was compiled."""
    own = key(root)
    path = root / name(program)
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        body = b""
    mac, code = body[:MAC_BYTES], body[MAC_BYTES:]
    if not hmac.compare_digest(mac, blake3(code, key=own).digest()):  # also a torn or a foreign file
        code = _compile(program, root)
        with tempfile.NamedTemporaryFile(dir=root, delete=False) as new:
            new.write(blake3(code, key=own).digest() + code)
        os.replace(new.name, path)
    return code


def sealed(code: bytes) -> int:
    """A descriptor of memory that holds `code` and that nobody can change."""
    fd = os.memfd_create("ipos-code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    left = memoryview(code)
    while left:
        left = left[os.write(fd, left) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (COMPILE_CPU_S, COMPILE_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (COMPILE_MEMORY_BYTES, COMPILE_MEMORY_BYTES))


def _compile(program: bytes, root: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        source, target = Path(scratch, "program.wasm"), Path(scratch, "code")
        source.write_bytes(program)
        done = subprocess.run(
            [sys.executable, "-I", "-m", "ipos.vm.engine", str(source), str(target)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=_limits, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return target.read_bytes()
    sentence = done.stderr.strip().splitlines()
    if done.returncode == 1 and sentence:
        raise Refused(sentence[-1])
    raise Refused(
        f"the program could not be compiled within {COMPILE_CPU_S} s of CPU and {COMPILE_MEMORY_BYTES >> 30} GiB: "
        + (sentence[-1] if sentence else f"its compiler ended with status {done.returncode}")
    )
