"""kill -9 of node, netd or worker at 100 random moments: the batches in between all end with the right outputs."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from conftest import Machine, join, wait_for
from test_bad_input import UPPER, inputs, script


def strike(dice: random.Random, machine: Machine) -> str:
    part = dice.choice(("pid", "netd_pid", "worker_pid"))
    done = machine.run("status", "--json")
    if done.returncode != 0:
        return "down already"
    pid = json.loads(done.stdout).get(part)
    if pid is None:
        return "between two lives"
    try:
        os.kill(int(pid), signal.SIGKILL)
    except ProcessLookupError:  # it was struck before, and is started again when it is needed
        return "between two lives"
    if part == "pid":
        wait_for("the end of a killed node", lambda: not os.path.exists(f"/proc/{pid}"))
        machine.ok("up")
    return part


@pytest.mark.slow
@pytest.mark.real
def test_hundred_kills(machines: Callable[..., Machine]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    trio = [machines(name) for name in ("desk", "attic", "loft")]
    join(trio[0], *trio[1:])
    program = script(trio[0], "slow.py", "import time\ntime.sleep(0.3)\n" + UPPER)
    over = inputs(trio[0], 60)
    struck: dict[str, int] = {}
    strikes = rounds = 0
    while strikes < 100:
        rounds += 1
        out = trio[0].home.parent / f"out{rounds}"
        job = (
            trio[0].ok("map", program, "--over", over, "--out", str(out), "--fresh", "--grace", "3", "--detach").strip()
        )
        state: dict[str, object] = {}
        while state.get("state") not in ("finished", "stopped", "refused"):
            time.sleep(dice.uniform(0.1, 1.0))
            if strikes < 100:
                part = strike(dice, dice.choice(trio))
                struck[part] = struck.get(part, 0) + 1
                strikes += 1
            done = trio[0].run("jobs", job, "--json")
            state = json.loads(done.stdout) if done.returncode == 0 else {}
        assert state["done"] == 60, (seed, state)
        assert {path.name: path.read_text() for path in out.iterdir()} == {
            f"f{i:03}": f"LINE {i}\n" for i in range(60)
        }, seed
    print(f"{strikes} kills in {rounds} batches: {struck}")
