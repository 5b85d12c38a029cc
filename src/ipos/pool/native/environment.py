"""Environments of scripts, reduced to one form: a Python version and pinned requirements with hashes, as one record.

Declared by a PEP 723 block (https://peps.python.org/pep-0723/), a uv.lock of the script's project, or `--with`; resolved once, by uv, on the node
where the job is handed in; built once per machine, by uv, in HOME/env/<cid>. A build that was killed is done again from the start.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from ipos.wire.errors import Refused
from ipos.wire.record import Record

BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
LIMIT_S = 600.0


class Environment(Record, frozen=True, kw_only=True):
    """`python`: "3.11"; `requirements`: text in pip's format, every version pinned."""

    v: int = 1
    python: str
    requirements: str


def declared(script: Path) -> tuple[list[str], str | None] | None:
    """Requirements and requires-python of the script's PEP 723 block; None if it has none. `Refused` if it cannot be read."""
    found = BLOCK.search(script.read_text(errors="replace"))
    if found is None:
        return None
    text = "".join(
        line[2:] if line.startswith("# ") else line[1:] for line in found["content"].splitlines(keepends=True)
    )
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{script.name}: its '# /// script' block cannot be read: {error}") from None
    needs = table.get("dependencies", [])
    if not isinstance(needs, list) or not all(isinstance(one, str) for one in needs):
        raise Refused(f"{script.name}: 'dependencies' in its '# /// script' block must be a list of strings")
    return list(needs), table.get("requires-python")


def project_of(script: Path) -> Path | None:
    """The nearest directory above with a uv.lock, not beyond the root of a git repository."""
    for directory in script.resolve().parents:
        if (directory / "uv.lock").is_file():
            return directory
        if (directory / ".git").exists():
            return None
    return None


async def uv(arguments: Sequence[str], stdin: str = "") -> tuple[int, str, str]:
    """Run it: status, standard output, standard error."""
    from uv import find_uv_bin

    process = await asyncio.create_subprocess_exec(
        find_uv_bin(), *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        raise Refused(f"uv took longer than {LIMIT_S:g} s: {' '.join(arguments[:2])}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")


def sentence(err: str) -> str:
    """What uv says, in one line."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", err)
    words = re.sub(r"[\s│╰─▶×]+", " ", words).strip()
    return words[:600]


async def resolve(script: Path, withs: Sequence[str], say: Callable[[str], None]) -> Environment | None:
    """The environment that the script asks for, None if it asks for none. `Refused` with uv's reason if there is no such thing."""
    block = declared(script)
    project = None if block is not None else project_of(script)
    needs = [*(block[0] if block else []), *withs]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if project is not None:
        say(f"reading {project.name}/uv.lock")
        arguments = ["export", "--frozen", "--no-emit-project", "--no-dev", "--quiet", "--project", str(project)]
        code, out, err = await uv(arguments)
        if code:
            raise Refused(f"{project}/uv.lock cannot be used: {sentence(err)}")
        needs = [out, *needs] if out.strip() else needs
        if not withs:
            return Environment(python=python, requirements=bare(out)) if out.strip() else None
    if not needs:
        return None
    say(f"resolving {', '.join(withs or needs)[:200]}")
    arguments = [
        "pip",
        "compile",
        "-",
        "--universal",
        "--generate-hashes",
        "--quiet",
        "--no-header",
        "--python-version",
        python,
    ]
    code, out, err = await uv(arguments, "\n".join(needs) + "\n")
    if code:
        raise Refused(f"{script.name}: its packages cannot be resolved: {sentence(err)}")
    return Environment(python=python, requirements=bare(out))


def bare(requirements: str) -> str:
    """Without comments, so that equal requirements are equal text."""
    return "".join(
        line + "\n" for line in requirements.splitlines() if line.strip() and not line.lstrip().startswith("#")
    )


async def installed(package: str, target: Path) -> None:
    """The files of one package, without what it depends on, under `target`."""
    code, _, err = await uv(["pip", "install", "--quiet", "--no-deps", "--target", str(target), package])
    if code:
        raise Refused(f"{package} cannot be fetched: {sentence(err)}")


class Builds:
    """The environments of one home."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks: dict[str, asyncio.Lock] = {}

    async def interpreter(self, key: str, environment: Environment, say: Callable[[str], None]) -> Path:
        """The python of the environment, built if it is not there. `Refused` with uv's reason if it cannot be."""
        directory = self._root / key
        python, stamp = directory / "bin" / "python", directory / "complete"
        async with self._locks.setdefault(key, asyncio.Lock()):
            if stamp.exists():
                return python
            if directory.exists():
                await asyncio.to_thread(shutil.rmtree, directory)
            count = sum(not line.startswith(" ") for line in environment.requirements.splitlines())
            what = f"an environment of {count} package{'s' if count != 1 else ''}"
            say(f"building {what}")
            steps = (
                (["venv", "--quiet", "--python", environment.python, str(directory)], ""),
                (
                    ["pip", "install", "--quiet", "--python", str(python), "--no-deps", "-r", "-"],
                    environment.requirements,
                ),
            )
            for arguments, stdin in steps:
                code, _, err = await uv(arguments, stdin)
                if code:
                    raise Refused(f"the environment cannot be built here: {sentence(err)}")
            stamp.write_text("")
            say(f"built {what}")
            return python


def hint(name: str, stderr: str) -> str | None:
    """What would fix a script that lacks a package."""
    found = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", stderr)
    if found is None:
        return None
    package = found[1].split(".")[0]
    return f"{name} needs {package}: add --with {package}, or a '# /// script' block that names it"
