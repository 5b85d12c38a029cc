"""ipos service: the unit is one that systemd takes, and nothing is left behind where there is no systemd."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ipos.cli import service
from ipos.node.home import Home

IPOS = Path(sys.executable).with_name("ipos")

STAND_IN = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  *"$FAILS"*) echo "Failed to do: $*" >&2; exit 1;;
  *is-active*) echo active;;
  *is-enabled*) echo enabled;;
esac
"""
"""A systemctl that writes down what it is asked: tests have no session of a user's systemd."""


def run(
    tmp_path: Path, *words: str, systemctl: bool = True, fails: str = "nothing"
) -> subprocess.CompletedProcess[str]:
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    if systemctl:
        (tools / "systemctl").write_text(STAND_IN)
        (tools / "systemctl").chmod(0o755)
    env = {
        **os.environ, "PATH": f"{tools}:/usr/bin:/bin" if systemctl else str(tools), "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "IPOS_HOME": str(tmp_path / "a home"), "XDG_RUNTIME_DIR": str(tmp_path / "run"), "LOG": str(tmp_path / "asked"), "FAILS": fails,
    }  # fmt: skip
    (tmp_path / "run").mkdir(mode=0o700, exist_ok=True)
    return subprocess.run(
        [str(IPOS), "service", *words], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def units(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "config").rglob("*.service"))


def test_installed_looked_at_and_removed(tmp_path: Path) -> None:
    assert run(tmp_path, "status").returncode == 1
    assert "ipos service install makes it" in run(tmp_path, "remove").stderr
    done = run(tmp_path, "install", "--json")
    assert done.returncode == 0, done.stderr
    [unit] = units(tmp_path)
    assert json.loads(done.stdout)["path"] == str(unit)
    assert unit.parent == tmp_path / "config" / "systemd" / "user"
    asked = (tmp_path / "asked").read_text()
    assert f"--user daemon-reload\n--user enable --now {unit.name}\n" in asked
    assert json.loads(run(tmp_path, "status", "--json").stdout)["active"] == "active"
    assert run(tmp_path, "remove").returncode == 0
    assert not units(tmp_path)
    assert f"--user disable --now {unit.name}" in (tmp_path / "asked").read_text()
    assert (tmp_path / "a home" / "ipos.toml").exists(), "the home stays"


def verified(path: Path, text: str) -> tuple[int, list[str]]:
    """(status, complaints) of systemd itself."""
    path.write_text(text)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(path.parent)}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(path)], env=env, capture_output=True, text=True, check=False
    )
    return done.returncode, [line for line in done.stderr.splitlines() if "ipos-test" in line or "Failed" in line]


@pytest.mark.real
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd judges its own files")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "ipos-test.service"
    for home in ("plain", "a home", 'odd "%$\\ one'):
        assert verified(path, service.unit(Home(tmp_path / home))) == (0, [])
    _, complaints = verified(path, service.unit(Home(tmp_path / "plain")).replace("Type=exec", "Type=whim"))
    assert complaints, "a unit with a mistake is found"


def test_where_there_is_no_systemd_nothing_is_left(tmp_path: Path) -> None:
    done = run(tmp_path, "install", systemctl=False)
    assert done.returncode == 1
    assert "this machine has no systemd" in done.stderr
    for fails, words in (("enable", "Failed to do"), ("daemon-reload", "Failed to do")):
        done = run(tmp_path, "install", fails=fails)
        assert (done.returncode, words in done.stderr) == (1, True)
    assert len(done.stderr.splitlines()) == 1
    assert not units(tmp_path)
