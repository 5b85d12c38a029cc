"""ipos keys: the agent's files, with passphrases asked for without echo. A passphrase is never an argument."""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from ipos.cli import stdin
from ipos.cli.connect import node
from ipos.cli.plain import pairs, rows, show, typed
from ipos.identity.private import read_private, write_private
from ipos.identity.secret import Secret
from ipos.tree.ninep.client import Client
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.text import parse

Arguments = argparse.Namespace


async def listed(arguments: Arguments) -> int:
    async with node() as client:
        found = await rows(client, "/keys/list")
    for row in found:
        where = f"  {row['file']} ({row['mode']})" if row["file"] else ""
        show(arguments, row, f"{row['key']:<9} {row['name']}  {row['state']}{where}")
    return 0


async def unlock(arguments: Arguments) -> int:
    async with node(own=False) as client:
        if (await pairs(client, "/keys/status"))["state"] == "open":
            raise Refused("the account key has no passphrase: it is open (ipos keys passphrase sets one)")
        secret = await _secret(arguments.passphrase_file, "Passphrase of the account key")
        return _tell(arguments, await _say(client, f"unlock {arguments.time}", secret))


async def lock(arguments: Arguments) -> int:
    async with node(own=False) as client:
        return _tell(arguments, await _say(client, "lock"))


async def passphrase(arguments: Arguments) -> int:
    async with node() as client:
        now = await pairs(client, "/keys/status")
        if not now["here"] or now["trouble"]:
            raise Refused(f"the account key is {now['words']}")
        old = Secret(b"")
        if now["passphrase"]:
            old = await _secret(arguments.passphrase_file, "Passphrase that the account key has now")
        if arguments.none:
            return _tell(arguments, await _say(client, "passphrase none", old))
        new = await _secret(arguments.new_passphrase_file, "New passphrase", twice=True)
        return _tell(arguments, await _say(client, "passphrase", old, new))


async def backup(arguments: Arguments) -> int:
    """The file is written, read back and opened again by the agent, before this says that it is done."""
    path = Path(arguments.file).absolute()
    if path.exists() and not arguments.yes:
        raise Refused(f"{path} exists: --yes replaces it")
    if not path.parent.is_dir():
        raise Refused(f"{path.parent} is no directory")
    async with node() as client:
        now = await pairs(client, "/keys/status")
        question = "Passphrase of the account key" if now["passphrase"] else "Passphrase for the backup"
        secret = await _secret(arguments.passphrase_file, question, twice=not now["passphrase"])
        write_private(path, await _ask(client, "backup", secret))
        body = read_private(path, limits.keystore_bytes)
        await _ask(client, "verify", secret, body=body)
    show(
        arguments,
        {"account": now["account"], "file": str(path)},
        f"{path} holds the key of account {now['account']}, and opens with this passphrase",
    )
    return 0


async def restore(arguments: Arguments) -> int:
    body = _contents(Path(arguments.file))
    async with node(make=True) as client:
        secret = await _secret(arguments.passphrase_file, "Passphrase of the file")
        return _tell(
            arguments, await _say(client, "restore replace" if arguments.yes else "restore", secret, body=body)
        )


def _contents(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            body = stream.read(limits.keystore_bytes + 1)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None
    if len(body) > limits.keystore_bytes:
        raise Refused(f"{path} is longer than {limits.keystore_bytes} bytes: it is no keystore")
    return body


def _tell(arguments: Arguments, status: dict[str, object]) -> int:
    show(arguments, status, f"account {status['account']}: {status['words']}")
    return 0


async def _say(client: Client, command: str, *secrets: Secret, body: bytes | None = None) -> dict[str, object]:
    """A command whose answer is how the account's key is then."""
    answer = await _ask(client, command, *secrets, body=body)
    return {key: typed(value) for key, value in parse(answer.decode()).items()}


async def _ask(client: Client, command: str, *secrets: Secret, body: bytes | None = None) -> bytes:
    written = [command.encode(), *(secret.reveal() for secret in secrets), *([] if body is None else [body])]
    async with client.open("/keys/ctl", os.O_RDWR) as file:
        await file.write_at(0, b"\n".join(written))
        return await file.read_at(0, limits.MiB)


async def _secret(file: str | None, question: str, twice: bool = False) -> Secret:
    """From a file that only this user can read, or from the terminal."""
    if file is not None:
        body = read_private(Path(file), limits.passphrase_bytes + 2)
        if body is None:
            raise Refused(f"there is no file {file}")
        return Secret(body.rstrip(b"\r\n"))
    secret = await stdin.passphrase(question)
    if twice and await stdin.passphrase("The same once more") != secret:
        raise Refused("the two are not the same: nothing was changed")
    return secret


ACTIONS: dict[str, Callable[[Arguments], Awaitable[int]]] = {
    "list": listed, "unlock": unlock, "lock": lock, "passphrase": passphrase, "backup": backup, "restore": restore,
}  # fmt: skip
