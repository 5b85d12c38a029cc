"""The Go side of the network process: its own tests, and that it builds wherever IPOS is meant to run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

BUILD = Path(__file__).parents[2] / "netd" / "build.sh"
PLATFORMS = ("linux/amd64", "linux/arm64", "darwin/arm64", "darwin/amd64", "windows/amd64")
MAGIC = {"linux": b"\x7fELF", "darwin": b"\xcf\xfa\xed\xfe", "windows": b"MZ"}


def test_the_go_tests_pass() -> None:
    done = subprocess.run([BUILD, "test"], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_it_is_built_for(platform: str, tmp_path: Path) -> None:
    system, machine = platform.split("/")
    out = tmp_path / "ipos-netd"
    env = {**os.environ, "GOOS": system, "GOARCH": machine}
    subprocess.run([BUILD, out], env=env, check=True, timeout=1200)
    assert out.read_bytes().startswith(MAGIC[system])
    assert out.stat().st_size < 40 << 20
