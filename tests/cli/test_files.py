"""The files of the tree by command: there and back, patterns, what is refused, and what a kill leaves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import IPOS, Machine, Terminal, join, several, wait_for

from ipos.cli.files import clear, details
from ipos.tree.file import Caller, File
from ipos.tree.local import local
from ipos.tree.ninep.client import Client
from ipos.tree.ninep.codec import Framer
from ipos.tree.ninep.session import Session
from ipos.wire import limits

real = pytest.mark.real
Make = Callable[..., Machine]


@pytest.fixture(scope="module")
def desk() -> Iterator[Machine]:
    """One node for all that does not end it."""
    with several() as make:
        yield make("desk")


@pytest.fixture
def here(desk: Machine, tmp_path: Path) -> Iterator[Path]:
    """A directory of this disk; /home is empty at the end."""
    yield tmp_path
    desk.run("rm", "-r", "/home/*", "/home/.[!.]*")


def home(machine: Machine) -> Path:
    return machine.home / "home"


class Rounds(asyncio.Transport):
    """A link to a server in this process that carries what was said in one round trip only when nobody has more to say."""

    def __init__(self, root: File, client: Client) -> None:
        super().__init__()
        self.count = 0
        self._said = bytearray()
        self._answers: list[bytes] = []
        self._client = client
        self._framer = Framer(limits.msize_bytes)

        async def attach(caller: Caller, aname: str) -> File:
            return root

        self._session = Session(
            attach, Caller("0x1", "me", own=True, local=True), lambda piece: self._answers.append(bytes(piece))
        )

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._said += data

    def close(self) -> None:
        pass

    async def carry(self, done: asyncio.Future[Any]) -> None:
        while not done.done():
            for _ in range(5):
                await asyncio.sleep(0)
            if not self._said or done.done():
                continue
            self.count += 1
            said, self._said = bytes(self._said), bytearray()
            for message in self._framer.feed(said):
                self._session.message(message)
            quiet, seen = 0, -1
            while quiet < 20:
                await asyncio.sleep(0)
                quiet, seen = (quiet + 1, seen) if len(self._answers) == seen else (0, len(self._answers))
            answers, self._answers = b"".join(self._answers), []
            self._client.data_received(answers)


def test_round_trips(tmp_path: Path) -> None:
    """A long listing of 1,000 files is one round trip for the names and about four for the files, 250 at a time; to remove them takes as many."""
    for i in range(1000):
        (tmp_path / f"{i:04}").touch()

    async def main() -> None:
        client = Client()
        link = Rounds(local(tmp_path), client)
        client.connection_made(link)

        async def counted(work: Any) -> tuple[Any, int]:
            task = asyncio.ensure_future(work)
            before = link.count
            await link.carry(task)
            return await task, link.count - before

        await counted(client.attach())
        entries, asked = await counted(client.ls("/"))
        assert asked == 1
        rows, asked = await counted(details(client, "/", entries))
        assert (len(rows), asked <= 5) == (1000, True), asked
        (tmp_path / "d").mkdir()
        for i in range(500):
            (tmp_path / "d" / str(i)).touch()
        removed, asked = await counted(clear(client, "/d"))
        assert (removed, asked <= 6) == (501, True), asked

    asyncio.run(main())


@real
def test_there_and_back(desk: Machine, here: Path) -> None:
    source = here / "s"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "large").write_bytes(os.urandom(5_000_000))
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o750)
    (source / "link").symlink_to("/etc/passwd")
    os.utime(source / "run", ns=(0, 1_234_567_890_123_456_789))
    assert desk.ok("cp", "-r", str(source), "/home") == ""
    assert os.readlink(home(desk) / "s" / "link") == "/etc/passwd"
    done = desk.json("cp", "-r", "/home/s", str(here / "back"))
    assert done == {"files": 2, "directories": 2, "links": 1, "bytes": 5_000_010, "failed": 0}
    compared = subprocess.run(["diff", "-r", "--no-dereference", source, here / "back"], check=False)
    assert compared.returncode == 0
    copied = (here / "back" / "run").stat()
    assert (stat.S_IMODE(copied.st_mode), copied.st_mtime_ns) == (0o750, 1_234_567_890_123_456_789)
    assert desk.ok("cp", "/home/s/run", "-") == "#!/bin/sh\n"
    assert desk.ok("cp", "-", "/home/typed", stdin="typed\n") == ""
    assert desk.ok("cat", "/home/typed", "/home/s/run") == "typed\n#!/bin/sh\n"
    # within the tree, and by CID
    desk.ok("cp", "-r", "/home/s", "/home/again")
    assert desk.ok("ls", "/home/again").split() == ["link", "run", "sub"]
    cid = desk.ok("add", str(source)).split()[0]
    desk.ok("cp", "-r", cid, "/home/content")
    assert os.readlink(home(desk) / "content" / "link") == "/etc/passwd"
    assert (home(desk) / "content" / "sub" / "large").read_bytes() == (source / "sub" / "large").read_bytes()
    # a path of the disk that looks like one of the tree
    assert "there is no such file" in desk.refused("cp", "file:/home/nobody/nothing", "/home/x")
    desk.ok("cp", "/home/typed", f"file:{here}/plain")
    assert (here / "plain").read_text() == "typed\n"


@real
def test_ls(desk: Machine, here: Path) -> None:
    desk.ok("mkdir", "-p", "/home/d/e", "/home/d/f")
    desk.ok("write", "/home/d/text", "hello", "you")
    (home(desk) / "d" / "link").symlink_to("text")
    (home(desk) / "d" / "bad\n\x1b[31mname").write_text("")
    long = desk.ok("ls", "-l", "/home/d")
    assert re.search(r"^-rw-\S+ +10 20\d\d-\d\d-\d\d \d\d:\d\d text$", long, re.M)
    assert re.search(r"^drwx\S+ .* e$", long, re.M)
    assert re.search(r"^lrwx\S+ .* link -> text$", long, re.M)
    assert r"bad\n\x1b[31mname" in long
    assert "\x1b" not in long
    rows = {row["name"]: row for row in desk.json("ls", "-l", "/home/d")}
    assert rows["bad\n\x1b[31mname"]["kind"] == "file"
    assert (rows["link"]["target"], rows["e"]["kind"], rows["text"]["size"]) == ("text", "directory", 10)
    assert desk.ok("ls", "-R", "/home/d").count(":\n") == 3
    assert desk.ok("ls", "/home/d/text") == "text\n"
    assert desk.ok("ls", "/home/d/*t").split() == ["text"]
    assert "/n/desk/n/" not in desk.ok("ls", "-R", "/n"), "a walk comes to an end"
    assert {"home", "job", "proc"} <= set(desk.ok("ls").split())
    assert "there is no nothing" in desk.refused("ls", "/home/nothing")
    assert "the tree has no /nothing (ipos ls / shows it)" in desk.refused("ls", "/nothing/at/all")
    assert "ls(1)" in desk.refused("ls", "file:/tmp")
    assert "/home/d is a directory: ipos ls lists it" in desk.refused("cat", "/home/d")
    one_missing = desk.run("ls", "/home/d/text", "/home/no")
    assert (one_missing.returncode, one_missing.stdout) == (1, "text\n")


@real
def test_write(desk: Machine, here: Path) -> None:
    desk.ok("write", "/home/f", "one")
    desk.ok("write", "-a", "/home/f", "two")
    assert desk.ok("cat", "/home/f") == "one\ntwo\n"
    desk.ok("write", "/home/f", stdin="short")
    assert desk.json("cat", "/home/f") == {"path": "/home/f", "bytes": 5, "text": "short"}
    (home(desk) / "raw").write_bytes(b"\xff\x00")
    assert desk.json("cat", "/home/raw")["base64"] == "/wA="
    assert "'fly' is not a command of /ctl; it knows down" in desk.refused("write", "/ctl", "fly")
    assert "cannot be written" in desk.refused("write", "/status", "x")
    assert "there is no task 7" in desk.refused("write", "--answer", "/job/find", '{"task":"7"}')
    assert "files cannot be made here" in desk.refused("write", "/job/nothing", "x")


@real
def test_rm_and_mv(desk: Machine, here: Path) -> None:
    desk.ok("mkdir", "-p", "/home/d/e")
    for name in ("a", "b", "c.txt", "*"):
        (home(desk) / "d" / name).write_text(name)
    (home(desk) / "d" / "out").symlink_to(here)
    (here / "kept").write_text("kept")
    assert "-r removes it" in desk.refused("rm", "/home/d")
    desk.ok("rm", "/home/d/[*]")
    assert sorted(desk.ok("ls", "/home/d").split()) == ["a", "b", "c.txt", "e", "out"]
    assert desk.json("rm", "/home/d/[ab]")["removed"] == 2
    assert "there is no a" in desk.refused("rm", "/home/d/a")
    desk.ok("rm", "-f", "/home/d/a")
    desk.ok("mv", "/home/d/c.txt", "/home/d/e")
    desk.ok("write", "/home/d/e/other", "other")
    assert "-n replaces nothing" in desk.refused("mv", "-n", "/home/d/e/other", "/home/d/e/c.txt")
    assert "is no directory: 2 files" in desk.refused("mv", "/home/d/e/*", "/home/d/new")
    desk.ok("mv", "/home/d/e/other", "/home/d/e/c.txt")
    assert desk.ok("cat", "/home/d/e/c.txt") == "other\n"
    assert "nothing can be removed from /, so nothing in it was" in desk.refused("rm", "-r", "/home")
    assert desk.json("rm", "-r", "/home/d")["removed"] == 4
    assert (here / "kept").read_text() == "kept", "no link was followed"
    assert "is there, and no directory" in (
        desk.ok("write", "/home/f", "x") or desk.refused("mkdir", "-p", "/home/f/sub", "/home/f")
    )


@real
def test_cp_is_refused(desk: Machine, here: Path) -> None:
    (here / "f").write_text("f")
    assert "neither f nor g is a path of the tree" in desk.refused("cp", "f", "g")
    assert "there is no such file" in desk.refused("cp", str(here / "none"), "/home")
    assert "is no directory: 2 files" in desk.refused("cp", str(here / "f"), str(here / "f"), "/home/x")
    assert "-r copies it" in desk.refused("cp", str(here), "/home")
    assert "there is no nowhere" in desk.refused("cp", str(here / "f"), "/home/nowhere/f")
    assert "there is no such directory" in desk.refused("cp", "/status", str(here / "none" / "f"))
    assert "whole tree: say which part" in desk.refused("cp", "-r", "/n/desk", str(here))
    desk.ok("write", "/home/file", "x")
    assert "/home/file is no directory" in desk.refused("cp", str(here / "f"), "/home/file/f")
    desk.ok("cp", str(here / "f"), "/home/f")
    assert "-n replaces nothing" in desk.refused("cp", "-n", str(here / "f"), "/home/f")
    wrong = desk.run("cp", str(here / "f"), str(here / "none"), "/home")
    assert (wrong.returncode, wrong.stderr.count("ipos: ")) == (1, 1)


@real
def test_a_full_disk(desk: Machine, here: Path) -> None:
    """On this side: a limit on the size of files stands in for the disk, as in every test of that."""
    (home(desk) / "large").write_bytes(os.urandom(3 << 20))
    (here / "large").write_text("old")
    limited = ["bash", "-c", 'ulimit -f 1024; trap "" XFSZ; exec "$@"', "-", str(IPOS), "cp", "/home/large", str(here)]
    done = subprocess.run(limited, env=desk.environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "/home/large: write: File too large" in done.stderr
    assert (here / "large").read_text() == "old"
    assert os.listdir(here) == ["large"]


@real
def test_interrupted(desk: Machine, here: Path, terminal: Callable[..., Terminal]) -> None:
    """Ctrl-C while the standard input is waited for: the old file is there, and nothing else."""
    desk.ok("write", "/home/f", "old")
    command = terminal(desk, "cp", "-", "/home/f", plain=True)
    command.answer("new")
    wait_for("the temporary file", lambda: len(os.listdir(home(desk))) == 2)
    command.interrupt()
    command.says("interrupted: 0 files are copied")
    assert command.ends() == 130
    assert os.listdir(home(desk)) == ["f"]
    assert desk.ok("cat", "/home/f") == "old\n"


@real
def test_a_killed_command_and_a_killed_node(machines: Make, terminal: Callable[..., Terminal]) -> None:
    desk = machines("desk")
    desk.ok("write", "/home/f", "old")
    command = terminal(desk, "cp", "-", "/home/f", plain=True)
    command.answer("new")
    wait_for("the temporary file", lambda: len(os.listdir(home(desk))) == 2)
    os.kill(desk.pid(), signal.SIGKILL)
    command.answer("more")
    command.says("whole, old or new")
    assert command.ends() == 1
    assert (home(desk) / "f").read_text() == "old\n"
    desk.ok("up")
    command = terminal(desk, "cp", "-", "/home/f", plain=True)
    command.answer("new")
    wait_for("the temporary file", lambda: len(os.listdir(home(desk))) == 3)
    command.process.kill()
    assert command.process.wait(20) == -signal.SIGKILL
    assert desk.ok("cat", "/home/f") == "old\n"


@real
def test_follow(desk: Machine, here: Path, terminal: Callable[..., Terminal]) -> None:
    desk.ok("write", "/home/log", "first")
    command = terminal(desk, "cat", "-f", "/home/log", plain=True)
    command.says("first")
    desk.ok("write", "-a", "/home/log", "second")
    command.says("second")
    (home(desk) / "new").write_text("anew\n")
    desk.ok("mv", "/home/new", "/home/log")
    command.says("anew")
    command.interrupt()
    assert command.ends() == 130


@real
def test_between_machines(machines: Make) -> None:
    desk, attic = machines("desk"), machines("attic")
    join(desk, attic)
    (home(desk) / "d").mkdir()
    for i in range(30):
        (home(desk) / "d" / str(i)).write_bytes(os.urandom(10_000))
    desk.ok("cp", "-r", "/home/d", "/n/attic/home/")
    assert sorted(os.listdir(home(attic) / "d"), key=int) == [str(i) for i in range(30)]
    desk.ok("mv", "/n/attic/home/d/7", "/home/seven")
    assert (home(desk) / "seven").read_bytes() == (home(desk) / "d" / "7").read_bytes()
    assert not (home(attic) / "d" / "7").exists()
    desk.ok("mv", "/n/attic/home/d", "/n/attic/home/e")
    assert len(desk.json("ls", "-l", "/n/attic/home/e")) == 29
    desk.ok("mv", "/n/attic/home/e", "/home/back")
    assert len(os.listdir(home(desk) / "back")) == 29
    assert os.listdir(home(attic)) == []


@real
def test_a_huge_directory(desk: Machine, here: Path) -> None:
    many = home(desk) / "many"
    many.mkdir()
    for i in range(2000):
        (many / f"{i:04}").touch()
    began = time.monotonic()
    rows: list[dict[str, Any]] = json.loads(desk.ok("ls", "-l", "--json", "/home/many"))
    assert [row["name"] for row in rows] == [f"{i:04}" for i in range(2000)]
    assert desk.json("rm", "-r", "/home/many")["removed"] == 2001
    assert time.monotonic() - began < 30


@real
def test_with_no_node_up(desk: Machine, here: Path) -> None:
    """Each command has a node of its own then, which is gone when it is; `top` only looks, and says so."""
    desk.ok("write", "/home/f", "kept")
    desk.ok("down")
    try:
        assert desk.ok("cat", "/home/f") == "kept\n"
        desk.ok("cp", "/home/f", str(here / "f"))
        assert "there is no nothing" in desk.refused("rm", "/home/nothing")
        assert "no node is up" in desk.refused("top")
        assert "no node is up" in desk.refused("status")
        wait_for("the last one's end", lambda: not (desk.home / "node.pid").exists())
    finally:
        desk.run("up")
    assert (here / "f").read_text() == "kept\n"
