"""The account's key through the command line: passphrases, locks, backups, homes of before; and that no secret is anywhere to be found."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Machine, join, wait_for
from eth_account import Account

from ipos.identity import accounts, keystore
from ipos.identity.secret import Secret
from ipos.node.home import Home
from ipos.tree.ninep.client import Client, connect_unix

pytestmark = pytest.mark.real
Make = Callable[..., Machine]
RIGHT, WRONG = "correct horse battery", "tr0ub4dor and 3"


def secret_file(machine: Machine, words: str = RIGHT) -> str:
    path = machine.home.parent / f"{machine.home.name}-passphrase"
    path.touch(0o600)
    path.write_text(words + "\n")
    return str(path)


def keystore_of(machine: Machine) -> Path:
    return accounts.file_of(machine.home / "keys", machine.json("status")["account"])


def key_of(machine: Machine, passphrase: str = "") -> bytes:
    return keystore.unseal(keystore_of(machine).read_bytes(), Secret(passphrase.encode())).reveal()


def protect(machine: Machine) -> str:
    """Give its account key a passphrase; a file that has it."""
    file = secret_file(machine)
    machine.ok("keys", "passphrase", "--new-passphrase-file", file)
    return file


def test_a_fresh_home_asks_nothing_and_says_so(machines: Make, terminal: Any) -> None:
    desk = machines("desk")
    assert desk.json("status")["account_key"] == "open, without a passphrase: ipos keys passphrase sets one"
    rows = [json.loads(line) for line in desk.ok("keys", "--json").splitlines()]
    assert [row["key"] for row in rows] == ["account", "run", "transport"]
    assert [row["mode"] for row in rows] == ["0600"] * 3
    assert rows[0]["name"] == desk.json("status")["account"]
    assert rows[0]["file"] == str(keystore_of(desk))
    assert rows[2]["name"] == desk.json("status")["peer"]
    assert f"account   {rows[0]['name']}  open, without a passphrase" in desk.ok("keys")
    assert "it cannot be locked" in desk.refused("keys", "lock")
    assert "has no passphrase" in desk.refused("keys", "unlock")
    assert "typed at a terminal" in desk.refused("keys", "passphrase")

    # what is typed is not shown
    one = terminal(desk, "keys", "passphrase")
    one.says("New passphrase: ")
    one.answer(RIGHT)
    one.says("The same once more: ")
    one.answer(WRONG)
    assert one.ends() == 1
    assert "the two are not the same: nothing was changed" in one.text
    two = terminal(desk, "keys", "passphrase")
    for question in ("New passphrase: ", "The same once more: "):
        two.says(question)
        assert RIGHT.encode() not in Path(f"/proc/{two.process.pid}/cmdline").read_bytes()
        two.answer(RIGHT)
    assert two.ends() == 0
    three = terminal(desk, "keys", "unlock", "5m")
    three.says("Passphrase of the account key: ")
    three.interrupt()
    assert three.ends() == 130
    four = terminal(desk, "keys", "unlock", "5m")
    four.says("Passphrase of the account key: ")
    four.answer(RIGHT)
    assert four.ends() == 0
    assert "unlocked, locks in 300 s" in four.text
    for each in (one, two, three, four):
        assert RIGHT not in each.text
        assert WRONG not in each.text


def test_a_passphrase(machines: Make) -> None:
    desk = machines("desk")
    account = desk.json("status")["account"]
    file = protect(desk)
    assert desk.json("status")["account_key"] == "locked: ipos keys unlock"
    assert desk.refused("invite", "--yes") == "ipos: the account key is locked: ipos keys unlock"
    assert desk.ok("run", "/bin/echo", "work needs no account key")
    wrong = secret_file(machines("other", up=False), WRONG)
    assert "wrong passphrase" in desk.refused("keys", "unlock", "--passphrase-file", wrong)
    wait_for("the pause", lambda: desk.run("keys", "unlock", "--passphrase-file", file).returncode == 0)
    opened = desk.json("keys", "unlock", "1h", "--passphrase-file", file)
    assert (opened["state"], opened["locks_in_s"]) == ("unlocked", 3600)
    assert desk.json("invite")["code"]
    assert desk.json("keys", "lock")["state"] == "locked"
    desk.ok("keys", "unlock", "500ms", "--passphrase-file", file)
    wait_for("the lock", lambda: desk.json("status")["account_key"] == "locked: ipos keys unlock")
    desk.ok("down")
    desk.ok("up")
    assert desk.json("status")["account_key"] == "locked: ipos keys unlock", "a restart opens nothing"
    assert desk.json("status")["account"] == account
    assert desk.json("keys", "passphrase", "--none", "--passphrase-file", file)["state"] == "open"
    assert desk.json("invite")["code"]


def test_homes_of_before_are_taken_over(machines: Make) -> None:
    desk = machines("desk")
    account, key = desk.json("status")["account"], key_of(desk)
    desk.ok("down")
    accounts.file_of(desk.home / "keys", account).unlink()
    (desk.home / "keys" / "accounts").rmdir()
    old = desk.home / "keys" / "account"
    old.write_text(key.hex() + "\n")
    old.chmod(0o644)
    (desk.home / "format").unlink()
    assert "chmod 600" in desk.refused("up")
    assert old.read_text() == key.hex() + "\n"
    old.chmod(0o600)
    desk.ok("up")
    assert desk.json("status")["account"] == account
    assert not old.exists()
    assert key_of(desk) == key
    assert desk.json("invite")["code"]


def test_backup_and_restore(machines: Make) -> None:
    desk, attic, fresh = machines("desk"), machines("attic"), machines("fresh")
    account = desk.json("status")["account"]
    join(desk, attic)
    file, backup = secret_file(desk), str(desk.home.parent / "key.json")
    done = desk.json("keys", "backup", backup, "--passphrase-file", file)
    assert done == {"account": account, "file": backup}
    assert stat.S_IMODE(os.stat(backup).st_mode) == 0o600
    assert Account.decrypt(Path(backup).read_text(), RIGHT) == key_of(desk)
    assert "exists: --yes replaces it" in desk.refused("keys", "backup", backup, "--passphrase-file", file)
    nowhere = str(desk.home.parent / "nowhere" / "key")
    assert "is no directory" in desk.refused("keys", "backup", nowhere, "--passphrase-file", file)

    # desk burns down; attic was a machine of the account and may invite from now on
    desk.ok("down")
    assert "account's key is on desk" in attic.refused("invite", "--yes")
    wrong = secret_file(attic, WRONG)
    assert "wrong passphrase" in attic.refused("keys", "restore", backup, "--passphrase-file", wrong)
    restored = attic.json("keys", "restore", backup, "--passphrase-file", file)
    assert (restored["account"], restored["state"]) == (account, "locked")
    attic.ok("keys", "unlock", "--passphrase-file", file)
    attic.json("invite")

    # a home of another account says what it would lose, and loses nothing
    own = fresh.json("status")["account"]
    fresh.ok("keys", "backup", backup + "2", "--passphrase-file", file)
    assert "restore it in a new home" in attic.refused(
        "keys", "restore", backup + "2", "--yes", "--passphrase-file", file
    )
    assert "--yes makes it one of the other account" in fresh.refused(
        "keys", "restore", backup, "--passphrase-file", file
    )
    assert fresh.json("status")["account"] == own
    assert fresh.json("keys", "restore", backup, "--yes", "--passphrase-file", file)["account"] == account
    fresh.ok("down")
    fresh.ok("up")
    assert fresh.json("status")["account"] == account
    assert fresh.json("status")["account_key"] == "locked: ipos keys unlock"
    assert own in {json.loads(line)["name"] for line in fresh.ok("keys", "--json").splitlines()}, (
        "nothing is thrown away"
    )
    damaged = desk.home.parent / "damaged"
    damaged.write_bytes(Path(backup).read_bytes()[:-20])
    assert "damaged" in fresh.refused("keys", "restore", str(damaged), "--passphrase-file", file)


def test_files_that_others_can_read(machines: Make) -> None:
    desk = machines("desk")
    file = secret_file(desk)
    os.chmod(file, 0o644)
    assert f"{file} can be read by others (mode 0644): chmod 600" in desk.refused(
        "keys", "passphrase", "--new-passphrase-file", file
    )
    assert "there is no file" in desk.refused("keys", "passphrase", "--new-passphrase-file", file + "x")
    Path(file).write_text("\n")
    os.chmod(file, 0o600)
    assert "an empty passphrase is none" in desk.refused("keys", "passphrase", "--new-passphrase-file", file)
    path = keystore_of(desk)
    desk.ok("down")
    path.chmod(0o640)
    desk.ok("up")
    assert "chmod 600" in desk.json("status")["account_key"]
    assert "chmod 600" in desk.refused("invite", "--yes")
    desk.ok("down")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-30])
    desk.ok("up")
    assert "damaged" in desk.refused("invite", "--yes")
    assert "damaged" in desk.refused("keys", "passphrase", "--new-passphrase-file", file)
    desk.ok("down")
    (desk.home / "keys" / "run").chmod(0o604)
    assert "run can be read by others (mode 0604)" in desk.refused("up")


def told(machine: Machine, monkeypatch: pytest.MonkeyPatch, story: Callable[[Client], Any]) -> Any:
    """Run a story with a client of the machine's tree."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", machine.environment["XDG_RUNTIME_DIR"])

    async def whole() -> Any:
        client = await connect_unix(Home(machine.home).socket)
        try:
            return await story(client)
        finally:
            client.close()

    return asyncio.run(whole())


def test_another_machine(machines: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the key locks while it joins, both sides hear why, and nothing has happened. When it has joined, it opens nothing, though it is
    one's own. What is written to ctl is never repeated."""
    desk, attic = machines("desk"), machines("attic")
    file = protect(desk)
    desk.ok("keys", "unlock", "--passphrase-file", file)
    code = desk.json("invite")["code"]
    desk.ok("keys", "lock")
    assert "the account key is locked: ipos keys unlock" in attic.refused("join", code, "--yes")
    assert desk.json("pool")["nodes"] == attic.json("pool")["nodes"] == 1
    desk.ok("keys", "unlock", "--passphrase-file", file)
    join(desk, attic)

    async def ask(client: Client, path: str, command: str) -> str:
        async with client.open(path, os.O_RDWR) as file:
            with pytest.raises(OSError) as caught:
                await file.write_at(0, command.encode())
        return str(caught.value)

    async def from_attic(client: Client) -> None:
        for command in ("backup\nx", "passphrase\n\nmine", "lock"):
            assert "on this machine's own socket only" in await ask(client, "/n/desk/keys/ctl", command)

    async def from_desk(client: Client) -> None:
        for command in (RIGHT, f"{RIGHT}\nunlock", f"unlock\nnot {RIGHT}", "", "unlock 10 m", f"unlock {RIGHT}"):
            words = await ask(client, "/keys/ctl", command)
            assert words
            assert RIGHT not in words
        assert "'soon' is not a time" in await ask(client, "/keys/ctl", "unlock soon")

    told(attic, monkeypatch, from_attic)
    told(desk, monkeypatch, from_desk)
    assert RIGHT not in (desk.home / "log").read_text()


# ---- no secret is to be found


def files_of(tree: Path) -> Iterator[tuple[str, bytes]]:
    for directory, _, names in os.walk(tree):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()


def processes() -> Iterator[tuple[str, bytes]]:
    """Arguments and environments of everything that runs here."""
    for directory in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                yield str(directory / name), (directory / name).read_bytes()
            except OSError:
                continue


async def tree_of(client: Client, path: str = "") -> list[tuple[str, bytes]]:
    """Every file of a node's tree that gives something within a moment."""
    out: list[tuple[str, bytes]] = []
    for entry in await client.ls(path or "/"):
        here = f"{path}/{entry.name}"
        if here == "/n":
            continue
        if (await client.stat(here)).directory:
            out += await tree_of(client, here)
            continue
        try:
            async with asyncio.timeout(0.3):
                out.append((here, await client.read(here)))
        except (OSError, TimeoutError):
            continue  # it cannot be read, or waits for something to happen
    return out


def found(places: Iterator[tuple[str, bytes]] | list[tuple[str, bytes]], secrets: list[bytes]) -> list[str]:
    return [place for place, body in places if any(secret in body for secret in secrets)]


def forms(key: bytes, passphrase: str) -> list[bytes]:
    return [
        key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)[:40], repr(key).encode(),
        str(int.from_bytes(key, "big")).encode(), passphrase.encode(), base64.b64encode(passphrase.encode())[:24],
    ]  # fmt: skip


def test_no_secret_is_anywhere(machines: Make, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, attic = machines("desk"), machines("attic")
    key, before = key_of(desk), [key_of(attic)]
    typed = terminal(desk, "keys", "passphrase")
    for question in ("New passphrase: ", "The same once more: "):
        typed.says(question)
        typed.answer(RIGHT)
    assert typed.ends() == 0
    unlocking = terminal(desk, "keys", "unlock")
    unlocking.says("Passphrase of the account key: ")
    unlocking.answer(RIGHT)
    assert unlocking.ends() == 0
    join(desk, attic)
    desk.ok("run", "/bin/echo", "hello")
    (desk.home / "home" / "note").write_text("the tree is really read")
    secrets = forms(key, RIGHT) + [form for one in before for form in forms(one, RIGHT)]
    scratch = desk.home.parent

    async def walk(client: Client) -> list[tuple[str, bytes]]:
        return await tree_of(client)

    tree = told(desk, monkeypatch, walk)
    assert {"/keys/status", "/keys/list", "/log", "/status", "/pool/list", "/home/note"} <= {path for path, _ in tree}
    assert found(tree, secrets) == []
    assert found(files_of(scratch), secrets) == []
    assert found(processes(), secrets) == []
    assert key_of(desk, RIGHT) == key, "it is the key that is in use"

    # the search finds what is there
    (desk.home / "home" / "leak").write_text(f"by mistake: {key.hex()}")
    leaked = told(desk, monkeypatch, walk)
    assert found(leaked, secrets) == ["/home/leak"]
    assert found(files_of(scratch), secrets) == [str(desk.home / "home" / "leak")]
    shouted = terminal(desk, "run", "/bin/sleep", "60", RIGHT)
    wait_for("the planted argument", lambda: found(processes(), secrets))
    shouted.interrupt()
    shouted.ends()
