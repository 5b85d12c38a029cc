"""placement: which node gets a task, and why; a pure function over what the nodes offer.

RULES say who cannot have it, each with the value that failed; COST says when each of the others is expected to be done. The explanation
that `ipos why` prints is made of the same two, so it is always the true reason. Own and friends' machines are ranked; strangers' will be
drawn by chance (DESIGN 9), which is another function over the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

MIN_TRANSFER_MB_S = 1.0
DEFAULT_TRANSFER_MB_S = 50.0


class Offer(NamedTuple):
    """What a node has to give now.

    `slots`: processes it runs at once; `said`: its owner set that number; `ours`: leases it holds of this coordinator; `foreign`: slots
    that others' work takes; `speed`: 1.0 is a 2020s core; `have`: CIDs it is known to hold; `silent_s`: None while
    connected, inf if never heard; `objection`: why its results would not count.
    """

    node: str
    name: str
    machine: str
    cores: int
    slots: int
    said: bool
    ours: int
    foreign: float
    speed: float
    memory_free: int
    silent_s: float | None
    platform: str
    local: bool
    declined: str = ""
    mb_per_s: float = DEFAULT_TRANSFER_MB_S
    ahead: int = 0
    engine: str = ""
    objection: str = ""


class Need(NamedTuple):
    """What a task asks. `blocks`: CID -> bytes of what it reads; `seconds`: what it is expected to take at speed 1.0, if known."""

    nodes: frozenset[str] | None
    memory: int
    platform: str | None
    blocks: Mapping[bytes, int]
    faulted: frozenset[str]
    seconds: float | None


class Candidate(NamedTuple):
    """One node's line in the explanation. `finish_s` is None where `refusal` says why it was out of the question."""

    name: str
    node: str
    finish_s: float | None
    refusal: str
    terms: str


class Choice(NamedTuple):
    node: str | None
    candidates: tuple[Candidate, ...]

    def sentence(self) -> str:
        """One line for `ipos why`: the chosen node first, then each other with its number or its refusal."""
        parts = [
            f"{c.name}: {c.refusal}" if c.finish_s is None else f"{c.name}: {c.finish_s:.2f} s expected ({c.terms})"
            for c in self.candidates
        ]
        return "; ".join(parts)


class Machines(NamedTuple):
    """Leases per physical machine, over all nodes on it: two homes on one PC do not count its cores twice."""

    busy: Mapping[str, int]


Rule = Callable[[Need, Offer, Machines], str | None]


def _named(need: Need, offer: Offer, machines: Machines) -> str | None:
    return None if need.nodes is None or offer.node in need.nodes else "not among the nodes that --nodes names"


def _reached(need: Need, offer: Offer, machines: Machines) -> str | None:
    if offer.silent_s is None:
        return None
    return f"last seen {offer.silent_s:.0f} s ago" if offer.silent_s < math.inf else "not heard since this node started"


def _believed(need: Need, offer: Offer, machines: Machines) -> str | None:
    return offer.objection or None


def _willing(need: Need, offer: Offer, machines: Machines) -> str | None:
    """An owner may keep programs outside the engine away; those in it are confined."""
    return None if need.platform is not None and need.platform.startswith("wasm:") else offer.declined or None


def _able(need: Need, offer: Offer, machines: Machines) -> str | None:
    if need.platform is None or need.platform == offer.platform or offer.silent_s == math.inf:
        return None  # of who was never heard nobody knows what he can do
    if need.platform.startswith("wasm:"):
        if need.platform == offer.engine:
            return None
        return f"the task is for engine {need.platform[5:]}, this machine has {offer.engine[5:] or 'none'}"
    return f"the program is built for {need.platform}, this machine is {offer.platform}"


def _unhurt(need: Need, offer: Offer, machines: Machines) -> str | None:
    return "it could not run this task before" if offer.node in need.faulted else None


def _roomy(need: Need, offer: Offer, machines: Machines) -> str | None:
    if need.memory <= offer.memory_free:
        return None
    return f"needs {_gib(need.memory)} of memory, {_gib(offer.memory_free)} are free"


def _free(need: Need, offer: Offer, machines: Machines) -> str | None:
    if offer.slots == 0:
        return "its owner gives no processor to tasks now"
    if offer.ours < offer.slots + offer.ahead:
        return None
    return f"all {offer.slots} slots taken" + (f" and {offer.ahead} waiting" if offer.ahead else "")


def _once(need: Need, offer: Offer, machines: Machines) -> str | None:
    """An owner who set the number of slots knows what he does; the default is every core, and two homes share them."""
    busy = machines.busy.get(offer.machine, 0)
    if offer.said or busy < offer.cores + offer.ahead:
        return None
    return f"its machine's {offer.cores} cores are taken, through another node on it"


RULES: tuple[tuple[str, Rule], ...] = (
    ("named", _named),
    ("reached", _reached),
    ("believed", _believed),
    ("willing", _willing),
    ("able", _able),
    ("unhurt", _unhurt),
    ("roomy", _roomy),
    ("free", _free),
    ("once", _once),
)


def _gib(n: int) -> str:
    return f"{n / (1 << 30):.1f} GiB"


def cost(need: Need, offer: Offer, have: frozenset[bytes] | set[bytes]) -> tuple[float, str]:
    """Seconds until this node would have finished the task, and the terms in words."""
    seconds = need.seconds if need.seconds is not None else 1.0
    missing = 0 if offer.local else sum(size for cid, size in need.blocks.items() if cid not in have)
    transfer = missing / (max(offer.mb_per_s, MIN_TRANSFER_MB_S) * 1e6)
    load = max(0.0, offer.foreign) + offer.ours
    share = max(1.0, (load + 1) / max(1, offer.slots))
    run = seconds / max(0.01, offer.speed) * share
    data = "data present" if not missing else f"{missing / 1e6:.1f} MB to send"
    return (
        transfer + run,
        f"speed {offer.speed:.2f}, {offer.ours} of {offer.slots} slots taken, load {offer.foreign:.1f}, {data}",
    )


def refusal(need: Need, offer: Offer, machines: Machines) -> str | None:
    """The first rule that is against it, in words."""
    for _, rule in RULES:
        if (words := rule(need, offer, machines)) is not None:
            return words
    return None


def choose(need: Need, offers: Sequence[Offer], have: Mapping[str, frozenset[bytes] | set[bytes]]) -> Choice:
    """The node that is expected to finish first, equals by name; None if every node is out of the question now."""
    busy: dict[str, int] = {}
    for offer in offers:
        busy[offer.machine] = busy.get(offer.machine, 0) + offer.ours
    machines = Machines(busy)
    fit: list[Candidate] = []
    unfit: list[Candidate] = []
    for offer in offers:
        words = refusal(need, offer, machines)
        if words is None:
            finish, terms = cost(need, offer, have.get(offer.node, frozenset()))
            fit.append(Candidate(offer.name, offer.node, finish, "", terms))
        else:
            unfit.append(Candidate(offer.name, offer.node, None, words, ""))
    fit.sort(key=lambda c: (c.finish_s, c.name))
    return Choice(fit[0].node if fit else None, (*fit, *unfit))


def possible(need: Need, offers: Sequence[Offer]) -> str | None:
    """None if some node could have it when its slots are free; otherwise the sentence that says why none ever can."""
    passing = {"free", "once", "reached", "roomy"}
    reasons: list[str] = []
    for offer in offers:
        words = next(
            (w for name, rule in RULES if name not in passing and (w := rule(need, offer, Machines({})))), None
        )
        if words is None:
            return None
        reasons.append(f"{offer.name}: {words}")
    return "no node can have it (" + "; ".join(reasons) + ")" if reasons else "the pool has no node"


def drawing() -> str:
    """The rules, in the order they are asked, as a Mermaid flow chart."""
    lines = ["flowchart TD", "    task([task]) --> named"]
    names = [name for name, _ in RULES]
    for name, following in zip(names, [*names[1:], "cost"], strict=True):
        lines += [
            f"    {name}{{{name}?}} -- yes --> {following}",
            f"    {name} -- no --> refused([refused, with the value that failed])",
        ]
    lines.append("    cost[expected finish = transfer + run / speed x share] --> chosen([the first to finish])")
    return "\n".join(lines) + "\n"
