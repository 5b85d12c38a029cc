"""The agent, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipos.identity import accounts, keys, keystore, machines
from ipos.identity.agent import MACHINE_LIST, PURPOSES, Agent
from ipos.identity.keystore import WrongPassphrase
from ipos.identity.machines import Machine, MachineList
from ipos.identity.secret import Secret
from ipos.testing.time import WorldClock, run
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import encode

RIGHT, WRONG, EMPTY = Secret(b"correct horse"), Secret(b"battery staple"), accounts.NO_PASSPHRASE
DESK = Machine(name="desk", peer="peer-desk", run="0x0", machine="00")
Story = Callable[[Agent, WorldClock], Coroutine[Any, Any, None]]


async def inline(function: Callable[[], Any]) -> Any:
    return function()


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    for cost in ("STANDARD", "LIGHT"):
        monkeypatch.setattr(keystore, cost, keystore.Cost(4, 8, 1))


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., None]:
    """Run a story with an agent whose account has this passphrase."""

    def start(story: Story, passphrase: Secret = RIGHT, **options: Any) -> None:
        async def whole() -> None:
            account = accounts.keep(tmp_path, keys.fresh(), passphrase)
            clock = WorldClock(1000.0)
            agent = Agent(tmp_path, account, clock, inline, **options)
            await agent.load(account)
            await story(agent, clock)
            agent.lock()

        run(whole())

    return start


def sign(agent: Agent) -> MachineList:
    return machines.sign(agent.signer("machine-list"), 1, (DESK,))


def locked(agent: Agent) -> None:
    assert agent.state == "locked"
    assert agent.locks_in_s is None
    assert not any(isinstance(value, keys.Key) for value in vars(agent).values()), "the key is forgotten"
    with pytest.raises(Refused, match="the account key is locked: ipos keys unlock"):
        sign(agent)
    with pytest.raises(Refused, match="the account key is locked"):
        agent.may("machine-list")


def test_no_passphrase_is_open_and_only_then(tell: Any) -> None:
    async def open_(agent: Agent, clock: WorldClock) -> None:
        assert agent.state == "open"
        machines.check(sign(agent))
        await asyncio.sleep(1e6)
        machines.check(sign(agent))
        agent.lock()
        assert agent.state == "open", "there is nothing to come back by"
        with pytest.raises(Refused, match="it is open"):
            await agent.unlock(EMPTY, 60)

    async def closed(agent: Agent, clock: WorldClock) -> None:
        locked(agent)
        with pytest.raises(WrongPassphrase):
            await agent.unlock(EMPTY, 60)

    tell(open_, EMPTY)
    tell(closed, RIGHT)


def test_it_locks_itself(tell: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        await agent.unlock(RIGHT, 600)
        assert agent.state == "unlocked"
        await asyncio.sleep(599)
        machines.check(sign(agent))
        assert agent.locks_in_s == pytest.approx(1.0)
        with caplog.at_level(logging.INFO, logger="ipos.agent"):
            await asyncio.sleep(1.001)
        assert "the account key is locked" in caplog.text, "by itself, not because somebody looked"
        locked(agent)
        await agent.unlock(RIGHT, 60)
        await agent.unlock(RIGHT, 10)  # the last word counts
        await asyncio.sleep(11)
        locked(agent)
        await agent.unlock(RIGHT, 10)
        await agent.unlock(RIGHT, 60)
        await asyncio.sleep(30)
        machines.check(sign(agent))
        agent.lock()
        locked(agent)

    tell(story)


def test_a_closed_lid_counts(tell: Any) -> None:
    """Timers do not run on in a machine that sleeps; its clock does, and the first look after it counts."""

    async def story(agent: Agent, clock: WorldClock) -> None:
        await agent.unlock(RIGHT, 60)
        clock.freeze()
        await asyncio.sleep(120)
        locked(agent)
        clock.thaw()

    tell(story)


def test_wrong_passphrases_wait_longer_each_time(tell: Any) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        waits: list[float] = []
        for _ in range(9):
            with pytest.raises(WrongPassphrase):
                await agent.unlock(WRONG, 60)
            with pytest.raises(Refused, match="the next try is in"):
                await agent.unlock(RIGHT, 60)
            began = clock.now()
            while True:
                await asyncio.sleep(0.5)
                try:
                    await agent.change(WRONG, RIGHT)  # every way to try is counted
                except WrongPassphrase:
                    break
                except Refused:
                    continue
            waits.append(clock.now() - began)
            await asyncio.sleep(limits.wrong_passphrase_most_s)
        assert agent.failures == 18
        assert waits[:4] == [1.0, 4.0, 16.0, 60.0]
        assert max(waits) == limits.wrong_passphrase_most_s
        await agent.unlock(RIGHT, 60)
        assert agent.failures == 0

    tell(story)


def test_guesses_at_once_are_one_guess(tell: Any) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        tries = [agent.unlock(Secret(b"guess %d" % i), 60) for i in range(50)]
        errors = await asyncio.gather(*tries, agent.unlock(RIGHT, 60), return_exceptions=True)
        assert sum(isinstance(error, WrongPassphrase) for error in errors) == 1
        assert agent.failures == 1
        locked(agent)

    tell(story)


def test_what_it_signs(tell: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        with caplog.at_level(logging.INFO, logger="ipos.agent"):
            lst = machines.with_machine(
                agent.signer("machine-list"), sign(agent), msgspec.structs.replace(DESK, peer="p2")
            )
        machines.check(lst)
        assert "signed for machine-list: machine list version 2: desk, desk-2" in caplog.text
        with pytest.raises(Refused, match="does not sign for 'transfer'; it is granted machine-list"):
            agent.signer("transfer")
        with pytest.raises(Refused, match="does not sign for 'transfer'"):
            agent.sign("transfer", b"")
        for message in (b"", b"pay 1 coin to mallory", encode(DESK)):
            with pytest.raises(BadRecord):
                agent.sign("machine-list", message)
        other = MachineList(account="0x" + "00" * 20, version=1, machines=(DESK,))
        with pytest.raises(Refused, match="bare machine lists of"):
            agent.sign("machine-list", encode(other))
        with pytest.raises(Refused, match="bare machine lists of"):
            agent.sign("machine-list", encode(lst))

    tell(story, EMPTY)
    named = [MACHINE_LIST.name, "introduction", "grant"]
    assert [purpose.name for purpose in PURPOSES] == named, "each purpose has a line in docs/security.md"


def test_an_agent_without_the_purpose(tell: Any) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        with pytest.raises(Refused, match="does not sign for 'machine-list'; it is granted nothing"):
            sign(agent)

    tell(story, EMPTY, purposes=())


def test_changing_the_passphrase(tell: Any, tmp_path: Path) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        path = accounts.file_of(tmp_path, agent.account)
        await agent.change(EMPTY, RIGHT)
        locked(agent)
        with pytest.raises(WrongPassphrase):
            keystore.unseal(path.read_bytes(), EMPTY)
        again = Agent(tmp_path, agent.account, clock, inline)
        await again.load(agent.account)
        locked(again)
        await agent.unlock(RIGHT, 60)
        before = path.read_bytes()
        with pytest.raises(WrongPassphrase):
            await agent.change(WRONG, Secret(b"new"))
        assert path.read_bytes() == before
        machines.check(sign(agent))
        await asyncio.sleep(1)
        await agent.change(RIGHT, Secret(b"new"))
        locked(agent)
        await agent.change(Secret(b"new"), EMPTY)
        assert agent.state == "open"
        machines.check(sign(agent))

    tell(story, EMPTY)


def test_a_full_disk_changes_nothing(tell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        before = accounts.file_of(tmp_path, agent.account).read_bytes()

        def full(path: Path, body: bytes) -> None:
            raise Refused(f"{path} cannot be written: No space left on device")

        monkeypatch.setattr(accounts, "write_private", full)
        with pytest.raises(Refused, match="No space left"):
            await agent.change(EMPTY, RIGHT)
        assert agent.state == "open"
        assert accounts.file_of(tmp_path, agent.account).read_bytes() == before

    tell(story, EMPTY)


def test_backup_and_restore(tell: Any, tmp_path: Path) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        with pytest.raises(Refused, match="open to whoever finds it"):
            await agent.backup(EMPTY)
        body = await agent.backup(RIGHT)
        await agent.verify(body, RIGHT)
        with pytest.raises(WrongPassphrase):
            await agent.verify(body, WRONG)
        with pytest.raises(Refused, match="damaged"):
            await agent.verify(body[:-5], RIGHT)
        foreign = keystore.seal(keys.fresh(), RIGHT)
        with pytest.raises(Refused, match="not that of"):
            await agent.verify(foreign, RIGHT)

        def no(address: str) -> None:
            raise Refused(f"not {address}")

        names = sorted(path.name for path in (tmp_path / "accounts").iterdir())
        with pytest.raises(Refused, match="not 0x"):
            await agent.restore(foreign, RIGHT, no)
        assert sorted(path.name for path in (tmp_path / "accounts").iterdir()) == names
        accounts.file_of(tmp_path, agent.account).unlink()
        await agent.load(agent.account)
        assert agent.state == "elsewhere"
        with pytest.raises(Refused, match="is not on this machine"):
            sign(agent)
        assert await agent.restore(body, RIGHT, lambda address: None) == agent.account
        await agent.load(agent.account)
        locked(agent)
        await agent.unlock(RIGHT, 60)
        machines.check(sign(agent))
        with pytest.raises(WrongPassphrase):
            await agent.backup(WRONG)

    tell(story, EMPTY)


def test_a_keystore_that_cannot_be_used(tell: Any, tmp_path: Path) -> None:
    """The node goes on without the account key, and says why."""

    async def story(agent: Agent, clock: WorldClock) -> None:
        path = accounts.file_of(tmp_path, agent.account)
        whole = path.read_bytes()
        path.chmod(0o644)
        await agent.load(agent.account)
        assert agent.state == "unusable"
        with pytest.raises(Refused, match="chmod 600"):
            sign(agent)
        path.chmod(0o600)
        path.write_bytes(whole[:99])
        await agent.load(agent.account)
        with pytest.raises(Refused, match=r"\.json: not a keystore, or a damaged one"):
            agent.may("machine-list")
        nameless = msgspec.json.decode(keystore.seal(keys.fresh(), EMPTY))
        del nameless["address"]
        path.write_bytes(msgspec.json.encode(nameless))
        await agent.load(agent.account)
        with pytest.raises(Refused, match="holds the key of 0x"):
            sign(agent)
        path.write_bytes(whole)
        await agent.load(agent.account)
        assert agent.state == "open"

    tell(story, EMPTY)


def test_for_how_long(tell: Any) -> None:
    async def story(agent: Agent, clock: WorldClock) -> None:
        for seconds in (0.0, -1.0, limits.unlock_most_s + 1, float("inf"), float("nan")):
            with pytest.raises(Refused, match="the most is 7 days"):
                await agent.unlock(RIGHT, seconds)
        await agent.unlock(RIGHT, limits.unlock_most_s)

    tell(story)


def test_scrypt_is_never_on_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that derives a key goes through `offload`."""
    off, derived = False, 0
    real = keystore._scrypt

    def scrypt(*arguments: Any) -> bytes:
        nonlocal derived
        assert off, "on the loop"
        derived += 1
        return real(*arguments)

    async def offload(function: Callable[[], Any]) -> Any:
        nonlocal off
        off = True
        try:
            return function()
        finally:
            off = False

    async def whole() -> None:
        agent = Agent(tmp_path, account, WorldClock(0.0), offload)
        await agent.load(account)
        await agent.change(EMPTY, RIGHT)
        await agent.unlock(RIGHT, 60)
        body = await agent.backup(RIGHT)
        await agent.verify(body, RIGHT)
        await agent.restore(body, RIGHT, lambda address: None)
        machines.check(sign(agent))
        agent.lock()

    account = accounts.keep(tmp_path, keys.fresh(), EMPTY)
    monkeypatch.setattr(keystore, "_scrypt", scrypt)
    run(whole())
    assert derived >= 10
    with pytest.raises(AssertionError, match="on the loop"):
        keystore.seal(keys.fresh(), EMPTY)
