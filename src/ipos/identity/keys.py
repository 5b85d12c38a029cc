"""secp256k1 keys: the account's (the person) and the run key (one per machine). The transport key lives in netd.

Addresses and signatures are Ethereum's: keccak of the public key, EIP-55 text (https://eips.ethereum.org/EIPS/eip-55), personal messages by
EIP-191 version 0x45 (https://eips.ethereum.org/EIPS/eip-191), 65 bytes r s v. Issue 3 puts the account key into a keystore and an agent.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ipos.identity.secret import Secret
from ipos.wire.errors import Refused

ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
"""Of the group of secp256k1 (SEC 2, 2.4.1). A signature whose s is above half of it has a twin below."""


def keccak(data: bytes) -> bytes:
    """Ethereum's keccak-256, 32 bytes."""
    from eth_hash.auto import keccak

    return keccak(data)


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


def write_private(path: Path, body: bytes) -> None:
    """Replace a file atomically; only this user may read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, body)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(new, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path) -> Key | None:
    """The key in a file, None if there is none; `Refused` if others may read it or it holds something else."""
    try:
        body = path.read_text().strip()
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise Refused(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    try:
        return Key(Secret(bytes.fromhex(body)))
    except ValueError:
        raise Refused(f"{path} does not hold a key of 32 bytes") from None


def create(path: Path) -> Key:
    """A new key, written to `path` with mode 0600."""
    while True:
        secret = os.urandom(32)
        try:
            key = Key(Secret(secret))
        except ValueError:
            continue  # not below the order of the curve: one in 2**128
        write_private(path, secret.hex().encode() + b"\n")
        return key
