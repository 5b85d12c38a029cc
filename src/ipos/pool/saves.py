"""saves: states of unfinished tasks as content of a node's store, so that they can leave the machine: to a keeper, or into a file.

A save is one UnixFS file whose chunks are the frames of `vm.pack`. It stays in the store for as long as somebody here holds it (a lease
that offers it, a job that may need it), and then its blocks are deleted: a save a second would fill any disk. Blocks are counted, for the
saves of one program share most of theirs: that is what pins do (`store.pins`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from ipos.pool.records import EngineRun, Task
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.store.pins import Pins, Visibility
from ipos.vm import pack
from ipos.vm.plan import Plan
from ipos.vm.save import Head, View, read_head
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import Link, Record, cid_of, decode


class Save(NamedTuple):
    """`cid` of the packed save, made after so many units of work; `receipt`: CID of who computed the task so far, None = nobody says."""

    cid: bytes
    work: int
    receipt: bytes | None = None


class HandOver(Record, frozen=True, kw_only=True):
    """The root of a CAR that carries an unfinished task: the Task record, its packed save (None: it had not begun) and after how much
    work that was made. Everything that the two name is in the CAR too; so is the receipt of `ext`, `receipt` (CID), with those before it."""

    v: int = 1
    task: Link
    save: Link | None
    work: int
    engine: str


def identity(task: Task, run: EngineRun) -> str:
    """What a save belongs to: the task, but for the work it may use, which may be raised when it is used up."""
    unlimited = msgspec.structs.replace(run, work=0)
    return c.text(cid_of(msgspec.structs.replace(task, environment=cid_of(unlimited))))


class Importer:
    """Brings the saves of one run, one after the other, into the store: only frames that are new are read and hashed. The last one is held
    for `owner` until `close`."""

    def __init__(self, store: BlockStore, directory: Path, holds: Holds, owner: str) -> None:
        self._store = store
        self._holds = holds
        self._owner = owner
        self._directory = directory
        self._known: dict[bytes, tuple[bytes, int]] = {}
        self._last = -1

    def newest(self, again: bool = False) -> Save | None:
        """In a thread: the newest save as content of the store; None if there is no newer one than the last time (`again`: that one)."""
        head = read_head(self._directory)
        if head is None or (head.work <= self._last and not again):
            return None
        with View(self._directory) as view, self._holds.lock:  # what it shares with other saves must not go in between
            known: dict[bytes, tuple[bytes, int]] = {}
            chunks: list[tuple[bytes, int]] = []
            new: list[tuple[bytes, bytes]] = []
            for frame in pack.frames(view):
                place = self._known.get(frame.key)
                if place is None or not self._store.has(place[0]):
                    body = frame.make()
                    place = c.of_raw(body), len(body)
                    new.append((place[0], body))
                known[frame.key] = place
                chunks.append(place)
            self._store.put(new)
            cid = unixfs.add_chunks(self._store, chunks)
            self._holds.hold(self._owner, cid)
            self._known, self._last = known, view.head.work
            return Save(cid, view.head.work)

    def close(self) -> None:
        self._holds.release(self._owner)


def add_packed(store: BlockStore, packed: Path) -> bytes:
    """In a thread: a packed save in a file becomes content of the store, each frame a block, as `Importer` does it. Its CID."""
    with open(packed, "rb") as stream:
        return unixfs.add_chunks(store, pack.cut(iter(lambda: stream.read(1 << 20), b"")))


def lay_out(store: BlockStore, save: bytes, directory: Path) -> None:
    """In a thread: from the store into a directory of `vm.save`, unless a later save is there already."""
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".save-") as scratch:
        new = Path(scratch, "save")
        head = pack.unpack(unixfs.stream(store, save), new)
        try:
            here = read_head(directory)
        except BadRecord:
            here = None
        if here is not None and here.work >= head.work:
            return
        shutil.rmtree(directory, ignore_errors=True)
        new.rename(directory)


def verified(store: BlockStore, save: bytes, scratch: Path) -> Head:
    """In a thread: the head of a packed save, when every byte of it is as its root says; `BadRecord` otherwise."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".save-") as directory:
        pack.unpack(unixfs.stream(store, save), Path(directory))
        return pack.verify(Path(directory))


def head_of(store: BlockStore, save: bytes) -> Head:
    """In a thread: what a packed save says of itself."""
    return pack.first(unixfs.stream(store, save))


class Holds:
    """Who holds which save on this node: pins that pass with the node, for the machines of the account to see. Thread-safe."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self.lock = pins.lock

    def has(self, owner: str) -> bool:
        with self.lock:
            return bool(self._pins.roots(owner))

    def hold(self, owner: str, save: bytes) -> None:
        """Instead of the one that this owner held, whose blocks go if nothing else needs them. `Missing` if it is not all here."""
        self._pins.replace(owner, save, Visibility.POOL)

    def release(self, owner: str) -> None:
        self._pins.unpin(owner, delete=True)


def plan_of(task: Task, run: EngineRun) -> Plan:
    """What the engine is told of a task, by whoever runs it: its worker, or a judge."""
    return Plan(
        task=identity(task, run), args=(task.name, *task.args), env=run.env, seed=run.seed, memory_bytes=run.memory_bytes,
        output_bytes=task.limits.output_bytes or limits.output_bytes, work=run.work, mark_every=run.mark_every,
        image="" if task.image is None else c.text(task.image),
    )  # fmt: skip


def engine_run(store: BlockStore, task: Task) -> EngineRun:
    if task.environment is None or not task.in_engine:
        raise Refused(f"{task.name} is a native program: it can be restarted, not stopped and moved")
    return decode(EngineRun, store.get(task.environment))
