"""Placement: who gets a task, and the value in every refusal."""

from __future__ import annotations

import math

from ipos.pool.placement import Machines, Need, Offer, choose, possible, refusal

GIB = 1 << 30


def offer(name: str, **more: object) -> Offer:
    base = Offer(
        node=f"peer-{name}", name=name, machine=name, cores=4, slots=4, said=False, ours=0, foreign=0.0, speed=1.0, memory_free=2 * GIB,
        silent_s=None, platform="linux-x86_64", local=False,
    )  # fmt: skip
    return base._replace(**more)


def need(**more: object) -> Need:
    base = Need(nodes=None, memory=0, platform=None, blocks={}, faulted=frozenset(), seconds=10.0)
    return base._replace(**more)


def test_the_fastest_free_machine_gets_it() -> None:
    choice = choose(need(), [offer("desk"), offer("attic", speed=2.0), offer("loft", ours=4)], {})
    assert choice.node == "peer-attic"
    assert choice.sentence().startswith("attic: 5.00 s expected (speed 2.00")
    assert "loft: all 4 slots taken" in choice.sentence()


def test_data_that_is_there_counts() -> None:
    blocks = {b"cid": 1_000_000_000}
    choice = choose(need(blocks=blocks), [offer("desk", speed=1.2), offer("attic")], {"peer-attic": {b"cid"}})
    assert choice.node == "peer-attic"
    assert "1000.0 MB to send" in choice.sentence()


def test_refusals_name_the_value() -> None:
    none = Machines({})
    assert refusal(need(memory=3 * GIB), offer("a"), none) == "needs 3.0 GiB of memory, 2.0 GiB are free"
    assert refusal(need(), offer("a", silent_s=40.0), none) == "last seen 40 s ago"
    assert refusal(need(), offer("a", silent_s=math.inf), none) == "not heard since this node started"
    assert (
        refusal(need(platform="linux-aarch64"), offer("a"), none)
        == "the program is built for linux-aarch64, this machine is linux-x86_64"
    )
    assert refusal(need(nodes=frozenset({"peer-b"})), offer("a"), none) == "not among the nodes that --nodes names"
    assert refusal(need(), offer("a", ours=4), none) == "all 4 slots taken"
    assert (
        refusal(need(), offer("a"), Machines({"a": 4})) == "its machine's 4 cores are taken, through another node on it"
    )


def test_what_an_owner_keeps_back_is_said_and_may_come_back() -> None:
    none = Machines({})
    assert refusal(need(), offer("a", slots=0), none) == "its owner gives no processor to tasks now"
    assert possible(need(), [offer("a", slots=0)]) is None, "it waits"
    declined = offer("a", declined="its owner lets no native work run there", engine="wasm:1")
    assert refusal(need(), declined, none) == "its owner lets no native work run there"
    assert refusal(need(platform="wasm:1"), declined, none) is None, "what is confined may run"


def test_two_homes_on_one_machine_share_its_cores_unless_their_owner_said_how() -> None:
    shared = [offer("one", machine="pc", ours=4), offer("two", machine="pc")]
    assert choose(need(), shared, {}).node is None
    said = [offer("one", machine="pc", ours=1, slots=1, said=True), offer("two", machine="pc", slots=1, said=True)]
    assert choose(need(), said, {}).node == "peer-two"


def test_never_and_not_now_are_told_apart() -> None:
    assert possible(need(), [offer("a", silent_s=99.0, ours=4)]) is None
    assert (
        possible(need(faulted=frozenset({"peer-a"})), [offer("a")])
        == "no node can have it (a: it could not run this task before)"
    )
    assert possible(need(), []) == "the pool has no node"
