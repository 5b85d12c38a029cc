"""What a friend's node may say: anything, and it counts for its own leases alone; and the blocks that are lent for a lease."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.pool import friendly
from ipos.pool import task as t
from ipos.pool.lending import Lending
from ipos.pool.member import Member, _beat, _event  # pyright: ignore[reportPrivateUsage]
from ipos.pool.records import Result
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.testing import World, run
from ipos.wire.errors import Gone, Refused

WORDS = st.sampled_from(
    ["here", "lease", "says", "ended", "progress", "save", "stopped", "fault", "declined", "beat", "?"]
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("lease", "state", "text", "result", "blocks", "save", "work", "speed", "save_age_s", "phase", "reason", "leases", "receipt",
        "machines", "slots", "cores", "boot")  # fmt: skip
EVENTS = st.fixed_dictionaries({"event": WORDS}, optional=dict.fromkeys(KEYS, JUNK))


def said() -> list[dict[str, Any]]:
    """Some hundred events, among them of leases that others have."""
    events: list[dict[str, Any]] = []

    @settings(max_examples=300, database=None)
    @given(EVENTS, st.sampled_from([*(f"1.{i}.1" for i in range(8)), "9.9.9", "no lease", ""]))
    def collect(event: dict[str, Any], lease: str) -> None:
        events.append({**event, "lease": lease} if "lease" in event else event)

    collect()
    return events


def test_whatever_a_friend_says_others_leases_are_as_they_were() -> None:
    """While a job runs, which ends as it should."""
    events = said()

    async def never() -> Any:
        await asyncio.Event().wait()

    async def story() -> None:
        async with World(4, machines=3) as world:
            node = world.first
            node.coordinator.level = lambda account: "full"
            world.cost = lambda site, task, size: 5.0
            job = world.job(await world.map(8))
            await asyncio.sleep(6)
            friend = Member(
                node="peer-of-a-friend", name="bob:desk", machine="elsewhere", local=False, listener=node.coordinator,
                clock=node.clock, connect=never, bulk=never, account="0x" + "11" * 20,
            )  # fmt: skip
            before = [row.state for row in job.rows]
            assert any(isinstance(state, t.Leased) for state in before)
            refused = 0
            for event in events:
                try:
                    node.coordinator.heard(friend, event)
                except (Gone, Refused):
                    refused += 1
            assert 0 < refused < len(events)
            assert [row.state for row in job.rows] == before
            await world.finish(job.id)
            world.check(job.id)
            assert all(row.state.node != friend.node for row in job.rows if isinstance(row.state, t.Done))

    run(story())


def listens_to_all(node: str, event: dict[str, Any], holder: Any) -> dict[str, Any]:
    """The planted bug."""
    return event


def test_a_coordinator_that_listens_to_all_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(friendly, "its_own", listens_to_all)
    with pytest.raises(AssertionError):
        test_whatever_a_friend_says_others_leases_are_as_they_were()


def test_an_event_counts_for_its_own_lease() -> None:
    event = {"event": "fault", "lease": "1.2.1", "reason": "I say so"}
    holder = {"1.2.1": "mine"}.get
    with pytest.raises(Gone, match="which is another's"):
        friendly.its_own("friend", event, holder)
    assert friendly.its_own("friend", {**event, "lease": "7.7.7"}, holder) is None
    assert friendly.its_own("mine", event, holder) == event
    here = {"event": "here", "leases": [{"lease": "1.2.1", "state": "running"}, {"lease": "7.7.7", "state": "queued"}]}
    assert friendly.its_own("friend", here, holder) == {**here, "leases": here["leases"][1:]}


@pytest.mark.parametrize(
    "beat", [{"slots": "2"}, {"cores": -1}, {"speed": None}, {"speed": float("nan")}, {"memory_free": 1 << 80}, {"said": 1}]
)  # fmt: skip
def test_a_beat_is_what_it_should_be(beat: dict[str, Any]) -> None:
    with pytest.raises(Gone, match="its beat says"):
        _beat({"event": "beat", **beat})
    assert _beat({"event": "beat", "slots": 2, "foreign": -0.5, "more": "is left out"}).slots == 2
    for line in ("", "[]", "{}", '{"event":1}', json.dumps({"event": "beat"})[:-2]):
        with pytest.raises(Gone, match="no event"):
            _event(line)


def result(node: str) -> Result:
    cid = c.of_raw(b"")
    return Result(
        task=c.of_dag_cbor(b"\xa0"), exit=0, killed="", stdout=cid, stderr=cid, dir=None, cpu_ms=0, wall_ms=0, rss_bytes=0, node=node
    )  # fmt: skip


def test_results_count_as_far_as_their_account_is_believed() -> None:
    assert "are not believed" in friendly.unbelieved("none", "b", result("b"), b"receipt")
    assert "its receipt does not hold" in friendly.unbelieved("receipt", "b", result("b"), None)
    assert "names another node" in friendly.unbelieved("full", "b", result("a"), b"receipt")
    assert (
        friendly.unbelieved("receipt", "b", result("b"), b"receipt")
        == friendly.unbelieved("full", "b", result("b"), None)
        == ""
    )


def test_what_is_lent_is_lent_to_one_node_for_one_lease() -> None:
    store = MemoryStore()
    file = unixfs.add_bytes(store, bytes(3 << 20))
    leaves = [link.cid for link in unixfs.parse(store.get(file)).links]
    other = unixfs.add_bytes(store, b"private")
    lending = Lending(store)
    lending.lend("bob", "1", [file])
    lending.lend("bob", "2", [file])
    assert all(lending.may("bob", cid) for cid in (file, *leaves))
    assert not any(lending.may("eve", cid) for cid in (file, *leaves))
    assert not lending.may("bob", other)
    lending.end("bob", "1")
    assert lending.may("bob", leaves[0])
    lending.end("bob", "2")
    assert not any(lending.may("bob", cid) for cid in (file, *leaves))
    lending.lend("bob", "3", [file])
    lending.forget("bob")
    assert not lending.may("bob", file)
