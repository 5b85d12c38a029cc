"""Keys and machine lists."""

from __future__ import annotations

import pickle
from pathlib import Path

import msgspec
import pytest

from ipos.identity import keys, machines
from ipos.identity.machine_id import machine_id
from ipos.identity.secret import Secret
from ipos.wire.errors import Refused


def machine(name: str) -> machines.Machine:
    return machines.Machine(name=name, peer=f"peer-{name}", run="0x0", machine="00")


def test_keys(tmp_path: Path) -> None:
    key = keys.create(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    again = keys.load(tmp_path / "key")
    assert again is not None
    assert again.address == key.address == keys.signer(b"hello", key.sign(b"hello"))
    assert keys.signer(b"hallo", key.sign(b"hello")) != key.address
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(Refused, match="chmod 600"):
        keys.load(tmp_path / "key")
    assert keys.load(tmp_path / "none") is None
    with pytest.raises(Refused, match="65 bytes"):
        keys.signer(b"", b"short")


def test_a_known_address() -> None:
    assert keys.Key(Secret(b"\x11" * 32)).address == "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"


def test_a_secret_is_not_shown() -> None:
    secret = Secret(b"hush")
    assert "hush" not in f"{secret} {secret!r}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_lists(tmp_path: Path) -> None:
    key, thief = keys.create(tmp_path / "a"), keys.create(tmp_path / "b")
    one = machines.sign(key, 1, (machine("desk"),))
    two = machines.with_machine(key, one, machine("desk"))
    assert [m.name for m in two.machines] == ["desk"], "the same peer takes its old place"
    other = machines.with_machine(key, one, msgspec.structs.replace(machine("desk"), peer="peer-2"))
    assert [m.name for m in other.machines] == ["desk", "desk-2"]
    assert machines.newer(one, two) == two
    assert machines.newer(two, one) is None
    with pytest.raises(Refused, match="the account's key was used on two machines at once"):
        machines.newer(two, other)
    with pytest.raises(Refused, match="belongs to"):
        machines.newer(one, machines.sign(thief, 9, (machine("desk"),)))
    forged = msgspec.structs.replace(two, version=7)
    with pytest.raises(Refused, match="has not signed"):
        machines.newer(one, forged)
    stolen = msgspec.structs.replace(machines.sign(thief, 7, two.machines), account=key.address)
    with pytest.raises(Refused, match="has not signed"):
        machines.newer(one, stolen)


def test_names() -> None:
    assert machines.tidy("Anna's PC.local") == "anna-s-pc"
    assert not machines.valid_name("-x")
    assert machines.tidy("!!!") == "machine"


def test_two_homes_are_one_machine(tmp_path: Path) -> None:
    if not Path("/etc/machine-id").exists():
        pytest.fail("this test needs /etc/machine-id")
    assert machine_id(tmp_path / "a") == machine_id(tmp_path / "b")
    assert Path("/etc/machine-id").read_text().strip() not in machine_id(tmp_path)
