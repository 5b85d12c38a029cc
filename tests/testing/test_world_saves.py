"""Tasks that can be saved, under virtual time: a lost machine costs the work since the last save, in any weather, and no save is left behind."""

from __future__ import annotations

import asyncio

import pytest

from ipos.pool.keeping import Keeping
from ipos.store import unixfs
from ipos.testing import World, run


async def lost_in_the_middle(seed: int) -> tuple[float, int]:
    """(work repeated in seconds, tasks that went on from a save) when one of two machines is unplugged 60 s into tasks of 100 s."""
    async with World(seed, machines=3, saving=True) as world:
        world.cost = lambda site, task, size: 100.0
        for site in world.sites.values():
            site.slots, site.speed = 1, 1.0
        job = await world.map(3)
        await asyncio.sleep(60)
        world.unplug("m2")
        await world.finish(job)
        world.check(job)
        info = world.job(job).info
        assert info.moved == 1, "and nothing was dealt to the silent machine again"
        return info.repeated_s, sum(row.state.wall_s < 60 for row in world.job(job).rows)


def test_a_lost_machine_costs_what_came_after_the_last_save() -> None:
    repeated, short = run(lost_in_the_middle(5))
    assert repeated < 15, "silence of 6 s, and what came after the last save"
    assert short == 1, "the moved task ran for 40 s, not for 100"


def test_without_keeping_it_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: nobody keeps the saves, and the numbers above say so."""

    async def forgetful(*_: object) -> None:
        return

    monkeypatch.setattr(Keeping, "keep", forgetful)
    repeated, short = run(lost_in_the_middle(5))
    assert repeated > 50
    assert short == 0


async def story(seed: int, tasks: int, events: int) -> None:
    async with World(seed, machines=4, saving=True) as world:
        for site in world.sites.values():
            site.executor.faults = 0.02
        world.cost = lambda site, task, size: world.dice.uniform(1.0, 30.0)
        job = await world.map(tasks)
        await world.weather(events)
        await world.finish(job)
        world.check(job)
        await asyncio.sleep(20)
        left = [
            cid for cid in world.sites["m0"].store if b" of upper.py " in unixfs.read(world.sites["m0"].store, cid)
        ] if all(site.up for site in world.sites.values()) else []  # fmt: skip
        kept = [row.save for row in world.job(job).rows if row.save is not None]
        assert kept == [], f"seed {seed}: {kept}"
        assert len(left) <= 8, f"seed {seed}: {len(left)} saves are left in the store of m0"


@pytest.mark.parametrize("seed", range(8))
def test_weather(seed: int) -> None:
    run(story(seed, 12, 6))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3000, 3200))
def test_weather_for_long(seed: int) -> None:
    run(story(seed, 20, 12))
