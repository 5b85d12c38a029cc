"""Two machines on one cable: each has a network, processes and sockets of its own, so nothing but mDNS can bring them together."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import Machine, wait_for

pytestmark = pytest.mark.real


@contextmanager
def namespace() -> Iterator[int]:
    """The first process of a network and process namespace. When it ends, by us or because we did, the kernel ends all the others there."""
    first = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "cat"]
    with subprocess.Popen(first, stdin=subprocess.PIPE) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            wait_for("the namespace", lambda: outer.poll() is not None or children.read_text())
            assert outer.poll() is None, "this machine makes no namespaces: `unshare --net --pid` failed"
            pid = int(children.read_text())
            wait_for("the program in it", lambda: Path(f"/proc/{pid}/comm").read_text() == "cat\n")
            yield pid
        finally:
            outer.kill()


def ip(pid: int, words: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *words.split()], check=True)


class House:
    """Machines without a network, until `plug` lays a cable between two of them."""

    def __init__(self, scratch: Path, stack: ExitStack) -> None:
        self._scratch = scratch
        self._stack = stack
        self._pids: list[int] = []

    def machine(self, name: str) -> Machine:
        pid = self._stack.enter_context(namespace())
        ip(pid, "link set lo up")
        self._pids.append(pid)
        (self._scratch / name / "run").mkdir(mode=0o700, parents=True)
        return Machine(self._scratch / name / "home", ["nsenter", "-t", str(pid), "-n", "-p", "-m"])

    def plug(self) -> None:
        one, two = self._pids
        ip(one, f"link add lan type veth peer name lan netns {two}")
        for i, pid in enumerate(self._pids):
            ip(pid, f"address add 10.77.0.{i + 1}/24 dev lan")
            ip(pid, "link set lan up")


@pytest.fixture
def house() -> Iterator[House]:
    scratch = Path(tempfile.mkdtemp(prefix="ipm"))
    try:
        with ExitStack() as stack:
            yield House(scratch, stack)
    finally:
        shutil.rmtree(scratch)


def up(machine: Machine, name: str) -> None:
    machine.ok("up", "--name", name, "--listen", "lan", "--cores", "1")


def meet(inviter: Machine, joiner: Machine) -> None:
    """By the spoken words alone; then each reads the other's tree, over the cable."""
    joiner.ok("join", *inviter.json("invite")["code"].split("-"), "--yes")
    for machine in (inviter, joiner):
        wait_for("the pool", lambda machine=machine: machine.json("pool")["nodes"] == 2)
    assert inviter.ok("cat", "/n/attic/status").startswith("name attic\n")
    assert joiner.ok("cat", "/n/desk/status").startswith("name desk\n")


def test_the_spoken_words_are_enough(house: House) -> None:
    """The joiner comes up last: it finds the inviter while its own node is still starting."""
    desk, attic = house.machine("desk"), house.machine("attic")
    house.plug()
    up(desk, "desk")
    up(attic, "attic")
    meet(desk, attic)


def test_the_cable_comes_later(house: House) -> None:
    """A machine comes up on no network, and finds others once it is on one."""
    desk, attic = house.machine("desk"), house.machine("attic")
    up(attic, "attic")
    assert "no machine that invites was found nearby" in attic.refused("join", "7-guitar-upset", "--yes")
    house.plug()
    up(desk, "desk")
    meet(desk, attic)
