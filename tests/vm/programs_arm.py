"""A Python for aarch64 under qemu, with what the engine needs, in the user's cache; nothing of it is installed on this machine.

Debian's packages for arm64 (CPython, glibc) are fetched by apt into folders of our own and unpacked there, the wheels by uv. qemu-user is
this machine's or comes the same way.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sysconfig
import tempfile
import tomllib
from functools import cache
from pathlib import Path

from .programs import CACHE, HERE

REPOSITORY = HERE.parents[1]
UV = Path(sysconfig.get_path("scripts")) / "uv"
WHEELS = ("wasmtime", "blake3", "zstandard", "msgspec", "libipld")
QEMU = "qemu-user-static"
EMULATOR = "qemu-aarch64-static"


def _ran(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


class Apt:
    """Debian's packages for one architecture, as if nothing were installed here."""

    def __init__(self, architecture: str, folder: Path) -> None:
        self.folder = folder
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        settings = {
            "APT::Architecture": architecture, "APT::Architectures": architecture, "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status", "Dir::Cache": folder, "Dir::Cache::archives": folder / "archives",
            "APT::Sandbox::User": "", "Debug::NoLocking": "1", "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        }  # fmt: skip
        self._options = [f"-o{key}={value}" for key, value in settings.items()]
        _ran("apt-get", *self._options, "update", "-q")

    def depends(self, package: str) -> str:
        return _ran("apt-cache", *self._options, "show", package)

    def unpack(self, into: Path, *packages: str, alone: bool = False) -> None:
        """With all that they depend on; `alone`: without."""
        if alone:
            command = ["apt-get", *self._options, "download", *packages]
            subprocess.run(command, cwd=self.folder / "archives", check=True, capture_output=True)
        else:
            often = ("install", "-y", "--download-only", "--no-install-recommends")
            _ran("apt-get", *self._options, *often, *packages)
        into.mkdir(parents=True, exist_ok=True)
        for archive in sorted((self.folder / "archives").glob("*.deb")):
            _ran("dpkg-deb", "-x", archive, into)


def _wheels() -> list[str]:
    """As uv.lock has them."""
    locked = tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
    return [f"{one['name']}=={one['version']}" for one in locked if one["name"] in WHEELS]


@cache
def python() -> list[str]:
    """The words of a command line that runs aarch64's Python."""
    home = CACHE / "-".join(["aarch64", *(wheel.replace("==", "") for wheel in _wheels())])
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "aarch64.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes of one test run
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                _make(Path(scratch)).rename(home)
    emulator = home / EMULATOR
    (interpreter,) = (home / "root/usr/bin").glob("python3.[0-9][0-9]")
    return [
        str(emulator if emulator.exists() else EMULATOR), "-L", str(home / "root"), str(interpreter), "-I", "-c",
        f"import runpy, sys; sys.path[:0] = {[str(home / 'site'), str(REPOSITORY / 'src')]!r}; sys.argv[:1] = []; runpy.run_path(sys.argv[0], run_name='__main__')",
    ]  # fmt: skip


def _make(scratch: Path) -> Path:
    home = scratch / "home"
    apt = Apt("arm64", scratch / "apt")
    found = re.search(r"python(3\.\d+)-minimal", apt.depends("python3-minimal"))
    assert found, "Debian's python3-minimal depends on no python3.N-minimal"
    version = found[1]
    apt.unpack(home / "root", f"python{version}-minimal", f"libpython{version}-stdlib", "libgcc-s1")
    _ran(
        UV, "pip", "install", "-q", "--target", home / "site", "--python-platform", "aarch64-manylinux_2_28",
        "--python-version", version, "--only-binary", ":all:", *_wheels(),
    )  # fmt: skip
    if shutil.which(EMULATOR) is None:
        own = _ran("dpkg", "--print-architecture").strip()
        Apt(own, scratch / "own").unpack(scratch / "qemu", QEMU, alone=True)
        (scratch / "qemu/usr/bin" / EMULATOR).rename(home / EMULATOR)  # one of many
    return home
