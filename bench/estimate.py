"""How far the estimate said before a job is from what the job then took: about 100 small jobs in simulated pools, under virtual time.

    .venv/bin/python bench/estimate.py [SEED] [--calm]      (about a minute; the same seed gives the same numbers; --calm: no owners)

Four pools of 2 to 5 machines of different speed and cores. Each machine has an owner whose own work comes and goes. Each program suits some
machines better than their speed says (10 %), and no run takes as long as the last (3 %). Every program is run five times, on new inputs,
in mixed order; of its first job nothing can be known, and the node says so.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Callable
from typing import NamedTuple

from ipos.pool.records import Task
from ipos.testing import World, run
from ipos.testing.world import Site

POOLS = (2, 3, 4, 5)
RUNS = 5
SUITS, WAVERS = 0.10, 0.03
OWNER_S = 60.0  # mean time until an owner does something else
OWNER_AWAY = 0.6
PAUSE_S = 5.0
TARGET = 0.25


def spread(dice: random.Random, sigma: float) -> float:
    """Log-normal, mean 1."""
    return math.exp(dice.gauss(0.0, sigma) - sigma * sigma / 2)


class Kind(NamedTuple):
    """`tasks`: least and most in a job; `size`: bytes of an input; `cost`: seconds at speed 1.0 by bytes and the dice of the input."""

    what: str
    tasks: tuple[int, int]
    size: Callable[[random.Random], float]
    cost: Callable[[float, random.Random], float]


KINDS = {
    "constant": Kind("2 s each", (10, 60), lambda d: 1000, lambda b, d: 2 * spread(d, 0.05)),
    "linear": Kind("grows with the input", (10, 60), lambda d: 3e4 * spread(d, 1), lambda b, d: (0.3 + b / 2e4) * spread(d, 0.1)),
    "square": Kind("grows with its square", (10, 60), lambda d: 4e4 * spread(d, 0.5), lambda b, d: 0.3 + 2 * (b / 4e4) ** 2),
    "uneven": Kind("varies, no telling why", (10, 60), lambda d: 1000, lambda b, d: 2 * spread(d, 0.8)),
    "tiny": Kind("20 ms each", (80, 200), lambda d: 1000, lambda b, d: 0.02 * spread(d, 0.2)),
    "few": Kind("fewer than cores, 15 s", (1, 6), lambda d: 1000, lambda b, d: 15 * spread(d, 0.1)),
    "mixed": Kind("small and large inputs", (10, 60), lambda d: d.choice((2e3, 1e5)), lambda b, d: (0.2 + b / 2e4) * spread(d, 0.2)),
}  # fmt: skip


class Measured(NamedTuple):
    kind: str
    estimate_s: float | None
    wall_s: float

    @property
    def error(self) -> float:
        assert self.estimate_s is not None
        return self.estimate_s / self.wall_s - 1


async def pool(seed: int, machines: int, calm: bool) -> list[Measured]:
    out: list[Measured] = []
    dice, weather = random.Random(f"{seed} {machines}"), random.Random(f"{seed} {machines} weather")
    async with World(seed * 100 + machines, machines) as world:
        suits = {(site, kind): spread(dice, SUITS) for site in world.sites for kind in KINDS}

        def cost(site: Site, task: Task, size: int) -> float:
            kind = task.name.removesuffix(".py")
            seconds = KINDS[kind].cost(size, random.Random(task.stdin))
            return seconds * suits[site.name, kind] * spread(weather, WAVERS)

        async def owner(site: Site) -> None:
            while True:
                site.foreign = 0.0 if weather.random() < OWNER_AWAY else round(weather.uniform(0, site.slots), 2)
                await asyncio.sleep(weather.expovariate(1 / OWNER_S))

        world.cost = cost
        owners = [asyncio.create_task(owner(site)) for site in world.sites.values() if not calm]
        jobs = [kind for kind in KINDS for _ in range(RUNS)]
        dice.shuffle(jobs)
        for name in jobs:
            await asyncio.sleep(PAUSE_S)
            kind = KINDS[name]
            sizes = [int(kind.size(dice)) for _ in range(dice.randint(*kind.tasks))]
            id = await world.map(sizes, grace_s=15.0, program=name)
            await world.finish(id)
            world.check(id)
            status = world.job(id).status()
            out.append(Measured(name, status["estimate_s"], status["wall_s"]))
        for task in owners:
            task.cancel()
    return out


def part(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def line(name: str, some: list[Measured]) -> str:
    errors = [abs(one.error) for one in some]
    lean = part([one.error for one in some], 0.5)
    return f"{name:<34}{len(some):4} jobs  p50 {part(errors, 0.5):6.1%}  p90 {part(errors, 0.9):6.1%}  the middle one {lean:+.1%}"


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--calm"]
    seed, calm = int(words[0]) if words else 1, "--calm" in sys.argv
    measured = [one for machines in POOLS for one in run(pool(seed, machines, calm))]
    known = [one for one in measured if one.estimate_s]
    for name, kind in KINDS.items():
        print(line(f"{name}: {kind.what}", [one for one in known if one.kind == name]))
    print(line("all but uneven", [one for one in known if one.kind != "uneven"]))
    walls = [one.wall_s for one in known]
    print(line("all", known) + f"; jobs of {min(walls):.1f} to {max(walls):.1f} s")
    print(f"without an estimate: {len(measured) - len(known)} jobs (the first of each program in a pool)")
    p90 = part([abs(one.error) for one in known], 0.9)
    print(f"p90 error {p90:.1%}, target {TARGET:.0%}: {'met' if p90 <= TARGET else 'missed'}")


if __name__ == "__main__":
    main()
