"""Namespaces of real nodes: kept, private, and never a way to lock oneself out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Machine, join

from ipos.node.home import BARE, Home
from ipos.tree.ninep.client import Client, connect_unix
from ipos.wire.errors import Refused

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
LIST = "import os\nfor at, dirs, files in sorted(os.walk('/data')):\n    print(at, sorted(dirs), sorted(files))\n"


def told(machine: Machine, monkeypatch: pytest.MonkeyPatch, *anames: str, story: Callable[..., object]) -> None:
    """`story(client, ...)`, one attach each."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", machine.environment["XDG_RUNTIME_DIR"])

    async def main() -> None:
        clients = [await connect_unix(Home(machine.home).socket, aname) for aname in anames]
        try:
            await story(*clients)  # type: ignore[misc]
        finally:
            for client in clients:
                client.close()

    asyncio.run(main())


def grown(home: Path) -> None:
    for name in ("a", "b"):
        (home / "home" / name).mkdir(parents=True)
        (home / "home" / name / f"in-{name}").write_text(f"{name}\n")


def test_ns_of_a_home(machines: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    desk = machines("desk")
    grown(desk.home)
    desk.ok("down")
    assert desk.ok("ns", "bind", "-a", "/home/b", "/home/a") == "", "without a node that is up, too"
    assert (desk.home / "ns").read_text() == "bind -a /home/b /home/a\n"
    desk.ok("up", "--listen", "local")
    assert desk.ok("ls", "/home/a").split() == ["in-a", "in-b"]
    assert desk.json("ns") == {"namespace": ["bind -a /home/b /home/a"]}
    for words, *arguments in (
        ("/home/c: ", "bind", "/home/c", "/home/a"),
        ("/home/b: nothing is mounted there", "unmount", "/home/b"),
    ):
        said = desk.refused("ns", *arguments)
        assert words in said
        assert "line" not in said
    text = desk.home.parent / "text"
    text.write_text("# two\nbind /home/b /home/a\nbing\n")
    assert f"{text}, line 3: 'bing'" in desk.refused("ns", "load", str(text))
    desk.ok("ns", "load", "-", stdin="# one\nbind /home/b /home/a\n")
    told(desk, monkeypatch, "", "", BARE, story=private)
    desk.ok("ns", "bind", "/home/b", "/")  # everything is hidden, but not from the commands that mend it
    assert desk.ok("ls", "/").split() == ["in-b"]
    desk.ok("ns", "clear")
    assert desk.ok("ns") == (desk.home / "ns").read_text() == ""


async def private(one: Client, other: Client, bare: Client) -> None:
    """Each attach has its own, which began as the home's."""
    assert await one.read("/ns") == await other.read("/ns") == b"bind /home/b /home/a\n"
    await one.write("/ns", b"unmount /home/a\nbind -b /home/a /home/b\n")
    assert await one.read("/ns") == b"bind -b /home/a /home/b\n"
    assert [entry.name for entry in await one.ls("/home/b")] == ["in-a", "in-b"]
    assert await other.read("/ns") == b"bind /home/b /home/a\n"
    assert [entry.name for entry in await other.ls("/home/b")] == ["in-b"]
    assert await other.read("/lib/namespace") == b"bind /home/b /home/a\n"
    with pytest.raises(Refused, match="ns: no such file"):
        await bare.read("/ns")
    assert [entry.name for entry in await bare.ls("/home/a")] == ["in-a"]
    with pytest.raises(Refused, match="line 2: '/n' is not a command"):
        await one.write("/ns", b"clear\n/n\n")
    assert await one.read("/ns") == b"bind -b /home/a /home/b\n"
    with pytest.raises(Refused, match="not UTF-8"):
        await one.write("/ns", b"bind /a \xff")


def test_a_damaged_namespace_is_named_and_the_node_starts(machines: Callable[..., Machine]) -> None:
    desk = machines("desk")
    grown(desk.home)
    desk.ok("down")
    (desk.home / "ns").write_text("bind /home/b /home/a\nbind /home/b\n")
    desk.ok("up", "--listen", "local")
    assert desk.ok("ls", "/home/a").split() == ["in-a"], "the empty table"
    trouble = str(desk.json("status")["trouble"])
    assert f"{desk.home}/ns: line 2: 'bind /home/b'" in trouble
    assert trouble in (desk.home / "log").read_text()
    assert "line 2" in desk.refused("ns", "bind", "/home/b", "/home/a"), "it is not written over"
    (desk.home / "ns").write_text("bind /home/b /home/a\n")
    assert desk.ok("ls", "/home/a").split() == ["in-b"], "mended by hand, it is in force"
    (desk.home / "ns").write_bytes(b"\xff")
    assert "not text" in desk.refused("ns", "unmount", "/home/a")
    desk.ok("ns", "clear")
    assert desk.json("status")["trouble"] is None


def test_other_machines_have_none_of_mine(machines: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    desk, attic = machines("desk"), machines("attic")
    join(desk, attic)
    for machine in (desk, attic):
        grown(machine.home)
    (attic.home / "home" / "b" / "in-b").write_text("of attic\n")
    desk.ok("ns", "bind", "/home/b", "/home/a")
    assert attic.ok("ls", "/n/desk/home/a").split() == ["in-a"]
    assert "there is no ns" in attic.refused("cat", "/n/desk/ns")
    for write in (b"clear", b"bind / /home"):
        told(attic, monkeypatch, "", story=lambda client, write=write: untouched(client, write))
    desk.ok("ns", "load", "-", stdin="bind -a /n/attic/home/b /home/b\nbind -a /n/attic/home /home\n")
    assert desk.ok("ls", "/home/b").split() == ["in-b"]
    assert desk.ok("cat", "/home/b/in-b") == "b\n", "the nearer one is found first"
    desk.ok("ns", "load", "-", stdin="bind -b /n/attic/home/b /home/b\n")
    assert desk.ok("cat", "/home/b/in-b") == "of attic\n"
    attic.ok("down")
    assert desk.ok("cat", "/home/b/in-b") == "b\n", "who is out of reach is passed over"


async def untouched(client: Client, write: bytes) -> None:
    with pytest.raises(Refused, match="by its owner"):
        await client.write("/n/desk/lib/namespace", write)


def test_an_example_posts_a_file_server(machines: Callable[..., Machine]) -> None:
    desk = machines("desk")
    (desk.home / "home").mkdir(exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "clock.py")], env=desk.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("posted: ")
        assert desk.ok("cat", "/srv/clock/now").count(":") == 2
        desk.ok("ns", "mount", "-a", "/srv/clock", "/home")
        assert desk.ok("ns") == "mount -a /srv/clock /home\n"
        assert desk.ok("ls", "/home").split() == ["now", "laps"]
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert "no file server at" in desk.refused("cat", "/srv/clock/now")
        assert "start its program again, or rm /srv/clock" in desk.refused("cat", "/home/now")
        assert desk.json("status")["state"] == "up"
    finally:
        child.kill()
        child.wait()


def test_a_programs_root_from_a_namespace(machines: Callable[..., Machine], tmp_path: Path) -> None:
    desk = machines("desk")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_text("content")
    (tmp_path / "list.py").write_text(LIST)
    cid = desk.json("add", str(tmp_path / "in"))["cid"]
    program = str(tmp_path / "list.py")
    one, other = tmp_path / "ns", tmp_path / "ns2"
    one.write_text(f"bind /ipfs/{cid} /data/x\n")
    other.write_text(f"# the same\nbind /ipfs/{cid} /data/y\nbind /data/y /data/x\nunmount /data/y\n")

    def run(text: Path | str, stdin: str | None = None) -> Any:
        return json.loads(desk.ok("run", "--json", "--wasm", "--ns", str(text), program, stdin=stdin))

    ran, again = run(one), run(other)
    assert (again["task"], again["cached"]) == (ran["task"], True), "equal namespaces are equal tasks"
    where = f"/job/{ran['job']}/0"
    assert desk.ok("cat", f"{where}/stdout") == "/data ['x'] []\n/data/x [] ['f']\n"
    assert desk.ok("cat", f"{where}/root/data/x/f") == "content"
    assert desk.ok("ls", f"{where}/root").split() == ["data", "list.py"]
    text = desk.ok("cat", f"{where}/ns")
    assert run("-", text)["task"] == ran["task"], "a task's own namespace makes it again"
    one.write_text("bind /home/x /data\n")
    said = desk.refused("run", "--wasm", "--ns", str(one), program, status=125)
    assert "line 1: /home/x can change" in said
    assert "ipos add it first" in said
    assert "add --wasm" in desk.refused("run", "--ns", str(one), program, status=125)
    assert os.listdir(tmp_path / "in") == ["f"]
