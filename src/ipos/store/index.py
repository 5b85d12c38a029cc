"""index: where each block is, in SQLite, so that a store of a million blocks takes no more memory than one of ten.

One process writes (the node); its commits are not synced, for whatever a crash of the machine takes from the index is read again from the
packs: `packs.indexed` says up to where a pack is in it, in the same transaction. Others read at any time (WAL).
"""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ipos.wire.errors import Refused

SCHEMA = 1
TABLES = """
CREATE TABLE IF NOT EXISTS packs (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, indexed INTEGER NOT NULL, live INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (cid BLOB PRIMARY KEY, pack INTEGER NOT NULL, at INTEGER NOT NULL, length INTEGER NOT NULL,
                                   reference INTEGER NOT NULL, touched INTEGER NOT NULL) WITHOUT ROWID;
"""
PAGE = 1000  # rows read at once
FOUND = 4096  # places kept in memory
TOUCH_S = 60  # a block that was put less than this ago is not touched anew
WAL_BYTES = 8 << 20


class Place(NamedTuple):
    """`length` bytes of a block; the record's body is at `at` of the pack, and, of a reference, `reference` bytes long (else 0)."""

    pack: int
    at: int
    length: int
    reference: int


Row = tuple[bytes, Place]


def connect(path: Path | str, write: bool) -> sqlite3.Connection:
    """A connection that may be used by any thread, one at a time."""
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=20, cached_statements=32)
    db.execute("PRAGMA journal_mode=WAL" if write else "PRAGMA query_only=1")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA cache_size=-1024")
    db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    return db


class Index:
    """`write`: this process is the one that may. Thread-safe; a reader never waits for a writer."""

    def __init__(self, path: Path, write: bool) -> None:
        self._path = path
        self._write = connect(path, True) if write else None
        if self._write is not None:
            found = self._write.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, SCHEMA):
                self._write.close()
                raise Refused(
                    f"{path} was written by a newer IPOS (schema {found}, this one reads {SCHEMA}): update IPOS"
                )
            self._write.executescript(TABLES)
            self._write.execute(f"PRAGMA user_version={SCHEMA}")
        self._writing = threading.RLock()
        self._read = connect(path, False)
        self._reading = threading.Lock()
        self._scan = connect(path, False)  # what reads many rows does not hold up those that read one
        self._scanning = threading.Lock()
        self._names: dict[int, str] = {}
        self._found: dict[
            bytes, Place
        ] = {}  # the newest finds of the process that writes: it knows when they are no more
        self._changes = 0

    # ---- reads

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        with self._reading:
            return self._read.execute(sql, values).fetchall()

    def _many(self, sql: str, *values: Any) -> list[Any]:
        with self._scanning:
            return self._scan.execute(sql, values).fetchall()

    def find(self, cid: bytes) -> Place | None:
        found = self._found.get(cid)
        if found is not None:
            return found
        changes = self._changes
        rows = self._rows("SELECT pack, at, length, reference FROM blocks WHERE cid=?", cid)
        if not rows:
            return None
        place = Place(*rows[0])
        if self._write is not None:
            with self._reading:
                if changes == self._changes:
                    if len(self._found) >= FOUND:
                        self._found.clear()
                    self._found[cid] = place
        return place

    def _changed(self) -> None:
        """A block may be elsewhere, or nowhere, from here on."""
        with self._reading:
            self._changes += 1
            self._found.clear()

    def name(self, pack: int) -> str:
        """Of the pack's file; `FileNotFoundError` if there is none of this number any more."""
        if pack not in self._names:
            rows = self._rows("SELECT name FROM packs WHERE id=?", pack)
            if not rows:
                raise FileNotFoundError(errno.ENOENT, f"pack {pack}")
            self._names[pack] = rows[0][0]
        return self._names[pack]

    def packs(self) -> dict[str, tuple[int, int, int]]:
        """name -> (id, bytes that are indexed, bytes of blocks that are live)."""
        return {name: (id, indexed, live) for id, name, indexed, live in self._rows("SELECT * FROM packs")}

    def cids(self, untouched_since: int | None = None) -> Iterator[bytes]:
        """All, or those that nobody has put for so long; a page at a time, so others may come and go meanwhile."""
        after = b""
        where = "" if untouched_since is None else f" AND touched<{untouched_since}"
        while rows := self._many(f"SELECT cid FROM blocks WHERE cid>?{where} ORDER BY cid LIMIT {PAGE}", after):
            for (cid,) in rows:
                yield cid
            after = rows[-1][0]

    def totals(self) -> tuple[int, int]:
        """(blocks, bytes of them that lie in packs)."""
        return self._many("SELECT count(*) FROM blocks")[0][0], self.used()

    def used(self) -> int:
        return self._rows("SELECT total(live) FROM packs")[0][0]

    # ---- writes

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """All of it or nothing; `Refused` if the disk does not take it."""
        assert self._write is not None
        with self._writing:
            self._write.execute("BEGIN IMMEDIATE")
            try:
                yield self._write
                self._write.execute("COMMIT")
            except sqlite3.Error as error:
                self._write.execute("ROLLBACK") if self._write.in_transaction else None
                full = "full" in str(error) or "I/O" in str(error)
                number = errno.ENOSPC if full else errno.EIO
                raise Refused(f"the index {self._path} cannot be written ({error}): free some disk", number) from None
            except BaseException:
                self._write.execute("ROLLBACK") if self._write.in_transaction else None
                raise

    def pack(self, name: str) -> int:
        """The number of a pack; a new one if it is new."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO packs (name, indexed, live) VALUES (?,0,0)", (name,))
            return db.execute("SELECT id FROM packs WHERE name=?", (name,)).fetchone()[0]

    def add(self, pack: int, rows: Sequence[Row], indexed: int) -> None:
        """Blocks of a pack, which is indexed up to there now. Of one that is known the place stays, and it counts as put just now."""
        now = int(time.time())
        with self.transaction() as db:
            live = 0
            for cid, place in rows:
                if db.execute("INSERT OR IGNORE INTO blocks VALUES (?,?,?,?,?,?)", (cid, *place, now)).rowcount:
                    live += 0 if place.reference else place.length
                else:
                    db.execute("UPDATE blocks SET touched=? WHERE cid=?", (now, cid))
            db.execute("UPDATE packs SET indexed=?, live=live+? WHERE id=?", (indexed, live, pack))

    def touch(self, cids: Iterable[bytes]) -> None:
        """They were put again just now."""
        now = int(time.time())
        stale = [(now, cid, now - TOUCH_S) for cid in cids]
        if any(self._rows("SELECT 1 FROM blocks WHERE cid=? AND touched<?", cid, old) for _, cid, old in stale):
            with self.transaction() as db:
                db.executemany("UPDATE blocks SET touched=? WHERE cid=? AND touched<?", stale)

    def age(self, cids: Iterable[bytes]) -> None:
        """Nobody needs them any more: they were put long ago."""
        with self.transaction() as db:
            db.executemany("UPDATE blocks SET touched=0 WHERE cid=?", [(cid,) for cid in cids])

    def remove(self, cids: Iterable[bytes], untouched_since: int | None = None) -> list[Place]:
        """Where they were. With `untouched_since`, only those that nobody has put since."""
        gone: list[Place] = []
        with self.transaction() as db:
            for cid in cids:
                where = "" if untouched_since is None else f" AND touched<{untouched_since}"
                rows = db.execute(
                    f"DELETE FROM blocks WHERE cid=?{where} RETURNING pack, at, length, reference", (cid,)
                ).fetchall()
                gone += [Place(*row) for row in rows]
            self._freed(db, gone)
        self._changed()
        return gone

    def drop(self, cid: bytes, place: Place) -> None:
        """The block at that place is damaged; one that has been put elsewhere since stays."""
        with self.transaction() as db:
            done = db.execute("DELETE FROM blocks WHERE cid=? AND pack=? AND at=?", (cid, place.pack, place.at))
            if done.rowcount:
                self._freed(db, [place])
        self._changed()

    @staticmethod
    def _freed(db: sqlite3.Connection, places: Iterable[Place]) -> None:
        bytes_of: dict[int, int] = {}
        for place in places:
            if not place.reference:
                bytes_of[place.pack] = bytes_of.get(place.pack, 0) + place.length
        db.executemany("UPDATE packs SET live=live-? WHERE id=?", [(n, pack) for pack, n in bytes_of.items()])

    def move(self, old: int, moved: Sequence[tuple[bytes, Place, Place]], indexed: int) -> None:
        """Blocks have been copied into another pack; those that were deleted meanwhile stay deleted."""
        with self.transaction() as db:
            for cid, before, after in moved:
                done = db.execute(
                    "UPDATE blocks SET pack=?, at=? WHERE cid=? AND pack=? AND at=?",
                    (after.pack, after.at, cid, before.pack, before.at),
                )
                if done.rowcount and not before.reference:
                    db.execute("UPDATE packs SET live=live+? WHERE id=?", (after.length, after.pack))
                    db.execute("UPDATE packs SET live=live-? WHERE id=?", (before.length, old))
            if moved:
                db.execute("UPDATE packs SET indexed=? WHERE id=?", (indexed, moved[0][2].pack))
        self._changed()

    def forget_pack(self, id: int, beyond: int = -1) -> None:
        """What the index has of a pack from that place on: the file is shorter than it was, or gone (-1)."""
        with self.transaction() as db:
            rows = db.execute(
                "DELETE FROM blocks WHERE pack=? AND at+max(length*(reference=0), reference)>? RETURNING pack, at, length, reference",
                (id, beyond),
            ).fetchall()
            self._freed(db, [Place(*row) for row in rows])
            if beyond < 0:
                db.execute("DELETE FROM packs WHERE id=?", (id,))
                self._names.pop(id, None)
            else:
                db.execute("UPDATE packs SET indexed=min(indexed, ?) WHERE id=?", (beyond, id))
        self._changed()

    def close(self) -> None:
        with self._writing, self._reading, self._scanning:
            self._read.close()
            self._scan.close()
            if self._write is not None:
                self._write.close()
