"""site: what a script in the engine can import besides the standard library, as content of its task's root.

Packages are wheels of pure Python and all that they need, resolved by uv for the image's Python, whatever this machine is; local modules are
directories. Both lie in one directory, `/site-packages`, which the image's runner puts on `sys.path`. Wheels are taken by their hashes, and
what an installer adds that may differ is left out: equal wheels are equal content, so equal tasks.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from blake3 import blake3

from ipos.pool.native.environment import bare, declared, sentence, uv
from ipos.wire.errors import Refused

NAME: Final = "site-packages"
PYTHON: Final = "3.12"
FOR: Final = (
    "--python-version",
    PYTHON,
    "--python-platform",
    "wasm32-pyodide2024",
    "--only-binary",
    ":all:",
    "--quiet",
)
"""uv knows no platform of its own for WASI; of those it knows, this one takes no machine's wheels before pure ones."""
INSTALLERS: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
SKIPPED: Final = shutil.ignore_patterns("__pycache__", ".*")
PROJECT: Final = ("pyproject.toml", "setup.py", "setup.cfg")


async def gather(
    script: Path, withs: Sequence[str], kept: Path, scratch: Path, say: Callable[[str], None]
) -> Path | None:
    """The directory that is the task's `site-packages`, in `scratch`; None if there is nothing to import. `withs`: requirements, and
    directories by absolute path; what the script's PEP 723 block asks for comes with them. `kept`: where packages stay unpacked.
    `Refused` names what cannot be had."""
    block = declared(script)
    needs = [*(block[0] if block else []), *(one for one in withs if not one.startswith("/"))]
    modules = [Path(one) for one in withs if one.startswith("/")]
    if not needs and not modules:
        return None
    made = scratch / NAME
    if needs:
        packages = await _packages(script.name, needs, kept, say)
        await asyncio.to_thread(shutil.copytree, packages, made)
    made.mkdir(exist_ok=True)
    for module in modules:
        await asyncio.to_thread(_module, module, made)
    return made


def _module(module: Path, made: Path) -> None:
    if not module.is_dir():
        raise Refused(f"--with {module}: there is no such directory")
    if found := next((name for name in PROJECT if (module / name).exists()), None):
        raise Refused(
            f"--with {module}: a project ({found}), not a module: name the directory that is imported, below it"
        )
    if not module.name.isidentifier():
        raise Refused(f"--with {module}: '{module.name}' is not a name that Python can import")
    if (made / module.name).exists() or (made / f"{module.name}.py").exists():
        raise Refused(f"--with {module}: there is a {module.name} already, from another --with or a package")
    try:
        shutil.copytree(module, made / module.name, ignore=SKIPPED, symlinks=True)
    except (OSError, shutil.Error) as error:
        raise Refused(f"--with {module}: it cannot be read: {error}") from None


async def _packages(script: str, needs: Sequence[str], kept: Path, say: Callable[[str], None]) -> Path:
    say(f"resolving {', '.join(needs)[:200]}")
    arguments = ["pip", "compile", "-", "--generate-hashes", "--no-header", "--no-annotate", *FOR]
    code, out, err = await uv(arguments, "\n".join(needs) + "\n")
    if code:
        raise Refused(f"{script}: {_why_not(err, needs)}")
    pinned = bare(out)
    target = kept / blake3(pinned.encode()).hexdigest()[:32]
    if target.exists():
        return target
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, prefix=".new-") as scratch:
        new = Path(scratch, "site")
        say(f"fetching {', '.join(line.split()[0] for line in pinned.splitlines() if not line.startswith(' '))[:200]}")
        arguments = [
            "pip",
            "install",
            "--target",
            str(new),
            "--no-deps",
            "--require-hashes",
            "--python",
            sys.executable,
            "-r",
            "-",
            *FOR,
        ]
        code, _, err = await uv(arguments, pinned)
        if code:
            raise Refused(f"{script}: its packages cannot be fetched: {sentence(err)}")
        await asyncio.to_thread(_cleaned, new)
        new.rename(target)
    return target


def _why_not(err: str, needs: Sequence[str]) -> str:
    """In one sentence, which package cannot be had, as far as uv's own words tell it."""
    words = sentence(err)
    if "no usable wheels" not in words:
        return f"its packages cannot be resolved: {words}"
    found = re.search(
        r"following versions of ([\w.-]+) are available|all versions of ([\w.-]+) have no usable wheels", words
    )
    named = (found[1] or found[2]) if found is not None else ", ".join(needs)
    return f"{named} has no wheel of pure Python (py3-none-any): in the engine only such packages work"


def _cleaned(site: Path) -> None:
    """Only what the wheels hold. `Refused` if one is not pure."""
    for info in site.glob("*.dist-info"):
        said = (info / "WHEEL").read_text().splitlines()
        tags = [line.split(":")[1].strip() for line in said if line.startswith("Tag:")]
        if not tags or not all(tag.endswith("-none-any") for tag in tags):
            name = info.name.removesuffix(".dist-info")
            raise Refused(f"{name} has no wheel of pure Python (py3-none-any), only {', '.join(tags)}")
        for name in INSTALLERS:
            (info / name).unlink(missing_ok=True)
    shutil.rmtree(site / "bin", ignore_errors=True)  # starters that name this machine's Python
    (site / ".lock").unlink(missing_ok=True)
