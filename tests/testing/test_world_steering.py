"""Tasks steered by files, under virtual time: pause, resume, save, limits, held tasks, open standard input; in any weather."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ipos.pool import estimate
from ipos.pool import holder as h
from ipos.pool import task as t
from ipos.pool.coordinator import Coordinator
from ipos.pool.jobs import Row
from ipos.pool.native.walltime import WallTime
from ipos.pool.spec import parse
from ipos.testing import World, run
from ipos.testing.world import SleepRun
from ipos.tree.ninep.client import Client
from ipos.wire.errors import Refused
from ipos.wire.text import parse as pairs


@asynccontextmanager
async def tree(world: World, site: str = "m0") -> AsyncIterator[Client]:
    """A client on a machine's own socket."""
    node = world.sites[site].node
    assert node is not None
    client = await node.local_client()
    try:
        yield client
    finally:
        client.close()


async def say(world: World, path: str, line: str, site: str = "m0") -> None:
    async with tree(world, site) as client:
        await client.write(path, line.encode())


async def read(world: World, path: str, site: str = "m0") -> str:
    async with tree(world, site) as client:
        return (await client.read(path)).decode()


async def refused(world: World, path: str, line: str, site: str = "m0") -> str:
    with pytest.raises(Refused) as caught:
        await say(world, path, line, site)
    return str(caught.value)


@asynccontextmanager
async def long(machines: int = 3, seconds: float = 100.0, saving: bool = False, seed: int = 5) -> AsyncIterator[World]:
    """A world of machines with one slot each of speed 1.0, on which every task takes so long; they have met."""
    async with World(seed, machines=machines, saving=saving) as world:
        world.cost = lambda site, task, size: seconds
        for site in world.sites.values():
            site.slots, site.speed = 1, 1.0
        await asyncio.sleep(5)
        yield world


def row(world: World, job: int, i: int = 0) -> Row:
    return world.job(job).rows[i]


def holding(world: World, job: int, i: int = 0) -> tuple[str, str, SleepRun]:
    """(machine, pid, run) of a task that runs."""
    lease = row(world, job, i).state.lease.id
    for name, site in world.sites.items():
        for held in site.node.holding.leases.values() if site.node is not None else ():
            if held.deal.id == lease and isinstance(held.run, SleepRun):
                return name, site.node.holding.name(held), held.run  # type: ignore[union-attr]
    raise AssertionError(f"nobody runs task {job}.{i}")


async def word(world: World, job: int, i: int = 0) -> str:
    return pairs(await read(world, f"/job/{job}/{i}/status"))["state"]


# ---- pause and resume


async def paused_by_its_owner() -> None:
    async with long() as world:
        job = await world.map(3)
        await asyncio.sleep(10)
        await say(world, f"/job/{job}/1/ctl", "pause")
        site, pid, process = holding(world, job, 1)
        assert await word(world, job, 1) == "paused"
        listed = [json.loads(line) for line in (await read(world, "/proc/list", site)).splitlines()]
        assert [one["state"] for one in listed if one["pid"] == pid] == ["paused"]
        before = process.left
        await asyncio.sleep(60)  # ten times the grace
        assert process.left == before, "it computed while it was paused"
        assert world.job(job).info.moved == 0, "the lease of a paused task is alive"
        await say(world, f"/job/{job}/1/ctl", "resume")
        assert await word(world, job, 1) == "running"
        await world.finish(job)
        world.check(job)
        assert world.job(job).info.moved == 0
        assert row(world, job, 1).state.wall_s == pytest.approx(100, abs=2), "pauses do not count"
        learnt = world.first.journal.times(estimate.jobs_of(row(world, job).task.program))
        assert learnt.n == 0, "how long a job took that rested teaches nothing"


def test_a_paused_task_rests_keeps_its_lease_and_goes_on() -> None:
    run(paused_by_its_owner())


def planted(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, wrong: Callable[..., Any], match: str, story: Any
) -> None:
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises((AssertionError, Refused), match=match):
        run(story())


def test_a_holder_that_says_paused_and_goes_on_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, SleepRun, "pause", lambda self: None, "it computed while it was paused", paused_by_its_owner)


def test_a_holder_that_never_hears_pause_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    tell = Coordinator._tell

    def deaf(self: Coordinator, node: str, line: str) -> None:
        if not line.startswith("pause"):
            tell(self, node, line)

    planted(monkeypatch, Coordinator, "_tell", deaf, "does not answer; it rests when", paused_by_its_owner)


def test_a_clock_that_runs_through_pauses_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, WallTime, "pause", lambda self: None, "pauses do not count", paused_by_its_owner)


def test_a_holder_that_is_woken_by_being_heard_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the machine: whatever its owner said, it goes on when its coordinator speaks, which it does every two seconds."""
    rows = dict(h.holder.rows)
    rows[h.Paused, h.Heard] = (
        lambda state, event: (h.Busy(state.id, state.grace_s, event.at), [h.Continue(state.id)]), (h.Busy,),
    )  # fmt: skip
    planted(monkeypatch, h.holder, "rows", rows, r"assert \['busy'\] == \['paused'\]", paused_by_its_owner)  # type: ignore[arg-type]


def test_the_owner_of_a_machine_pauses_what_runs_there() -> None:
    """The job's owner sees it, and cannot overrule it; both must let it go on."""

    async def story() -> None:
        async with long(2) as world:
            job = await world.map(2)
            await asyncio.sleep(10)
            i = next(i for i in (0, 1) if holding(world, job, i)[0] == "m1")
            _, pid, process = holding(world, job, i)
            await say(world, f"/proc/{pid}/ctl", "pause", "m1")
            await asyncio.sleep(1)
            before = process.left
            assert await word(world, job, i) == "paused"
            assert "paused by the owner of that machine" in await read(world, f"/job/{job}/{i}/why")
            sentence = await refused(world, f"/job/{job}/{i}/ctl", "resume")
            assert f"paused by the owner of the machine that has it: write resume to /proc/{pid}/ctl there" in sentence
            await say(world, f"/job/{job}/{i}/ctl", "pause")
            await say(world, f"/proc/{pid}/ctl", "resume", "m1")
            await asyncio.sleep(20)
            assert (process.left, await word(world, job, i)) == (before, "paused"), (
                "its job's owner still wants it to rest"
            )
            assert "paused by its job's owner" in await refused(world, f"/proc/{pid}/ctl", "resume", "m1")
            await say(world, f"/job/{job}/{i}/ctl", "resume")
            await world.finish(job)
            world.check(job)
            assert world.job(job).info.moved == 0

    run(story())


def test_a_pause_that_does_not_arrive_is_said_and_made_up_for() -> None:
    """The holder is out of reach for less than the grace: the write says so, and the task rests when it is heard again."""

    async def story() -> None:
        async with long(2) as world:
            job = await world.map(2, grace_s=60.0)
            await asyncio.sleep(10)
            i = next(i for i in (0, 1) if holding(world, job, i)[0] == "m1")
            _, _, process = holding(world, job, i)
            world.partition("m0", "m1", 25)
            await asyncio.sleep(0.1)
            sentence = await refused(world, f"/job/{job}/{i}/ctl", "pause")
            assert sentence == f"m1, which has task {job}.{i}, does not answer; it rests when it is heard again"
            assert await word(world, job, i) == "pausing"
            await asyncio.sleep(30)
            assert await word(world, job, i) == "paused"
            before = process.left
            world.partition("m0", "m1", 25)
            await asyncio.sleep(0.1)
            assert "it goes on when it is heard again" in await refused(world, f"/job/{job}/{i}/ctl", "resume")
            assert process.left == before
            await world.finish(job)
            world.check(job)
            assert world.job(job).info.moved == 0

    run(story())


def test_what_is_paused_is_held_when_its_machine_is_lost_and_goes_on_from_its_save() -> None:
    async def story() -> None:
        async with long(2, saving=True) as world:
            job = await world.map(2)
            await asyncio.sleep(30)
            i = next(i for i in (0, 1) if holding(world, job, i)[0] == "m1")
            await say(world, f"/job/{job}/{i}/ctl", "pause")
            await asyncio.sleep(5)
            world.unplug("m1")
            await asyncio.sleep(200)
            assert await word(world, job, i) == "held", "nobody else is given a task that its owner has paused"
            assert f"start is written to /job/{job}/{i}/ctl" in await read(world, f"/job/{job}/{i}/why")
            await say(world, f"/job/{job}/{i}/ctl", "resume")
            await world.finish(job)
            world.check(job)
            assert row(world, job, i).state.wall_s < 80, "it went on from its save"

    run(story())


@pytest.mark.parametrize("when", ["paused", "held"])
def test_a_coordinator_that_is_killed_remembers_what_rests(when: str) -> None:
    async def story() -> None:
        async with long(2) as world:
            job = await world.map(2, grace_s=60.0, hold=when == "held")
            await asyncio.sleep(10)
            if when == "paused":
                await say(world, f"/job/{job}/ctl", "pause")
            world.kill("m0", 3.0)
            await asyncio.sleep(30)
            words = {await word(world, job, 0), await word(world, job, 1)}
            # what m0 itself had has died with it, and is held; what m1 has, rests there
            assert words == {"held"} if when == "held" else words == {"held", "paused"}
            await say(world, f"/job/{job}/ctl", "resume")
            await world.finish(job)
            world.check(job)

    run(story())


def test_a_task_that_waits_at_a_busy_machine_is_paused_there_and_does_not_begin() -> None:
    async def story() -> None:
        async with long(1, 20.0) as world:
            job = await world.map(2)
            await asyncio.sleep(1)
            waits = [await word(world, job, i) for i in (0, 1)].index("waiting")
            await say(world, f"/job/{job}/{waits}/ctl", "pause")
            assert await word(world, job, waits) == "paused"
            await asyncio.sleep(60)
            assert (await word(world, job, 1 - waits), await word(world, job, waits)) == ("done", "paused")
            await say(world, f"/job/{job}/ctl", "resume")
            await world.finish(job)
            world.check(job)

    run(story())


def test_suspended_and_dropped_while_paused() -> None:
    async def story() -> None:
        async with long(2) as world:
            job = await world.map(2)
            await asyncio.sleep(10)
            await say(world, f"/job/{job}/ctl", "pause")
            await say(world, f"/job/{job}/0/ctl", "kill")
            await say(world, f"/job/{job}/1/ctl", "resume")
            await world.finish(job)
            status = world.job(job).status()
            assert (status["done"], status["cancelled"], status["state"]) == (1, 1, "finished")
            assert await read(world, f"/job/{job}/0/wait") == f"{job}.0 0 0 0 'cancelled'\n"
            sentence = await refused(world, f"/job/{job}/0/ctl", "pause")
            assert sentence == f"task {job}.0 has ended (cancelled): its result is in /job/{job}/0"

    run(story())


# ---- kill at the holder, wait, mem


def test_what_a_machines_owner_kills_goes_elsewhere() -> None:
    async def story() -> None:
        async with long(2, 20.0) as world:
            job = await world.map(1)
            await asyncio.sleep(3)
            site, pid, _ = holding(world, job)
            async with tree(world, site) as client, client.open(f"/proc/{pid}/wait") as waiting:
                end = asyncio.ensure_future(waiting.read_at(0, 200))
                await asyncio.sleep(2)
                assert not end.done(), "a read of wait blocks"
                await say(world, f"/proc/{pid}/ctl", "kill", site)
                assert (await end).decode().endswith("'the owner of that machine ended it there'\n")
            await world.finish(job)
            world.check(job)
            assert f"was on {site}: the owner of that machine ended it there" in await read(world, f"/job/{job}/0/why")
            assert row(world, job).state.node != f"peer-{site}"

    run(story())


def test_wait_blocks_until_the_end_and_says_how() -> None:
    async def story() -> None:
        async with long(2, 20.0) as world:
            job = await world.map(1)
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
            assert await read(world, f"/job/{job}/0/mem") == "now 1048576\npeak 2097152\nlimit 0\n"
            name, user, system, real, said = (await read(world, f"/job/{job}/0/wait")).split(" ")
            assert asyncio.get_running_loop().time() - began > 15
            assert (name, system, said) == (f"{job}.0", "0", "''\n")
            assert 19_000 < int(real) == int(user) < 25_000
            assert (await read(world, f"/job/{job}/0/mem")).startswith("now 0\npeak 1048576\n")

    run(story())


# ---- save


def test_a_save_is_here_when_the_write_returns() -> None:
    async def story() -> None:
        async with long(2, saving=True) as world:
            job = await world.map(2)
            await asyncio.sleep(10)
            i = next(i for i in (0, 1) if holding(world, job, i)[0] == "m1")
            _, pid, process = holding(world, job, i)
            await say(world, f"/job/{job}/{i}/ctl", "pause")
            with pytest.raises(Refused, match="native program"):  # the programs of a world are
                await say(world, f"/job/{job}/{i}/ctl", "save")
            await say(world, f"/proc/{pid}/ctl", "save", "m1")
            assert int(pairs(await read(world, f"/proc/{pid}/status", "m1"))["saved_work"]) == process.slept
            await asyncio.sleep(3)
            save = row(world, job, i).save
            assert save is not None
            assert save.work == process.slept, "a save that is made while it rests reaches its coordinator"

    run(story())


# ---- limits


def test_the_time_of_a_running_task_is_limited_by_writing_and_pauses_do_not_count() -> None:
    async def story() -> None:
        async with long(2) as world:
            job = await world.map(2)
            await asyncio.sleep(10)
            await say(world, f"/job/{job}/0/ctl", "limit wall 40s")
            await say(world, f"/job/{job}/0/ctl", "pause")
            await asyncio.sleep(100)
            assert await word(world, job) == "paused", "nobody is ended for having rested"
            await say(world, f"/job/{job}/0/ctl", "resume")
            await asyncio.sleep(20)
            assert await word(world, job) == "running"
            await asyncio.sleep(25)
            assert await word(world, job) == "failed"
            line = await read(world, f"/job/{job}/0/wait")
            assert line.endswith("'ran longer than 40 s (allow more with --timeout)'\n")
            await world.finish(job)
            assert (await word(world, job, 1), world.job(job).info.moved) == ("done", 0)

    run(story())


def test_a_limit_that_was_raised_in_time_holds_on_the_next_machine_too() -> None:
    async def story() -> None:
        async with long(2, saving=True) as world:
            job = await world.map(1, wall_s=50.0)
            await asyncio.sleep(20)
            site, pid, _ = holding(world, job)
            await say(world, f"/job/{job}/0/ctl", "limit wall 10m")
            assert pairs(await read(world, f"/proc/{pid}/status", site))["wall_s"] == "600.0"
            await say(world, f"/proc/{pid}/ctl", "kill", site)
            await asyncio.sleep(5)
            other, pid, _ = holding(world, job)
            assert other != site
            assert pairs(await read(world, f"/proc/{pid}/status", other))["wall_s"] == "600.0"
            await world.finish(job)
            world.check(job)

    run(story())


def test_limits_before_it_begins_make_it_another_task_and_afterwards_say_why_not() -> None:
    async def story() -> None:
        async with long(2, 5.0) as world:
            job = await world.map(1, hold=True)
            await asyncio.sleep(2)
            ctl = f"/job/{job}/0/ctl"
            before = row(world, job).cid
            await say(world, ctl, "limit memory 512M\nlimit wall 1m")
            assert row(world, job).cid != before
            limits = row(world, job).task.limits
            assert (limits.memory_bytes, limits.wall_ms) == (512 << 20, 60_000)
            assert "whose work is not counted" in await refused(world, ctl, "limit work 1G")
            assert (
                await refused(world, ctl, "limit fun 1") == "'fun' is no limit of a task; it knows work, memory, wall"
            )
            assert "'lots' is not a size" in await refused(world, ctl, "limit memory lots")
            world.kill("m0", 2.0)
            await asyncio.sleep(10)
            assert row(world, job).task.limits.memory_bytes == 512 << 20, "the journal has the task that it became"
            await say(world, ctl, "start")
            assert "has started already" in await refused(world, ctl, "start")
            assert "fixed since it began" in await refused(world, ctl, "limit memory 1G")
            await world.finish(job)
            world.check(job)

    run(story())


# ---- handing in


async def fresh_spec(world: World, **more: Any) -> bytes:
    """A job of one task, of this world's program."""
    await world.map(1)
    known = json.loads(world.job(max(world.first.coordinator.jobs)).spec_bytes)
    return json.dumps({"program": known["program"], **more}).encode()


def test_a_job_is_handed_in_by_echo_alone() -> None:
    async def story() -> None:
        async with long(2, 5.0) as world:
            spec = await fresh_spec(world)
            await say(world, "/job/clone", spec.decode() + "\n")
            job = max(world.first.coordinator.jobs)
            await world.finish(job)
            assert "is not an absolute path" in await refused(world, "/job/clone", '{"program": "p.py"}')
            assert "not a job" in await refused(world, "/job/clone", '{"program": nonsense}')
            with pytest.raises(Refused, match="unknown field `programme`"):
                await say(world, "/job/clone", '{"program": "/p.py", "programme": ""}')

    run(story())


def test_a_job_is_made_with_cat_and_echo() -> None:
    """Plan 9's way: a number first, then its files, then start."""

    async def story() -> None:
        async with long(2, 5.0) as world:
            spec = await fresh_spec(world)
            number = int(await read(world, "/job/clone"))
            assert int(await read(world, "/job/clone")) == number + 1, "each who reads has a number of his own"
            where = f"/job/{number}"
            assert "write the job to" in await refused(world, f"{where}/ctl", "start")
            async with tree(world) as client:
                async with client.open(f"{where}/spec", 1) as file:  # in pieces, as a small msize cuts it
                    for at in range(0, len(spec), 7):
                        await file.write_at(at, spec[at : at + 7])
                assert await client.read(f"{where}/spec") == spec
            assert await read(world, f"{where}/status") == f"job {number}\nstate new\n"
            await say(world, f"{where}/ctl", "start")
            assert (await read(world, f"{where}/0/wait")).endswith("''\n")
            missing = json.dumps({"program": "/nowhere/p.py"})
            await say(world, f"/job/{number + 1}/spec", missing)
            sentence = await refused(world, f"/job/{number + 1}/ctl", "start")
            assert sentence == "the program /nowhere/p.py cannot be read: No such file or directory"

    run(story())


def test_an_open_standard_input_is_appended_to_and_begins_the_task_when_it_is_closed() -> None:
    async def story() -> None:
        async with long(2, 5.0) as world:
            await say(world, "/job/clone", (await fresh_spec(world, open_stdin=True)).decode())
            job = max(world.first.coordinator.jobs)
            await asyncio.sleep(30)
            where = f"/job/{job}/0"
            assert await word(world, job) == "held"
            assert f"held until {where}/stdin is written and closed" in await read(world, f"{where}/why")
            assert "begins when its standard input is closed" in await refused(world, f"{where}/ctl", "start")
            async with tree(world) as client:
                async with client.open(f"{where}/stdin", 1) as file:
                    await file.write_at(0, b"one ")
                    await file.write_at(4, b"two")
                    assert await read(world, f"{where}/stdin") == "one two", "what is written so far"
                    with pytest.raises(Refused, match="somebody else is writing"):
                        await say(world, f"{where}/stdin", "three")
                assert (await client.read(f"{where}/wait")).endswith(b"''\n")
                assert (await client.read(f"{where}/stdout"), await client.read(f"{where}/stdin")) == (
                    b"ONE TWO",
                    b"one two",
                )
                assert (await client.read(f"{where}/stdin"))[4:] == b"two"
            assert "is closed" in await refused(world, f"{where}/stdin", "more")

    run(story())


def test_input_whose_writer_was_lost_is_not_taken_for_all_of_it() -> None:
    async def story() -> None:
        async with long(2, 5.0) as world:
            await say(world, "/job/clone", (await fresh_spec(world, open_stdin=True)).decode())
            job = max(world.first.coordinator.jobs)
            await asyncio.sleep(2)
            where = f"/job/{job}/0"
            node = world.first
            client = await node.local_client()
            file, _ = await client.opened(("job", str(job), "0", "stdin"), 1)
            await file.write_at(0, b"half of")
            client.close()
            await asyncio.sleep(10)
            assert await word(world, job) == "held"
            await say(world, f"{where}/stdin", "all of it")
            assert (await read(world, f"{where}/wait")).endswith("''\n")
            assert await read(world, f"{where}/stdout") == "ALL OF IT"

    run(story())


def test_open_input_is_for_one_new_task() -> None:
    with pytest.raises(Refused, match="an open standard input is for one new task"):
        parse(json.dumps({"program": "/p.py", "open_stdin": True, "stdin": "/f"}).encode())


# ---- any weather


async def steered(seed: int, events: int) -> None:
    """Machines fail as they do while a person pauses and resumes what he likes; in the end all goes on and every result is right."""
    async with World(seed, machines=4, saving=True) as world:
        world.cost = lambda site, task, size: world.dice.uniform(1.0, 30.0)
        job = await world.map(12)
        weather = asyncio.ensure_future(world.weather(events))
        while not weather.done() and not (world.sites["m0"].up and world.job(job).over):
            await asyncio.sleep(world.dice.uniform(0.1, 4.0))
            line = world.dice.choice(("pause", "resume", "pause"))
            if world.sites["m0"].up:
                try:
                    async with asyncio.timeout(5):
                        await say(world, f"/job/{job}/{world.dice.randrange(12)}/ctl", line)
                except OSError:  # it has ended, is away, or is not there yet; Gone: the node was killed
                    continue
        await weather
        for _ in range(200):
            await asyncio.sleep(5)
            if not world.sites["m0"].up:
                continue
            if world.job(job).over:
                break
            for each in world.job(job).rows:
                if isinstance(each.state, t.Leased) and each.resting:
                    held = [x for s in world.sites.values() if s.node for x in s.node.holding.leases.values()]
                    mine = [x for x in held if x.deal.id == each.state.lease.id]
                    assert all(x.run is None or not x.run._going.is_set() for x in mine), (
                        f"seed {seed}: it does not rest"
                    )  # type: ignore[union-attr]
            try:
                await say(world, f"/job/{job}/ctl", "resume")
            except OSError:
                continue
        world.check(job)


@pytest.mark.parametrize("seed", range(4))
def test_steered_in_any_weather(seed: int) -> None:
    run(steered(seed, 6))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5000, 5200))
def test_steered_in_any_weather_for_long(seed: int) -> None:
    run(steered(seed, 12))


def test_no_line_of_a_ctl_file_does_more_than_it_says() -> None:
    """What is no command is refused with a sentence, and changes nothing; whatever the bytes."""
    dice = random.Random(11)
    words = (
        "pause",
        "resume",
        "limit",
        "wall",
        "work",
        "memory",
        "save",
        "start",
        "kill",
        "handover",
        "/",
        "10",
        "1G",
        "\x00",
        "é",
        "'",
    )

    async def story() -> None:
        async with long(2) as world:
            job = await world.map(2)
            await asyncio.sleep(10)
            name, pid, _ = holding(world, job)
            held = await world.map(1, hold=True)
            await asyncio.sleep(1)
            files = [
                (f"/job/{job}/0/ctl", "m0"),
                (f"/job/{held}/0/ctl", "m0"),
                (f"/job/{job}/ctl", "m0"),
                (f"/proc/{pid}/ctl", name),
            ]
            for _ in range(150):
                path, site = dice.choice(files)
                line = " ".join(dice.choice(words) for _ in range(dice.choice((1, 2, 3, 4))))
                known = line.split()[0] in ("pause", "resume", "start", "kill", "save", "handover", "limit")
                if known and len(line.split()) in (1, 3):
                    continue  # may mean something
                before = await read(world, f"/job/{job}/tasks") + await read(world, f"/job/{held}/0/status")
                assert len(await refused(world, path, line, site)) > 20
                after = await read(world, f"/job/{job}/tasks") + await read(world, f"/job/{held}/0/status")
                assert [row["state"] for row in map(json.loads, before.splitlines()[:2])] == [
                    row["state"] for row in map(json.loads, after.splitlines()[:2])
                ]

    run(story())
