"""A machine is removed under virtual time, whatever the weather: nobody who has heard of it lets it in, and an old list brings it back nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ipos.identity import machines as lists
from ipos.identity.machines import MachineList
from ipos.node.machines import Machines
from ipos.testing import World, run
from ipos.testing.world import WorldNode

LOST = "m3"


class Watch:
    """Every list that every node goes by, as long as the world lasts. AssertionError names the seed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._versions: dict[str, int] = {}

    def nodes(self) -> dict[str, WorldNode]:
        return {name: site.node for name, site in self._world.sites.items() if site.node is not None}

    def look(self) -> None:
        seed = self._world.seed
        lost = self._world.sites[LOST].peer
        for name, node in self.nodes().items():
            version = node.mine.version
            assert version >= self._versions.get(name, 0), f"seed {seed}: the list of {name} went back to {version}"
            self._versions[name] = version
            if name == LOST or lists.on(node.mine, lost):
                continue
            assert lost not in node.coordinator.members, f"seed {seed}: {name} still deals to {LOST}"
            assert lost not in node.clients, f"seed {seed}: {name} still talks to {LOST}"
            assert not node.machines.doors(lost), f"seed {seed}: {name} still serves {LOST}"
            held = [lease for caller, lease in node.holding.leases if caller == lost]
            assert not held, f"seed {seed}: {name} still works for {LOST}"

    async def ever(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.2)


async def story(seed: int) -> None:
    """m0 has the key and removes m3, in the middle of a job and of bad weather."""
    async with World(seed, machines=4) as world:
        await world.give_key("m0")
        watch = Watch(world)
        watching = asyncio.create_task(watch.ever())
        job = await world.map(12)
        weather = asyncio.create_task(world.weather(4))
        world.partition(LOST, "m1", world.dice.uniform(0.0, 30.0))
        world.kill("m2", world.dice.uniform(5.0, 60.0), silent=True)
        await asyncio.sleep(world.dice.uniform(0.0, 15.0))
        while world.sites["m0"].node is None or not world.first.agent.here:
            await asyncio.sleep(0.5)
        await world.first.machines.remove(LOST)
        await weather
        await world.finish(job)
        world.check(job)
        loop = asyncio.get_running_loop()
        end = loop.time() + 300
        while loop.time() < end and sum(n.mine.version == 2 for n in watch.nodes().values()) < len(world.sites):
            await asyncio.sleep(1.0)
        watching.cancel()
        watch.look()
        nodes = watch.nodes()
        assert set(nodes) == set(world.sites)
        for name, node in nodes.items():
            assert node.mine.version == 2, f"seed {seed}: {name} goes by version {node.mine.version}"
            assert bool(node.machines.removed) == (name == LOST)
        assert set(nodes[LOST].coordinator.members) == {world.sites[LOST].peer}
        if watching.done() and not watching.cancelled():
            watching.result()


@pytest.mark.parametrize("seed", range(8))
def test_removed_in_any_weather(seed: int) -> None:
    run(story(seed))


def test_a_node_that_was_away_gives_its_old_list_up() -> None:
    """It is off while the machine is removed, and meets only that one, which has not heard of it either: until then, it cannot know."""

    async def away() -> None:
        async with World(5, machines=4) as world:
            await world.give_key("m0")
            await asyncio.sleep(3)
            await world.sites["m1"].kill(silent=False)
            for one in ("m0", "m2"):
                for other in ("m1", LOST):
                    world.partition(one, other, 60.0)
            await asyncio.sleep(1)
            await world.first.machines.remove(LOST)
            await asyncio.sleep(5)
            world.sites["m1"].start()
            node = world.sites["m1"].node
            assert node is not None
            await asyncio.sleep(20)
            assert node.mine.version == 1
            await asyncio.sleep(90)
            assert node.mine.version == 2
            assert world.sites[LOST].peer not in node.names()
            for site in world.sites.values():
                assert site.node is not None
                assert site.node.mine.version == 2

    run(away())


def any_list(mine: MachineList, theirs: MachineList) -> MachineList | None:
    """The planted bug: what was heard last counts."""
    lists.check(theirs)
    return theirs if theirs != mine else None


def test_lists_that_go_back_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "newer", any_list)
    with pytest.raises(AssertionError, match="the list of"):
        run(story(0))


def test_sessions_that_outlive_a_removal_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(self: Machines, peer: str) -> None:
        """The planted bug: members are matched, and that is all."""

    monkeypatch.setattr(Machines, "shut", shut)
    with pytest.raises(AssertionError, match="still"):
        for seed in range(8):
            run(story(seed))


class NoLock:
    """The planted bug: nobody waits for anybody."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def two_names(planted: bool) -> tuple[int, list[str]]:
    """Given at once, on a disk that takes its time: the version in the end, and the names."""
    async with World(2, machines=3) as world:
        await world.give_key("m0")
        node = world.first
        if planted:
            node.machines._turn = NoLock()
        write = node.offload

        async def slow(function: Callable[[], object]) -> object:
            await asyncio.sleep(0.01)
            return await write(function)

        node.offload = slow
        await asyncio.gather(node.machines.rename("m1", "attic"), node.machines.rename("m2", "desk"))
        return node.mine.version, [machine.name for machine in node.mine.machines]


def test_changes_at_once_are_made_one_after_the_other() -> None:
    assert run(two_names(planted=False)) == (3, ["m0", "attic", "desk"])
    assert run(two_names(planted=True)) != (3, ["m0", "attic", "desk"]), "two lists of one version"
