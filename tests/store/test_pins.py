"""Pins: what is kept, who may have it; garbage collection: nothing of use goes, whatever happens meanwhile."""

from __future__ import annotations

import io
import random
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from conformance import block, holds, lacks
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ipos.store import cid as c
from ipos.store import gc, unixfs
from ipos.store.blocks import MemoryStore, Missing
from ipos.store.pack import PackStore
from ipos.store.pins import Interrupted, Pins, Visibility
from ipos.wire.errors import Refused

PRIVATE, POOL, PUBLIC = Visibility


def opened(directory: Path) -> tuple[PackStore, Pins]:
    store = PackStore(directory, sync=False, pack_bytes=20_000)
    return store, Pins(directory / "pins.sqlite", store, store.age)


def file(store: PackStore | MemoryStore, seed: int, chunks: int = 5) -> bytes:
    """A file of several blocks; files of neighbouring seeds share all but one."""
    body = b"".join(bytes([(seed + i) % 251]) * 1000 for i in range(chunks))
    return unixfs.add_stream(store, io.BytesIO(body), chunk=1000, width=3)[0]


def test_who_may_have_a_block() -> None:
    store = MemoryStore()
    pins = Pins(":memory:", store)
    one, two = file(store, 1), file(store, 2)
    shared = next(iter(set(unixfs.reach(store, one)) & set(unixfs.reach(store, two))))
    leaf = next(cid for cid in unixfs.reach(store, one) if cid not in set(unixfs.reach(store, two)) and cid != one)

    def seen(cid: bytes) -> str:
        return f"{pins.may(cid, False):d}{pins.may(cid, True):d}"

    assert [seen(cid) for cid in (one, two, leaf, shared)] == ["00"] * 4, "what no pin names is nobody's"
    pins.pin("ipos add", [one])
    assert [seen(cid) for cid in (one, two, leaf, shared)] == ["00"] * 4
    pins.pin("job 7", [two], POOL)
    assert [seen(cid) for cid in (one, two, leaf, shared)] == ["00", "01", "00", "01"]
    pins.pin("for all", [one], PUBLIC)
    assert [seen(cid) for cid in (one, two, leaf, shared)] == ["11", "01", "11", "11"]
    assert pins.public_roots() == [one]
    pins.pin("for all", [one], POOL)  # the same pin, seen by fewer from now on
    assert [seen(cid) for cid in (one, two, leaf, shared)] == ["01"] * 4
    assert pins.public_roots() == []
    assert pins.unpin("for all") == 1
    assert pins.unpin("for all") == 0
    assert [seen(cid) for cid in (one, two, leaf, shared)] == ["00", "01", "00", "01"]
    assert {(pin.root, pin.why, pin.visibility) for pin in pins.list()} == {
        (one, "ipos add", PRIVATE),
        (two, "job 7", POOL),
    }
    assert pins.unpin(None, two) == 1
    assert seen(shared) == "00"
    assert pins.visibility(two) is None


def test_what_is_not_all_there_is_not_pinned() -> None:
    store = MemoryStore()
    pins = Pins(":memory:", store)
    whole, root = file(store, 1), file(store, 9)
    store.delete([list(unixfs.reach(store, root))[-1]])
    with pytest.raises(Missing):
        pins.pin("both", [whole, root])
    assert pins.list() == []
    assert pins.visibility(whole) is None
    with pytest.raises(Missing):
        pins.pin("x", [c.of_raw(b"unknown")])


def test_pins_survive_and_what_passes_does_not(tmp_path: Path) -> None:
    store, pins = opened(tmp_path)
    one, two = file(store, 1), file(store, 100)
    pins.pin("ipos add one", [one], PUBLIC, durable=True)
    pins.pin("lease", [one, two], POOL, passing=True)
    pins.close()
    store.close()
    store, pins = opened(tmp_path)
    assert [(pin.root, pin.why) for pin in pins.list()] == [(one, "ipos add one")]
    assert pins.visibility(one) is PUBLIC
    assert pins.visibility(two) is None


def test_a_replaced_pin_gives_its_blocks_back_at_once() -> None:
    store = MemoryStore()
    pins = Pins(":memory:", store)
    one = file(store, 1)
    pins.replace("save", one, POOL)
    two = file(store, 2)
    mine, theirs = set(unixfs.reach(store, one)), set(unixfs.reach(store, two))
    pins.replace("save", two, POOL)
    lacks(store, *(mine - theirs))
    assert all(store.has(cid) for cid in theirs)
    pins.pin("kept", [two])
    assert pins.unpin("save", delete=True) == 1
    assert all(store.has(cid) for cid in theirs)
    assert pins.unpin("kept", delete=True) == 1
    assert list(store) == []


def test_garbage_goes_and_nothing_else(tmp_path: Path) -> None:
    store, pins = opened(tmp_path)
    kept, loose, fresh = file(store, 1), file(store, 50), file(store, 100)
    pins.pin("keep", [kept])
    pins.pin("was kept", [loose])
    pins.unpin("was kept")
    got = gc.collect(store, pins)
    lacks(store, loose)
    assert got.blocks > 3
    assert got.bytes > 3000
    assert unixfs.missing(store, kept) == []
    assert unixfs.missing(store, fresh) == [], "what was just put is for something under way"
    assert gc.collect(store, pins, grace_s=-1).blocks > 3
    lacks(store, fresh)
    assert set(store) == set(unixfs.reach(store, kept))
    assert unixfs.read(store, kept)[:1000] == b"\1" * 1000


def test_what_is_put_after_the_mark_began_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a block that was garbage when it was marked, and is put again, or pinned, before it is swept."""
    store, pins = opened(tmp_path)
    again, pinned, garbage = file(store, 1, 1), file(store, 50, 1), file(store, 100, 1)
    store.age([again, pinned, garbage])
    mark = pins.mark

    def slow(stop: object) -> list[str]:
        out = mark()
        store.put([(again, bytes([1]) * 1000), block(77)])
        pins.pin("now", [pinned])
        return out

    monkeypatch.setattr(pins, "mark", slow)
    assert gc.collect(store, pins).blocks == 1
    holds(store, (again, bytes([1]) * 1000), block(77), (pinned, bytes([50]) * 1000))
    lacks(store, garbage)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_an_interruption_leaves_everything_right(steps: int, tmp_path: Path) -> None:
    store, pins = opened(tmp_path)
    roots = [file(store, i * 10) for i in range(3)]
    for i, root in enumerate(roots):
        pins.pin(f"keep {i}", [root])
    store.age(list(store))
    for i in range(1200):
        store.put([block(i, 10)])
    left = iter(range(steps))
    with pytest.raises(Interrupted):
        gc.collect(store, pins, grace_s=-1, stop=lambda: next(left, None) is None)
    for root in roots:
        assert unixfs.missing(store, root) == []
        assert pins.visibility(root) is PRIVATE
    gc.collect(store, pins, grace_s=-1)
    assert set(store) == {cid for root in roots for cid in unixfs.reach(store, root)}


def test_a_damaged_pinned_block_is_named_and_kept_when_it_is_back(tmp_path: Path) -> None:
    store, pins = opened(tmp_path)
    root = file(store, 1)
    leaf = next(cid for cid in unixfs.reach(store, root) if cid[:4] == c.RAW)
    body = store.get(leaf)
    pins.pin("ipos add x", [root], PUBLIC)
    store.delete([leaf])
    (trouble,) = gc.collect(store, pins, grace_s=-1).troubles
    assert "ipos add x" in trouble
    assert c.text(leaf) in trouble
    store.put([(leaf, body)])
    assert gc.collect(store, pins, grace_s=-1) == (0, 0, 0, ())
    assert pins.may(leaf, False)
    pins.unpin(None)
    gc.collect(store, pins)
    assert list(store) == []


def test_writers_add_while_garbage_is_collected(tmp_path: Path) -> None:
    store, pins = opened(tmp_path)
    troubles: list[BaseException] = []
    roots: list[bytes] = []
    over = threading.Event()

    def write(k: int) -> None:
        try:
            for i in range(25):
                root = file(store, 40 * k + i, 8)
                if i % 3:
                    pins.pin(f"{k}.{i}", [root])
                    roots.append(root)
        except BaseException as error:
            troubles.append(error)

    def collect() -> None:
        while not over.is_set():
            gc.collect(store, pins)

    writers = [threading.Thread(target=write, args=(k,)) for k in range(3)]
    collector = threading.Thread(target=collect)
    for thread in (*writers, collector):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    collector.join()
    assert not troubles
    for root in roots:
        assert unixfs.missing(store, root) == []
    gc.collect(store, pins, grace_s=-1)
    assert set(store) == {cid for root in roots for cid in unixfs.reach(store, root)}


def test_a_collector_that_forgets_to_look_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bugs: it sweeps what is pinned, or what was put meanwhile."""
    monkeypatch.setattr(Pins, "unreached", lambda self, cids: cids)
    with pytest.raises((AssertionError, Missing)):
        test_an_interruption_leaves_everything_right(3, tmp_path / "a")
    monkeypatch.undo()
    drop = PackStore.drop_idle
    monkeypatch.setattr(PackStore, "drop_idle", lambda self, cids, seconds: drop(self, cids, -1))
    monkeypatch.setattr(PackStore, "idle", lambda self, seconds: iter(list(self)))
    with pytest.raises((AssertionError, Missing, pytest.fail.Exception)):
        test_what_is_put_after_the_mark_began_survives(tmp_path / "b", monkeypatch)


def test_pins_that_cannot_be_read_are_not_forgotten(tmp_path: Path) -> None:
    (tmp_path / "pins.sqlite").write_bytes(b"not a database at all " * 100)
    with pytest.raises(Refused, match=r"pins .* cannot be read"):
        Pins(tmp_path / "pins.sqlite", MemoryStore())
    assert (tmp_path / "pins.sqlite").read_bytes().startswith(b"not a database")


class Kept(RuleBasedStateMachine):
    """Pins, unpins, garbage collections and restarts in any order: counts are right, and what is pinned is there."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ipos-pins-"))
        self.store, self.pins = opened(self.directory)
        self.model: dict[tuple[str, int], Visibility] = {}

    @rule(why=st.sampled_from("ab"), seed=st.integers(0, 5), level=st.sampled_from(Visibility))
    def pin(self, why: str, seed: int, level: Visibility) -> None:
        self.pins.pin(why, [file(self.store, seed)], level)
        self.model[why, seed] = level

    @rule(why=st.sampled_from("ab"), delete=st.booleans())
    def unpin(self, why: str, delete: bool) -> None:
        assert self.pins.unpin(why, delete=delete) == sum(each == why for each, _ in self.model)
        self.model = {key: level for key, level in self.model.items() if key[0] != why}

    @rule(seed=st.integers(0, 5))
    def replace(self, seed: int) -> None:
        self.pins.replace("c", file(self.store, seed), POOL)
        self.model = {key: level for key, level in self.model.items() if key[0] != "c"} | {("c", seed): POOL}

    @rule()
    def collect(self) -> None:
        assert gc.collect(self.store, self.pins, grace_s=-1).troubles == ()

    @rule()
    def restart(self) -> None:
        self.pins.close()
        self.store.close()
        self.store, self.pins = opened(self.directory)
        self.model = {key: level for key, level in self.model.items() if key[0] != "c"}

    @invariant()
    def right(self) -> None:
        if not hasattr(self, "pins"):
            return
        twin = MemoryStore()
        levels: dict[bytes, Visibility] = {}
        for (_, seed), level in self.model.items():
            root = file(twin, seed)
            for cid in unixfs.reach(twin, root):
                levels[cid] = max(level, levels.get(cid, level))
        for seed in range(6):
            for cid in unixfs.reach(twin, file(twin, seed)):
                assert self.pins.visibility(cid) == levels.get(cid)
        assert all(self.store.has(cid) for cid in levels)

    def teardown(self) -> None:
        if hasattr(self, "pins"):
            self.pins.close()
            self.store.close()
            shutil.rmtree(self.directory)


Kept.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestKept = Kept.TestCase


def test_a_pin_of_much_is_quick_enough(tmp_path: Path) -> None:
    """Not a benchmark: that nothing is quadratic."""
    store, pins = opened(tmp_path)
    root = unixfs.add_stream(store, io.BytesIO(random.Random(1).randbytes(300_000)), chunk=100)[0]
    pins.pin("much", [root])
    assert pins.unpin("much") == 1
