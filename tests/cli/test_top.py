"""top: what is drawn, in terminals of every size, and what it is drawn from."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Machine, Terminal, join, wait_for
from test_engine import BURN
from test_newcomer import wasm

from ipos.cli.printed import cut, safe
from ipos.cli.top import Sample, frame

Make = Callable[..., Machine]


def process(i: int, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "pid": f"{i}.0.1@yGrGcs", "node": "desk", "name": "spin.py", "job": str(i), "state": "busy", "seconds": 75.0, "says": "runs",
        "work": 26_400_000_000, "speed": 500_000_000, "rate": 500_000_000, "save_age_s": 2.3, "memory": 67 << 20,
    }  # fmt: skip
    return {**row, **more}


def sample(*processes: dict[str, Any], trouble: tuple[str, ...] = ()) -> Sample:
    machine = {"name": "desk", "here": True, "connected": True, "machine": "m", "slots": 2, "load": 0.3}
    machine |= {"memory_free": 1 << 30, "memory_total": 4 << 30}
    return Sample(0.0, "desk", 3723, [machine], list(processes), list(trouble))


def test_what_is_drawn() -> None:
    lines = frame(
        sample(process(1, rate=1), process(2, work=None, rate=None, memory=None, save_age_s=None), process(3))
    )
    assert lines[0] == "desk: 3 run in 2 slots, 0.50 Gop/s, others' load 0.3, 3.0 of 4.0 GiB used, up 1:02:03"
    assert [line.split()[0] for line in lines[1:]] == ["PROCESS", "desk:3.0.1", "desk:1.0.1", "desk:2.0.1"]
    assert lines[2].split() == [
        *("desk:3.0.1", "busy", "1:15", "26.4", "Gop", "0.50/s", "67", "MiB", "2", "s", "ago", "spin.py")
    ]
    assert frame(sample())[1] == "nothing runs"


def test_any_terminal_is_large_enough() -> None:
    dice = random.Random(7)
    names = ["spin.py", "\x1b[2J\n\nevil", "長い名前" * 20, "e\u0301" * 50]
    for _ in range(300):
        rows = [process(i, name=dice.choice(names), says=dice.choice(names)) for i in range(dice.randrange(40))]
        columns, height = dice.randrange(1, 100), dice.randrange(1, 30)
        lines = frame(sample(*rows, trouble=("attic: away",)), columns, height)
        assert 1 <= len(lines) <= height
        assert all(cut(line, columns) == line and line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name", "plain name"),
        ("line\nfeed", r"line\nfeed"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u202eb", r"a\u202eb"),
        ("both\\ and\n", r"both\\ and\n"),
        ("größe 長い", "größe 長い"),
    ],
)
def test_what_is_printed_cannot_move_the_cursor(text: str, shown: str) -> None:
    assert safe(text) == shown


@pytest.mark.real
def test_live(machines: Make, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    desk, attic = machines("desk"), machines("attic")
    assert "no node is up" in Machine(tmp_path / "none").refused("top", XDG_RUNTIME_DIR=str(desk.home.parent / "run"))
    join(desk, attic)
    burn = wasm(tmp_path, "burn.wasm", BURN)
    desk.ok("run", "--wasm", "--detach", "--nodes", "attic", "--every", "0.3s", str(burn))
    wait_for("it runs", lambda: attic.json("ps"))
    assert "nothing runs" in desk.ok("top", "-n", "1")
    looks = [json.loads(line) for line in desk.ok("top", "--pool", "-n", "3", "-d", "300ms", "--json").splitlines()]
    assert [len(look["machines"]) for look in looks] == [2, 2, 2]
    (row,) = looks[-1]["processes"]
    assert (row["node"], row["name"]) == ("attic", "burn.wasm")
    assert row["rate"] >= 0
    # on a terminal
    command = terminal(desk, "top", "--pool")
    command.says("\x1b\\[\\?1049h")
    command.says("attic:1.0.1")
    os.kill(attic.pid(), signal.SIGKILL)
    command.says("attic: ", timeout=40)
    os.kill(desk.pid(), signal.SIGKILL)
    command.says("ipos up starts it again")
    desk.ok("up")
    command.says("desk:? ?|1 of 2 nodes", timeout=40)
    command.answer("q")
    assert command.ends() == 0
    assert command.text.rstrip().endswith("\x1b[?25h\x1b[?1049l")
