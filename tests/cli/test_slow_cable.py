"""Two machines on a cable of 50 Mbit/s: while one reads a large file of the other, control is answered nearly as if it did not."""

from __future__ import annotations

import json
import statistics
import subprocess
import time

import pytest
from conftest import IPOS, Machine, wait_for
from test_mdns import House, house, up

pytestmark = [pytest.mark.real, pytest.mark.slow]
__all__ = ["house"]
SIZE = 75 << 20
CONTROL_MS = 100  # DESIGN 7
CABLE = "tbf rate 50mbit burst 16kb latency 25ms"


def answer_ms(machine: Machine, name: str) -> float:
    """How long the other machine took to answer the last line of control; there is one every two seconds."""
    members = [json.loads(line) for line in machine.ok("cat", "/pool/members").splitlines()]
    return next(member["answer_ms"] for member in members if member["name"] == name)


def test_control_is_not_delayed(house: House) -> None:
    """The middle of the answers: a single one also waits for the processors of a busy test machine."""
    desk, attic = house.machine("desk"), house.machine("attic")
    house.plug()
    up(desk, "desk")
    up(attic, "attic")
    desk.ok("join", *attic.json("invite")["code"].split("-"), "--yes")
    for machine in (desk, attic):
        wait_for("the pool", lambda machine=machine: machine.json("pool")["nodes"] == 2)
    (attic.home / "home" / "big").write_bytes(bytes(SIZE))
    for pid in house._pids:
        subprocess.run(
            ["nsenter", "-t", str(pid), "-n", "tc", "qdisc", "add", "dev", "lan", "root", *CABLE.split()], check=True
        )
    began, answers, copy = time.monotonic(), list[float](), desk.home.parent / "copy"
    with copy.open("wb") as out:
        reading = subprocess.Popen(
            [*desk.inside, str(IPOS), "cat", "/n/attic/home/big"], env=desk.environment, stdout=out
        )
        time.sleep(2.5)  # from here on what was asked was asked while it reads
        while reading.poll() is None:
            answers.append(answer_ms(desk, "attic"))
            time.sleep(0.2)
    assert reading.returncode == 0
    assert copy.stat().st_size == SIZE
    assert time.monotonic() - began > 0.9 * SIZE * 8 / 50e6, "the cable is not slow"
    answers = list(dict.fromkeys(answers))
    print(answers)
    assert len(answers) >= 3, "control asked little meanwhile"
    assert statistics.median(answers) < CONTROL_MS
