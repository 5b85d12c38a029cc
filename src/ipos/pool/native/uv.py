"""uv, as a program: run on this machine, its complaints turned into one sentence. https://docs.astral.sh/uv/reference/cli/"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ipos.pool.native.process import Limits, Program
from ipos.pool.native.runner import NativeRunner
from ipos.wire import limits
from ipos.wire.errors import Refused

PASSED_ON = re.compile(
    r"UV_|SSL_CERT_|XDG_|(HTTPS?|ALL|NO)_PROXY$", re.IGNORECASE
)  # how this user's uv reaches its registry
NETWORK = re.compile(
    r"Request failed|Failed to fetch|error sending request|dns error|Failed to download", re.IGNORECASE
)


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def no_network(self) -> bool:
        return self.code != 0 and NETWORK.search(self.err) is not None

    def check(self, what: str) -> str:
        """Its output, or `Refused` with uv's reason after `what`."""
        if self.code:
            raise Refused(f"{what}: {sentence(self.err)}")
        return self.out


Run = Callable[[Sequence[str], str, Sequence[Path]], Awaitable[Said]]
"""Run uv with arguments and a standard input; the directories are those it writes to."""


def binary() -> Path:
    from uv import find_uv_bin

    return Path(find_uv_bin())


def variables() -> dict[str, str]:
    """What uv needs to know of the node's environment: where its cache and its settings are, how to reach the network."""
    kept = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
    home = str(Path.home())
    return {
        "HOME": home,
        "NO_COLOR": "1",
        "UV_NO_PROGRESS": "1",
        "UV_LINK_MODE": "copy",
        "UV_CACHE_DIR": str(cache()),
        **kept,
    }


def cache() -> Path:
    """One per user, shared with the uv that this user runs himself: what is in it needs no network."""
    said = os.environ.get("UV_CACHE_DIR")
    return Path(said) if said else _xdg("XDG_CACHE_HOME", ".cache") / "uv"


def pythons() -> Path:
    """Where uv puts the interpreters that it downloads."""
    said = os.environ.get("UV_PYTHON_INSTALL_DIR")
    return Path(said) if said else _xdg("XDG_DATA_HOME", ".local/share") / "uv" / "python"


def _xdg(name: str, otherwise: str) -> Path:
    return Path(os.environ.get(name) or Path.home() / otherwise)


async def plainly(arguments: Sequence[str], stdin: str = "", writes: Sequence[Path] = ()) -> Said:
    """uv as a child of the node, not isolated: for the user's own script on his own machine, as if he had typed it."""
    process = await asyncio.create_subprocess_exec(
        binary(), *arguments, env=variables() | {"PATH": os.environ.get("PATH", os.defpath)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(limits.environment_build_s):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        raise Refused(f"uv took longer than {limits.environment_build_s:g} s: {' '.join(arguments[:2])}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Said(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


def isolated(runner: NativeRunner) -> Run:
    """uv as a task: what it builds from source runs code of strangers, and must not see the node's keys either."""

    async def run(arguments: Sequence[str], stdin: str = "", writes: Sequence[Path] = ()) -> Said:
        key = f"uv-{os.urandom(8).hex()}"
        allowed = [cache(), pythons(), *writes]
        for path in allowed:
            path.mkdir(parents=True, exist_ok=True)

        def put(path: Path) -> None:
            path.write_text(stdin)

        uv = Program("uv", binary(), python=False)
        asked = Limits(output_bytes=0, wall_s=limits.environment_build_s)
        process = await runner.start(key, uv, arguments, stdin=put, limits=asked, variables=variables(), writes=allowed)
        try:
            outcome = await process.wait()
            if outcome.fault or outcome.killed or outcome.exit is None:
                why = outcome.fault or outcome.killed or f"was ended by signal {outcome.signal}"
                raise Refused(f"uv {arguments[0]}: {why}")
            out, err = (path.read_text(errors="replace") for path in (outcome.stdout, outcome.stderr))
            return Said(outcome.exit, out, err)
        finally:
            await process.kill()
            await runner.discard(key)

    return run


def sentence(err: str) -> str:
    """What uv says, in one sentence: the most precise of its causes, without the reasoning around it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", err)
    blocks: list[str] = []
    for line in plain.splitlines():
        head = re.match(r"\s*(error|cause|hint|×|╰─▶|├─▶)[: ]\s*", line)
        if head:
            blocks.append(line[head.end() :].strip())
        elif blocks and line.strip() and not re.fullmatch(r"[\s^|│]*", line):
            blocks[-1] += " " + line.strip(" │|")
    if not blocks:
        return " ".join(plain.split())[:400] or "uv gave no reason"
    for block in blocks:
        reason = re.match(r"Because (.*?),? and (?:because )?(?:you require|we can conclude|your )", block)
        if reason:
            return reason[1]
        if block.startswith("Because "):
            return block.removeprefix("Because ")[:400]
    first, last = blocks[0], blocks[-1]
    return first[:400] if first == last else f"{first}: {last}"[:400]
