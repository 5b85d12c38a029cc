"""version: which engine this is. Nothing else is imported here: the node asks without loading wasmtime."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from pathlib import Path

from blake3 import blake3


@cache
def version() -> str:
    """The engine version, part of a task's identity: a hash of the pass (so of its weights) and of the WASI."""
    both = b"".join(blake3((files("ipos.vm") / name).read_bytes()).digest() for name in ("ipinst.wasm", "ipwasi.wasm"))
    return blake3(both).hexdigest()[:16]


@cache
def image_runner() -> str:
    """The script that Python images run."""
    return (files("ipos.vm") / "image_runner.py").read_text()


@cache
def platform() -> str:
    """What such a task asks of a machine."""
    return f"wasm:{version()}"


def cache_root() -> Path:
    """Compiled code of this user, shared by all his homes: six nodes on one PC compile CPython once."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ipos" / "compiled"
