"""A worker that was taken over tries everything (attacks.py): each thing is refused, and a build without the layer that refuses it is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import wasmtime

from ipos.vm.client import Workers
from ipos.vm.plan import Plan
from ipos.vm.process import Ended, Places, Worker
from ipos.vm.sandbox.confine import ENGINE_MEMORY, STATES

pytestmark = pytest.mark.real

ATTACKS = Path(__file__).parent / "attacks.py"
FILE_BYTES = 32 << 20
PLAN = Plan(task="attack", memory_bytes=64 << 20)
NOTHING = bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "_start")))'))
TOO_MUCH = ENGINE_MEMORY + (STATES + 1) * PLAN.memory_bytes


@dataclass
class Seen:
    layers: dict[str, str]
    tried: dict[str, tuple[str, str]]  # what -> layer, error
    ended: Ended
    isolation: str
    outside: dict[str, str]


def places(home: Path, name: str, aim: dict[str, object]) -> Places:
    where = home / "work" / name
    for part in ("root", "out"):
        (where / part).mkdir(parents=True)
    saves = home / "env" / "saves" / name
    saves.mkdir(parents=True)
    (where / "stdin").write_text(json.dumps(aim))
    return Places(where / "root", where / "out", saves, where / "stdout", where / "stderr", where / "stdin")


def a_home(at: Path) -> Path:
    home = at / "home"
    for name in ("keys", "store", "work", "env"):
        (home / name).mkdir(parents=True)
    for name in ("keys/run", "journal.sqlite", "log"):
        (home / name).write_text("secret")
        (home / name).chmod(0o600)
    (at / "empty.wasm").write_bytes(NOTHING)
    return home


def outside(worker: Worker) -> dict[str, str]:
    """What /proc says of it, seen from here."""
    at = Path(f"/proc/{worker.pid}")
    status = dict(line.split(":", 1) for line in (at / "status").read_text().splitlines())
    seen = {key: status[key].strip() for key in ("NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "Uid", "Groups")}
    with contextlib.suppress(PermissionError):  # not even its owner may look: it is not dumpable
        for kind in ("net", "ipc", "mnt"):
            seen[kind] = "shared" if os.readlink(at / "ns" / kind) == os.readlink(f"/proc/self/ns/{kind}") else "own"
    return seen


async def attack(at: Path, without: str = "", script: Path = ATTACKS) -> Seen:
    home, cache = a_home(at), at / "cache"
    async with (
        Workers(home, cache=cache, module="ipos.testing.overtaken", arguments=(without, str(script))) as bad,
        Workers(home, cache=cache) as good,
    ):
        waiting = Workers(home, cache=cache, module="ipos.testing.overtaken", arguments=(without, str(sleeps(at))))
        try:
            sibling = await waiting.start(PLAN, places(home, "sibling", {}), at / "empty.wasm")
            await until(lambda: sibling.ended.done() or (sibling.pid is not None and bool(sibling.layers)))
            assert not sibling.ended.done(), sibling.ended.result().report.fault
            seen = outside(sibling)
            aim = {
                "home": str(home), "cache": str(cache), "node": os.getpid(), "sibling": sibling.pid, "too_much": TOO_MUCH,
                "own_uid": not sibling.layers.get("uid", "x"),
            }  # fmt: skip
            worker = await bad.start(PLAN, places(home, "bad", aim), at / "empty.wasm", file_bytes=FILE_BYTES)
            ended = await worker.ended
        finally:
            await waiting.close()
        lines = [json.loads(line) for line in worker.places.stdout.read_text().splitlines()]
        tried = {name: (layer, error) for name, layer, error in lines}
        assert (await good.probe()).keys() >= {"files", "calls"}
        return Seen(worker.layers, tried, ended, bad.isolation, seen)


def sleeps(at: Path) -> Path:
    path = at / "sleeps.py"
    path.write_text("import time\nwhile True:\n    time.sleep(3600)\n")
    return path


async def until(there: object) -> None:
    assert callable(there)
    for _ in range(1500):
        if there():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("waited 30 s")


def worked(seen: Seen) -> list[str]:
    """What an attacker could do, of what the layers that this kernel has should stop."""
    return [what for what, (layer, error) in seen.tried.items() if not error and not seen.layers.get(layer, "")]


def test_each_attack_is_refused(tmp_path: Path) -> None:
    seen = asyncio.run(attack(tmp_path))
    assert len(seen.tried) >= 55, seen.ended
    assert worked(seen) == []
    if not seen.layers["calls"]:
        assert {error for layer, error in seen.tried.values() if layer == "calls" and "Errno 1]" not in error} == set()
    if not seen.isolation.startswith("none"):
        assert {seen.outside.get(kind, "own") for kind in ("net", "ipc", "mnt")} == {"own"}
    assert seen.outside["NoNewPrivs"] == "1"
    assert seen.outside["Seccomp"] == ("0" if seen.layers["calls"] else "2")
    assert int(seen.outside["CapEff"], 16) == int(seen.outside["CapPrm"], 16) == 0
    if not seen.layers["uid"]:
        assert not {"0", str(os.getuid())} & set(seen.outside["Uid"].split())
        assert seen.outside["Groups"] == ""
    assert set(seen.layers) == {"limits", "uid", "tied", "no_new_privileges", "untraceable", "files", "calls"}


@pytest.mark.parametrize(
    ("without", "then"),
    [("limits", {"fill the disk", "fill the memory", "more open files"}),
     ("files", {"/etc/passwd", "a file in /tmp"}),
     ("calls", {"internet socket", "unix socket", "fork", "memory that is code"})],
)  # fmt: skip
def test_a_build_without_a_layer_is_noticed(without: str, then: set[str], tmp_path: Path) -> None:
    seen = asyncio.run(attack(tmp_path, without))
    assert then <= set(worked(seen)), (then - set(worked(seen)), seen.ended)


def test_a_build_without_namespaces_or_users_is_noticed(tmp_path: Path) -> None:
    seen = asyncio.run(attack(tmp_path, "namespaces,uid"))
    assert seen.outside["net"] == seen.outside["mnt"] == "shared"
    if os.getuid() == 0:
        assert "0" in seen.outside["Uid"].split()
        assert seen.layers["uid"] == "only root can give each worker a user id of its own"


def test_a_build_that_may_gain_privileges_starts_nothing(tmp_path: Path) -> None:
    """The filters need no_new_privileges: half a sandbox ends the process."""
    with pytest.raises(AssertionError, match="not permitted"):
        asyncio.run(attack(tmp_path, "no_new_privileges,hardening"))


AS_USER = """
import asyncio, os, sys
from pathlib import Path
from ipos.vm.sandbox import linux, namespace
uid, gid = os.getuid(), os.getgid()
if uid == 0:
    linux.unshare(namespace.CLONE_NEWUSER)
    Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")
    assert os.getuid() == 1000
sys.path.insert(0, sys.argv[1])
from vm.test_overtaken import attack, worked
seen = asyncio.run(attack(Path(sys.argv[2])))
assert len(seen.tried) >= 55, seen.ended
assert worked(seen) == [], worked(seen)
assert seen.layers["uid"] == "only root can give each worker a user id of its own"
assert seen.outside["Seccomp"] == ("0" if seen.layers["calls"] else "2")
"""


def test_each_attack_is_refused_for_a_node_that_is_not_root(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", AS_USER, tests, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


TIED = """
import json, os, sys, time
os.write(1, json.dumps([os.getpid(), os.getppid()]).encode())
while True:
    time.sleep(3600)
"""
CLIENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from vm.test_overtaken import PLAN, a_home, places
from ipos.vm.client import Workers
async def main():
    at = Path(sys.argv[2])
    async with Workers(a_home(at), cache=at / "cache", module="ipos.testing.overtaken", arguments=(sys.argv[3], str(at / "tied.py"))) as workers:
        worker = await workers.start(PLAN, places(at / "home", "one", {}), at / "empty.wasm")
        await worker.ended
asyncio.run(main())
"""


@pytest.mark.parametrize("without", ["", "tied"])
def test_no_worker_outlives_its_node(without: str, tmp_path: Path) -> None:
    """Not even one that was taken over and looks at no pipe; without the tie to its parent it would."""
    (tmp_path / "tied.py").write_text(TIED)
    command = [sys.executable, "-c", CLIENT, str(Path(__file__).parent.parent), str(tmp_path), without]
    node = subprocess.Popen(command)
    said = tmp_path / "home/work/one/stdout"
    try:
        deadline = time.monotonic() + 30
        while not (said.exists() and said.stat().st_size):
            assert time.monotonic() < deadline
            assert node.poll() is None
            time.sleep(0.02)
    finally:
        node.kill()
        node.wait()
    pid, parent = json.loads(said.read_text())

    def gone(which: int) -> bool:
        try:
            return Path(f"/proc/{which}/stat").read_text().split(") ")[1][0] == "Z"
        except FileNotFoundError:
            return True

    deadline = time.monotonic() + 10
    while not gone(parent) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(parent)
    if without:
        time.sleep(0.2)
        assert not gone(pid)
        os.kill(pid, signal.SIGKILL)
        return
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(pid)
