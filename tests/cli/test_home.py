"""A home: of before, of later, damaged, mistyped, private to a command, and killed while it is written."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Machine, join, wait_for

from ipos.node import settings
from ipos.node.home import FORMAT

pytestmark = pytest.mark.real
Make = Callable[..., Machine]
HERE = Path(__file__).parent


def whole(home: Path) -> dict[str, str]:
    """What is in a home, but for what every node writes."""
    own = {"lock", "node.pid", "log", "index.sqlite"}  # SQLite tidies a file when it is opened
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name not in own and not path.name.endswith(("-shm", "-wal"))
    }


def test_a_home_of_before_is_taken_over(machines: Make) -> None:
    """One made by a commit of 24 November 2026: format 1, an older journal, an older store, the account's key in the clear."""
    attic = machines("attic", up=False)
    with tarfile.open(HERE / "home-1.tar.xz") as archive:
        archive.extractall(attic.home.parent, filter="data")
    (attic.home.parent / "h").rename(attic.home)
    assert not (attic.home / "format").exists()
    attic.ok("up")
    status = attic.json("status")
    assert (status["name"], status["account"]) == ("attic", "0xbBFB721c073889C7641b30C82571bFe898A3cFb4")
    assert status["peer"] == "12D3KooWC3Lz3hje4q1inMW2KUKS25qogpGzvmsZTDtkFgXNxdo5"
    assert attic.ok("cat", "/job/1/0/stdout") == "made long ago\n"
    assert attic.ok("cat", "/home/note") == "kept\n"
    assert (attic.home / "format").read_text() == f"{FORMAT}\n"
    assert not (attic.home / "keys" / "account").exists()
    attic.ok("down")
    attic.ok("up")
    assert attic.json("status")["account"] == status["account"]


def test_a_home_that_cannot_be_used_is_left_alone(machines: Make) -> None:
    desk = machines("desk")
    desk.ok("down")
    for name, body, words in (
        ("format", f"{FORMAT + 1}\n", f"made by a newer IPOS (format {FORMAT + 1}, this one knows {FORMAT}): update IPOS"),
        ("format", "two\n", "which is no format of a home"),
        ("ipos.toml", 'name = "desk"\ncores = = 1\n', "line 2: invalid value"),
        ("ipos.toml", "coers = 1\n", "did you mean 'cores'?"),
        ("ipos.toml", "cores = 1.5\n", "cores = 1.5 is not possible; it may be a whole number"),
        ("journal.sqlite", "no database at all, but long enough to be one" * 99, "journal.sqlite is damaged (file is not a database)"),
        ("store/pins.sqlite", "no database at all, but long enough to be one" * 99, "pins.sqlite is damaged (file is not a database)"),
    ):  # fmt: skip
        path = desk.home / name
        good = path.read_bytes()
        path.write_text(body)
        before = whole(desk.home)
        sentence = desk.refused("up")
        assert words in sentence, sentence
        assert whole(desk.home) == before
        path.write_bytes(good)
    desk.ok("up")


def test_who_only_looks_makes_no_home(machines: Make) -> None:
    typo = machines("typo", up=False)
    for command in (
        ("ps",),
        ("ls", "/"),
        ("cat", "/status"),
        ("jobs",),
        ("why", "1"),
        ("store", "pins"),
        ("keys", "list"),
        ("image", "ls"),
    ):
        assert "is no home of a node: ipos up makes one there, IPOS_HOME names another" in typo.refused(*command)
    assert "no node is up" in typo.refused("status")
    assert not typo.home.exists()
    other = typo.home.parent / "documents"
    other.mkdir()
    (other / "thesis.tex").write_text("a year of work\n")
    for command, status in ((("up",), 1), (("run", "x.py"), 125)):
        sentence = typo.refused(*command, status=status, IPOS_HOME=str(other))
        assert "is no home of a node, and it has other files (thesis.tex)" in sentence
    assert [entry.name for entry in other.iterdir()] == ["thesis.tex"]


def test_the_node_of_a_command_is_its_own_affair(machines: Make) -> None:
    desk = machines("desk", up=False)
    program = desk.home.parent / "wait.py"
    go = desk.home.parent / "go"
    program.write_text(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)\nprint('went')\n")
    done = desk.run("run", "--detach", str(program))
    assert done.stderr == f"ipos: {desk.home} is a new home of a node\n"
    status = desk.json("status")
    assert status["private"] is True
    assert all(part.split("/")[2] == "127.0.0.1" for part in status["addresses"].split()), status["addresses"]
    assert not list((desk.home.parent / "run" / "ipos").glob("*/where"))
    assert "on this machine only: ipos down, ipos up, then invite" in desk.refused("invite")
    go.touch()
    desk.ok("wait", "1")
    desk.ok("down")
    again = desk.run("run", str(program))
    assert (again.stdout, "new home" in again.stderr) == ("went\n", False)

    attic = machines("attic")
    desk.ok("up", "--listen", "local")
    join(desk, attic)
    desk.ok("down")
    go.unlink()
    desk.ok("run", "--fresh", "--detach", str(program))
    assert desk.json("status")["private"] is False, "in a pool the others wait for it"
    go.touch()
    desk.ok("wait", "3")


CHANGES = """
import sys
from pathlib import Path
from ipos.node.settings import Disk, change
path = Path(sys.argv[1])
for i in range(1, 100_000):
    change(path, {"cores": i % 4096, "store_bytes": i}, {"a": Disk(f"/d{i}", i % 2 == 0), "b": None if i % 3 else Disk("/b")})
    print(i, flush=True)
"""


def kills(directory: Path, count: int, seed: int) -> None:
    dice = random.Random(seed)
    path = directory / "ipos.toml"
    path.write_text("# mine\n" + settings.document())
    for _ in range(count):
        writer = subprocess.Popen([sys.executable, "-c", CHANGES, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(dice.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        said = [int(line) for line in writer.stdout if line.endswith("\n")]
        writer.wait()
        found = settings.read(path)
        last = found.store_bytes
        assert last >= max(said, default=1), f"seed {seed}: change {max(said)} was reported, {last} is there"
        assert (found.cores, found.disk["a"].path) == (last % 4096, f"/d{last}"), f"seed {seed}"
        assert path.read_text().startswith("# mine\n"), f"seed {seed}"


def test_settings_killed_while_they_are_written(tmp_path: Path) -> None:
    kills(tmp_path, 5, random.randrange(1 << 32))


@pytest.mark.slow
def test_settings_killed_a_hundred_times(tmp_path: Path) -> None:
    kills(tmp_path, 100, random.randrange(1 << 32))


def rounds(desk: Machine, count: int, seed: int) -> None:
    """kill -9 of a node while everything of its home is written: jobs, settings, directories, files, blocks, pins, the log."""
    dice = random.Random(seed)
    data = desk.home.parent / "data"
    data.mkdir()
    for i in range(20):
        (data / f"f{i:02}").write_text(f"line {i}\n" * 2000)
    program = desk.home.parent / "upper.py"
    program.write_text("import sys\nprint(sys.stdin.read().upper(), end='')\n")
    jobs = 0
    for n in range(count):
        pid = desk.pid()
        (data / "more").write_bytes(dice.randbytes(3 << 20))
        work = [
            desk.start("map", str(program), "--over", str(data / "f*"), "--fresh", "--detach", "--out", str(desk.home.parent / "out")),
            desk.start("add", str(data)),
            desk.start("up"),
        ]  # fmt: skip
        time.sleep(dice.uniform(0.0, 1.5))
        os.kill(pid, signal.SIGKILL)
        for process in work:
            process.wait(60)
        desk.run("down")
        desk.ok("up", "--cores", str(1 + n % 2), "--name", f"desk{n}")
        assert desk.json("status")["name"] == f"desk{n}", f"seed {seed}"
        tomllib.loads((desk.home / "ipos.toml").read_text())
        assert all(line.startswith("time=") for line in desk.ok("cat", "/log").splitlines()), f"seed {seed}"
        listed = [line for line in desk.ok("jobs", "--json").splitlines() if line]
        assert len(listed) >= jobs, f"seed {seed}: a job is gone"
        jobs = len(listed)
    for job in range(1, jobs + 1):
        wait_for(f"job {job} (seed {seed})", lambda job=job: desk.json("jobs", str(job))["state"] == "finished", 120)
    out = desk.home.parent / "out"
    assert not jobs or all((out / f"f{i:02}").read_text() == f"LINE {i}\n" * 2000 for i in range(20)), (
        f"seed {seed}: an output is wrong"
    )


def test_a_node_killed_while_it_writes(machines: Make) -> None:
    rounds(machines("desk"), 2, random.randrange(1 << 32))


@pytest.mark.slow
def test_a_node_killed_forty_times_while_it_writes(machines: Make) -> None:
    rounds(machines("desk"), 40, random.randrange(1 << 32))
