"""Keystores: published vectors, eth-account in both directions, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.identity import accounts, keys, keystore
from ipos.identity.keystore import LIGHT, Cost, WrongPassphrase, seal, unseal
from ipos.identity.secret import Secret
from ipos.wire.errors import Refused

RIGHT = Secret(b"testpassword")
SECRET = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"
# https://ethereum.org/en/developers/docs/data-structures-and-encoding/web3-secret-storage/
PBKDF2 = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}
SCRYPT = {  # its n is beyond what OpenSSL takes for r = 1
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "p": 8,
            "r": 1,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrypt that takes no time; the real cost has a test of its own."""
    monkeypatch.setattr(keystore, "STANDARD", Cost(4, 8, 1))


@pytest.mark.parametrize("vector", [PBKDF2, SCRYPT], ids=["pbkdf2", "scrypt"])
def test_published_vectors(vector: Any) -> None:
    assert unseal(json.dumps(vector).encode(), RIGHT).reveal().hex() == SECRET
    old = {**vector, "Crypto": vector["crypto"]}
    del old["crypto"]
    assert keystore.read(json.dumps(old).encode()) == keystore.read(json.dumps(vector).encode())


def test_ours_opens_in_eth_account() -> None:
    """At its full cost."""
    body = seal(Secret(bytes.fromhex(SECRET)), RIGHT)
    stored = json.loads(body)
    assert stored["crypto"]["kdfparams"]["n"] == 1 << 17
    assert stored["crypto"]["kdfparams"]["r"] == 8
    assert Account.decrypt(body.decode(), "testpassword").hex() == SECRET


@settings(max_examples=6, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.text(st.characters(exclude_categories=("Cs",)), max_size=12))
def test_theirs_opens_here(secret: bytes, passphrase: str) -> None:
    try:
        keys.Key(Secret(secret))
    except ValueError:
        return
    for kdf, rounds in (("scrypt", 1 << 10), ("pbkdf2", 100)):
        body = json.dumps(Account.encrypt(secret, passphrase, kdf=kdf, iterations=rounds)).encode()
        assert unseal(body, Secret(passphrase.encode())) == Secret(secret)
        with pytest.raises(WrongPassphrase):
            unseal(body, Secret(passphrase.encode() + b"."))


def test_an_empty_passphrase_costs_little() -> None:
    stored = keystore.read(seal(Secret(bytes.fromhex(SECRET)), Secret(b"")))
    assert stored.derive == ("scrypt", LIGHT)


def wrong(**changes: Any) -> bytes:
    """The vector with some of its values changed; None removes one."""
    stored = json.loads(json.dumps(SCRYPT))
    for name, value in changes.items():
        place: Any = next((p for p in (stored["crypto"], stored["crypto"]["kdfparams"]) if name in p), stored)
        if value is None:
            place.pop(name)
        else:
            place[name] = value
    return json.dumps(stored).encode()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not a keystore, or a damaged one"),
        (b"{", "not a keystore, or a damaged one"),
        (b"[1]", "not a keystore, or a damaged one"),
        (b"\xff\xfe", "not a keystore, or a damaged one"),
        (b"[" * 10_000, "not a keystore, or a damaged one"),
        (json.dumps(SCRYPT).encode()[:200], "not a keystore, or a damaged one"),
        (wrong(version=1), "version 1: only version 3"),
        (wrong(version=True), "damaged"),
        (wrong(crypto=None), "no crypto part"),
        (wrong(cipher="aes-256-gcm"), "cipher is 'aes-256-gcm'"),
        (wrong(kdf="argon2id"), "kdf is 'argon2id': scrypt and pbkdf2 are known"),
        (wrong(kdf="pbkdf2"), "prf is None"),
        (wrong(dklen=16), "dklen is 16, 32 was due"),
        (wrong(mac="zz" * 32), "mac is not hexadecimal"),
        (wrong(mac="00"), "mac has 1 bytes, 32 were due"),
        (wrong(ciphertext="00" * 33), "ciphertext has 33 bytes"),
        (wrong(salt=""), "salt is missing or has a strange length"),
        (wrong(salt=7), "salt is missing or has a strange length"),
        (wrong(n=262143), "scrypt needs a power of two"),
        (wrong(n=1), "scrypt needs a power of two"),
        (wrong(n=0), "n is 0: a number from 1"),
        (wrong(n=-2), "n is -2: a number from 1"),
        (wrong(n=1 << 40), "n is 1099511627776: a number from 1"),
        (wrong(n="262144"), "n is '262144'"),
        (wrong(n=2.0**18), "n is 262144.0"),
        (wrong(r=None), "r is None"),
        (wrong(n=1 << 20, r=8), "asks for 1024 MiB of scrypt, the most is 512 MiB"),
        (wrong(n=1 << 30, r=1 << 10), "asks for 134217728 MiB of scrypt"),
        (wrong(p=1 << 10), "steps of scrypt, the most is"),
        (wrong(address="00" * 19), "address has 19 bytes"),
    ],
)
def test_files_that_make_no_sense(body: bytes, sentence: str) -> None:
    """Before anything is derived: none of these takes memory or time."""
    with pytest.raises(Refused, match=sentence) as caught:
        keystore.read(body)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cheap")
def test_wrong_passphrase_mac_and_address() -> None:
    stored = json.loads(seal(Secret(bytes.fromhex(SECRET)), RIGHT))
    with pytest.raises(WrongPassphrase, match="wrong passphrase"):
        unseal(json.dumps(stored).encode(), Secret(b"testpasswor"))
    for name in ("mac", "ciphertext"):
        changed = json.loads(json.dumps(stored))
        changed["crypto"][name] = f"{int(changed['crypto'][name], 16) ^ 1:064x}"
        with pytest.raises(WrongPassphrase, match="or a keystore that was changed"):
            unseal(json.dumps(changed).encode(), RIGHT)
    with pytest.raises(Refused, match="says that it holds"):
        unseal(json.dumps({**stored, "address": "00" * 20}).encode(), RIGHT)
    iv = json.loads(json.dumps(stored))  # not under the MAC: the address notices
    iv["crypto"]["cipherparams"]["iv"] = "00" * 16
    with pytest.raises(Refused, match=r"says that it holds|no key of secp256k1"):
        unseal(json.dumps(iv).encode(), RIGHT)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_never_open_as_something_else(data: st.DataObject) -> None:
    """One byte changed, cut off, or put in: the same key, or a sentence."""
    body = bytearray(DAMAGE)
    at = data.draw(st.integers(0, len(body) - 1))
    match data.draw(st.sampled_from(("change", "cut", "insert"))):
        case "change":
            body[at] = data.draw(st.integers(0, 255))
        case "cut":
            del body[at:]
        case _:
            body.insert(at, data.draw(st.integers(0, 255)))
    try:
        opened = unseal(bytes(body), RIGHT)
    except Refused:
        return
    assert opened.reveal().hex() == SECRET


def _damage() -> bytes:
    before, keystore.STANDARD = keystore.STANDARD, Cost(4, 8, 1)
    try:
        return seal(Secret(bytes.fromhex(SECRET)), RIGHT)
    finally:
        keystore.STANDARD = before


DAMAGE = _damage()


@pytest.mark.usefixtures("cheap")
def test_a_home_reads_its_files_strictly(tmp_path: Path) -> None:
    address = accounts.keep(tmp_path, Secret(bytes.fromhex(SECRET)), RIGHT)
    path = accounts.file_of(tmp_path, address)
    assert path.stat().st_mode & 0o777 == 0o600
    assert accounts.held(tmp_path) == [address]
    assert accounts.load(tmp_path, address) is not None
    assert accounts.load(tmp_path, "0x" + "00" * 20) is None
    path.chmod(0o640)
    with pytest.raises(Refused, match=r"can be read by others \(mode 0640\): chmod 600"):
        accounts.load(tmp_path, address)
    path.chmod(0o600)
    other = accounts.file_of(tmp_path, "0x" + "00" * 20)
    path.rename(other)
    with pytest.raises(Refused, match=f"holds the key of {address}"):
        accounts.load(tmp_path, "0x" + "00" * 20)
    other.write_bytes(other.read_bytes()[:100])
    with pytest.raises(Refused, match="damaged"):
        accounts.load(tmp_path, "0x" + "00" * 20)
    other.write_bytes(b" " * 70_000)
    with pytest.raises(Refused, match="longer than 65536 bytes"):
        accounts.load(tmp_path, "0x" + "00" * 20)
