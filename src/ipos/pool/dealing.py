"""dealing: which task goes where now. `placement` decides for one task; this walks over jobs, tasks and members, and takes back what waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ipos.pool import estimate, placement
from ipos.pool import job as j
from ipos.pool import lease as l
from ipos.pool import task as t
from ipos.pool.jobs import Job, Row
from ipos.pool.member import Member
from ipos.wire.clock import Clock

LOOK_AHEAD = 64  # pending tasks looked at when the first in line fits nowhere
AHEAD_S = 0.1  # a node is dealt so much work beyond its slots, so that it never waits for a message
AHEAD_MOST = 64
STEAL_S = 0.05  # shorter waits are not worth taking back


class Dealing:
    """Works on the coordinator's own jobs, members and leases; `apply` steps a task's machine, `count` counts leases by member."""

    def __init__(
        self,
        jobs: dict[int, Job],
        members: dict[str, Member],
        leases: dict[str, tuple[Job, Row]],
        apply: Callable[..., None],
        count: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._members = members
        self._leases = leases
        self._apply = apply
        self._count = count
        self._clock = clock

    def _ahead(self, job: Job) -> int:
        mean = job.mean_s
        return 1 if mean is None else max(1, min(AHEAD_MOST, int(AHEAD_S / max(mean, 0.001))))

    def place(self) -> None:
        have = {node: member.known for node, member in self._members.items()}
        for job in self._jobs.values():
            if not isinstance(job.state, j.Working) or not job.pending:
                continue
            ahead = self._ahead(job)
            offers = {node: member.offer(ahead) for node, member in self._members.items()}
            allowed = self._allowed(job)
            full: dict[Any, placement.Choice] = {}  # what was found to fit nowhere, by all that rules look at
            for i in job.first_pending(LOOK_AHEAD):
                while i in job.pending:
                    row = job.rows[i]
                    kind = row.task.limits.memory_bytes, row.task.platform, _faulted(row), _taken_back(row)
                    if kind in full:
                        job.waits[row.i] = full[kind]
                        break
                    need = self._need(job, row, allowed)
                    choice = placement.choose(need, self._open(row, offers), have)
                    if choice.node is None:
                        if self._possible(job, row, need, offers.values()):
                            job.waits[row.i] = full[kind] = choice
                        break
                    id = f"{job.id}.{row.i}.{row.state.attempt + 1}"
                    event = t.Dealt(id, choice.node, job.spec.grace_s, self._clock.now(), choice.sentence())
                    self._apply(job, row, event, count=False)
                    offer = offers[choice.node]
                    offers[choice.node] = offer._replace(ours=offer.ours + 1)
                    following = job.first_pending(1)
                    if not following or i == following[0]:
                        break
                    i = following[0]
                if not job.pending:
                    break
            self._count()
        self._steal()

    @staticmethod
    def _open(row: Row, offers: dict[str, placement.Offer]) -> list[placement.Offer]:
        """What was taken back from behind a node's slots begins somewhere now, or waits here: never behind slots again."""
        if _taken_back(row):
            return [offer._replace(ahead=0) for offer in offers.values()]
        return list(offers.values())

    def _possible(self, job: Job, row: Row, need: placement.Need, offers: Iterable[placement.Offer]) -> bool:
        """Whether it only has to wait; otherwise it is given up."""
        never = placement.possible(need, list(offers))
        if never is not None:
            faults = [past for past in row.state.past if past.fault]
            why = f"{never}; the last that tried said: {faults[-1].reason}" if faults else never
            self._apply(job, row, t.Impossible(why))
        return never is None

    def _allowed(self, job: Job) -> frozenset[str] | None:
        """None: every machine of mine, and there are no others. Those of friends only by their name, or where the job says friends."""
        if not job.spec.nodes and not any(member.account for member in self._members.values()):
            return None
        return frozenset(node for node, member in self._members.items() if _meant(job, member))

    def _need(self, job: Job, row: Row, allowed: frozenset[str] | None) -> placement.Need:
        return placement.Need(
            nodes=allowed,
            memory=row.task.limits.memory_bytes,
            platform=row.task.platform or None,
            blocks=job.blocks(row),
            faulted=_faulted(row),
            seconds=estimate.seconds(job.times, job.size(row)) if job.mean_s is None else job.mean_s,
        )

    def _steal(self) -> None:
        """A node with a free slot takes work that waits, not yet begun, behind another's slots."""
        if any(job.pending and isinstance(job.state, j.Working) for job in self._jobs.values()):
            return
        idle = [m for m in self._members.values() if m.connected and m.ours < m.beat.slots]
        if not idle:
            return
        waiting = [
            (job, row, row.state.lease)
            for job, row in self._leases.values()
            if isinstance(row.state, t.Leased) and isinstance(row.state.lease, l.Waiting)
        ]
        for job, row, lease in waiting:
            if (job.mean_s or 1.0) < STEAL_S:
                continue
            holder = self._members.get(lease.node)
            allowed = self._allowed(job)
            if holder is None or holder.ours <= holder.beat.slots:
                continue
            fit = [m for m in idle if m.machine != holder.machine and (allowed is None or m.node in allowed)]
            if fit:
                idle.remove(fit[0])
                self._apply(job, row, t.OfLease(lease.id, l.Recalled(self._clock.now())))
            if not idle:
                return


def _meant(job: Job, member: Member) -> bool:
    """`friend:machine` and `friend` name machines of friends, which run programs of the engine only."""
    if member.account and job.spec.wasm is None:
        return False
    if job.spec.nodes:
        return member.name in job.spec.nodes or (bool(member.account) and member.name.split(":")[0] in job.spec.nodes)
    return job.spec.friends or not member.account


def _faulted(row: Row) -> frozenset[str]:
    """The nodes that could not run this task before."""
    return frozenset(past.node for past in row.state.past if past.fault)


def _taken_back(row: Row) -> bool:
    past = row.state.past
    return bool(past) and past[-1].reason == t.TAKEN_BACK
