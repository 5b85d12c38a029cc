"""Programs for the tests: C (built by ziglang, kept in the user's cache) and WebAssembly text."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from .machine import WASM_TOOLS

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipos-test-programs"
FREESTANDING = "-target wasm32-freestanding -mcpu=generic+bulk_memory+sign_ext+simd128+multivalue+nontrapping_fptoint -O2 -nostdlib -ffreestanding -Wl,--no-entry"
WASI = "-target wasm32-wasi -O2 -s"
SMALL = f"{WASI} -Wl,-z,stack-size=65536"  # else each has 16 MiB, and every stop reads them
T = TypeVar("T")


@cache
def c(name: str, options: str = FREESTANDING) -> bytes:
    source = HERE / "programs" / f"{name}.c"
    key = hashlib.sha256(source.read_bytes() + options.encode()).hexdigest()[:24]
    product = CACHE / f"{name}-{key}.wasm"
    if not product.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "made.wasm"
            subprocess.run([sys.executable, "-m", "ziglang", "cc", *options.split(), "-o", made, source], check=True)
            made.replace(product)
    return product.read_bytes()


@cache
def wat(text: str) -> bytes:
    return subprocess.run([WASM_TOOLS, "parse", "-"], input=text.encode(), capture_output=True, check=True).stdout


@cache
def spec() -> Path:
    """WebAssembly's own tests: release 2 and the vector proposal (Apache 2.0; webassembly.github.io/spec)."""
    archive = HERE / "spec.tar.xz"
    folder = CACHE / f"spec-{hashlib.sha256(archive.read_bytes()).hexdigest()[:16]}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            Path(temporary).chmod(0o755)
            (made := Path(temporary) / "made").mkdir()
            for part in Path(temporary).iterdir():
                if part != made:
                    part.rename(made / part.name)
            if not folder.exists():
                made.rename(folder)
    return folder


def on_large_stack(what: Callable[[], T]) -> T:
    """Calls deep recursion where it has room: the main thread's stack is smaller than the engine's limit."""
    result: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            result.append(what())
        except BaseException as error:
            raised.append(error)

    before = threading.stack_size(512 << 20)
    thread = threading.Thread(target=run)
    thread.start()
    threading.stack_size(before)
    thread.join()
    if raised:
        raise raised[0]
    return result[0]
