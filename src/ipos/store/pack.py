"""PackStore: the node's blocks on disk. Packs (`packfile`) in `packs/`, where each block is in `index.sqlite` (`index`).

Processes that write append to a pack of their own each (`spool.py` is for those that are not the node); this store, of which there is one
for a directory at a time, takes what they wrote into the index. What a crash left half written is cut off when the store is opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ipos.store import cid as c
from ipos.store import packfile
from ipos.store.blocks import Block, Missing, checked
from ipos.store.index import Index, Place, Row
from ipos.store.packfile import HEAD, PackFiles, Reference, Scan, Spool, locked, mark_deleted, read_reference
from ipos.wire import limits
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.store")

ROWS: Final = 1000  # taken into the index at once
CHECK_BYTES: Final = (
    64 * limits.MiB
)  # so much of what is taken in is hashed: what a crash of the machine may have spoiled is at the end
COPY_BYTES: Final = 8 * limits.MiB
OLD_NAME: Final = "blocks.pack"  # the one pack of homes before there was an index


def read_block(index: Index, files: PackFiles, cid: bytes) -> tuple[bytes, Place]:
    """A block and where it was, right or wrong. `Missing` if the index does not know it."""
    for _ in range(4):
        place = index.find(cid)
        if place is None:
            raise Missing(cid)
        try:
            body = files.read(index.name(place.pack), place.at, place.reference or place.length)
        except FileNotFoundError:
            continue  # compacted away since: it is elsewhere now, or nowhere
        block = body
        if place.reference:
            reference = Reference.decode(body)
            block = read_reference(reference)
            if not c.matches(cid, block):
                raise Refused(
                    f"{reference.path} has changed since it was added without copying: block {c.text(cid)} was at byte "
                    f"{reference.offset}; add it again",
                    116,
                )
        if c.matches(cid, block):
            return block, place
        if index.find(cid) == place:
            return block, place
    raise Missing(cid)


class PackStore:
    """`BlockStore` in a directory; one process at a time (a lock says which). `sync=False` only for tests of other things."""

    def __init__(self, directory: Path, sync: bool = True, pack_bytes: int = packfile.PACK_BYTES) -> None:
        self.directory = directory
        self._packs = directory / "packs"
        self._packs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()  # of the spool
        self._held = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not locked(self._held):
            os.close(self._held)
            raise Refused(f"{directory} is in use by another process")
        try:
            self._take_over()
            self._files = PackFiles(self._packs)
            self._index = self._opened(directory / "index.sqlite")
            self._spool = Spool(self._packs, sync, pack_bytes)
            self._ids: dict[str, int] = {}
            self.take_in()
        except BaseException:
            os.close(self._held)
            raise

    def _take_over(self) -> None:
        """The pack of an older home becomes one of several."""
        old = self.directory / OLD_NAME
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(old, os.O_RDWR | os.O_CLOEXEC)
            try:
                if not locked(fd):
                    raise Refused(f"{old} is in use by another process")
                fcntl.flock(fd, fcntl.LOCK_UN)
                old.rename(self._packs / f"0-{OLD_NAME}")
            finally:
                os.close(fd)

    @staticmethod
    def _opened(path: Path) -> Index:
        try:
            return Index(path, write=True)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise Refused(f"the index {path} cannot be opened: {error}") from None
            log.error("%s is damaged (%s); it is made anew from the packs", path, error)
            for part in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                with contextlib.suppress(FileNotFoundError):
                    part.rename(f"{part}.damaged")
            return Index(path, write=True)

    # ---- BlockStore

    def get(self, cid: bytes) -> bytes:
        block, place = read_block(self._index, self._files, cid)
        if not c.matches(cid, block):
            log.error("block %s is damaged on disk (%s)", c.text(cid), self._index.name(place.pack))
            self._index.drop(cid, place)  # a damaged block is a missing one: it will be fetched or computed again
            raise Missing(cid)
        return block

    def put(self, blocks: Iterable[Block]) -> None:
        self.put_hashed(checked(blocks))

    def put_hashed(self, blocks: Sequence[Block]) -> None:
        """See `blocks.Hashed`."""
        self._put(blocks, soon=False)

    def put_soon(self, blocks: Iterable[Block]) -> None:
        """See `blocks.Late`. The index has them at once: what a crash of the machine spoils is missing when it is read."""
        self._put(checked(blocks), soon=True)

    def settle(self) -> None:
        """See `blocks.Late`."""
        with self._lock:
            self._spool.settle()

    def _put(self, blocks: Sequence[Block], soon: bool) -> None:
        with self._lock:
            new = {cid: block for cid, block in blocks if self._index.find(cid) is None}
            if len(new) < len(blocks):
                self._index.touch({cid for cid, _ in blocks} - new.keys())
            if not new:
                return
            self._written(self._append([(cid, block, False) for cid, block in new.items()], soon))

    def _append(self, records: Sequence[tuple[bytes, bytes, bool]], soon: bool) -> list[Row]:
        places = self._spool.append(records, soon)
        pack = self._own(places[0] - HEAD.size)
        return [(cid, Place(pack, at, len(body), 0)) for (cid, body, _), at in zip(records, places, strict=True)]

    def _own(self, start: int) -> int:
        """The number of the spool's pack. One that another process began is indexed up to `start`, where this one goes on, first."""
        name = self._spool.name
        if name not in self._ids:
            pack = self._index.pack(name)
            indexed = self._index.packs()[name][1]
            if indexed < start:
                fd = os.open(self._packs / name, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._rows_of(fd, pack, indexed, start)
                finally:
                    os.close(fd)
            self._ids = {name: pack}
        return self._ids[name]

    def _written(self, rows: list[Row]) -> None:
        try:
            self._index.add(rows[0][1].pack, rows, self._spool.end)
        except Refused:
            self._spool.take_back(rows[0][1].at)
            raise

    def has(self, cid: bytes) -> bool:
        return self._index.find(cid) is not None

    def size(self, cid: bytes) -> int:
        place = self._index.find(cid)
        if place is None:
            raise Missing(cid)
        return place.length

    def delete(self, cids: Iterable[bytes]) -> None:
        with self._lock:  # a put either sees that it is gone, or comes before
            gone = self._index.remove(cids)
        self._forget(gone)

    def __iter__(self) -> Iterator[bytes]:
        return self._index.cids()

    # ---- what garbage collection asks

    def idle(self, seconds: float) -> Iterator[bytes]:
        """Blocks that nobody has put for so long."""
        return self._index.cids(int(time.time() - seconds))

    def drop_idle(self, cids: Iterable[bytes], seconds: float) -> tuple[int, int]:
        """Delete those that nobody has put for so long; (blocks, bytes)."""
        with self._lock:
            gone = self._index.remove(cids, int(time.time() - seconds))
        self._forget(gone)
        return len(gone), sum(place.length for place in gone if not place.reference)

    def age(self, cids: Iterable[bytes]) -> None:
        """Nobody needs these any more: they count as put long ago."""
        self._index.age(cids)

    def used(self) -> int:
        """Bytes of the blocks in packs."""
        return int(self._index.used())

    def figures(self) -> dict[str, int]:
        """blocks, bytes (of blocks), packs, disk_bytes (what all of it takes on disk, the index included)."""
        count, used = self._index.totals()
        disk = sum(path.stat().st_blocks * 512 for path in self._packs.glob("*.pack"))
        index = sum(path.stat().st_size for path in self.directory.glob("index.sqlite*"))
        packs = len(list(self._packs.glob("*.pack")))
        return {"blocks": count, "bytes": int(used), "packs": packs, "disk_bytes": disk + index, "index_bytes": index}

    def _forget(self, places: Iterable[Place]) -> None:
        """Give the disk of deleted blocks back."""
        by_pack: dict[int, list[Place]] = {}
        for place in places:
            by_pack.setdefault(place.pack, []).append(place)
        for pack, some in by_pack.items():
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self._packs / self._index.name(pack), os.O_RDWR | os.O_CLOEXEC)
                try:
                    for place in some:
                        mark_deleted(fd, place.at, place.reference or place.length, place.reference > 0)
                finally:
                    os.close(fd)

    # ---- packs of others

    def take_in(self, synced: bool = False) -> int:
        """Index what other processes have written, and what an earlier life had no time to; how many blocks. `synced`: those who wrote it
        have said that it is on disk, so it need not be hashed."""
        known = self._index.packs()
        count = 0
        with self._lock:
            for path in sorted(self._packs.glob("*.pack")):
                if path.name == self._spool.name:
                    continue
                id, indexed, _ = known.pop(path.name, (0, 0, 0))
                if path.stat().st_size != indexed:
                    count += self._take_in(path, id or self._index.pack(path.name), indexed, synced)
            for name, (id, _, _) in known.items():
                if name != self._spool.name and not (self._packs / name).exists():
                    self._index.forget_pack(id)
        return count

    def _take_in(self, path: Path, pack: int, indexed: int, synced: bool) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            ours = locked(fd)  # nobody writes to it: what is torn will stay so
            size = os.fstat(fd).st_size
            os.fdatasync(fd)  # its writer may not have come to that yet
            if size < indexed:
                self._index.forget_pack(pack, size)
                indexed = 0
            count, end = self._rows_of(fd, pack, indexed, size, synced)
            if end < size and indexed:  # its writer took something back after it was indexed, or it is torn
                more, whole = self._rows_of(fd, pack, 0, size)
                count, end = count + more, max(end, whole)
            if ours and end < size:
                log.warning("%s: %d bytes that were not written whole are cut off", path, size - end)
                os.ftruncate(fd, end)
            return count
        finally:
            os.close(fd)

    def _rows_of(self, fd: int, pack: int, start: int, size: int, synced: bool = False) -> tuple[int, int]:
        """Index the records from `start`; how many, and where the last whole one ends."""
        scan = Scan(fd, start, size)
        rows: list[Row] = []
        count = 0
        for found in scan:
            place = Place(pack, found.at, found.length, 0)
            if found.reference and not found.deleted:
                place = _reference(fd, place)
            trusted = synced or found.reference or found.at < size - CHECK_BYTES
            if not found.deleted and (trusted or _good(fd, found.cid, place)):
                rows.append((found.cid, place))
            if len(rows) >= ROWS:
                self._index.add(pack, rows, scan.end)
                count += len(rows)
                rows = []
        self._index.add(pack, rows, scan.end)
        return count + len(rows), scan.end

    # ---- compaction

    def compact(self, stop: Callable[[], bool] = lambda: False, part: float = 0.5) -> int:
        """Copy what is live out of packs of which less than `part` is, and remove those; how many went. A crash at any moment leaves
        every block where it was, or where it is now."""
        gone = 0
        for name, (id, indexed, live) in self._index.packs().items():
            if stop():
                break
            if name != self._spool.name and live < part * indexed and self._compact(name, id, stop):
                gone += 1
        return gone

    def _compact(self, name: str, id: int, stop: Callable[[], bool]) -> bool:
        path = self._packs / name
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if not locked(fd):
                return False  # somebody writes to it
            batch: list[tuple[bytes, Place]] = []
            held = 0
            for found in Scan(fd, 0, os.fstat(fd).st_size):
                place = self._index.find(found.cid)
                if place is not None and place[:2] == (id, found.at):
                    batch.append((found.cid, place))
                    held += found.length
                if held >= COPY_BYTES or len(batch) >= ROWS:
                    self._copy(fd, batch)
                    batch, held = [], 0
                    if stop():
                        return False
            self._copy(fd, batch)
            path.unlink()
            self._index.forget_pack(id)
            self._files.forget(name)
            return True
        finally:
            os.close(fd)

    def _copy(self, fd: int, batch: list[tuple[bytes, Place]]) -> None:
        if not batch:
            return
        records = [
            (cid, os.pread(fd, place.reference or place.length, place.at), place.reference > 0) for cid, place in batch
        ]
        with self._lock:
            ats = self._spool.append(records)
            own = self._own(ats[0] - HEAD.size)
            moved = [(cid, place, place._replace(pack=own, at=at)) for (cid, place), at in zip(batch, ats, strict=True)]
            self._index.move(batch[0][1].pack, moved, self._spool.end)

    def close(self) -> None:
        with self._lock:
            self._spool.close()
            self._index.close()
            self._files.close()
            os.close(self._held)


def _good(fd: int, cid: bytes, place: Place) -> bool:
    return c.matches(cid, os.pread(fd, place.length, place.at))


def _reference(fd: int, place: Place) -> Place:
    body = os.pread(fd, place.length, place.at)
    return place._replace(length=Reference.decode(body).length, reference=place.length)


__all__ = ["HEAD", "PackStore", "read_block"]
