"""Ctrl-C takes the command away and leaves the job alone: it goes on to its right end, and the command says how to follow it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Machine, Terminal, join, wait_for
from test_bad_input import UPPER, inputs, script

pytestmark = pytest.mark.real
Make = Callable[..., Machine]
Run = Callable[..., Terminal]


def gated(machine: Machine, free: str) -> tuple[str, Path]:
    """A program that says its input in capitals, at once if it is one of `free`, else when the file is there."""
    gate = machine.home.parent / "gate"
    body = f"""import os, sys, time
line = sys.stdin.read().strip()
while line not in {free!r}.split(",") and not os.path.exists({str(gate)!r}):
    time.sleep(0.02)
print(line.upper() or "IT WENT ON")
"""
    return script(machine, "gated.py", body), gate


DETACHED = r"ipos: detached; job (\d+) goes on: ipos wait \1 follows it, ipos cancel \1 stops it"


def detached(command: Terminal) -> str:
    """Interrupt it; the job's number, out of what it says."""
    command.interrupt()
    assert command.ends(timeout=10) == 130, command.text
    assert "Traceback" not in command.text
    found = re.search(DETACHED, command.text)
    assert found is not None, command.text
    return found[1]


def finished(machine: Machine, job: str, tasks: int) -> None:
    end = json.loads(machine.ok("wait", job, "--json").splitlines()[-1])
    assert (end["state"], end["done"], end["failed"]) == ("finished", tasks, 0)


def test_map(machines: Make, terminal: Run) -> None:
    desk, attic = machines("desk"), machines("attic")
    join(desk, attic)
    (program, gate), over, out = gated(desk, "line 0,line 1"), inputs(desk, 10), desk.home.parent / "out"
    command = terminal(desk, "map", program, "--over", over, "--out", str(out), plain=True)
    wait_for("two outputs", lambda: len(list(out.glob("f*"))) >= 2)
    job = detached(command)
    assert desk.json("jobs", job)["state"] == "working"
    gate.touch()
    finished(desk, job, 10)
    assert {path.name: path.read_text() for path in out.iterdir()} == {f"f{i:03}": f"LINE {i}\n" for i in range(10)}


def test_run_and_wait(machines: Make, terminal: Run) -> None:
    """`ipos run` by a node that it started itself, and `ipos wait` for what it left."""
    desk = machines("desk", up=False)
    program, gate = gated(desk, "none")
    command = terminal(desk, "run", program)
    wait_for("the node", lambda: desk.run("status").returncode == 0)
    wait_for("the task", lambda: [row for row in desk.json("ps") if row["says"] == "runs"])
    job = detached(command)
    waiting = terminal(desk, "wait", job)
    waiting.says("0/1 done")
    assert detached(waiting) == job
    gate.touch()
    finished(desk, job, 1)
    assert desk.ok("cat", f"/job/{job}/0/stdout") == "IT WENT ON\n"


def test_the_input_of_a_run(machines: Make, terminal: Run) -> None:
    """What was its standard input is there for the job when the command is not; while it is read, Ctrl-C ends all."""
    desk = machines("desk")
    job = desk.ok("run", "--detach", script(desk, "up.py", UPPER), stdin="hello").strip()
    finished(desk, job, 1)
    assert desk.ok("cat", f"/job/{job}/0/stdout") == "HELLO\n"
    assert "there is no program" in desk.refused("run", "./nope.py", stdin="hello", status=125)
    assert list((desk.home / "handed").iterdir()) == []

    command = terminal(desk, "run", script(desk, "up.py", UPPER), plain=True)
    command.answer("half of it")
    command.taken()
    command.interrupt()
    assert command.ends(timeout=10) == 130
    assert "detached" not in command.text
    assert desk.ok("jobs").count("\n") == 1
