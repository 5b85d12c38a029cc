"""Stopped, gone on with, carried elsewhere: `ipos run --wasm`, Ctrl-C, resume, handover, marks, and everything that can be wrong with them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from conftest import IPOS, Machine, Terminal, join, wait_for
from test_engine import BURN

pytestmark = pytest.mark.real

SAME = ("task", "exit", "work", "root", "stdout", "stderr", "dir")
Make = Callable[..., Machine]


@pytest.fixture
def burn(tmp_path: Path) -> Path:
    path = tmp_path / "burn.wasm"
    path.write_bytes(bytes(wasmtime.wat2wasm(BURN)))
    return path


def same(one: dict[str, Any]) -> list[Any]:
    return [one[key] for key in SAME]


def straight(machine: Machine, burn: Path) -> dict[str, Any]:
    done = machine.run("run", "--wasm", "--json", "--fresh", str(burn), timeout=120)
    assert done.returncode == 7, done.stderr
    return json.loads(done.stdout)


def begun(machine: Machine, burn: Path, *options: str) -> int:
    """A run that is under way and saved; its job."""
    command = ("run", "--wasm", "--fresh", "--detach", "--json", "--every", "0.3s", *options, str(burn))
    job = int(json.loads(machine.ok(*command))["job"])
    wait_for(
        "a save", lambda: '"save_age_s":null' not in (t := machine.ok("cat", f"/job/{job}/tasks")) and "save_age_s" in t
    )
    return job


def resumed(machine: Machine, what: str, *options: str) -> dict[str, Any]:
    done = machine.run("resume", what, "--json", *options, timeout=120)
    assert done.returncode == 7, done.stderr
    return json.loads(done.stdout)


def test_output_comes_as_it_is_written_and_ctrl_c_saves(machines: Make, burn: Path) -> None:
    one = machines("one")
    expected = straight(one, burn)
    process = subprocess.Popen(
        [str(IPOS), "run", "--wasm", "--fresh", "--every", "0.3s", str(burn)], env=one.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    assert process.poll() is None, "the first line came while it ran"
    process.send_signal(signal.SIGINT)
    rest, words = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "saved at" in words
    assert "ipos resume 2 goes on" in words
    assert one.ok("cat", "/job/2/0/status").splitlines()[2] == "state suspended"
    assert json.loads(one.ok("ps", "--json")) == []
    text = one.ok("cat", f"/job/{expected['job']}/0/stdout")
    assert text.startswith(first + rest)
    whole = one.run("resume", "2", timeout=120)
    assert (whole.returncode, whole.stdout) == (7, text)
    end = resumed_status(one, 2)
    assert int(end["resumed_at"]) > 0
    assert [end[key] for key in ("work", "root", "stdout")] == [
        str(expected[key]) for key in ("work", "root", "stdout")
    ]
    assert "has ended" in one.refused("resume", "2", status=125)


def resumed_status(machine: Machine, job: int) -> dict[str, str]:
    lines = machine.ok("cat", f"/job/{job}/0/status").splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line)


def test_handed_over_it_ends_the_same_in_another_home(machines: Make, burn: Path, tmp_path: Path) -> None:
    one, two = machines("one"), machines("two")
    expected = straight(two, burn)
    job = begun(one, burn)
    car = tmp_path / "f.car"
    answer = json.loads(one.ok("handover", str(job), "-o", str(car), "--json"))
    assert answer["bytes"] == car.stat().st_size
    assert answer["work"] > 0
    ended = one.json("jobs", str(job))
    assert (ended["state"], ended["cancelled"], ended["handed_over"], ended["tasks"][0]["state"]) == (
        "finished",
        0,
        1,
        "handed-over",
    )
    assert ended["tasks"][0]["reason"] == f"ipos resume {car} goes on with it"
    assert "1 handed over" in one.ok("jobs")
    assert f"was handed over: ipos resume {car} goes on" in one.ok("why", str(job))
    assert "; 1 handed over" in one.run("wait", str(job)).stderr
    assert "is there already: --force" in one.refused("handover", str(job), "-o", str(car))
    assert "has ended" in one.refused("handover", str(job), "-o", str(car), "--force")
    end = resumed(two, str(car))
    assert same(end) == same(expected)
    assert end["resumed_at"] == answer["work"]
    listed = json.loads(two.ok("marks", str(end["job"]), "--json"))
    assert listed["marks"] == json.loads(two.ok("marks", str(expected["job"]), "--json"))["marks"]
    assert len(listed["marks"]) == expected["work"] // 1_000_000_000
    assert [listed["work"], listed["root"]] == [expected["work"], expected["root"]]
    refuses_what_is_wrong(two, car)


def refuses_what_is_wrong(machine: Machine, car: Path) -> None:
    good, bad = car.read_bytes(), car.with_name("bad.car")
    before = machine.ok("jobs")
    dice = random.Random(7)
    for spoiled, words in (
        (good[: len(good) // 2], "is not whole"),
        (b"no car at all", "is not a CAR file"),
        (b"\x05hello", "is not a CAR file"),
        (b"", "is not a CAR file"),
        *((bytes([*good[:at], good[at] ^ 4, *good[at + 1 :]]), " at byte ")
          for at in (dice.randrange(400, len(good)) for _ in range(3))),
    ):  # fmt: skip
        bad.write_bytes(spoiled)
        sentence = machine.refused("resume", str(bad), status=125)
        assert words in sentence
        assert "bad.car" in sentence
    assert "no such task" in (said := machine.refused("resume", "999", status=125)) or "no task 999" in said
    assert "cannot be read" in machine.refused("resume", str(car.with_name("none.car")), status=125)
    assert machine.ok("jobs") == before


def test_refusals(machines: Make, burn: Path, tmp_path: Path) -> None:
    one = machines("one")
    one.ok("run", "/bin/true")
    assert "native" in one.refused("handover", "1", "-o", str(tmp_path / "f.car"))
    assert "no such directory" in one.refused("handover", "1", "-o", str(tmp_path / "none" / "f.car"))
    assert "no task" in one.refused("marks", "bafynothing")
    for option, value in (("--memory", "much"), ("--work", "-1"), ("--every", "5 apples")):
        done = one.run("run", "--wasm", option, value, str(burn))
        assert done.returncode == 2
        assert f"argument {option}" in done.stderr
    assert "too often" in one.refused("run", "--wasm", "--every", "1ms", str(burn), status=125)
    assert "--wasm" in one.refused("run", "--root", str(tmp_path), str(burn), status=125)
    assert "cannot be read" in one.refused("run", "--wasm", "--root", str(tmp_path / "none"), str(burn), status=125)
    assert "cannot be read" in one.refused("run", "--wasm", "--stdin", str(tmp_path / "none"), str(burn), status=125)


def test_used_up_work_is_more_work_away(machines: Make, burn: Path) -> None:
    one = machines("one")
    expected = straight(one, burn)
    limit = f"{expected['work'] // 2 / 1e9:.2f}G"
    done = one.run("run", "--wasm", "--work", limit, "--json", str(burn), timeout=120)
    assert done.returncode == 125
    assert "used up its" in done.stderr
    first = json.loads(done.stdout)
    assert "with more than that" in one.refused("resume", str(first["job"]), status=125)
    assert "with more than that" in one.refused("resume", str(first["job"]), "--work", limit, status=125)
    end = resumed(one, first["task"], "--work", "100G")
    assert end["resumed_at"] > float(limit[:-1]) * 1e9
    assert [end[key] for key in SAME[1:]] == [expected[key] for key in SAME[1:]]


def test_a_directory_as_its_files(machines: Make, tmp_path: Path) -> None:
    """--root, --stdin, --out: links inside it are followed, none leads out; only what changed comes back."""
    one = machines("one")
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "sub").mkdir(parents=True)
    (root / "data.txt").write_text("hello\n")
    (root / "empty").write_text("")
    (root / "sub" / "kept.txt").write_text("kept\n")
    (root / "inside").symlink_to("sub/kept.txt")
    (root / "outside").symlink_to("/etc/hostname")
    script = tmp_path / "job.py"
    script.write_text(
        "import os, sys\n"
        "print(sorted(os.listdir('/')), open('/data.txt').read().strip(), open('/inside').read().strip(), input())\n"
        "try:\n    open('/outside').read(); print('out')\nexcept OSError as e:\n    print('no')\n"
        "open('/sub/made.txt', 'w').write('made'); open('/data.txt', 'a').write('more\\n'); os.symlink('made.txt', '/sub/l')\n"
        "os.rename('/sub/kept.txt', '/sub/moved.txt')\n"
    )
    (tmp_path / "in").write_text("from a file\n")
    text = one.ok(
        "run",
        "--wasm",
        "--root",
        str(root),
        "--stdin",
        str(tmp_path / "in"),
        "--out",
        str(out),
        str(script),
        timeout=240,
    )
    names = ["data.txt", "empty", "inside", "job.py", "outside", "sub", "tmp"]
    assert text == f"{names} hello kept from a file\nno\n"
    made = {str(path.relative_to(out)): os.readlink(path) if path.is_symlink() else path.read_text()
            for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}  # fmt: skip
    assert made == {"data.txt": "hello\nmore\n", "sub/made.txt": "made", "sub/l": "made.txt", "sub/moved.txt": "kept\n"}
    assert (root / "sub" / "kept.txt").exists(), "the directory itself is not touched"


def test_another_machine_goes_on_where_a_killed_one_was(machines: Make, burn: Path) -> None:
    one, two = machines("one"), machines("two")
    expected = straight(one, burn)
    join(one, two)
    job = begun(one, burn, "--nodes", "two", "--grace", "2")
    at = int(json.loads(one.ok("jobs", str(job), "--json"))["tasks"][0]["work"])
    wait_for("a save that is kept here", lambda: kept(one, job))
    os.kill(two.pid(), signal.SIGKILL)
    time.sleep(0.5)
    two.ok("up", "--listen", "local")  # its own copy of the save is there too; the task may only run there
    one.run("wait", str(job), timeout=120)
    end = resumed_status(one, job)
    assert int(end["resumed_at"]) > 0
    assert at > 0
    assert [end[key] for key in ("work", "root", "stdout")] == [
        str(expected[key]) for key in ("work", "root", "stdout")
    ]


def kept(machine: Machine, job: int) -> bool:
    return bool(machine.ok("marks", str(job)).strip())


def test_two_at_once_compute_it_once(machines: Make, burn: Path) -> None:
    one = Machine(machines("one").home)
    one.ok("down")
    one.home.joinpath("ipos.toml").write_text('name = "one"\nlisten = "local"\ncores = 2\n')
    one.ok("up")
    both = [
        subprocess.Popen([str(IPOS), "run", "--wasm", "--json", str(burn)], env=one.environment, stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [7, 7], "\n".join(map(str, said))
    ends = [json.loads(out) for out, _ in said]
    assert same(ends[0]) == same(ends[1])


def test_a_damaged_save_is_said_and_left(machines: Make, burn: Path) -> None:
    one = machines("one")
    expected = straight(one, burn)
    job = begun(one, burn)
    os.kill(one.pid(), signal.SIGKILL)
    time.sleep(0.3)
    (head,) = (one.home / "env" / "saves").glob("*/head")
    leaves = head.with_name("leaves")
    body = bytearray(leaves.read_bytes())
    for at in range(40, len(body), 7):
        body[at] ^= 1
    leaves.write_bytes(body)
    with contextlib.closing(sqlite3.connect(one.home / "journal.sqlite")) as journal:  # nor is another kept
        journal.execute("DELETE FROM saves")
        journal.commit()
    one.ok("up", "--listen", "local")
    one.run("wait", str(job), timeout=120)
    end = resumed_status(one, job)
    assert "was damaged" in end["note"]
    assert "resumed_at" not in end or int(end["resumed_at"]) == 0
    assert [end.get(key) for key in ("work", "root")] == [str(expected["work"]), expected["root"]]


def test_a_line_of_progress_on_a_terminal(machines: Make, burn: Path, terminal: Callable[..., Terminal]) -> None:
    one = machines("one")
    shown = terminal(one, "run", "--wasm", "--fresh", "--every", "0.3s", str(burn))
    shown.says(r"\d\.\d Gop, \d+\.\d Gop/s, saved \d+ s ago")
    shown.interrupt()
    shown.says("saved at .* Gop; ipos resume 1 goes on")
    assert shown.ends() == 130


def test_a_home_that_cannot_be_written(short: Path, burn: Path) -> None:
    home = short / "home"
    home.mkdir()
    (short / "run").mkdir(mode=0o700)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "ipos-test", str(home)], check=False)
    assert done.returncode == 0, "tmpfs cannot be mounted: this test needs root"
    one = Machine(home)
    try:
        one.ok("up", "--listen", "local")
        one.ok("down")
        subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
        for command, status in ((("up",), 1), (("run", "--wasm", str(burn)), 125), (("resume", "1"), 125)):
            assert "cannot be written: Read-only file system" in one.refused(*command, status=status)
    finally:
        subprocess.run(["umount", "-l", str(home)], check=False)


def test_a_full_disk_loses_nothing(short: Path, burn: Path) -> None:
    """A home on a small file system of its own: the task is given up with the sentence, and goes on when there is room."""
    home = short / "home"
    home.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "ipos-test", str(home)], check=False)
    assert done.returncode == 0, "tmpfs cannot be mounted: this test needs root"
    (short / "run").mkdir(mode=0o700)
    one = Machine(home)
    try:
        one.ok("up", "--listen", "local", "--cores", "1")
        job = begun(one, burn)
        filler = home / "filler"
        with filler.open("wb") as stream:
            try:
                while True:
                    stream.write(bytes(1 << 16))
                    stream.flush()
            except OSError:
                pass
        said = one.run("wait", str(job), timeout=120)
        assert said.returncode == 1
        assert "No space left on device" in said.stderr
        filler.unlink()
        time.sleep(1.5)
        end = resumed(one, str(job))
        assert end["resumed_at"] > 0
    finally:
        one.run("down")
        subprocess.run(["umount", "-l", str(home)], check=False)
