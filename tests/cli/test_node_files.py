"""A node is driven by its files alone: what it gives, shows and says, at once and after a restart."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Machine, join, wait_for

from ipos.identity import machines as lists
from ipos.identity.machines import MachineList
from ipos.node.home import Home
from ipos.tree.ninep.client import Client, connect_unix
from ipos.wire.errors import Refused
from ipos.wire.record import encode
from ipos.wire.text import parse

pytestmark = pytest.mark.real
Make = Callable[..., Machine]


@pytest.fixture
def desk(machines: Make, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = machines("desk")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made.home.parent / "run"))
    return made


def at(machine: Machine, story: Callable[[Client], Any]) -> Any:
    """A story told to the node's own socket."""

    async def told() -> Any:
        client = await connect_unix(Home(machine.home).socket)
        try:
            async with asyncio.timeout(60):
                return await story(client)
        finally:
            client.close()

    return asyncio.run(told())


async def status(client: Client, path: str) -> dict[str, str]:
    return parse((await client.read(path)).decode())


async def refused(client: Client, path: str, line: str) -> str:
    with pytest.raises(Refused) as sentence:
        await client.write(path, line.encode())
    return str(sentence.value)


async def signed(client: Client, path: str, question: bytes) -> bytes:
    async with client.open(path, os.O_RDWR) as file:
        await file.write_at(0, question)
        return bytes.fromhex((await file.read_at(0, 1000)).decode())


async def unsigned(client: Client, path: str, question: bytes) -> str:
    with pytest.raises(Refused) as sentence:
        await signed(client, path, question)
    return str(sentence.value)


async def until(client: Client, path: str, pattern: str) -> str:
    while not re.search(pattern, text := (await client.read(path)).decode()):
        await asyncio.sleep(0.02)
    return text


def test_what_it_gives_changes_at_once_and_is_remembered(desk: Machine, tmp_path: Path) -> None:
    go, program = tmp_path / "go", tmp_path / "wait.py"
    program.write_text(
        f"import os, sys, time\nprint(sys.argv[1])\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
    )

    async def story(client: Client) -> None:
        assert (await status(client, "/cpu/status"))["slots"] == "1"
        await client.write("/cpu/ctl", b"cores 4")
        await client.write("/cpu/ctl", b"share 50")
        assert (await status(client, "/cpu/status"))["slots"] == "2"
        await until(client, "/pool/members", r'"slots":2[,}]')
        assert "'turbo' is not a command of /cpu/ctl; it knows share" in await refused(client, "/cpu/ctl", "turbo 9")
        assert "share = 101 is not possible; it may be a whole number, 0 to 100" in await refused(
            client, "/cpu/ctl", "share 101"
        )
        assert "'half' is not a number of percent" in await refused(client, "/cpu/ctl", "share half")

        async def hand_in(**more: Any) -> str:
            spec = {"program": str(program), **more}
            async with client.open("/job/clone", os.O_RDWR) as file:
                await file.write_at(0, json.dumps(spec).encode())
                return (await file.read_at(0, 100)).decode().strip()

        first = await hand_in(args=["one"])
        await until(client, "/proc/list", '"state":"busy"')
        await client.write("/cpu/ctl", b"share 0")
        second = await hand_in(args=["two"])
        assert "its owner gives no processor to tasks now" in await until(client, f"/job/{second}/why", "processor")
        assert '"state":"busy"' in (await client.read("/proc/list")).decode(), "what runs goes on"
        go.touch()
        await until(client, f"/job/{first}/status", "state finished")
        assert (await status(client, f"/job/{second}/status"))["done"] == "0"
        await client.write("/cpu/ctl", b"share 100\ncores all")
        await until(client, f"/job/{second}/status", "state finished")

        await client.write("/mem/ctl", b"cap 100M")
        found = await status(client, "/mem/status")
        assert (int(found["cap_bytes"]), int(found["offered_bytes"])) == (100 << 20, 100 << 20)
        assert "'lots' is not a size" in await refused(client, "/mem/ctl", "cap lots")
        large = await hand_in(args=["three"], memory_bytes=200 << 20)
        assert "needs 0.2 GiB of memory" in await until(client, f"/job/{large}/why", "needs")
        await client.write("/mem/ctl", b"cap none")
        await until(client, f"/job/{large}/status", "state finished")
        await client.write("/cpu/ctl", b"cores 3\nshare 70")

    at(desk, story)
    assert {k: v for k, v in tomllib.loads((desk.home / "ipos.toml").read_text()).items() if k in ("cores", "share", "memory")} == {
        "cores": 3, "share": 70, "memory": "",
    }  # fmt: skip
    desk.ok("down")
    desk.ok("up")
    assert at(desk, lambda client: status(client, "/cpu/status"))["slots"] == "2"


def test_directories_are_shown_and_taken_away(desk: Machine, tmp_path: Path) -> None:
    music = tmp_path / "music"
    (music / "old").mkdir(parents=True)
    (music / "song").write_text("la la\n")
    (music / "out").symlink_to(desk.home / "keys")

    async def story(client: Client) -> None:
        await client.write("/disk/ctl", f"add music '{music}' ro\nadd work {music}/old".encode())
        assert sorted(entry.name for entry in await client.ls("/disk")) == ["ctl", "music", "work"]
        assert await client.read("/disk/music/song") == b"la la\n"
        assert sorted(entry.name for entry in await client.ls("/disk/music")) == ["old", "out", "song"]
        for attempt in (
            client.write("/disk/music/song", b"x"), client.create("/disk/music/new", b"x"), client.mkdir("/disk/music/new"),
            client.remove("/disk/music/song"), client.rename("/disk/music/song", "/disk/work/song"),
            client.write("/disk/music/song", b"", os.O_WRONLY | os.O_TRUNC), client.create("/disk/music/old/new", b"x"),
        ):  # fmt: skip
            with pytest.raises(Refused):
                await attempt
        with pytest.raises(Refused):  # a link is shown, never followed
            await client.read("/disk/music/out/run")
        await client.create("/disk/work/new", b"new\n")
        assert (music / "old" / "new").read_text() == "new\n"
        assert "is not there" in await refused(client, "/disk/ctl", f"add gone {tmp_path}/gone")
        assert "shows" in await refused(client, "/disk/ctl", f"add music {tmp_path}")
        assert "does not begin with /" in await refused(client, "/disk/ctl", "add here music")
        assert "cannot be a name" in await refused(client, "/disk/ctl", f"add ctl {tmp_path}")
        assert "/disk has no films; it shows music, work" in await refused(client, "/disk/ctl", "rm films")
        for path in (desk.home, desk.home / "keys", desk.home.parent, "/"):
            assert "cannot be shown: it would show" in await refused(client, "/disk/ctl", f"add all {path}")

    at(desk, story)
    (music / "song").unlink()
    desk.ok("down")
    desk.ok("up")
    (music / "old" / "new").unlink()
    (music / "old").rmdir()

    async def later(client: Client) -> None:
        assert sorted(entry.name for entry in await client.ls("/disk")) == ["ctl", "music", "work"]
        with pytest.raises(Refused, match="which is not there now: No such file"):
            await client.ls("/disk/work")
        await client.write("/disk/ctl", b"rm work")
        assert sorted(entry.name for entry in await client.ls("/disk")) == ["ctl", "music"]

    at(desk, later)
    assert tomllib.loads((desk.home / "ipos.toml").read_text())["disk"] == {"music": {"path": str(music), "ro": True}}


def test_devices_log_and_settings(desk: Machine) -> None:
    async def story(client: Client) -> None:
        async with client.open("/dev/time") as file:
            first, second = [[int(word) for word in (await file.read_at(0, 100)).split()] for _ in range(2)]
        assert first[1] // 10**9 == first[0]
        assert second[1] > first[1]
        assert second[2] > first[2]
        assert first[3] == 10**9
        assert len(await client.read("/dev/time")) == 78
        async with client.open("/dev/random") as file:
            for size in (1, 7, 4096, 1 << 19):
                assert len(await file.read_at(0, size)) == size
            assert await file.read_at(0, 32) != await file.read_at(0, 32)
        assert await client.read("/dev/cons") == b""
        async with client.open("/events") as events:
            following = events.lines()
            await client.write("/dev/cons", b"here I am\n")
            async for line in following:
                if "here I am" in line:
                    assert 'part=cons says="here I am" by="this machine"' in line
                    break
        assert b'says="here I am"' in await client.read("/log")
        assert "this device is only read" in await refused(client, "/dev/random", "x")

        text = (await client.read("/config")).decode()
        assert tomllib.loads(text)["listen"] == "local"
        await client.write("/config", b'share = 60\nname = "attic"')
        assert (await status(client, "/cpu/status"))["share"] == "60"
        assert (await status(client, "/status"))["name"] == "desk", "from the next start on"
        assert "did you mean 'cores'?" in await refused(client, "/config", "coers = 1")
        assert "is no setting" in await refused(client, "/config", "cores 1")
        assert float((await status(client, "/status"))["lag_max_ms"]) > 0

    at(desk, story)
    desk.ok("down")
    assert "attic" in desk.ok("up")


def test_the_account_signs_for_granted_purposes_while_it_is_unlocked(desk: Machine) -> None:
    async def story(client: Client) -> None:
        lst = msgspec.json.decode(await client.read("/pool/list"), type=MachineList)
        bare = msgspec.structs.replace(lst, version=lst.version + 1, signature="")
        question = b"machine-list\n" + encode(bare)
        purposes = [json.loads(line) for line in (await client.read("/keys/purposes")).splitlines()]
        assert {"purpose": "machine-list", "record": "MachineList"} in purposes
        signature = await signed(client, "/keys/sign", question)
        lists.check(msgspec.structs.replace(bare, signature=signature.hex()))
        assert "version 2: desk" in (await client.read("/log")).decode(), "what is signed is written down"
        assert "does not sign for 'will'; it is granted " in await unsigned(client, "/keys/sign", b"will\nall to me")
        assert "not a valid record" in await unsigned(client, "/keys/sign", b"machine-list\n\xff")
        foreign = msgspec.structs.replace(bare, account="0x" + "11" * 20)
        assert "machine lists of" in await unsigned(client, "/keys/sign", b"machine-list\n" + encode(foreign))
        await client.write("/keys/ctl", b"passphrase\n\nsesame open")
        assert "locked: ipos keys unlock" in await unsigned(client, "/keys/sign", question)
        await client.write("/keys/ctl", b"unlock 10m\nsesame open")
        assert await signed(client, "/keys/sign", question) == signature
        await client.write("/keys/ctl", b"lock")
        assert "locked" in await unsigned(client, "/keys/sign", question)

    at(desk, story)


def test_another_machine_of_mine_reads_but_does_not_decide(machines: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, attic = machines("desk"), machines("attic")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(desk.home.parent / "run"))
    join(desk, attic)
    shown = desk.home.parent / "shown"
    shown.mkdir()
    at(attic, lambda client: client.write("/disk/ctl", f"add shown {shown}".encode()))

    async def story(client: Client) -> None:
        for path in ("/cpu/status", "/mem/status", "/config", "/log", "/dev/time", "/keys/purposes"):
            assert await client.read(f"/n/attic{path}")
        for path, line in (
            ("/cpu/ctl", "share 0"), ("/mem/ctl", "cap 1M"), ("/config", "share = 0"), ("/disk/ctl", "rm shown"), ("/ctl", "down"),
            ("/keys/ctl", "lock"),
        ):  # fmt: skip
            assert "own socket only" in await refused(client, f"/n/attic{path}", line), path
        assert "own socket only" in await unsigned(client, "/n/attic/keys/sign", b"machine-list\n")
        await client.create("/n/attic/disk/shown/hello", b"from desk\n")
        await client.write("/n/attic/dev/cons", b"from desk\n")

    at(desk, story)
    assert (shown / "hello").read_text() == "from desk\n"
    assert f"by={desk.json('status')['peer']}" in (attic.home / "log").read_text()
    wait_for("both", lambda: desk.json("pool")["nodes"] == 2)
