"""Content through the command line: added, listed, read, fetched, pinned, collected; on two machines; and what is refused."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import IPOS, Machine, join, wait_for

pytestmark = pytest.mark.real

Make = Callable[..., Machine]


def photos(machine: Machine) -> Path:
    root = machine.home.parent / "photos"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("hello\n")
    (root / "sub" / "large").write_bytes(random.Random(1).randbytes(5_000_000))
    (root / "link").symlink_to("a.txt")
    return root


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_there_and_back(machines: Make) -> None:
    desk = machines("desk")
    root = photos(desk)
    cid, _, name = desk.ok("add", "photos").strip().partition(" ")
    assert name == "photos"
    added = desk.json("add", "photos", "--visibility", "pool")
    assert (added["cid"], added["path"], added["visibility"]) == (cid, "photos", "pool")
    assert desk.ok("ls", cid).split() == ["a.txt", "link", "sub"]
    assert desk.json("ls", f"{cid}/sub") == ["large"]
    assert cid in desk.ok("ls", "/ipfs").split()
    assert desk.ok("cat", f"{cid}/a.txt") == "hello\n"
    large = (root / "sub" / "large").read_bytes()
    some = subprocess.run(
        [IPOS, "cat", f"/ipfs/{cid}/sub/large", "--offset", "1048570", "--length", "2100000"],
        env=desk.environment, capture_output=True, check=True,
    )  # fmt: skip
    assert some.stdout == large[1048570 : 1048570 + 2100000]
    got = desk.json("get", cid, "-o", "back")
    assert got["bytes"] == len(large) + 6
    back = root.parent / "back"
    assert subprocess.run(["diff", "-r", "--no-dereference", root, back], check=False).returncode == 0
    desk.ok("get", f"{cid}/a.txt")
    assert (root.parent / "a.txt").read_text() == "hello\n"
    assert "is there already" in desk.refused("get", f"{cid}/a.txt")
    assert not list(root.parent.glob(".ipos-*"))

    pins = lines(desk.ok("store", "pins", "--json"))
    assert [(pin["cid"], pin["visibility"], pin["why"]) for pin in pins] == [(cid, "pool", f"ipos add {root}")]
    assert pins[0]["bytes"] > 5_000_000
    before = desk.json("store", "du")
    assert before["pins"] == 1
    desk.ok("store", "pin", f"{cid}", "--why", "holiday of 2026", "--visibility", "public")
    desk.ok("store", "unpin", "--why", f"ipos add {root}")
    assert desk.json("store", "gc")["blocks"] == 0
    desk.ok("store", "unpin", cid)
    assert "is not pinned" in desk.refused("store", "unpin", cid)
    assert "nothing is pinned for 'x'" in desk.refused("store", "unpin", "--why", "x")
    assert desk.json("store", "gc")["bytes"] > 5_000_000
    assert desk.json("store", "du")["bytes"] < 1000
    assert desk.run("cat", f"{cid}/a.txt").returncode == 1

    kept = desk.json("add", "photos", "--nocopy")
    assert kept["cid"] == cid
    assert desk.json("store", "du")["bytes"] < 10_000
    (root / "sub" / "large").write_bytes(large[::-1])
    assert "has changed since it was added without copying" in desk.refused("cat", f"{cid}/sub/large")
    assert "has changed" in desk.refused("get", cid, "-o", "again")
    assert not (root.parent / "again").exists()
    assert not list(root.parent.glob(".ipos-*"))


def test_car_files_and_a_restart(machines: Make) -> None:
    desk = machines("desk")
    root = photos(desk)
    cid = desk.json("add", "photos")["cid"]
    desk.ok("store", "export", cid, "-o", "photos.car")
    car = root.parent / "photos.car"
    desk.ok("down")
    desk.ok("up", "--listen", "local")
    assert desk.ok("cat", f"{cid}/a.txt") == "hello\n"
    other = machines("attic")
    took = other.json("store", "import", "photos.car")
    assert took["roots"] == [cid]
    assert other.ok("cat", f"{cid}/a.txt") == "hello\n"
    assert [pin["why"] for pin in lines(other.ok("store", "pins", "--json"))] == [f"ipos store import {car}"]
    body = car.read_bytes()
    car.write_bytes(body[:-1])
    assert "ends in the middle of a block" in other.refused("store", "import", "photos.car")
    car.write_bytes(body[:-1] + b"?")
    assert "does not hash to its CID" in other.refused("store", "import", "photos.car")
    assert "no such directory" in desk.refused("store", "export", cid, "-o", "none/f.car")
    unknown = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert "is not in this store" in desk.refused("store", "export", unknown, "-o", "f.car")
    assert not (root.parent / "f.car").exists()
    assert not list(root.parent.glob(".ipos-*"))


def test_what_another_machine_may_have(machines: Make) -> None:
    desk, attic = machines("desk"), machines("attic")
    join(desk, attic)
    photos(desk)
    secret = desk.json("add", "photos/a.txt")["cid"]
    assert "is not shown to" in attic.refused("cat", f"/n/desk/ipfs/{secret}")
    assert secret not in attic.ok("ls", "/n/desk/ipfs")
    assert attic.run("cat", secret).returncode == 1, "no block of it leaves the node by bitswap either"
    desk.ok("add", "photos/a.txt", "--visibility", "pool")
    assert attic.ok("cat", f"/n/desk/ipfs/{secret}") == "hello\n"
    large = desk.json("add", "photos/sub/large", "--visibility", "pool")["cid"]
    assert attic.json("get", large, "-o", "large")["bytes"] == 5_000_000
    assert "changed by its owner" in attic.refused("cat", "/n/desk/store/gc")


def test_refusals_and_interruptions(machines: Make, terminal: Callable[..., Any]) -> None:
    desk = machines("desk")
    assert "none cannot be read" in desk.refused("add", "none")
    assert desk.run("add").returncode == 2
    assert desk.run("add", "x", "--visibility", "secret").returncode == 2
    assert "say a CID, or --why" in desk.refused("store", "unpin")
    assert "is not a CID" in desk.refused("store", "pin", "Qmfoo")
    assert "cannot be negative" in desk.refused("cat", "/status", "--offset", "-1")
    assert "nothing: no such file" in desk.refused("get", "/nothing", "-o", "x")
    with open(desk.home.parent / "huge", "wb") as file:
        file.truncate(3 << 30)
    adding = terminal(desk, "add", "huge")
    adding.says(r"MiB/s")
    adding.interrupt()
    assert adding.ends() == 130
    assert lines(desk.ok("store", "pins", "--json")) == []
    wait_for("the end of the adder", lambda: not _adders(desk))
    desk.ok("down")
    desk.ok("up", "--listen", "local")
    assert desk.json("store", "du")["pins"] == 0


def _adders(machine: Machine) -> list[str]:
    store = str(machine.home / "store")
    found: list[str] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = os.readlink(f"/proc/{pid}/fd/{fd}")
                if path.startswith(f"{store}/packs") and int(pid) != machine.pid():
                    found.append(pid)
        except OSError:
            continue
    return found


def test_a_quota(machines: Make) -> None:
    desk = machines("desk", up=False)
    desk.home.mkdir()
    (desk.home / "ipos.toml").write_text("store_bytes = 4000000\n")
    desk.ok("up", "--listen", "local", "--cores", "1")
    photos(desk)
    assert desk.json("store", "du")["limit_bytes"] == 4_000_000
    words = desk.refused("add", "photos")
    assert "over the" in words
    assert "ipos store gc" in words
    desk.ok("add", "photos/a.txt")
