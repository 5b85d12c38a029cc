"""Two accounts, three homes: they become friends, one lets the other run programs, takes it back, and loses a machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from conftest import Machine, join, wait_for

pytestmark = pytest.mark.real
Make = Callable[..., Machine]

COPY = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64))
    (loop $more
      (i32.store (i32.const 4) (i32.const 65000))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (i32.load (i32.const 8))
        (then
          (i32.store (i32.const 4) (i32.load (i32.const 8)))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (br $more))))))"""


def befriend(one: Machine, other: Machine) -> None:
    code = one.json("invite", "--as", "friend")["code"]
    other.ok("join", "--as", "friend", code, "--yes")


def friends(machine: Machine) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in map(json.loads, machine.ok("friends", "--json").splitlines())}


def reached(machine: Machine, friend: str, which: str) -> bool:
    return any(each["name"] == which and each["connected"] for each in friends(machine)[friend]["machines"])  # type: ignore[attr-defined]


@pytest.fixture
def copy(tmp_path: Path) -> tuple[str, str]:
    """A program that prints its input, and an input of 3 MB, which does not fit into a message."""
    program, text = tmp_path / "copy.wasm", tmp_path / "text"
    program.write_bytes(bytes(wasmtime.wat2wasm(COPY)))
    text.write_text("".join(f"line {i}\n" for i in range(250_000)))
    return str(program), str(text)


def test_a_friend_runs_programs_here_until_the_grant_is_taken_back(machines: Make, copy: tuple[str, str]) -> None:
    desk, bob, tower = machines("desk"), machines("bob"), machines("tower")
    join(bob, tower)
    program, text = copy
    assert "ipos join was told --as own" in desk.refused(
        "join", "--as", "own", bob.json("invite", "--as", "friend")["code"], "--yes"
    )
    befriend(bob, desk)
    wait_for("both", lambda: list(friends(desk)) == ["bob"] and list(friends(bob)) == ["desk"])
    assert [m["name"] for m in friends(desk)["bob"]["machines"]] == ["bob", "tower"]  # type: ignore[index,attr-defined]
    assert desk.json("pool")["nodes"] == 1, "a friend's machine is none of mine"
    for path in ("/n/bob/home", "/n/bob/keys/status", "/n/bob/status"):
        desk.refused("cat", path)

    # nothing is open yet
    run = ("run", "--wasm", "--json", "--stdin", text, "--nodes", "bob:bob", "--fresh")
    why = desk.refused(*run, program, status=125, timeout=60)
    assert "results of bob are not believed: ipos trust bob receipt" in why
    assert desk.json("trust", "bob", "receipt")["trust"] == "receipt"
    assert "lets this account run nothing there" in str(friends(desk)["bob"]["machines"])
    assert "run programs of the engine only" in desk.refused("run", "--nodes", "bob:bob", "/bin/echo", status=125)

    # a grant, and a program on his machine with an input that has to be fetched
    given = bob.json("friends", "grant", "desk", "--cores", "1", "--yes")
    assert (given["friend"], given["cores"], given["left_s"]) == ("desk", 1, None)
    assert f"id {given['id']}\n" in bob.ok("cat", f"/grants/{given['id']}/grant")
    wait_for("his machine", lambda: reached(desk, "bob", "bob"), 45)
    done = desk.run(*run, program, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "friends see the program and the data" in done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert desk.ok("cat", f"/job/{told['job']}/0/stdout") == Path(text).read_text()
    assert f"account {bob.json('status')['account']}\n" in desk.ok("cat", f"/job/{told['job']}/0/receipt")
    assert "bob:bob" in desk.ok("why", str(told["job"]))

    # taken back
    assert bob.json("friends", "revoke", "desk")["revoked"] == [given["id"]]
    wait_for("the end of it", lambda: not reached(desk, "bob", "bob"))
    bob.ok("friends", "remove", "desk", "--yes")
    wait_for("the door", lambda: "is not on the machine list" in str(friends(desk)["bob"]["machines"]), 60)


def test_a_machine_that_a_friend_removed_is_refused(machines: Make) -> None:
    desk, bob, tower = machines("desk"), machines("bob"), machines("tower")
    join(bob, tower)
    befriend(desk, bob)
    wait_for("bob", lambda: list(friends(desk)) == ["bob"])
    desk.ok("trust", "bob", "full")
    # tower has heard nothing of desk, and desk lets both in: they are machines of that account
    assert friends(desk)["bob"]["list_version"] == 2
    bob.ok("friends", "grant", "desk", "--yes", "--for", "1h")
    wait_for("bob's machine", lambda: reached(desk, "bob", "bob"), 45)
    bob.ok("machines", "remove", "tower", "--yes")
    wait_for("the newer list", lambda: friends(desk)["bob"]["list_version"] == 3, 45)
    assert [m["name"] for m in friends(desk)["bob"]["machines"]] == ["bob"]  # type: ignore[index,attr-defined]
    assert desk.run("down").returncode == 0
    desk.ok("up")
    assert friends(desk)["bob"]["list_version"] == 3
    assert friends(desk)["bob"]["trust"] == "full"


def test_a_forged_record_of_a_friend_counts_for_nothing(machines: Make) -> None:
    desk, bob = machines("desk"), machines("bob")
    befriend(desk, bob)
    wait_for("bob", lambda: list(friends(desk)) == ["bob"])
    given = desk.json("friends", "grant", "bob", "--yes")
    desk.ok("down")
    friend = next((desk.home / "friends").glob("0x*.json"))
    record = json.loads(friend.read_text())
    record["introduction"]["addresses"] = {"elsewhere": ["/ip4/10.0.0.1/tcp/1"]}
    friend.write_text(json.dumps(record))
    grant = desk.home / "grants" / f"{given['id']}.json"
    grant.write_text(grant.read_text().replace('"cores":1', '"cores":64'))
    desk.ok("up")
    assert friends(desk) == {}
    assert desk.ok("cat", "/grants/list") == ""
    log = desk.ok("cat", "/log")
    assert "that this account has not signed" in log
    assert log.count("counts for nothing") == 2
