"""Private files: whole or as they were, on a full disk and under kill -9; and the take-over of homes of before the keystore."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import killed_at

from ipos.identity import accounts, keys, keystore
from ipos.identity.private import read_private, remove_private, write_private
from ipos.identity.secret import Secret
from ipos.wire.errors import Refused


def torn(path: Path, body: bytes) -> None:
    """The way in which `write_private` was wrong: it believed that one write takes everything."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, body)
    os.close(fd)
    os.replace(new, path)


def on_a_full_disk(write: Callable[[Path, bytes], None], path: Path, body: bytes) -> str:
    """What writing says, where the kernel takes 1,000 bytes more and no others."""
    read, told = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write(path, body)
            os.write(told, b"it says that all is well")
        except Refused as refused:
            os.write(told, str(refused).encode())
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(read) as stream:
        words = stream.read()
    os.waitpid(child, 0)
    return words


def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, b"what was there")
    words = on_a_full_disk(write_private, path, bytes(5000))
    assert "cannot be written: File too large; what it held is unchanged" in words
    assert path.read_bytes() == b"what was there"
    assert os.listdir(tmp_path) == ["key"]
    assert "all is well" in on_a_full_disk(torn, path, bytes(5000)), "the test could not fail"
    assert len(path.read_bytes()) == 1000


def test_no_room_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    write_private(path, b"what was there")
    real = os.open

    def full(name: object, *arguments: int) -> int:
        if str(name).endswith(".new"):
            raise OSError(28, "No space left on device")
        return real(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(Refused, match="No space left on device"):
        write_private(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"what was there"


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert read_private(path, 10) is None
    write_private(path, b"0123456789")
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_private(path, 10) == b"0123456789"
    with pytest.raises(Refused, match="longer than 9 bytes"):
        read_private(path, 9)
    for mode in (0o604, 0o640, 0o602, 0o610):
        path.chmod(mode)
        with pytest.raises(Refused, match=f"mode {mode:04o}"):
            read_private(path, 10)
    with pytest.raises(Refused, match="not a plain file"):
        read_private(tmp_path, 10)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(Refused, match="not a plain file"):
        read_private(tmp_path / "pipe", 10)


def test_killed_while_writing(tmp_path: Path) -> None:
    """The old content or the new one, at every step; and the next write is not in the way of what a crash left."""
    step = 0
    while True:
        path = tmp_path / str(step) / "key"
        write_private(path, b"old")
        killed = killed_at(step, lambda path=path: write_private(path, b"new"))
        assert read_private(path, 10) in (b"old", b"new")
        write_private(path, b"newer")
        assert os.listdir(path.parent) == ["key"]
        if not killed:
            break
        step += 1
    assert step > 6


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrypt that takes no time: dozens of take-overs."""
    monkeypatch.setattr(keystore, "LIGHT", keystore.Cost(4, 8, 1))
    monkeypatch.setattr(keystore, "STANDARD", keystore.Cost(4, 8, 1))


SECRET = keys.keccak(b"the account of an old home")


def old_home(directory: Path) -> None:
    directory.mkdir()
    write_private(directory / "account", SECRET.hex().encode() + b"\n")


def has_the_key(directory: Path) -> bool:
    address = keys.Key(Secret(SECRET)).address
    body = accounts.load(directory, address)
    return body is not None and keystore.unseal(body, accounts.NO_PASSPHRASE) == Secret(SECRET)


def careless(directory: Path) -> None:
    """A take-over that loses keys: the old file goes first."""
    body = (directory / "account").read_text()
    os.unlink(directory / "account")
    accounts.keep(directory, Secret(bytes.fromhex(body)), accounts.NO_PASSPHRASE)


def losses(tmp_path: Path, take_over: Callable[[Path], object]) -> tuple[int, int]:
    """(steps, at how many of them a kill lost the key): the key must come back with the next start, under the new name alone."""
    step = lost = 0
    while True:
        directory = tmp_path / f"{take_over.__name__}-{step}"
        old_home(directory)
        killed = killed_at(step, lambda directory=directory: take_over(directory))
        accounts.take_over(directory)
        whole = has_the_key(directory) and not (directory / "account").exists()
        lost += not whole
        if whole:
            assert [path.suffix for path in (directory / "accounts").iterdir()] == [".json"], "nothing else is left"
            assert accounts.only_or_fresh(directory) == keys.Key(Secret(SECRET)).address
        if not killed:
            return step, lost
        step += 1


def test_the_take_over_survives_a_kill_at_every_step(tmp_path: Path) -> None:
    steps, lost = losses(tmp_path, accounts.take_over)
    assert steps >= 8
    assert lost == 0


def test_a_careless_take_over_is_caught(tmp_path: Path) -> None:
    _, lost = losses(tmp_path, careless)
    assert lost >= 3


def test_a_take_over_does_not_remove_a_passphrase(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    old_home(directory)
    address = accounts.keep(directory, Secret(SECRET), Secret(b"a passphrase"))
    before = accounts.file_of(directory, address).read_bytes()
    with pytest.raises(Refused, match=r"in the clear what .* has under a passphrase"):
        accounts.take_over(directory)
    assert accounts.file_of(directory, address).read_bytes() == before


def test_accounts_of_a_home_without_a_list(tmp_path: Path) -> None:
    one = accounts.only_or_fresh(tmp_path)
    assert accounts.only_or_fresh(tmp_path) == one, "it is made once"
    accounts.keep(tmp_path, keys.fresh(), accounts.NO_PASSPHRASE)
    with pytest.raises(Refused, match="keys of 2 accounts are here"):
        accounts.only_or_fresh(tmp_path)


def test_what_is_removed_is_gone_and_a_refusal_says_why(tmp_path: Path) -> None:
    path = tmp_path / "grants" / "1.json"
    remove_private(path)
    write_private(path, b"x")
    remove_private(path)
    assert not path.exists()
    path.mkdir()
    with pytest.raises(Refused, match="cannot be removed: Is a directory"):
        remove_private(path)
