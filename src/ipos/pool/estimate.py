"""estimate: how long a job will take, said before it runs.

seconds of a task at speed 1.0 on a core of its own = a + b x bytes of input, by least squares over earlier runs of the same program. A job =
those tasks played through, each dealt to the slot that is free first, the slots as fast and as busy as the nodes' last beats say; times what
earlier jobs of the program took beyond that. Where nothing is known the estimate says so instead of guessing. How good it is: bench/estimate.py.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from ipos.pool.journal import Times
from ipos.pool.placement import Offer

FEW = 3  # runs below which no line is fitted, only a mean is taken
CHANCE = 0.25  # variance of a lesson where only one is known
LESSON_TASKS = (
    1000  # larger jobs teach nothing: dealing is a small part of them, and working it out would hold up the node
)
PLAYED = 2000  # tasks of a larger job that are dealt out one by one; those before them fill all slots evenly


def seconds(times: Times, size: float) -> float | None:
    """Expected seconds at speed 1.0 of one task that reads `size` bytes; None if the program never ran."""
    if times.n == 0:
        return None
    mean = times.sy / times.n
    spread = times.n * times.sxx - times.sx * times.sx
    if times.n < FEW or spread <= 1e-9 * max(1.0, times.n * times.sxx):
        return mean
    slope = (times.n * times.sxy - times.sx * times.sy) / spread
    if slope < 0:
        return mean
    return max(mean * 0.05, mean + slope * (size - times.sx / times.n))


def share(cores: int, running: float, foreign: float) -> float:
    """What one of `running` processes gets of a core, on a machine where other work takes `foreign` cores' worth."""
    return min(1.0, max(1, cores) / max(1.0, running + foreign))


def slots(offers: Sequence[Offer], tasks: int) -> list[float]:
    """The speed of each slot that so many tasks take, best first. Two nodes of one machine share its cores, unless their owner set their slots."""
    machines: dict[str, Offer] = {}
    for offer in offers:
        if offer.silent_s is None and not offer.declined and offer.slots > 0:
            other = machines.get(offer.machine)
            both = offer.slots + (other.slots if other else 0)
            said = offer.said or (other is not None and other.said)
            machines[offer.machine] = offer._replace(slots=both if said else min(both, offer.cores), said=said)
    taken = dict.fromkeys(machines, 0)
    order = [(_wait(offer, 1), name) for name, offer in machines.items()]
    heapq.heapify(order)
    for _ in range(tasks):
        if not order:
            break
        name = order[0][1]
        taken[name] += 1
        if taken[name] < machines[name].slots:
            heapq.heapreplace(order, (_wait(machines[name], taken[name] + 1), name))
        else:
            heapq.heappop(order)
    speeds = [
        max(0.01, offer.speed) * share(offer.cores, taken[name], offer.foreign)
        for name, offer in machines.items()
        for _ in range(taken[name])
    ]
    return sorted(speeds, reverse=True)


def _wait(offer: Offer, running: int) -> float:
    """As `placement.cost` sees it: seconds for 1 s of work, if it becomes the last of so many."""
    return max(1.0, (offer.foreign + running) / offer.slots) / max(0.01, offer.speed)


def _play(speeds: Sequence[float], costs: Sequence[float]) -> float:
    """Seconds until the last of these tasks has ended."""
    free = [(0.0, -speed) for speed in speeds]
    heapq.heapify(free)
    last = 0.0
    for cost in costs:
        at, speed = free[0]
        end = at - cost / speed
        heapq.heapreplace(free, (end, speed))
        last = max(last, end)
    return last


def job(times: Times, sizes: Sequence[int], offers: Sequence[Offer], jobs: Times | None = None) -> float | None:
    """Expected seconds of a whole job of tasks that read `sizes` bytes each, in the order in which they are dealt; None if the program
    never ran or nobody can run it. `jobs`: what earlier jobs of the program taught (`lesson`)."""
    speeds = slots(offers, len(sizes))
    costs = [cost for size in sizes if (cost := seconds(times, size)) is not None]
    if not costs or not speeds:
        return None
    played = sum(costs[:-PLAYED]) / sum(speeds) + _play(speeds, costs[-PLAYED:])
    return played * (taught(jobs) if jobs is not None else 1.0)


def jobs_of(program: bytes) -> bytes:
    """The key under which a journal keeps what the jobs of a program taught, beside what its tasks did."""
    return program + b" jobs"


def lesson(played: float, wall: float) -> float:
    """What one job teaches: the logarithm of how much longer it took than the play says. Noted as the size of a time of `jobs_of`."""
    return max(-2.0, min(2.0, math.log(max(wall, 1e-3) / max(played, 1e-3))))


def taught(jobs: Times) -> float:
    """How many times longer than the play the next job will take. Believed as far as it stands out from how lessons differ by chance."""
    if jobs.n == 0 or jobs.sx == 0:
        return 1.0
    mean = jobs.sx / jobs.n
    chance = (CHANCE + max(0.0, jobs.sxx - jobs.sx * mean)) / jobs.n
    return math.exp(mean * max(0.0, 1.0 - chance / jobs.n / (mean * mean)))
