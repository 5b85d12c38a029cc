"""The whole pool under virtual time: whatever the weather, every job ends with the right results."""

from __future__ import annotations

import asyncio

import pytest

from ipos.pool import coordinator
from ipos.pool.dealing import Dealing
from ipos.testing import World, run
from ipos.wire import limits


async def story(seed: int, tasks: int = 25, events: int = 6) -> World:
    async with World(seed, machines=4) as world:
        for site in world.sites.values():
            site.executor.faults = 0.02
        job = await world.map(tasks)
        await world.weather(events)
        await world.finish(job)
        world.check(job)
        return world


def test_calm() -> None:
    async def calm() -> None:
        async with World(1) as world:
            job = await world.map(10)
            await world.finish(job)
            world.check(job)
            assert world.job(job).info.moved == 0
            assert sum(site.executor.computed for site in world.sites.values()) == 10

    run(calm())


@pytest.mark.parametrize("seed", range(20))
def test_weather(seed: int) -> None:
    run(story(seed))


def test_messages_overlap() -> None:
    """A stream has a delay, not a pace: a hundred tasks of no length do not take a hundred round trips."""

    async def short() -> None:
        async with World(1, machines=2) as world:
            world.cost = lambda site, task, size: 0.001
            await asyncio.sleep(5)
            job = await world.map(100)
            await world.finish(job)
            assert world.job(job).status()["wall_s"] < 1.0

    run(short())


def test_a_short_grace_is_no_silence() -> None:
    """Both ends speak more often where the grace is short: quiet tasks of minutes neither move nor pause."""

    async def quiet() -> None:
        async with World(1, machines=3) as world:
            world.cost = lambda site, task, size: 60.0
            job = await world.map(6, grace_s=limits.grace_min_s)
            pauses = 0
            while not world.job(job).over and asyncio.get_running_loop().time() < 300:
                await asyncio.sleep(0.1)
                for site in world.sites.values():
                    assert site.node is not None
                    pauses += sum(row["state"] == "paused" for row in site.node.holding.listing())
            world.check(job)
            assert (world.job(job).info.moved, pauses) == (0, 0)

    run(quiet())


def test_unplugged_for_ever() -> None:
    async def pulled() -> None:
        async with World(3) as world:
            for site in world.sites.values():
                site.slots = 1
            job = await world.map(30)
            await asyncio.sleep(2)
            world.unplug("m1")
            await world.finish(job)
            world.check(job)
            assert "m1" in "".join(world.job(job).why(row) for row in world.job(job).rows)

    run(pulled())


def test_work_taken_back_is_not_dealt_behind_the_same_slots_again() -> None:
    """Five long tasks, four slots on the fast machine: the fifth waits there, is taken back once, and runs on the slow one."""

    async def long() -> None:
        async with World(1, machines=2) as world:
            fast, slow = world.sites["m1"], world.sites["m0"]
            fast.speed, slow.speed, fast.slots, slow.slots = 2.0, 1.0, 4, 4
            world.cost = lambda site, task, size: 15.0
            await asyncio.sleep(5)
            job = await world.map(5)
            await world.finish(job)
            world.check(job)
            assert max(row.state.attempt for row in world.job(job).rows) <= 2
            assert world.job(job).status()["nodes"] == "m0=1 m1=4"

    run(long())


def test_a_coordinator_that_forgets_lost_leases_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: leases are never ticked, so an unplugged node keeps its tasks for ever."""

    async def never(self: coordinator.Coordinator) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(coordinator.Coordinator, "_tick", never)

    async def pulled() -> None:
        async with World(3) as world:
            job = await world.map(30)
            await asyncio.sleep(2)
            world.unplug("m1")
            await world.finish(job, within_s=300)

    with pytest.raises(TimeoutError, match="seed 3"):
        run(pulled())


def test_a_mistake_in_a_vital_part_ends_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a node that is up and deaf: its commands would wait for ever."""

    def mistaken(self: Dealing) -> None:
        raise NameError("name 'math' is not defined")

    async def broken() -> None:
        async with World(1, machines=2) as world:
            node = world.sites["m0"].node
            assert node is not None
            monkeypatch.setattr(Dealing, "place", mistaken)
            async with asyncio.timeout(10):
                await node.stopping.wait()
            assert "NameError: name 'math' is not defined" in node.failure

    run(broken())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_two_hundred_seeds(seed: int) -> None:
    run(story(seed, tasks=30, events=10))
