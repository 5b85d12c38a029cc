"""Machines of an account, in three homes: removed, named, lost and found again; and homes that were copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
from conftest import Machine, join, wait_for
from test_keys import secret_file

pytestmark = pytest.mark.real
Make = Callable[..., Machine]


def names(machine: Machine) -> list[str]:
    return sorted(json.loads(line)["name"] for line in machine.ok("machines", "--json").splitlines())


def test_a_machine_is_removed_everywhere(machines: Make) -> None:
    """While another one is off, which comes back with the old list."""
    desk, attic, lost = machines("desk"), machines("attic"), machines("lost")
    join(desk, attic, lost)
    (lost.home / "home" / "letter").write_text("mine\n")
    wait_for("the three", lambda: names(lost) == names(attic) == ["attic", "desk", "lost"])
    assert "the account's key is on desk: ipos machines remove lost" in attic.refused(
        "machines", "remove", "lost", "--yes"
    )
    assert "perhaps lost?" in desk.refused("machines", "remove", "last", "--yes")
    assert lost.ok("cat", "/n/attic/status").startswith("name attic\n")
    wait_for("attic, on lost", lambda: lost.run("cat", "/n/desk/status").returncode == 0)
    attic.ok("down")

    assert desk.json("machines", "remove", "lost", "--yes") == {"removed": "lost", "list_version": 4}
    wait_for("what lost says", lambda: lost.json("status")["removed"])
    sentence = lost.json("status")["removed"]
    assert sentence.startswith(
        f"this machine was removed from account {desk.json('status')['account']} (list version 4)"
    )
    assert sentence in lost.ok("machines")
    assert names(desk) == ["attic", "desk"]
    assert "there is no lost" in desk.refused("cat", "/n/lost/status")
    assert "there is no desk" in lost.refused("cat", "/n/desk/status")
    assert lost.ok("cat", "/home/letter") == "mine\n", "its home is as it was"
    assert lost.ok("run", "/bin/echo", "it still works alone") == "it still works alone\n"
    assert sentence in lost.refused("invite", "--yes")

    attic.ok("up")
    wait_for("attic", lambda: names(attic) == ["attic", "desk"])
    lost.ok("down")
    lost.ok("up")
    assert lost.json("status")["removed"] == sentence, "a restart forgets nothing"
    join_again = desk.json("invite")["code"]
    lost.ok("join", join_again, "--yes")
    wait_for("the three again", lambda: names(attic) == names(lost) == ["attic", "desk", "lost"])
    assert lost.json("status")["removed"] is None


def test_a_machine_gets_another_name(machines: Make) -> None:
    desk, attic = machines("desk"), machines("attic")
    join(desk, attic)
    assert "called attic already" in desk.refused("machines", "name", "desk", "attic")
    assert "cannot be a name" in desk.refused("machines", "name", "attic", "Loft!")
    assert desk.json("machines", "name", "attic", "loft")["list_version"] == 3
    wait_for("its name", lambda: attic.json("status")["name"] == "loft")
    assert desk.ok("cat", "/n/loft/status").startswith("name loft\n")
    assert "the account's key is on desk" in attic.refused("machines", "name", "loft", "attic")


def test_a_restored_key_brings_its_home_to_the_others(machines: Make) -> None:
    """Whose list is newer wins, and the new home is added to it."""
    desk, attic, fresh = machines("desk"), machines("attic"), machines("fresh")
    join(desk, attic)
    account = desk.json("status")["account"]
    file, backup = secret_file(desk), str(desk.home.parent / "key.json")
    desk.ok("keys", "backup", backup, "--passphrase-file", file)
    desk.ok("down")
    attic.ok("down")
    fresh.ok("keys", "restore", backup, "--yes", "--passphrase-file", file)
    assert (fresh.json("status")["account"], names(fresh)) == (account, ["fresh"])
    attic.ok("up")  # which has no key
    words = "other machines of the account were found, but this one cannot join them yet: the account key is locked"
    wait_for("the others", lambda: str(fresh.json("status")["trouble"]).startswith(words))
    fresh.ok("keys", "unlock", "--passphrase-file", file)
    wait_for("the merged list", lambda: names(attic) == names(fresh) == ["attic", "desk", "fresh"])
    assert fresh.json("status")["trouble"] is None
    wait_for("one computer", lambda: attic.run("cat", "/n/fresh/status").returncode == 0)
    desk.ok("up")
    wait_for("desk", lambda: names(desk) == ["attic", "desk", "fresh"])


def test_a_copied_home_is_noticed(machines: Make) -> None:
    """By the node that starts second on one computer; and where they do not see each other, by whoever both talk to."""
    desk, attic = machines("desk"), machines("attic")
    join(desk, attic)
    attic.ok("down")
    twin = machines("twin", up=False)
    shutil.copytree(attic.home, twin.home)
    attic.ok("up")
    wait_for("attic", lambda: desk.json("pool")["nodes"] == 2)
    assert "has the transport key of this home" in twin.refused("up", "--cores", "1")

    elsewhere = twin.home.parent / "elsewhere"  # as in a container: the directory of sockets is another
    elsewhere.mkdir(mode=0o700)
    there = {"XDG_RUNTIME_DIR": str(elsewhere)}
    try:
        twin.ok("up", "--cores", "1", **there)
        said = "another node with this one's transport key"
        wait_for("what desk says", lambda: said in twin.ok("machines", "--json", **there), 45)
        assert "two nodes have the transport key of" in desk.ok("cat", "/log")
        assert desk.ok("cat", "/n/attic/status").startswith("name attic\n")
    finally:
        twin.run("down", **there)
