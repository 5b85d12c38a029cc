"""Real programs for the tests: Lua and SQLite from their own sources, CPython as IPOS runs it. Built once, kept in the user's cache.

The sources come through package clients and are pinned: Lua 5.4 lies in the source package of PyPI's `lupa`, SQLite's amalgamation in the
Go module `go-sqlite3`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ipos.pool.image import python_image

from .programs import CACHE, HERE

UVX = Path(sysconfig.get_path("scripts")) / "uvx"
LUPA, LUPA_SHA256 = "lupa==2.5", "69c6a89f2b7b08a3040d7ed2a1eeccba37a31ddc92fa199339c53a2ae3c48c34"
GO_SQLITE = "github.com/mattn/go-sqlite3@v1.14.32"  # SQLite 3.50.4
SQLITE_SHA256 = "ff5f3fb4a741b4959304753058c31e875c0fb4886c9e909d476941962a11aa63"
LUA_UNITS = "lapi lauxlib lbaselib lcode lctype ldebug ldo ldump lfunc lgc liolib llex lmathlib lmem lobject lopcodes lparser lstate lstring lstrlib ltable ltablib ltm lundump lvm lzio"
TARGET = "-target wasm32-wasi -s -w -Wl,-z,stack-size=262144"
LUA_OPTIONS = f"{TARGET} -O2 -D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_PROCESS_CLOCKS -lwasi-emulated-process-clocks -DLUA_USE_C89 -Dluai_makeseed(L)=1"
SQLITE_OPTIONS = f"{TARGET} -O1 -D_WASI_EMULATED_GETPID -DSQLITE_THREADSAFE=0 -DSQLITE_OMIT_LOAD_EXTENSION -DSQLITE_OMIT_WAL -DSQLITE_MAX_MMAP_SIZE=0"


def _pinned(path: Path, sha256: str) -> Path:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == sha256, f"{path.name} has sha256 {found}, {sha256} was pinned"
    return path


def _built(name: str, options: str, includes: Iterable[Path], sources: list[Path], into: Path) -> Path:
    made = into / f"{name}.wasm"
    also = [f"-I{folder}" for folder in includes]
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *options.split(), *also, "-o", made, *sources], check=True)
    return made


def _product(name: str, *parts: str) -> Path:
    """Where it is kept: named after all that it is made from."""
    own = b"".join(path.read_bytes() for path in sorted((HERE / "programs" / name).glob("*.[ch]")))
    key = hashlib.sha256(own + "\0".join(parts).encode()).hexdigest()[:24]
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE / f"{name}-{key}.wasm"


@cache
def lua() -> bytes:
    product = _product("lua", LUPA_SHA256, LUA_OPTIONS)
    if not product.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            folder = Path(scratch)
            client = [UVX, "-q", "--with", "setuptools", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
            subprocess.run([*client, "--no-binary", "lupa", "-d", folder, LUPA], check=True)
            (archive,) = folder.glob("lupa-*.tar.gz")
            with tarfile.open(_pinned(archive, LUPA_SHA256)) as tar:
                tar.extractall(folder, filter="data")
            (source,) = folder.glob("lupa-*/third-party/lua54")
            own = HERE / "programs" / "lua"
            units = [own / "lua.c", *(source / f"{unit}.c" for unit in LUA_UNITS.split())]
            _built("lua", LUA_OPTIONS, (own, source), units, folder).replace(product)
    return product.read_bytes()


def _go() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "go"  # PyPI's, where the system has none: netd/build.sh
    go = shutil.which("go") or (str(beside) if beside.exists() else None)
    assert go, "Go is neither on the path nor in .venv: make setup"
    return go


@cache
def sqlite() -> bytes:
    product = _product("sqlite", SQLITE_SHA256, SQLITE_OPTIONS)
    if not product.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            folder = Path(scratch)
            command, alone = [_go(), "mod", "download", "-json", GO_SQLITE], {**os.environ, "GOFLAGS": "-mod=mod"}
            said = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False)
            assert said.returncode == 0, said.stdout + said.stderr
            source = Path(json.loads(said.stdout)["Dir"])
            units = [HERE / "programs/sqlite/sqlite.c", _pinned(source / "sqlite3-binding.c", SQLITE_SHA256)]
            _built("sqlite", SQLITE_OPTIONS, (source,), units, folder).replace(product)
    return product.read_bytes()


@cache
def cpython() -> bytes:
    return asyncio.run(python_image(CACHE, print)).read_bytes()
