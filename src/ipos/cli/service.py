"""`ipos service`: the node as a service of the user's systemd, so that it is up after a restart of the machine and after a crash."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from ipos.cli.plain import show
from ipos.node.home import Home
from ipos.wire.errors import Refused

Arguments = argparse.Namespace


def name(home: Home) -> str:
    """ipos.service for the usual home, one of its own for any other."""
    if home.path == Path("~/.ipos").expanduser().resolve():
        return "ipos.service"
    return f"ipos-{hashlib.blake2s(str(home.path).encode(), digest_size=4).hexdigest()}.service"


def place(home: Home) -> Path:
    """Where the user's systemd looks: $XDG_CONFIG_HOME/systemd/user, ~/.config without it."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "systemd" / "user" / name(home)


def quoted(word: str) -> str:
    """A word of a unit file (systemd.syntax(7)): in quotes, `%` and `$` taken for what they are."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def unit(home: Home) -> str:
    """The unit file. A node that cannot run says why and ends with 1: it is tried again, ever more slowly, not for ever."""
    python = quoted(sys.executable).replace("$", "$$")
    return f"""# Written by ipos service install; ipos service remove takes it away.
[Unit]
Description=IPOS node of {str(home.path).replace("%", "%%")}
After=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=exec
ExecStart={python} -m ipos.node
Environment={quoted(f"IPOS_HOME={home.path}")}
Restart=on-failure
RestartSec=2
KillMode=mixed
TimeoutStopSec=20
OOMPolicy=continue

[Install]
WantedBy=default.target
"""


def systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    """`Refused` where there is no systemd of this user."""
    if shutil.which("systemctl") is None:
        raise Refused(
            "this machine has no systemd (no systemctl): ipos up starts the node, by hand or from what starts programs here"
        )
    try:
        done = subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise Refused(f"systemctl --user {' '.join(words)} did not answer within 60 s") from None
    if "Failed to connect" in done.stderr or "not been booted with systemd" in done.stderr:
        raise Refused(
            "the systemd of this user cannot be reached (no session of it is up; loginctl enable-linger starts one): ipos up starts the node by hand"
        )
    return done


def _do(*words: str) -> None:
    done = systemctl(*words)
    if done.returncode:
        raise Refused(f"systemctl --user {' '.join(words)}: {done.stderr.strip() or f'status {done.returncode}'}")


async def install(arguments: Arguments) -> int:
    """Write the unit, start it, and have it started from now on. A unit that cannot be used is not left behind."""
    home, path = Home(), place(Home())
    _do("--version")
    systemctl("show-environment")
    home.create()
    home.settings()
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit(home))
    try:
        _do("daemon-reload")
        _do("enable", "--now", path.name)
    except Refused:
        path.unlink() if before is None else path.write_text(before)
        raise
    words = f"{path.name} is installed ({path}) and started; it starts with your session, after loginctl enable-linger with the machine"
    show(arguments, {"unit": path.name, "path": str(path), "installed": True}, words)
    return 0


async def remove(arguments: Arguments) -> int:
    """The node goes down; its home stays."""
    path = place(Home())
    if not path.exists():
        raise Refused(f"there is no {path}: ipos service install makes it")
    _do("disable", "--now", path.name)
    path.unlink()
    _do("daemon-reload")
    show(
        arguments,
        {"unit": path.name, "path": str(path), "installed": False},
        f"{path.name} is removed; the home is as it was",
    )
    return 0


async def status(arguments: Arguments) -> int:
    """Exit status 1 if it is not installed, or not running."""
    path = place(Home())
    there = path.exists()
    active = systemctl("is-active", path.name).stdout.strip() if there else "not installed"
    enabled = systemctl("is-enabled", path.name).stdout.strip() if there else "no"
    words = f"{path.name}: {active}" + (f", {enabled} ({path})" if there else "; ipos service install makes it")
    show(
        arguments,
        {"unit": path.name, "path": str(path), "installed": there, "active": active, "enabled": enabled},
        words,
    )
    return int(active != "active")


ACTIONS: dict[str, Callable[[Arguments], Awaitable[int]]] = {"install": install, "remove": remove, "status": status}
