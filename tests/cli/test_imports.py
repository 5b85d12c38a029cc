"""What a command loads: each module that it does not need is time before its first word (bench/cli.py)."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import several

HEAVY = (
    "wasmtime", "msgspec", "blake3", "coincurve", "Crypto", "cryptography", "eth_hash", "libipld", "zstandard", "spake2", "segno", "sqlite3",
    "ipos.vm", "ipos.store.pack", "ipos.store.unixfs", "ipos.pool.coordinator", "ipos.node.daemon", "ipos.node.tree", "ipos.net", "ctypes",
    "multiprocessing", "tempfile",
)  # fmt: skip
ALSO_FOR_HELP = (
    "asyncio",
    "msgspec",
    "socket",
    "subprocess",
    "ipos.tree",
    "ipos.node",
    "ipos.identity",
    "ssl",
    "logging",
)

SAYS = """
import contextlib, sys
from ipos.cli.main import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print("MODULES", *sys.modules, file=sys.stderr)
"""


def loaded(*arguments: str, environment: dict[str, str] | None = None) -> set[str]:
    asked = [sys.executable, "-c", SAYS, *arguments]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    modules = set(done.stderr.splitlines()[-1].split())
    assert "ipos.cli.main" in modules
    return modules


def test_help_loads_next_to_nothing() -> None:
    modules = loaded("--help")
    assert modules.isdisjoint((*HEAVY, *ALSO_FOR_HELP)), modules & {*HEAVY, *ALSO_FOR_HELP}
    assert "wasmtime" in loaded("verify", "/none"), "a command that needs the engine shows that this can fail"


@pytest.mark.real
def test_the_commands_of_every_day() -> None:
    with several() as make:
        desk = make("desk")
        for command in (
            ("ps",),
            ("status",),
            ("jobs",),
            ("ls", "-l", "/"),
            ("cat", "/status"),
            ("pool",),
            ("top", "-n", "1"),
            ("__complete", "ls", "/"),
        ):
            modules = loaded(*command, environment=desk.environment)
            assert modules.isdisjoint(HEAVY), (command, modules & {*HEAVY})
