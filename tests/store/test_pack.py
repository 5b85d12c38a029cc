"""What a crash, a bad disk, a full disk and several writers do to the packs; what an older home's pack becomes."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance import block, holds, lacks
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import Block, Missing
from ipos.store.pack import PackStore
from ipos.store.packfile import HEAD, PackFiles, Reference
from ipos.store.spool import SpoolStore
from ipos.wire.errors import Refused

BLOCKS = [block(i) for i in range(5)]


def packs(directory: Path) -> list[Path]:
    return sorted((directory / "packs").glob("*.pack"))


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        if os.path.islink(path := f"/proc/self/fd/{name}"):
            yield path


def old_home(directory: Path, blocks: list[Block], tail: bytes = b"") -> None:
    """As the store before this one wrote it."""
    directory.mkdir(exist_ok=True)
    body = b"".join(HEAD.pack(len(body), cid) + body for cid, body in blocks)
    (directory / "blocks.pack").write_bytes(body + tail)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    with pytest.raises(Refused, match="in use by another process"):
        PackStore(tmp_path)
    store.close()
    PackStore(tmp_path).close()


def test_a_torn_tail_and_a_flipped_bit(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    store.put(BLOCKS)
    store.close()
    (pack,) = packs(tmp_path)
    body = bytearray(pack.read_bytes())
    body[60] ^= 1
    pack.write_bytes(body[:-30])
    store = PackStore(tmp_path)
    assert [store.has(cid) for cid, _ in BLOCKS] == [True, True, True, True, False]
    with pytest.raises(Missing):
        store.get(BLOCKS[0][0])
    assert not store.has(BLOCKS[0][0]), "a damaged block is a missing one"
    store.put([BLOCKS[0], BLOCKS[4]])
    holds(store, *BLOCKS)
    store.close()
    store = PackStore(tmp_path)
    holds(store, *BLOCKS)
    assert store.used() == 500


@pytest.mark.parametrize("cut", [1, 35, 39, 40, 41, 139])
def test_a_tail_torn_anywhere_is_cut_off_and_written_over(cut: int, tmp_path: Path) -> None:
    spool = SpoolStore(tmp_path)
    spool.put(BLOCKS)
    spool.close()
    (pack,) = packs(tmp_path)
    os.truncate(pack, pack.stat().st_size - cut)
    store = PackStore(tmp_path)
    holds(store, *BLOCKS[:4])
    lacks(store, BLOCKS[4][0])
    assert pack.stat().st_size == 4 * 140
    store.put([BLOCKS[4]])
    assert packs(tmp_path) == [pack], "a small pack is gone on with"
    holds(store, *BLOCKS)


def test_a_tail_of_noise(tmp_path: Path) -> None:
    """What some file systems leave after a crash: the length is there, the bytes are not."""
    store = PackStore(tmp_path)
    store.put(BLOCKS[:3])
    store.close()
    (pack,) = packs(tmp_path)
    with open(pack, "ab") as out:
        out.write(HEAD.pack(100, BLOCKS[3][0]) + bytes(100) + bytes(50))
    store = PackStore(tmp_path)
    holds(store, *BLOCKS[:3])
    lacks(store, BLOCKS[3][0])
    store.put(BLOCKS)
    holds(store, *BLOCKS)


def test_an_older_home_is_taken_over(tmp_path: Path) -> None:
    deleted = BLOCKS[1]
    old_home(tmp_path, BLOCKS, tail=HEAD.pack(100, block(9)[0]) + b"torn")
    with open(tmp_path / "blocks.pack", "r+b") as pack:  # a deleted block, as that store left it
        pack.seek(140)
        pack.write((100 | 1 << 31).to_bytes(4, "little"))
        pack.seek(140 + 40)
        pack.write(bytes(100))
    for _ in range(2):
        store = PackStore(tmp_path)
        holds(store, BLOCKS[0], *BLOCKS[2:])
        lacks(store, deleted[0], block(9)[0])
        store.close()
    assert not (tmp_path / "blocks.pack").exists()
    store = PackStore(tmp_path)
    store.put([deleted])
    holds(store, *BLOCKS)


def test_a_lost_or_damaged_index_is_made_anew(tmp_path: Path) -> None:
    store = PackStore(tmp_path, pack_bytes=250)
    store.put(BLOCKS[:2])
    store.put(BLOCKS[2:])
    store.delete([BLOCKS[0][0]])
    store.close()
    index = tmp_path / "index.sqlite"
    for spoil in (index.unlink, lambda: index.write_bytes(b"no database " * 1000)):
        spoil()
        store = PackStore(tmp_path)
        holds(store, *BLOCKS[1:])
        lacks(store, BLOCKS[0][0])
        assert store.used() == 400
        store.close()


def test_a_pack_that_is_gone_takes_its_blocks_with_it(tmp_path: Path) -> None:
    store = PackStore(tmp_path, pack_bytes=100)
    store.put(BLOCKS[:2])
    store.put(BLOCKS[2:])
    store.close()
    first = next(path for path in packs(tmp_path) if path.stat().st_size == 280)
    first.unlink()
    store = PackStore(tmp_path)
    lacks(store, BLOCKS[0][0], BLOCKS[1][0])
    holds(store, *BLOCKS[2:])
    assert store.used() == 300


def test_deleted_blocks_give_their_disk_back(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    blocks = [block(i, 1 << 20) for i in range(8)]
    store.put(blocks)
    (pack,) = packs(tmp_path)
    before = pack.stat().st_blocks
    store.delete([cid for cid, _ in blocks[:6]])
    assert pack.stat().st_blocks < before / 2
    store.put([blocks[0]])
    store.close()
    store = PackStore(tmp_path)
    lacks(store, *(cid for cid, _ in blocks[1:6]))
    holds(store, blocks[0], *blocks[6:])


def test_packs_are_bounded_and_compacted(tmp_path: Path) -> None:
    store = PackStore(tmp_path, pack_bytes=1000)
    blocks = [block(i) for i in range(40)]
    for at in range(0, 40, 2):
        store.put(blocks[at : at + 2])
    assert len(packs(tmp_path)) == 5
    assert all(path.stat().st_size <= 1000 + 280 for path in packs(tmp_path))
    store.delete([cid for cid, _ in blocks[:24] if cid != blocks[3][0]])
    reader = SpoolStore(tmp_path)
    holds(reader, blocks[3])
    assert store.compact() == 3
    holds(store, blocks[3], *blocks[24:])
    holds(reader, blocks[3], *blocks[24:])
    lacks(store, blocks[0][0])
    assert store.used() == 1700
    assert store.compact() == 0
    store.close()
    store = PackStore(tmp_path)
    holds(store, blocks[3], *blocks[24:])
    lacks(store, blocks[0][0])
    assert set(store) == {cid for cid, _ in [blocks[3], *blocks[24:]]}


def test_a_compaction_that_a_crash_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step of it: copied but not in the index; in the index but the old pack still there."""
    for step in ("ipos.store.index.Index.move", "pathlib.Path.unlink", "ipos.store.index.Index.forget_pack"):
        directory = tmp_path / step
        store = PackStore(directory, pack_bytes=1000)
        blocks = [block(i) for i in range(14)]
        for each in blocks:
            store.put([each])
        store.delete([cid for cid, _ in blocks[:6]])

        def crash(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(step, crash)
            with pytest.raises(KeyboardInterrupt):
                store.compact()
        store.close()
        store = PackStore(directory, pack_bytes=1000)
        holds(store, *blocks[6:])
        lacks(store, *(cid for cid, _ in blocks[:6]))
        assert store.used() == 800
        store.compact()
        holds(store, *blocks[6:])
        store.close()


def test_two_writers_and_a_reader(tmp_path: Path) -> None:
    node = PackStore(tmp_path)
    one, two = SpoolStore(tmp_path), SpoolStore(tmp_path)
    node.put(BLOCKS[:1])
    one.put(BLOCKS[1:3])
    two.put(BLOCKS[2:])
    assert len(packs(tmp_path)) == 3, "each has a pack of its own"
    holds(one, *BLOCKS[:3])
    lacks(one, BLOCKS[3][0])  # it has not been indexed
    lacks(node, BLOCKS[1][0])
    assert node.take_in() == 5
    for store in (node, one, two):
        holds(store, *BLOCKS)
    assert node.take_in() == 0
    one.put([block(7)])
    one.close()
    three = SpoolStore(tmp_path)  # goes on with the pack of one
    three.put([block(8)])
    assert len(packs(tmp_path)) == 3
    node.take_in()
    holds(node, block(7), block(8))


def test_the_node_goes_on_with_a_pack_that_was_not_indexed(tmp_path: Path) -> None:
    node = PackStore(tmp_path)
    other = SpoolStore(tmp_path)
    other.put(BLOCKS[:2])
    other.close()
    node.put(BLOCKS[2:3])
    assert len(packs(tmp_path)) == 1
    holds(node, *BLOCKS[:3])


def test_many_packs_few_descriptors(tmp_path: Path) -> None:
    store = PackStore(tmp_path, sync=False, pack_bytes=1)
    blocks = [block(i) for i in range(150)]
    for each in blocks:
        store.put([each])
    holds(store, *blocks)
    assert len(store._files._open) <= PackFiles(tmp_path)._most
    ours = [
        path for path in map(os.readlink, _descriptors()) if path.startswith(str(tmp_path)) and path.endswith(".pack")
    ]
    assert len(ours) <= PackFiles(tmp_path)._most + 1


def test_references(tmp_path: Path) -> None:
    """Blocks that stay in a file of the user, until it changes."""
    photo = tmp_path / "photo"
    photo.write_bytes(random.Random(1).randbytes(3000))
    st_ = photo.stat()
    body = photo.read_bytes()[1000:2000]
    spool = SpoolStore(tmp_path / "store")
    spool.put_references([(c.of_raw(body), Reference(str(photo), 1000, 1000, st_.st_mtime_ns, st_.st_size))])
    holds(spool, (c.of_raw(body), body))
    spool.close()
    store = PackStore(tmp_path / "store", pack_bytes=10)
    holds(store, (c.of_raw(body), body))
    assert store.used() == 0
    store.put(BLOCKS)
    with open(photo, "r+b") as file:
        file.seek(1500)
        file.write(b"\0\0\0")
    with pytest.raises(Refused, match="photo has changed since it was added without copying"):
        store.get(c.of_raw(body))
    photo.unlink()
    with pytest.raises(Refused, match=r"cannot be read \(No such file"):
        store.get(c.of_raw(body))
    assert store.has(c.of_raw(body)), "the file may come back"
    photo.write_bytes(bytes(1000) + body)
    holds(store, (c.of_raw(body), body))
    store.delete([c.of_raw(body)])
    store.compact()
    store.close()
    store = PackStore(tmp_path / "store")
    lacks(store, c.of_raw(body))
    holds(store, *BLOCKS)


# ---- a full disk


def small_files(most: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


FULL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conformance import block
from ipos.store.pack import PackStore
from ipos.wire.errors import Refused
store = PackStore(Path(sys.argv[1]))
kept = []
for i in range(100):
    try:
        store.put([block(i, 20_000), block(1000 + i, 20_000)])
        kept.append(i)
    except Refused as refused:
        print("refused", i, refused)
        break
for i in kept:
    assert store.get(block(i, 20_000)[0]) and store.get(block(1000 + i, 20_000)[0])
store.put([block(5000, 10)])
assert store.get(block(5000, 10)[0])
assert not store.has(block(len(kept), 20_000)[0])
print("kept", len(kept))
"""


@pytest.mark.real
def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files is what a full disk is to a pack: a write that ends early, then an error."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parent)],
        preexec_fn=lambda: small_files(1_000_000), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot be written: File too large" in done.stdout
    kept = int(done.stdout.split()[-1])
    assert 20 < kept < 26
    store = PackStore(tmp_path)
    holds(store, *(block(i, 20_000) for i in range(kept)), block(5000, 10))
    lacks(store, block(1000 + kept, 20_000)[0])


def test_an_index_that_cannot_be_written_takes_the_block_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PackStore(tmp_path)
    store.put(BLOCKS[:1])
    with monkeypatch.context() as patch:
        patch.setattr(store._index, "add", lambda *_: (_ for _ in ()).throw(Refused("the index cannot be written")))
        with pytest.raises(Refused, match="the index cannot be written"):
            store.put(BLOCKS[1:])
    assert packs(tmp_path)[0].stat().st_size == 140
    lacks(store, BLOCKS[1][0])
    store.put(BLOCKS)
    holds(store, *BLOCKS)


# ---- kill -9

WRITER = """
import sys
from pathlib import Path
from ipos.store import cid as c
from ipos.store.pack import PackStore
from ipos.store.spool import SpoolStore
store = (PackStore if sys.argv[2] == "node" else SpoolStore)(Path(sys.argv[1]), pack_bytes=3_000_000)
at = int(sys.argv[3])
print("up", flush=True)
for i in range(at, at + 1_000_000):
    block = i.to_bytes(4, "big") * 2000
    store.put([(c.of_raw(block), block), (c.of_dag_cbor(block[:40]), block[:40])])
    print(i, flush=True)
    if sys.argv[2] == "node" and i % 7 == 0:
        store.delete([c.of_raw(block)])
        print(-i, flush=True)
    if sys.argv[2] == "node" and i % 50 == 0:
        store.take_in()
        store.compact()
"""


def writer(directory: Path, kind: str, at: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), kind, str(at)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def said(process: subprocess.Popen[str]) -> Iterator[int]:
    assert process.stdout is not None
    for line in process.stdout.read().split("\n")[:-1]:
        yield int(line)
    process.wait()


def numbered(i: int) -> list[Block]:
    body = i.to_bytes(4, "big") * 2000
    return [(c.of_raw(body), body), (c.of_dag_cbor(body[:40]), body[:40])]


def lives(directory: Path, rounds: int, dice: random.Random, longest: float) -> int:
    """Kill a node's store and two other writers, all at once, again and again; the blocks that must be there at the end."""
    there: set[int] = set()
    gone: set[int] = set()
    for turn in range(rounds):
        writers = [
            writer(directory, kind, 10_000_000 * k + 100_000 * turn) for k, kind in enumerate(("node", "a", "b"))
        ]
        time.sleep(dice.uniform(0, longest))
        for process in dice.sample(writers, 3):
            os.kill(process.pid, signal.SIGKILL)
        for process in writers:
            for i in said(process):
                (gone if i < 0 else there).add(abs(i))
        store = PackStore(directory)
        some = there if turn == rounds - 1 or len(there) < 300 else dice.sample(sorted(there), 300)
        for i in some:
            raw, cbor = numbered(i)
            holds(store, cbor)
            if i not in gone and not (i < 10_000_000 and i % 7 == 0):
                holds(store, raw)
        if turn == rounds - 1:
            for cid in store:
                store.get(cid)  # none is damaged
        store.close()
    return len(there)


@pytest.mark.real
def test_kill_nine(tmp_path: Path) -> None:
    assert lives(tmp_path, 3, random.Random(1), 0.3) > 50


@pytest.mark.slow
def test_kill_nine_a_hundred_times(tmp_path: Path) -> None:
    """The log of a run: docs/logs/store-kill.txt."""
    began = time.monotonic()
    count = lives(tmp_path, 100, random.Random(2), 0.5)
    print(f"100 kills of three writers each: {count} puts had returned, all are there, no block is damaged", end="")
    print(f" ({time.monotonic() - began:.0f} s)")
    assert count > 5000


def test_a_store_that_does_not_write_what_it_says_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests of kill -9 look for: a put that returned before its block was written."""
    store = PackStore(tmp_path)
    monkeypatch.setattr("ipos.store.packfile._write", lambda _, parts, at: at + sum(map(len, parts)))
    store.put(BLOCKS)
    store.close()
    monkeypatch.undo()
    store = PackStore(tmp_path)
    with pytest.raises((AssertionError, Missing)):
        holds(store, *BLOCKS)


# ---- any order of everything


class Stores(RuleBasedStateMachine):
    """One node's store and one other writer; after each step, what the model says is there is there."""

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.directory = Path(tempfile.mkdtemp(prefix="ipos-packs-"))
        self.node = PackStore(self.directory, sync=False, pack_bytes=700)
        self.other: SpoolStore | None = None
        self.model: set[int] = set()
        self.coming: set[int] = set()

    @rule(some=st.lists(st.integers(0, 12), max_size=4))
    def put(self, some: list[int]) -> None:
        self.node.put([block(i) for i in some])
        self.model |= set(some)

    @rule(some=st.lists(st.integers(0, 12), max_size=4))
    def put_beside(self, some: list[int]) -> None:
        self.other = self.other or SpoolStore(self.directory, sync=False, pack_bytes=700)
        self.other.put([block(i) for i in some])
        holds(self.other, *(block(i) for i in some))
        self.coming |= set(some)

    @rule()
    def take_in(self) -> None:
        self.node.take_in()
        self.model |= self.coming
        self.coming = set()

    @precondition(lambda self: self.other is not None)
    @rule()
    def leave(self) -> None:
        assert self.other is not None
        self.other.close()
        self.other = None

    @precondition(lambda self: not self.coming and self.other is None)
    @rule(some=st.lists(st.integers(0, 12), max_size=4))
    def delete(self, some: list[int]) -> None:
        self.node.delete([block(i)[0] for i in some])
        self.model -= set(some)

    @rule()
    def compact(self) -> None:
        self.node.compact()

    @precondition(lambda self: self.other is None)
    @rule(cut=st.integers(0, 30), index=st.booleans())
    def crash(self, cut: int, index: bool) -> None:
        """A torn write behind everything; perhaps the index is lost besides."""
        self.node.close()
        for path in packs(self.directory):
            with open(path, "ab") as out:
                out.write((HEAD.pack(100, block(77)[0]) + bytes(60))[:cut])
        if index:
            (self.directory / "index.sqlite").unlink()
        self.node = PackStore(self.directory, sync=False, pack_bytes=700)
        self.model |= self.coming
        self.coming = set()

    @invariant()
    def the_model_is_right(self) -> None:
        if hasattr(self, "node"):
            for i in range(13):
                if i in self.model:
                    holds(self.node, block(i))
                elif i not in self.coming:
                    assert not self.node.has(block(i)[0])
            assert self.node.used() == 100 * sum(1 for _ in self.node)

    def teardown(self) -> None:
        import shutil

        if hasattr(self, "node"):
            self.node.close()
            if self.other is not None:
                self.other.close()
            shutil.rmtree(self.directory)


Stores.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestStores = Stores.TestCase


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    """Of the process, per block: far below what an index in memory takes (100 bytes and more)."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import hashlib
from ipos.store import cid as c
from ipos.store.pack import PackStore
def rss():
    return int(Path("/proc/self/smaps_rollup").read_text().split("Private_Dirty:")[1].split()[0]) * 1024
store = PackStore(Path({str(tmp_path)!r}), sync=False)
def fill(start, end):
    for at in range(start, end, 8000):
        store.put([(c.of_raw(body), body) for body in (i.to_bytes(8, "big") for i in range(at, at + 8000))])
fill(0, 40_000)
before = rss()
fill(40_000, 80_000)
print((rss() - before) / 40_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 25


def test_files_of_unixfs(tmp_path: Path) -> None:
    store = PackStore(tmp_path, pack_bytes=4_000_000)
    body = random.Random(3).randbytes(10_000_000)
    cid = unixfs.add_bytes(store, body)
    store.close()
    store = PackStore(tmp_path)
    assert b"".join(unixfs.stream(store, cid)) == body


def test_a_newer_index_is_refused(tmp_path: Path) -> None:
    PackStore(tmp_path).close()
    db = sqlite3.connect(tmp_path / "index.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(Refused, match=r"newer IPOS \(schema 99"):
        PackStore(tmp_path)
