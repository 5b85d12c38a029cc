"""Scripts that start from the Python image, through the command line and a real node: as `python script.py` would run them, moved or not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Machine, join, several, wait_for

pytestmark = pytest.mark.real

SAME = ("exit", "work", "root", "stdout", "stderr", "dir")
SAYS = """
import os, random, sys, time
print(sys.argv, sys.orig_argv[1:], dict(os.environ), __name__, __file__, sys.path[0], os.getcwd(), os.listdir("/"), flush=True)
print(random.random(), os.urandom(4).hex(), hash("a"), int(time.time()), sys.flags.hash_randomization)
print([line for line in sys.stdin], sys.stdin.closed, sys.stdin.isatty(), sys.stdin.seekable(), file=sys.stderr)
open("made", "w").write("x")
sys.exit(int(sys.argv[1]))
"""
FAILS = """
import atexit, sys
class Late:
    def __del__(self): print("late")
late = Late()
atexit.register(print, "at exit")
def deep():
    return {}["key"]
def outer():
    try:
        deep()
    except KeyError as error:
        raise ValueError("no") from error
outer()
"""
TRACE = """Traceback (most recent call last):
  File "/fails.py", line 11, in outer
    deep()
  File "/fails.py", line 8, in deep
    return {}["key"]
           ~~^^^^^^^
KeyError: 'key'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/fails.py", line 14, in <module>
    outer()
  File "/fails.py", line 13, in outer
    raise ValueError("no") from error
ValueError: no
"""
LONG = """
import hashlib, sys
print("begun", flush=True)
state = b""
for i in range(int(sys.argv[1])):
    for _ in range(20000):
        state = hashlib.sha256(state).digest()
    print(i, state.hex(), flush=True)
"""


@pytest.fixture(scope="module")
def one() -> Iterator[Machine]:
    with several() as make:
        machine = make("one")
        machine.ok("image", "build", timeout=240)
        yield machine


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def ran(machine: Machine, *arguments: str, **options: Any) -> dict[str, Any]:
    done = machine.run("run", "--wasm", "--fresh", "--json", *arguments, timeout=240, **options)
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "status": done.returncode}


def text(machine: Machine, result: dict[str, Any], which: str = "stdout") -> str:
    return machine.ok("cat", f"/job/{result['job']}/0/{which}")


def test_the_script_is_what_python_would_make_of_it(one: Machine, script: Callable[[str, str], str]) -> None:
    says = script("says.py", SAYS)
    first = ran(one, "--env", "A=b c", says, "3", "x", stdin="one\ntwo")
    assert (first["status"], first["exit"]) == (3, 3)
    told, dice = text(one, first).splitlines()
    assert told == ("['says.py', '3', 'x'] ['says.py', '3', 'x'] {'A': 'b c'} __main__ /says.py / / ['says.py', 'tmp']")
    assert dice.endswith(" 1700000000 0")
    assert text(one, first, "stderr") == "['one\\n', 'two'] False False False\n"
    again = ran(one, "--env", "A=b c", says, "3", "x", stdin="one\ntwo")
    assert [again[key] for key in SAME] == [first[key] for key in SAME]
    other = ran(one, "--env", "A=b c", "--seed", "other", says, "3", "x", stdin="one\ntwo")
    random, urandom, hashed, *_ = text(one, other).splitlines()[1].split()
    assert random not in dice
    assert urandom not in dice
    assert hashed in dice


def test_a_traceback_begins_in_the_script(one: Machine, script: Callable[[str, str], str]) -> None:
    failed = ran(one, script("fails.py", FAILS))
    assert (failed["status"], failed["exit"]) == (1, 1)
    assert text(one, failed, "stderr") == TRACE
    assert text(one, failed) == "at exit\nlate\n"
    broken = ran(one, script("broken.py", "print(\n"))
    assert text(one, broken, "stderr").startswith('  File "/broken.py", line 1\n')
    assert broken["exit"] == 1
    words = ran(one, script("words.py", "raise SystemExit('enough')"))
    assert (words["exit"], text(one, words, "stderr")) == (1, "enough\n")


def test_without_an_image_and_with_python_variables(one: Machine, script: Callable[[str, str], str]) -> None:
    """The road before images is still there, for what Python reads when it starts, and comes to the same output."""
    hashes = script("hashes.py", "import sys; print(hash('a') == 0, sys.flags.optimize, sys.argv)")
    plain, cold = ran(one, hashes), ran(one, "--image", "none", hashes)
    assert plain["stdout"] == cold["stdout"]
    assert plain["work"] < cold["work"] / 3
    optimised = ran(one, "--env", "PYTHONOPTIMIZE=2", hashes)
    assert text(one, optimised) == "False 2 ['hashes.py']\n"
    image = one.json("image", "ls")["image"]
    early = one.refused("run", "--wasm", "--image", image, "--env", "PYTHONHASHSEED=1", hashes, status=125)
    assert "PYTHONHASHSEED is read when Python starts" in early


def test_packages_and_modules(one: Machine, script: Callable[[str, str], str], tmp_path: Path) -> None:
    (tmp_path / "own" / "part").mkdir(parents=True)
    (tmp_path / "own" / "__init__.py").write_text("from .part import there\n")
    (tmp_path / "own" / "part" / "__init__.py").write_text("there = 42\n")
    uses = script(
        "uses.py",
        "# /// script\n# dependencies = ['mdurl==0.1.2']\n# ///\nimport iniconfig, mdurl, own\nfrom importlib.metadata import version\n"
        "print(own.there, version('iniconfig'), version('mdurl'), iniconfig.__file__)\n",
    )
    options = ("--with", "iniconfig==2.1.0", "--with", f"{tmp_path}/own")
    first = ran(one, *options, uses)
    assert text(one, first) == "42 2.1.0 0.1.2 /site-packages/iniconfig/__init__.py\n"
    assert first["dir"] is None
    shutil.rmtree(one.home / "env" / "sites")
    again = ran(one, *options, uses)  # unpacked anew, the same content: the same task
    assert [again[key] for key in ("task", *SAME)] == [first[key] for key in ("task", *SAME)]
    (tmp_path / "in.txt").write_text("1\n")
    one.ok("map", "--wasm", *options, uses, "--over", f"{tmp_path}/in.txt", "--out", str(tmp_path / "out"), timeout=240)
    assert (tmp_path / "out" / "in.txt").read_text() == text(one, first)
    for given, said in (
        (("--with", "numpy"), "numpy has no wheel of pure Python"),
        (("--with", "iniconfig==0.0.77"), "iniconfig==0.0.77"),
        (("--with", f"{tmp_path}/none"), "there is no such directory"),
        (("--with", f"{tmp_path}/own", "--with", f"{tmp_path}/own"), "there is a own already"),
    ):
        assert said in one.refused("run", "--wasm", *given, script("plain.py", "print(1)"), status=125)


def test_images_are_made_listed_and_removed(one: Machine, script: Callable[[str, str], str]) -> None:
    (common,) = (json.loads(line) for line in one.ok("image", "ls", "--json").splitlines())
    assert (common["modules"], common["current"]) == ([], True)
    assert one.json("image", "build")["image"] == common["image"]
    more = one.json("image", "build", "--import", "sqlite3,logging", timeout=240)
    assert (more["modules"], more["current"]) == (["logging", "sqlite3"], True)
    there = script("there.py", "import sys; print('sqlite3' in sys.modules)")
    assert text(one, ran(one, there)) == "False\n"
    assert text(one, ran(one, "--image", more["image"], there)) == "True\n"
    assert "No module named 'nosuch'" in one.refused("image", "build", "--import", "nosuch", timeout=120)
    assert "not the name of a module" in one.refused("image", "build", "--import", "../x")
    one.ok("image", "rm", more["image"])
    assert "there is no image" in one.refused("image", "rm", more["image"])
    assert "there is no image" in one.refused("run", "--wasm", "--image", more["image"], there, status=125)
    assert text(one, ran(one, there)) == "False\n"


def test_an_image_of_another_engine_is_refused_with_what_to_do(one: Machine, script: Callable[[str, str], str]) -> None:
    note = next((one.home / "env" / "images").glob("*.json"))
    said = json.loads(note.read_text())
    old = note.with_name("bafkqaaa.json")
    old.write_text(json.dumps({**said, "image": "bafkqaaa", "engine": "0123456789abcdef", "modules": ["sqlite3"]}))
    try:
        refused = one.refused("run", "--wasm", "--image", "bafkqaaa", script("x.py", "print(1)"), status=125)
        assert "was made by engine 0123456789abcdef" in refused
        assert "ipos image build --import sqlite3 makes it anew" in refused
        assert "of engine 0123456789abcdef" in one.ok("image", "ls")
    finally:
        old.unlink()


def test_killed_in_the_runner_and_later_it_ends_the_same_and_a_damaged_image_is_laid_out_anew(
    machines: Callable[..., Machine], script: Callable[[str, str], str], tmp_path: Path
) -> None:
    """On another machine of the pool, which gets the image from the first; its worker is killed twice."""
    desk, attic = machines("desk"), machines("attic")
    join(desk, attic)
    long = script("long.py", LONG)
    options = ("--nodes", "attic", "--every", "0.2", "--mark-every", "0.2")
    marked = ran(desk, "--mark-every", "0.2", long, "10")
    image = desk.json("image", "ls")["image"]
    job = json.loads(desk.ok("run", "--wasm", "--fresh", "--detach", "--json", *options, long, "10", timeout=240))[
        "job"
    ]
    killed: set[int] = set()

    def kill() -> bool:
        for line in Path("/proc").glob("[0-9]*/status"):
            pid = int(line.parent.name)
            try:
                parent = int(next(one for one in line.read_text().splitlines() if one.startswith("PPid:")).split()[1])
                command = Path(f"/proc/{parent}/cmdline").read_bytes()
            except (OSError, StopIteration):
                continue
            if b"ipos.vm.parent" in command and str(attic.home).encode() in command and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                return True
        return False

    wait_for("a worker", kill, 60)  # as soon as it is there: in the runner, or before
    wait_for("some work", lambda: any((attic.home / "env" / "saves").glob("*/head")), 60)
    wait_for("another worker", kill, 60)
    desk.run("wait", str(job), timeout=240)
    status = dict(line.split(" ", 1) for line in desk.ok("cat", f"/job/{job}/0/status").splitlines() if " " in line)
    assert {key: status[key] for key in ("root", "stdout")} == {key: marked[key] for key in ("root", "stdout")}
    assert int(status["work"]) == marked["work"]
    assert len(killed) == 2

    laid_out = attic.home / "env" / "images" / image
    body = bytearray(laid_out.read_bytes())
    body[len(body) // 2] ^= 1
    laid_out.chmod(0o600)
    laid_out.write_bytes(body)
    attic.ok("down")
    for kept in (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipos" / "compiled").iterdir():
        if kept.is_file() and not kept.name.startswith("image-"):  # what this user has verified before
            (tmp_path / "cache" / "ipos" / "compiled").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, tmp_path / "cache" / "ipos" / "compiled" / kept.name)
    attic.ok("up", "--listen", "local", XDG_CACHE_HOME=str(tmp_path / "cache"))
    wait_for("the pool", lambda: desk.json("pool")["nodes"] == 2, 60)
    ended = ran(desk, "--nodes", "attic", "--mark-every", "0.2", long, "10")
    assert [ended[key] for key in SAME] == [marked[key] for key in SAME]
    assert "is damaged" in (attic.home / "log").read_text()
