"""What comes in at the doors of joining from those who should not: guesses, floods, lists that are none. One line of the log each, and nothing changes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from ipos.identity import keys, machines
from ipos.net import codes, join, lists
from ipos.node.messages import Messages
from ipos.testing import World, run
from ipos.testing.world import WorldNode
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Gone, Refused
from ipos.wire.record import decode, encode


async def code_of(node: WorldNode, how: bytes = b"yes") -> codes.Code:
    return codes.parse(json.loads(await node.joining.invite(node.me, how))["code"])


async def asked(one: WorldNode, other: WorldNode, protocol: str, body: bytes) -> bytes:
    """The first message that comes back; `Gone` if none does."""
    messages = Messages()
    await one.net.dial(other.net.peer, protocol, lambda: messages)
    messages.send(body)
    try:
        return await messages.next()
    finally:
        messages.close()


def hello(one: WorldNode, other: WorldNode, code: codes.Code) -> tuple[join.Joiner, bytes]:
    joiner = join.Joiner(code, other.net.peer, one.entry(), one.mine.account, 0)
    (step,) = joiner.start()
    assert isinstance(step, join.Send)
    return joiner, step.body


async def two(world: World) -> tuple[WorldNode, WorldNode]:
    """m0, which has the key, and m1."""
    await world.give_key("m0")
    other = world.sites["m1"].node
    assert other is not None
    return world.first, other


def test_invites_are_few_and_end() -> None:
    async def story() -> None:
        async with World(1, machines=2) as world:
            desk, guest = await two(world)
            open_ = [await code_of(desk) for _ in range(limits.invites_open)]
            with pytest.raises(Refused, match=f"{limits.invites_open} invites are open"):
                await code_of(desk)
            assert abs(desk.clock.now() - guest.clock.now()) > limits.invite_s, "each counts by a clock of its own"
            await asyncio.sleep(limits.invite_s - 5)
            assert decode(join.Answer, await asked(guest, desk, join.PROTOCOL, hello(guest, desk, open_[0])[1]))
            await asyncio.sleep(10)
            said = decode(join.Sorry, await asked(guest, desk, join.PROTOCOL, hello(guest, desk, open_[1])[1]))
            assert "there is no open invite" in said.sorry
            assert await code_of(desk)

    run(story())


def test_who_guesses_is_not_listened_to_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with World(2, machines=2) as world:
            desk, guest = await two(world)
            for _ in range(limits.join_failures):
                code = await code_of(desk)
                wrong = code._replace(words=(code.words[1], code.words[0] if code.words[0] != code.words[1] else "x"))
                joiner, body = hello(guest, desk, wrong)
                steps = joiner.received(await asked(guest, desk, join.PROTOCOL, body))
                assert any(isinstance(step, join.Fail) and "wrong code" in step.sentence for step in steps)
                assert code.number not in desk.joining.invites, "one guess"
                await asked_again(guest, desk, code)
            code = await code_of(desk)
            with pytest.raises(Gone):
                await asked(guest, desk, join.PROTOCOL, hello(guest, desk, code)[1])
            assert code.number in desk.joining.invites, "who is not listened to burns nothing"
            await asyncio.sleep(limits.join_failures_s + 1)
            assert decode(join.Answer, await asked(guest, desk, join.PROTOCOL, hello(guest, desk, code)[1]))

    async def asked_again(guest: WorldNode, desk: WorldNode, code: codes.Code) -> None:
        """The right code, too late."""
        said = decode(join.Sorry, await asked(guest, desk, join.PROTOCOL, hello(guest, desk, code)[1]))
        assert "there is no open invite" in said.sorry

    run(story())
    assert "not now" in caplog.text
    assert caplog.text.count("peer-m1 did not join: ") == 2 * limits.join_failures


def test_nobody_is_told_the_list_but_who_stands_on_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with World(3, machines=3) as world:
            desk, guest = await two(world)
            before = desk.mine
            mallory = keys.create(tmp_path / "mallory")
            theirs = machines.sign(mallory, 9, (guest.entry(),))
            account = keys.load(world.directory / "account")
            assert account is not None
            without = machines.sign(account, 7, tuple(m for m in before.machines if m.peer != guest.net.peer))
            forged = machines.MachineList(
                account=before.account, version=9, machines=(guest.entry(),), signature="00" * 65
            )
            for body, words in (
                (b"", "no message of /ipos/list/1"),
                (b"\xa0" * 100, "no message of /ipos/list/1"),
                (encode(lists.Shown(machines=theirs)), "belongs to another account"),
                (encode(lists.Shown(machines=without)), "does not name it"),
                (encode(lists.Shown(machines=forged)), "signature"),
            ):
                assert words in decode(join.Sorry, await asked(guest, desk, lists.PROTOCOL, body)).sorry
                assert desk.mine is before
            with pytest.raises(Gone):
                await asked(guest, desk, lists.PROTOCOL, bytes(limits.join_message_bytes + 1))

            # a restored home's list is no news, however high; one that stands on an old list is told the new one
            higher = machines.sign(account, 50, (guest.entry(),))
            shown = encode(lists.Shown(machines=higher, merging=True))
            assert decode(lists.Shown, await asked(guest, desk, lists.PROTOCOL, shown)).machines == before
            await asyncio.sleep(1)
            assert desk.mine is before
            await desk.machines.rename("m2", "attic")
            old = encode(lists.Shown(machines=before))
            assert decode(lists.Shown, await asked(guest, desk, lists.PROTOCOL, old)).machines == desk.mine
            assert desk.mine.version == 2

    run(story())
    assert caplog.text.count("a contact of peer-m1") >= 5


def test_a_node_that_tells_anybody_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: a list counts whoever shows it."""
    careful = lists.read

    def careless(body: bytes, peer: str) -> lists.Shown:
        try:
            return careful(body, peer)
        except BadRecord:
            raise
        except Refused as refused:
            if "does not name it" in str(refused):
                return decode(lists.Shown, body)
            raise

    monkeypatch.setattr(lists, "read", careless)
    with pytest.raises(BadRecord):  # it gets the list, and no Sorry
        test_nobody_is_told_the_list_but_who_stands_on_one(tmp_path, caplog)
