"""A private key under a passphrase: Web3 Secret Storage, version 3, the files that geth, eth-account and wallets write and read.

https://ethereum.org/en/developers/docs/data-structures-and-encoding/web3-secret-storage/: a key is derived from the passphrase by scrypt (or pbkdf2,
which is only read), its first half encrypts by AES-128-CTR, keccak of its second half and the ciphertext is the MAC.
Both derivations take up to seconds and hundreds of MiB on purpose: never call `seal` or `unseal` on an event loop.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid
from typing import Any, NamedTuple, cast

import msgspec

from ipos.identity.keys import Key, address_of_bytes, keccak
from ipos.identity.secret import Secret
from ipos.wire import limits
from ipos.wire.errors import Refused


class Cost(NamedTuple):
    """Of scrypt: 128·n·r bytes of memory, and time in proportion to n·r·p."""

    n: int
    r: int
    p: int


STANDARD = Cost(1 << 17, 8, 1)
"""128 MiB, about half a second."""
LIGHT = Cost(1 << 12, 8, 6)
"""geth's `--lightkdf`. For the empty passphrase, which no derivation makes harder to guess."""


class WrongPassphrase(Refused):
    """The passphrase is not the one; or the file was changed, which the MAC cannot tell from it."""


class _Cipher(msgspec.Struct):
    iv: str


class _Crypto(msgspec.Struct):
    cipher: str
    cipherparams: _Cipher
    ciphertext: str
    kdf: str
    kdfparams: dict[str, Any]
    mac: str


class _Stored(msgspec.Struct):
    version: int
    crypto: _Crypto | None = None
    capital: _Crypto | None = msgspec.field(name="Crypto", default=None)  # as Mist and Parity wrote it
    address: str | None = None


class Sealed(NamedTuple):
    """A file that was read and makes sense. `address` (EIP-55) is only what it says of itself, None if it says nothing."""

    address: str | None
    derive: tuple[str, Cost | int]
    salt: bytes
    iv: bytes
    ciphertext: bytes
    mac: bytes


def _bytes(text: str, what: str, length: int) -> bytes:
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise Refused(f"the keystore's {what} is not hexadecimal") from None
    if len(value) != length:
        raise Refused(f"the keystore's {what} has {len(value)} bytes, {length} were due")
    return value


def _number(params: dict[str, Any], name: str, most: int) -> int:
    value = params.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise Refused(f"the keystore's {name} is {value!r}: a number from 1 to {most} was due")
    return value


def _cost(params: dict[str, Any]) -> Cost:
    cost = Cost(_number(params, "n", 1 << 30), _number(params, "r", 1 << 10), _number(params, "p", 1 << 10))
    if cost.n < 2 or cost.n & (cost.n - 1):
        raise Refused(f"the keystore's n is {cost.n}: scrypt needs a power of two")
    if 128 * cost.n * cost.r > limits.scrypt_bytes:
        memory = 128 * cost.n * cost.r >> 20
        raise Refused(f"the keystore asks for {memory} MiB of scrypt, the most is {limits.scrypt_bytes >> 20} MiB")
    if cost.n * cost.r * cost.p > limits.scrypt_steps:
        raise Refused(
            f"the keystore asks for {cost.n * cost.r * cost.p} steps of scrypt, the most is {limits.scrypt_steps}"
        )
    return cost


def read(body: bytes) -> Sealed:
    """Check everything that can be checked without the passphrase; `Refused` names what is wrong."""
    try:
        stored = msgspec.json.decode(body, type=_Stored)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(f"not a keystore, or a damaged one: {error}") from None
    if stored.version != 3:
        raise Refused(f"a keystore of version {stored.version}: only version 3 is known")
    crypto = stored.crypto or stored.capital
    if crypto is None:
        raise Refused("not a keystore, or a damaged one: it has no crypto part")
    if crypto.cipher != "aes-128-ctr":
        raise Refused(f"the keystore's cipher is {crypto.cipher!r}: only aes-128-ctr is known")
    params = crypto.kdfparams
    if params.get("dklen") != 32:
        raise Refused(f"the keystore's dklen is {params.get('dklen')!r}, 32 was due")
    if crypto.kdf == "scrypt":
        derive: tuple[str, Cost | int] = "scrypt", _cost(params)
    elif crypto.kdf == "pbkdf2":
        if params.get("prf") != "hmac-sha256":
            raise Refused(f"the keystore's prf is {params.get('prf')!r}: only hmac-sha256 is known")
        derive = "pbkdf2", _number(params, "c", limits.pbkdf2_rounds)
    else:
        raise Refused(f"the keystore's kdf is {crypto.kdf!r}: scrypt and pbkdf2 are known")
    salt = params.get("salt")
    if not isinstance(salt, str) or not 16 <= len(salt) <= 256 or len(salt) % 2:
        raise Refused("the keystore's salt is missing or has a strange length")
    address = None if not stored.address else address_of_bytes(_bytes(stored.address, "address", 20))
    return Sealed(
        address, derive, _bytes(salt, "salt", len(salt.removeprefix("0x")) // 2),
        _bytes(crypto.cipherparams.iv, "iv", 16), _bytes(crypto.ciphertext, "ciphertext", 32), _bytes(crypto.mac, "mac", 32),
    )  # fmt: skip


def _scrypt(passphrase: Secret, salt: bytes, cost: Cost) -> bytes:
    n, r, p = cost
    if n < 1 << 16 * r:
        return hashlib.scrypt(passphrase.reveal(), salt=salt, n=n, r=r, p=p, maxmem=128 * r * (n + p + 4), dklen=32)
    from Crypto.Protocol.KDF import scrypt  # OpenSSL keeps RFC 7914's bound on n; the published vector is beyond it

    return cast(bytes, scrypt(passphrase.reveal(), salt, 32, n, r, p))  # pyright: ignore[reportArgumentType]


def _derive(sealed: Sealed, passphrase: Secret) -> bytes:
    match sealed.derive:
        case (_, Cost() as cost):
            return _scrypt(passphrase, sealed.salt, cost)
        case (_, rounds):
            return hashlib.pbkdf2_hmac("sha256", passphrase.reveal(), sealed.salt, rounds, 32)


def _aes_ctr(key: bytes, iv: bytes, body: bytes) -> bytes:
    from Crypto.Cipher import AES

    return AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=iv).encrypt(body)


def unseal(body: bytes, passphrase: Secret) -> Secret:
    """The 32 bytes of the key. `WrongPassphrase`, or `Refused` for a file that makes no sense."""
    sealed = read(body)
    derived = _derive(sealed, passphrase)
    if not hmac.compare_digest(keccak(derived[16:] + sealed.ciphertext), sealed.mac):
        raise WrongPassphrase("wrong passphrase (or a keystore that was changed)")
    secret = Secret(_aes_ctr(derived[:16], sealed.iv, sealed.ciphertext))
    try:
        key = Key(secret)
    except ValueError:
        raise Refused("the keystore opens, but what it holds is no key of secp256k1") from None
    if sealed.address is not None and key.address != sealed.address:
        raise Refused(f"the keystore says that it holds {sealed.address}, but its key is that of {key.address}")
    return secret


def cheap(body: bytes) -> bool:
    """Whether trying a passphrase costs no more than for a file that was sealed without one."""
    match read(body).derive:
        case (_, Cost(n, r, p)):
            return n * r * p <= LIGHT.n * LIGHT.r * LIGHT.p
        case _:
            return False


def seal(secret: Secret, passphrase: Secret) -> bytes:
    """A keystore file of the key. Scrypt costs `STANDARD`, for the empty passphrase `LIGHT`. ValueError if it is no key."""
    cost = LIGHT if passphrase.empty else STANDARD
    address = Key(secret).address
    salt, iv = os.urandom(32), os.urandom(16)
    derived = _scrypt(passphrase, salt, cost)
    ciphertext = _aes_ctr(derived[:16], iv, secret.reveal())
    stored = {
        "address": address[2:].lower(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": iv.hex()},
            "ciphertext": ciphertext.hex(),
            "kdf": "scrypt",
            "kdfparams": {"dklen": 32, **cost._asdict(), "salt": salt.hex()},
            "mac": keccak(derived[16:] + ciphertext).hex(),
        },
        "id": str(uuid.UUID(bytes=os.urandom(16), version=4)),
        "version": 3,
    }
    return msgspec.json.encode(stored) + b"\n"
