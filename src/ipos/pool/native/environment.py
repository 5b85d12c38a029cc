"""Environments of scripts, reduced to one form: a Python version and pinned requirements with hashes, as one record.

Declared by a PEP 723 block, a lock beside the script, the uv.lock of the script's project, or `--with`; resolved once, by uv, where the job
is handed in (`resolve`); built once per machine, by uv, from the record alone, in HOME/env/KEY (`Builds`).
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ipos.pool.native import clear, declared, kernel, uv
from ipos.pool.native.runner import base_python
from ipos.wire.errors import Refused
from ipos.wire.record import Record

Say = Callable[[str], None]

HERE = (sys.version_info.major, sys.version_info.minor, sys.version_info.micro)
STAMP = "complete"
QUIET = ("--quiet", "--no-header", "--no-annotate")
LOCAL = re.compile(r"^(-e |\.{0,2}/|file:)|@ file:")
PACKAGES = {  # what is imported under another name than it is installed by
    "PIL": "pillow", "bs4": "beautifulsoup4", "cv2": "opencv-python-headless", "dateutil": "python-dateutil", "skimage": "scikit-image",
    "sklearn": "scikit-learn", "yaml": "pyyaml",
}  # fmt: skip


class Environment(Record, frozen=True, kw_only=True):
    """`python`: "3.11"; `requirements`: text in pip's format, every version pinned, with hashes. Its CID is its key."""

    v: int = 1
    python: str
    requirements: str

    @property
    def counted(self) -> str:
        """ "6 packages"."""
        count = sum(not line.startswith((" ", "-")) for line in self.requirements.splitlines())
        return f"{count} package{'' if count == 1 else 's'}"


async def resolve(script: Path, withs: Sequence[str], say: Say, run: uv.Run = uv.plainly) -> Environment | None:
    """The environment that the script asks for, None if it asks for none. `Refused` with uv's reason if there is no such thing.

    A lock is taken as it is; what is not locked is resolved for all platforms at once. `say` gets lines of progress. `run`:
    `uv.isolated(runner)` where even metadata of packages must not be built within reach of the keys.
    """
    block = await asyncio.to_thread(declared.block, script)
    project = None if block is not None else declared.project_of(script)
    if block is not None and declared.lock_of(script) is not None:
        python = declared.choose_python(block.python, HERE)
        say(f"reading {script.name}.lock")
        pins = await _export(
            ["--script", str(script)], f"{script.name}.lock", f"uv lock --script {script.name}", python, run
        )
    elif project is not None:
        lock = declared.read_lock(project / "uv.lock")
        python = declared.choose_python(lock.python, HERE)
        say(f"reading uv.lock of {project.name}")
        if lock.local:
            say(f"left out {', '.join(lock.local)}: only published packages travel")
        arguments = ["--project", str(project), "--no-emit-project", "--no-emit-local", "--no-dev"]
        pins = await _export(arguments, f"{project}/uv.lock", f"uv lock --project {project}", python, run)
    elif block is not None:
        python = declared.choose_python(block.python, HERE)
        pins = ""
    else:
        if not withs:
            return None
        python, pins = declared.choose_python("", HERE), ""
    open_needs = [*(block.needs if block is not None and not pins else ()), *withs]
    if open_needs:
        inputs = [str(script)] if block is not None and not pins else []
        pins = await _compile(script.name, inputs, [pins, *withs], python, say, run)
    elif not pins and block is None:
        return None
    for line in pins.splitlines():
        if LOCAL.search(line):
            raise Refused(
                f"{script.name} needs {line.split(' --hash')[0].strip()}, a directory of this machine: only published packages travel"
            )
    return Environment(python=python, requirements=pins)


async def _export(arguments: list[str], lock: str, fix: str, python: str, run: uv.Run) -> str:
    ask = ["export", *arguments, *QUIET, "--python", _interpreter(python)]
    said = await run([*ask, "--locked"], "", ())
    if said.no_network:
        said = await run([*ask, "--frozen"], "", ())
    if said.code and "needs to be updated" in said.err:
        raise Refused(f"{lock} is out of date: run {fix}")
    return bare(said.check(f"{lock} cannot be used"))


async def _compile(name: str, inputs: list[str], more: list[str], python: str, say: Say, run: uv.Run) -> str:
    say(f"resolving the packages of {name}")
    ask = ["pip", "compile", *inputs, "-", "--universal", "--generate-hashes", *QUIET, "--python-version", python]
    text = "\n".join(more) + "\n"
    said = await run(ask, text, ())
    if said.no_network:
        say("no network: resolving from what uv has cached")
        offline = await run([*ask, "--offline"], text, ())
        said = said if offline.code else offline
    pins = bare(said.check(f"the packages of {name} cannot be resolved"))
    say(f"resolved {Environment(python=python, requirements=pins).counted}")
    return pins


def bare(requirements: str) -> str:
    """Without comments, so that equal requirements are equal text."""
    lines = (line.rstrip() for line in requirements.splitlines())
    return "".join(line + "\n" for line in lines if line and not line.lstrip().startswith("#"))


def _interpreter(version: str) -> str:
    """For uv's --python: this machine's own interpreter where it will do, so that none has to be looked for."""
    return str(base_python()) if version == f"{HERE[0]}.{HERE[1]}" else version


class Builds:
    """The environments of one home, `root` = HOME/env. One that was interrupted has no stamp, and is built again from the start."""

    def __init__(self, root: Path, run: uv.Run = uv.plainly) -> None:
        self._root = root
        self._run = run
        self._locks: dict[str, asyncio.Lock] = {}

    async def interpreter(self, key: str, environment: Environment, say: Say) -> Path:
        """The python of the environment, built if it is not there. `Refused` with uv's reason if it cannot be."""
        directory = self._root / key
        python, stamp = directory / "bin" / "python", directory / STAMP
        async with self._locks.setdefault(key, asyncio.Lock()):
            if stamp.exists():
                return python
            await asyncio.to_thread(_begin, directory)
            began = time.monotonic()
            say(f"building an environment of {environment.counted}")
            ask = ["venv", "--quiet", "--no-project", "--allow-existing", "--python", _interpreter(environment.python)]
            said = await self._run([*ask, str(directory)], "", [directory])
            said.check(f"this machine has no Python {environment.python} and cannot get it")
            if environment.requirements:
                await self._install(environment, python, directory)
            await asyncio.to_thread(_stamp, stamp)
            say(f"installed {environment.counted} in {time.monotonic() - began:.1f} s")
            return python

    async def _install(self, environment: Environment, python: Path, directory: Path) -> None:
        """From uv's cache alone if all is in it; tasks cannot write here, so bytecode is compiled now or never."""
        ask = ["pip", "install", "--quiet", "--no-deps", "--compile-bytecode", "--python", str(python), "-r", "-"]
        if "@ git+" not in environment.requirements:  # those are pinned by their commit
            ask.append("--require-hashes")
        said = await self._run([*ask, "--offline"], environment.requirements, [directory])
        if said.code:
            said = await self._run(ask, environment.requirements, [directory])
        said.check("its environment cannot be built here")


def _begin(directory: Path) -> None:
    clear.remove(str(directory))
    directory.mkdir(parents=True, mode=0o755)


def _stamp(path: Path) -> None:
    """After everything else is on disk, so that a stamp that survives a crash tells the truth."""
    kernel.sync_disk(str(path.parent))
    path.touch()
    kernel.sync_disk(str(path.parent))


def hint(name: str, stderr: str) -> str | None:
    """What would fix a script that lacks a package, None if that is not what is wrong with it."""
    found = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", stderr)
    if found is None:
        return None
    module = found[1].split(".")[0]
    package = PACKAGES.get(module, module)
    return f"{name} needs {package}: add --with {package}, or a '# /// script' block that names it"
