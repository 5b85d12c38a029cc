"""secp256k1 keys: the account's (the person) and the run key (one per machine). The transport key lives in netd.

Addresses and signatures are Ethereum's: keccak of the public key, EIP-55 text (https://eips.ethereum.org/EIPS/eip-55), personal messages by
EIP-191 version 0x45 (https://eips.ethereum.org/EIPS/eip-191), 65 bytes r s v. The account's key lives in a keystore (`keystore.py`) and is
open only inside the agent (`agent.py`).
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from ipos.identity.private import read_private, write_private
from ipos.identity.secret import Secret
from ipos.wire.errors import Refused

ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
"""Of the group of secp256k1 (SEC 2, 2.4.1). A signature whose s is above half of it has a twin below."""


def keccak(data: bytes) -> bytes:
    """Ethereum's keccak-256, 32 bytes."""
    from eth_hash.auto import keccak

    return keccak(data)


@lru_cache(512)
def address_of_bytes(raw: bytes) -> str:
    """EIP-55 text of an address of 20 bytes."""
    low = raw.hex()
    digest = keccak(low.encode()).hex()
    return "0x" + "".join(a.upper() if int(d, 16) >= 8 else a for a, d in zip(low, digest, strict=False))


def address_of(public: bytes) -> str:
    """EIP-55 text of an uncompressed public key (65 bytes)."""
    return address_of_bytes(keccak(public[1:])[-20:])


def _digest(message: bytes) -> bytes:
    return keccak(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)


class Key:
    """A private key. `address` is its public name. ValueError if the bytes are no key of this curve."""

    def __init__(self, secret: Secret) -> None:
        from coincurve import PrivateKey

        if len(secret.reveal()) != 32:
            raise ValueError("a key has 32 bytes")
        self._key = PrivateKey(secret.reveal())
        self.address = address_of(self._key.public_key.format(compressed=False))

    def sign(self, message: bytes) -> bytes:
        """EIP-191, version 0x45: 65 bytes, low s, v of 27 or 28."""
        return self.sign_digest(_digest(message))

    def sign_digest(self, digest: bytes) -> bytes:
        """The same over 32 bytes that are a hash already; whoever calls it must know what they are the hash of."""
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([signature[64] + 27])

    def __repr__(self) -> str:
        return f"Key({self.address})"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")


def signer(message: bytes, signature: bytes) -> str:
    """The address whose key signed the message; `Refused` if the signature is not one."""
    return recover(_digest(message), signature)


def recover(digest: bytes, signature: bytes) -> str:
    """The address whose key signed these 32 bytes; `Refused` if the signature is not one, or is the twin of one with a high s."""
    from coincurve import PublicKey

    if len(signature) != 65 or signature[64] not in (27, 28):
        raise Refused("a signature must have 65 bytes and end with 27 or 28")
    if int.from_bytes(signature[32:64], "big") > ORDER // 2:
        raise Refused(
            "a signature with a high s: each has a twin that anybody can make, only the one with the low s counts"
        )
    try:
        public = PublicKey.from_signature_and_message(signature[:64] + bytes([signature[64] - 27]), digest, hasher=None)
    except Exception:
        raise Refused("the signature cannot be read") from None
    return address_of(public.format(compressed=False))


def load(path: Path) -> Key | None:
    """The key in a file, None if there is none; `Refused` if others may read it or it holds something else."""
    body = read_private(path, 128)
    if body is None:
        return None
    try:
        return Key(Secret(bytes.fromhex(body.decode().strip())))
    except ValueError:
        raise Refused(f"{path} does not hold a key of 32 bytes") from None


def fresh() -> Secret:
    """32 random bytes that are a key."""
    while True:
        secret = Secret(os.urandom(32))
        try:
            Key(secret)
        except ValueError:
            continue  # not below the order of the curve: one in 2**128
        return secret


def create(path: Path) -> Key:
    """A new key, written to `path` in hexadecimal with mode 0600."""
    secret = fresh()
    write_private(path, secret.reveal().hex().encode() + b"\n")
    return Key(secret)
