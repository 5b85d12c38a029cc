"""What people met who used it for the first time, and meet no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from conftest import Machine, Terminal, join, wait_for
from test_engine import BURN

from ipos.pool.image import NAME, called
from ipos.pool.records import Task

pytestmark = pytest.mark.real
Make = Callable[..., Machine]

ENDLESS = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (func (export "_start") (local $error i32)
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 65536))
    (loop $again
      (local.set $error (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $again (i32.eqz (local.get $error))))
    (call $exit (local.get $error))))"""


def wasm(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_bytes(bytes(wasmtime.wat2wasm(text)))
    return path


def test_handed_over_while_a_command_waits(machines: Make, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    """It says so; and the file goes on where it is said, not anywhere in the pool, unless other machines are named."""
    one, two = machines("one"), machines("two")
    join(one, two)
    burn, car = wasm(tmp_path, "burn.wasm", BURN), tmp_path / "f.car"
    command = terminal(one, "run", "--wasm", "--fresh", "--every", "0.3s", "--nodes", "one", str(burn))
    wait_for("a save", lambda: "save_work" in one.run("cat", "/job/1/tasks").stdout)
    one.ok("handover", "1", "-o", str(car))
    command.says(f"job 1 was handed over: ipos resume {car} goes on with it")
    assert command.ends() == 125
    assert one.json("ps") == []
    job = json.loads(two.ok("resume", str(car), "--detach", "--json"))["job"]
    assert two.json("jobs", str(job))["program"] == "/burn.wasm"
    wait_for("a lease", lambda: two.json("jobs", str(job))["tasks"][0].get("node"))
    assert two.json("jobs", str(job))["tasks"][0]["node"] == "two"
    two.run("cancel", str(job))
    job = json.loads(two.ok("resume", str(car), "--detach", "--json", "--nodes", "one"))["job"]
    wait_for("a lease", lambda: two.json("jobs", str(job))["tasks"][0].get("node"))
    assert two.json("jobs", str(job))["tasks"][0]["node"] == "one"
    two.run("cancel", str(job))
    assert "--nodes is for a file" in two.refused("resume", str(job), "--nodes", "one", status=125)
    assert "is called attic" in two.run("resume", str(car), "--nodes", "attic").stderr


def test_tried_again_is_not_moved(machines: Make) -> None:
    desk = machines("desk")
    script = desk.home.parent / "fails.py"
    script.write_text("import sys\nsys.exit('it fails')\n")
    desk.run("run", "--retries", "2", str(script))
    ended = desk.json("jobs", "1")
    assert (ended["moved"], ended["tried_again"], ended["repeated_s"]) == (0, 2, 0.0)


def test_names_and_reasons(machines: Make, tmp_path: Path) -> None:
    desk = machines("desk")
    burn = wasm(tmp_path, "burn.wasm", BURN)
    desk.run("run", "--wasm", str(burn), timeout=120)
    said = desk.ok("receipt", "1")
    assert "(burn.wasm): desk of account 0x" in said
    assert "12D3" not in said
    car = tmp_path / "r.car"
    car.write_text("mine")
    assert "r.car is there already: --force replaces it" in desk.refused("receipt", "1", "-o", str(car))
    assert car.read_text() == "mine"
    desk.ok("receipt", "1", "-o", str(car), "--force")
    pins = [line.split()[0] for line in desk.ok("store", "pins").splitlines()]
    assert len(pins) == len(set(pins)) > 0


def test_too_much_printed_in_the_engine(machines: Make, tmp_path: Path) -> None:
    desk = machines("desk")
    done = desk.run("run", "--wasm", "--max-output", "1", str(wasm(tmp_path, "endless.wasm", ENDLESS)), timeout=120)
    assert done.returncode == 51, "the program's own status: ENOSPC of WASI"
    assert "it had printed the 1 MiB that it may (allow more with --max-output)" in done.stderr


def test_verify_shows_that_it_works(machines: Make, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    desk = machines("desk")
    desk.run("run", "--wasm", str(wasm(tmp_path, "burn.wasm", BURN)), timeout=120)
    desk.ok("receipt", "1", "-o", str(tmp_path / "r.car"))
    command = terminal(desk, "verify", str(tmp_path / "r.car"))
    command.says("compiling the program if this machine has not yet")
    command.says(r"of \d+\.\d Gop run again")
    command.says("true: ", timeout=60)
    assert command.ends() == 0


def test_a_script_is_called_after_itself() -> None:
    assert called(Task(program=b"", name=NAME, args=("spin.py", "7"))) == "spin.py"
    assert called(Task(program=b"", name="spin.wasm", args=("7",))) == "spin.wasm"
