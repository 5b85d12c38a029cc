"""The estimate: what is known of the tasks, played through on what the nodes offer; how good it gets in a simulated pool."""

from __future__ import annotations

import asyncio
import json
import math
import random

import pytest

from ipos.pool import estimate, prepare
from ipos.pool import task as t
from ipos.pool.job import Preparing
from ipos.pool.jobs import Job, Row
from ipos.pool.journal import Times
from ipos.pool.placement import Offer
from ipos.pool.records import Task
from ipos.store import cid as c
from ipos.testing import World, run


def offer(name: str, **more: object) -> Offer:
    base = Offer(
        node=f"peer-{name}", name=name, machine=name, cores=4, slots=4, said=False, ours=0, foreign=0.0, speed=1.0, memory_free=1 << 30,
        silent_s=None, platform="linux-x86_64", local=False,
    )  # fmt: skip
    return base._replace(**more)


def times(*runs: tuple[float, float]) -> Times:
    """After runs of (bytes, seconds)."""
    return Times(
        len(runs),
        sum(x for x, _ in runs),
        sum(y for _, y in runs),
        sum(x * x for x, _ in runs),
        sum(x * y for x, y in runs),
    )


ONE = times((10, 1.0), (10, 1.0), (10, 1.0))
LINE = times((100, 1.0), (200, 2.0), (300, 3.0))


def test_what_is_not_known_is_not_guessed() -> None:
    assert estimate.job(Times(), [10], [offer("a")]) is None
    assert estimate.job(ONE, [10], []) is None
    assert estimate.job(ONE, [10], [offer("a", silent_s=9.0), offer("b", declined="no"), offer("c", slots=0)]) is None


@pytest.mark.parametrize(
    ("tasks", "offers", "seconds"),
    [
        (1, [offer("a")], 1.0),
        (4, [offer("a")], 1.0),
        (5, [offer("a")], 2.0),
        (12, [offer("a"), offer("b", speed=2.0)], 1.0),
        (1, [offer("a"), offer("b", speed=2.0)], 0.5),
        (4, [offer("a", foreign=4.0)], 2.0),
        (1, [offer("a", foreign=4.0)], 1.25),
        (1, [offer("a", foreign=4.0), offer("b", speed=0.9)], 1 / 0.9),
        (8, [offer("a", machine="pc"), offer("b", machine="pc")], 2.0),
        (8, [offer("a", machine="pc", said=True), offer("b", machine="pc", said=True)], 2.0),
        (8, [offer("a", machine="pc", cores=8, said=True), offer("b", machine="pc", cores=8, said=True)], 1.0),
        (40_000, [offer("a"), offer("b")], 5000.0),
    ],
)
def test_played(tasks: int, offers: list[Offer], seconds: float) -> None:
    assert estimate.job(ONE, [10] * tasks, offers) == pytest.approx(seconds)


def test_a_large_task_at_the_end_holds_up_the_job() -> None:
    sizes = [100] * 8 + [400]
    assert estimate.job(LINE, sizes, [offer("a")]) == pytest.approx(6.0)
    assert estimate.job(LINE, sorted(sizes, reverse=True), [offer("a")]) == pytest.approx(4.0)


def test_lessons() -> None:
    """One job that took a little longer teaches nothing; one that took three times as long much; three alike nearly all of it."""

    def after(*longer: float) -> float:
        return estimate.taught(times(*((estimate.lesson(1.0, one), 0.0) for one in longer)))

    assert estimate.taught(Times()) == 1.0
    assert after(1.3) == 1.0
    assert 1.8 < after(3.0) < 3.0
    assert after(3.0, 3.0, 3.0) == pytest.approx(3.0, rel=0.05)
    assert after(0.5, 2.0, 0.6, 1.9) == pytest.approx(1.0, abs=0.05)
    assert after(1e9) <= math.exp(2.0), "one absurd job is not believed"


def prepared(nodes: tuple[str, ...], sizes: list[int]) -> Job:
    job = Job(1, json.dumps({"program": "/p.py", "nodes": nodes}).encode(), Preparing())
    job.times = LINE
    for i, size in enumerate(sizes):
        cid = c.of_raw(bytes([i]))
        job.info.sizes[cid.hex()] = size
        job.rows.append(Row(i, str(i), Task(program=c.of_raw(b"p"), name="p.py", stdin=cid), t.Pending()))
    job.index()
    return job


def test_only_the_nodes_that_the_job_names_count() -> None:
    offers = [offer("a"), offer("b", speed=10.0)]
    job = prepared(("a",), [200])
    assert prepare.foretell(job, job.rows, {}, offers) == pytest.approx(2.0)
    job = prepared((), [200])
    assert prepare.foretell(job, job.rows, {}, offers) == pytest.approx(0.2)


def test_large_inputs_are_dealt_first_and_equal_ones_in_order() -> None:
    job = prepared((), [100, 5000, 110, 90, 100_000, 0])
    order: list[int] = []
    while job.pending:
        i = job.first_pending(1)[0]
        order.append(i)
        job.pending.discard(i)
    assert order[:2] == [4, 1]
    assert order[2:] in ([0, 2, 3, 5], [2, 0, 3, 5])
    assert [row.i for row in job.dealt()] == order
    assert prepared((), [7] * 50).first_pending(50) == list(range(50))


def errors(seed: int, jobs: int = 5) -> list[float]:
    """Of a program whose cost grows with its input, in a calm pool; the first job has no estimate."""

    async def story() -> list[float]:
        out: list[float] = []
        dice = random.Random(seed)
        async with World(seed, machines=3) as world:
            world.cost = lambda site, task, size: 0.5 + size / 1000
            await asyncio.sleep(5)
            for i in range(jobs):
                id = await world.map([dice.randrange(100, 4000) for _ in range(dice.randint(4, 14))])
                await world.finish(id)
                status = world.job(id).status()
                assert (status["estimate_s"] is None) == (i == 0)
                if i:
                    out.append(abs(status["estimate_s"] / status["wall_s"] - 1))
        return out

    return run(story())


def test_an_estimate_in_a_calm_pool_is_good() -> None:
    assert max(error for seed in range(2) for error in errors(seed)) < 0.2


def test_an_estimate_that_only_divides_by_the_capacity_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: as it was, work over speed."""
    monkeypatch.setattr(estimate, "_play", lambda speeds, costs: sum(costs) / sum(speeds))
    monkeypatch.setattr(estimate, "taught", lambda jobs: 1.0)
    assert max(error for seed in range(2) for error in errors(seed)) > 0.25
