"""Programs in the engine, through the command line and a real node: the result, the refusals, and `kill -9` in the middle."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from conftest import Machine, wait_for

pytestmark = pytest.mark.real

LINES = 30
BURN = f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\02\\00\\00\\00")
  (func (export "_start") (local $line i32) (local $i i32) (local $sum i64)
    (loop $lines
      (local.set $i (i32.const 150000000))
      (loop $burn
        (local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 6364136223846793005)) (i64.extend_i32_u (local.get $i))))
        (br_if $burn (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
      (i32.store8 (i32.const 16) (i32.add (i32.const 97) (i32.wrap_i64 (i64.rem_u (local.get $sum) (i64.const 26)))))
      (i32.store8 (i32.const 17) (i32.const 10))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $lines (i32.lt_u (local.tee $line (i32.add (local.get $line) (i32.const 1))) (i32.const {LINES}))))
    (call $exit (i32.const 7))))"""


@pytest.fixture
def burn(tmp_path: Path) -> Path:
    path = tmp_path / "burn.wasm"
    path.write_bytes(bytes(wasmtime.wat2wasm(BURN)))
    return path


def test_killed_in_the_middle_it_goes_on_from_its_save(machines: Callable[..., Machine], burn: Path) -> None:
    one = machines("one")
    done = one.run("run", "--wasm", "--json", str(burn), timeout=120)
    straight = json.loads(done.stdout)
    assert (done.returncode, straight["exit"], straight["resumed_at"]) == (7, 7, None), done.stderr
    text = one.ok("cat", f"/job/{straight['job']}/0/stdout")
    assert len(text.splitlines()) == LINES

    job = json.loads(one.ok("run", "--wasm", "--fresh", "--detach", "--json", str(burn)))["job"]
    saves = one.home / "env" / "saves"
    wait_for("a save", lambda: any(saves.glob("*/head")), 60)
    parent = one.pid("engine_pid")
    os.kill(
        parent, signal.SIGKILL
    )  # the warm parent of the engine's workers, and they with it: the node starts another
    wait_for("another parent", lambda: one.json("status")["engine_pid"] not in (None, parent), 60)
    os.kill(one.pid(), signal.SIGKILL)
    time.sleep(0.2)
    one.ok("up", "--listen", "local")
    one.run("wait", str(job), timeout=120)
    status = dict(line.split(" ", 1) for line in one.ok("cat", f"/job/{job}/0/status").splitlines() if " " in line)
    assert int(status["resumed_at"]) > 0
    assert (int(status["work"]), status["root"], status["stdout"]) == (
        straight["work"],
        straight["root"],
        straight["stdout"],
    )
    assert not any(saves.iterdir())


def test_too_long_is_no_success(machines: Callable[..., Machine], burn: Path) -> None:
    one = machines("one")
    done = one.run("run", "--wasm", "--timeout", "0.5", "--json", str(burn))
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit"]) == (137, -9), done.stderr
    assert "ran longer than 0.5 s" in found["killed"]


def test_refusals(machines: Callable[..., Machine], tmp_path: Path) -> None:
    one = machines("one")
    bad = tmp_path / "bad.wasm"
    bad.write_bytes(b"\0asm\1\0\0\0\x0a\x05\x01")
    assert "refused" in one.refused("run", "--wasm", str(bad), status=125)
    assert "no program" in one.refused("run", "--wasm", str(tmp_path / "none.wasm"), status=125)
    loop = tmp_path / "loop.wasm"
    loop.write_bytes(bytes(wasmtime.wat2wasm('(module (func (export "_start") (loop (br 0))))')))
    assert "used up its 0.5 Gop" in one.refused("run", "--wasm", "--work", "0.5", str(loop), status=125)
    assert "--wasm" in one.refused("run", "--env", "A=b", str(loop), status=125)
    assert "NAME=VALUE" in one.refused("run", "--wasm", "--env", "A", str(loop), status=125)
    assert "4 GiB" in one.refused("run", "--wasm", "--memory", "5", str(loop), status=125)
    trap = tmp_path / "trap.wasm"
    trap.write_bytes(bytes(wasmtime.wat2wasm('(module (func (export "_start") unreachable))')))
    assert "trapped: unreachable" in one.refused("run", "--wasm", str(trap), status=134)


def test_python(machines: Callable[..., Machine], tmp_path: Path) -> None:
    """CPython, its files, its seed: the same bits each time, and a mistake in the script is CPython's to explain."""
    one = machines("one")
    script = tmp_path / "job.py"
    script.write_text(
        "import random, sys\nopen('made', 'w').write('x')\nprint(random.random(), sys.argv[1:], input())\n"
    )
    first, again, other = (
        json.loads(one.ok("run", "--wasm", "--fresh", "--json", *seed, str(script), "a", stdin="line\n", timeout=240))
        for seed in ((), (), ("--seed", "other"))
    )
    same = ("exit", "work", "root", "stdout", "dir")
    assert [first[key] for key in same] == [again[key] for key in same]
    assert first["stdout"] != other["stdout"]
    assert one.ok("cat", f"/job/{first['job']}/0/stdout").endswith(" ['a'] line\n")
    script.write_text("print(\n")
    done = one.run("run", "--wasm", str(script), timeout=60)
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr
