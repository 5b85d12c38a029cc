"""The whole pool under virtual time: whatever the weather, every job ends with the right results."""

from __future__ import annotations

import pytest

from ipos.pool import coordinator
from ipos.testing import World, run


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


def test_unplugged_for_ever() -> None:
    async def pulled() -> None:
        async with World(3) as world:
            for site in world.sites.values():
                site.slots = 1
            job = await world.map(30)
            import asyncio

            await asyncio.sleep(2)
            world.unplug("m1")
            await world.finish(job)
            world.check(job)
            assert "m1" in "".join(world.job(job).why(row) for row in world.job(job).rows)

    run(pulled())


def test_a_coordinator_that_forgets_lost_leases_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: leases are never ticked, so an unplugged node keeps its tasks for ever."""

    async def never(self: coordinator.Coordinator) -> None:
        import asyncio

        await asyncio.Event().wait()

    monkeypatch.setattr(coordinator.Coordinator, "_tick", never)

    async def pulled() -> None:
        async with World(3) as world:
            job = await world.map(30)
            import asyncio

            await asyncio.sleep(2)
            world.unplug("m1")
            await world.finish(job, within_s=300)

    with pytest.raises(TimeoutError, match="seed 3"):
        run(pulled())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_two_hundred_seeds(seed: int) -> None:
    run(story(seed, tasks=30, events=10))
