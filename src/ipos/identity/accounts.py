"""The account keys of a home: `keys/accounts/<address>.json`, one keystore each. Which of them counts is said by the machine list alone.

So joining another account, or taking a key back from a backup, is one atomic write of one file, and no key is ever removed by a guess.
"""

from __future__ import annotations

import re
from pathlib import Path

from ipos.identity import keys, keystore
from ipos.identity.keys import Key
from ipos.identity.keystore import WrongPassphrase
from ipos.identity.private import read_private, sync_directory, write_private
from ipos.identity.secret import Secret
from ipos.wire import limits
from ipos.wire.errors import Refused

FILE = re.compile(r"(0x[0-9a-fA-F]{40})\.json")
NO_PASSPHRASE = Secret(b"")


def file_of(directory: Path, address: str) -> Path:
    """Where the key of an account is, if it is in this home (`directory`: the home's `keys`)."""
    return directory / "accounts" / f"{address}.json"


def held(directory: Path) -> list[str]:
    """The accounts whose keys are here, whether or not they count."""
    return sorted(
        found[1] for path in (directory / "accounts").glob("0x*.json") if (found := FILE.fullmatch(path.name))
    )


def load(directory: Path, address: str) -> bytes | None:
    """The keystore of an account as it is on disk, None if it is not here. `Refused` if others may read it, or it is damaged, or another's."""
    path = file_of(directory, address)
    body = read_private(path, limits.keystore_bytes)
    if body is None:
        return None
    try:
        says = keystore.read(body).address
    except Refused as refused:
        raise Refused(f"{path}: {refused}") from None
    if says not in (None, address):
        raise Refused(f"{path} holds the key of {says}")
    return body


def keep(directory: Path, secret: Secret, passphrase: Secret) -> str:
    """Write a key under a passphrase; its address. The file is opened again, in memory, before it takes the place of another."""
    body = keystore.seal(secret, passphrase)
    if keystore.unseal(body, passphrase) != secret:
        raise Refused("the keystore that was made does not open again: nothing was changed")
    address = Key(secret).address
    write_private(file_of(directory, address), body)
    return address


def take_over(directory: Path) -> str | None:
    """Homes of before the keystore have the account's key in hexadecimal in `keys/account`: move it, once; its address.

    The old file goes last, when the new one is on disk and opens; a crash between any two steps is mended by the next call.
    """
    old = directory / "account"
    key = keys.load(old)
    if key is None:
        return None
    body = read_private(old, 128)
    assert body is not None
    secret = Secret(bytes.fromhex(body.decode().strip()))
    address = key.address
    stored = load(directory, address)
    if stored is None:
        keep(directory, secret, NO_PASSPHRASE)
        stored = load(directory, address)
    if stored is None or not _opens(stored, secret):
        raise Refused(
            f"{old} has in the clear what {file_of(directory, address)} has under a passphrase: remove one of them"
        )
    old.unlink()
    sync_directory(directory)
    return address


def _opens(body: bytes, secret: Secret) -> bool:
    try:
        return keystore.unseal(body, NO_PASSPHRASE) == secret
    except WrongPassphrase:
        return False


def only_or_fresh(directory: Path) -> str:
    """The account of a home without a machine list: the one whose key is here, or one that is made now, without a passphrase."""
    match held(directory):
        case []:
            return keep(directory, keys.fresh(), NO_PASSPHRASE)
        case [address]:
            return address
        case several:
            raise Refused(
                f"{directory / 'machines'} is missing, and keys of {len(several)} accounts are here: "
                f"move all but one of {', '.join(several)} out of {directory / 'accounts'}"
            )
