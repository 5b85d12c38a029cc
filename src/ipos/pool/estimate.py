"""estimate: how long a job will take, said before it runs and corrected as results come in.

seconds of a task at speed 1.0 = a + b x bytes of input, by least squares over earlier runs of the same program; a job = the sum of its
tasks over the speed that the pool can give at once. Where nothing is known the estimate says so instead of guessing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipos.pool.journal import Times
from ipos.pool.placement import Offer

FEW = 3  # runs below which no line is fitted, only a mean is taken


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


def capacity(offers: Sequence[Offer]) -> float:
    """Cores' worth of speed 1.0 that connected nodes can give at once; two nodes of one machine share its cores."""
    machines: dict[str, tuple[float, int]] = {}
    for offer in offers:
        if offer.silent_s is None and not offer.declined:
            given, cores = machines.get(offer.machine, (0.0, offer.cores))
            machines[offer.machine] = (given + offer.slots * offer.speed, cores)
    return sum(min(given, cores * 1.5) for given, cores in machines.values())


def job(times: Times, sizes: Sequence[int], offers: Sequence[Offer]) -> float | None:
    """Expected seconds of a whole job of tasks that read `sizes` bytes each; None if the program never ran or nobody can run it."""
    power = capacity(offers)
    each = [s for size in sizes if (s := seconds(times, size)) is not None]
    if not each or power <= 0:
        return None
    return max(sum(each) / power, max(each) / max(o.speed for o in offers))
