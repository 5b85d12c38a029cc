"""Two machines on a cable of 20 Mbit/s: while one reads a large file of the other, control is answered as if it did not."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
from conftest import IPOS, wait_for
from test_mdns import House, house, up

pytestmark = pytest.mark.real
__all__ = ["house"]
SIZE = 20 << 20
CONTROL_MS = 100  # DESIGN 7
CABLE = "tbf rate 20mbit burst 16kb latency 25ms"


def slow(pid: int) -> None:
    subprocess.run(
        ["nsenter", "-t", str(pid), "-n", "tc", "qdisc", "add", "dev", "lan", "root", *CABLE.split()], check=True
    )


def test_control_is_not_delayed(house: House) -> None:
    desk, attic = house.machine("desk"), house.machine("attic")
    house.plug()
    up(desk, "desk")
    up(attic, "attic")
    desk.ok("join", *attic.json("invite")["code"].split("-"), "--yes")
    for machine in (desk, attic):
        wait_for("the pool", lambda machine=machine: machine.json("pool")["nodes"] == 2)
    (attic.home / "home").mkdir(exist_ok=True)
    (attic.home / "home" / "big").write_bytes(bytes(SIZE))
    for pid in house._pids:
        slow(pid)

    def answer_ms() -> float:
        members = [json.loads(line) for line in desk.ok("cat", "/pool/members").splitlines()]
        return next(member["answer_ms"] for member in members if member["name"] == "attic")

    began, answers, copy = time.monotonic(), list[float](), desk.home.parent / "copy"
    with copy.open("wb") as out:
        reading = subprocess.Popen(
            [*desk.inside, str(IPOS), "cat", "/n/attic/home/big"], env=desk.environment, stdout=out
        )
        time.sleep(2.5)  # from here on what was asked was asked while it reads
        while reading.poll() is None:
            answers.append(answer_ms())
            time.sleep(0.2)
    assert reading.returncode == 0
    assert copy.stat().st_size == SIZE
    took = time.monotonic() - began
    assert took > SIZE * 8 / 20e6, "the cable is not slow"
    print(answers, took)
    assert len(set(answers)) >= 2, "control asked nothing meanwhile"
    assert max(answers) < CONTROL_MS
