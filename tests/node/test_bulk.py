"""What is large does not stand before control: in the simulated pool, and with real nodes on a slow cable."""

from __future__ import annotations

import asyncio

import pytest

from ipos.node.daemon import Node
from ipos.testing import World, run
from ipos.tree.ninep.client import Client
from ipos.tree.synthetic import Blob
from ipos.wire import limits

CONTROL_S = 0.1  # DESIGN 7
SIZE = 20 * limits.MiB


async def read_beside_control() -> float:
    """The longest that control waited for an answer while 20 MiB were read over a link of 2 MB/s."""
    async with World(1, machines=2) as world:
        await asyncio.sleep(5)
        world.wires.stream_bytes_s = 2e6
        names = list(world.sites)
        here, there = (world.sites[name].node for name in names)
        assert here is not None
        assert there is not None
        there.trees.root.files["big"] = Blob(lambda offset, count: bytes(min(count, SIZE - offset)), lambda: SIZE)
        client = await here.local_client()
        answers: list[float] = []
        reading = asyncio.ensure_future(client.read(f"/n/{names[1]}/big"))
        member = here.coordinator.members[there.net.peer]
        while not reading.done():
            await asyncio.sleep(0.05)
            member.tell("hear")
            answers.append(member.answer_s or 0.0)
        assert len(await reading) == SIZE
        assert len(answers) > 100
        client.close()
        return max(answers)


def test_a_large_read_does_not_delay_control() -> None:
    assert run(read_beside_control()) < CONTROL_S


def test_the_delay_is_seen_where_there_is_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one(self: Node, peer: str) -> Client:
        return self.clients[peer]

    monkeypatch.setattr(Node, "client_of", one)
    assert run(read_beside_control()) > 3 * CONTROL_S
