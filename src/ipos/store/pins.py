"""pins: what of a store is kept, why, and who may have it. A block that no pin reaches is garbage, and leaves the node for nobody.

A pin is a root and a reason ("job 7", "ipos add photos/"); it keeps all that its root reaches, which must be there. For each block it is
counted how many pins of each visibility reach it, in the transaction that changes the pins: so the question of a peer is one look-up, and
what a save alone held can go as soon as the next one is held.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore, Missing
from ipos.store.index import connect
from ipos.wire.errors import BadRecord, Refused

SCHEMA = "1"
TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pins (why TEXT, root BLOB, visibility INTEGER NOT NULL, passing INTEGER NOT NULL, since INTEGER NOT NULL,
                                 PRIMARY KEY (why, root)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reached (cid BLOB PRIMARY KEY, private INTEGER NOT NULL, pool INTEGER NOT NULL, public INTEGER NOT NULL)
                                   WITHOUT ROWID;
"""


class Visibility(IntEnum):
    """Who may have a block: nobody but this node, the machines of my account, everybody."""

    PRIVATE = 0
    POOL = 1
    PUBLIC = 2

    @property
    def word(self) -> str:
        return self.name.lower()

    @staticmethod
    def named(word: str) -> Visibility:
        try:
            return Visibility[word.upper()]
        except KeyError:
            raise Refused(f"{word!r} is no visibility: it is private, pool or public") from None


class Pin(NamedTuple):
    """`since`: seconds since 1970."""

    root: bytes
    why: str
    visibility: Visibility
    since: int


def _nothing(_: list[bytes]) -> None:
    """What a store that collects no garbage does with blocks that are needed no more."""


class Pins:
    """Of one store; `path` of the SQLite file, ":memory:" for tests. `age` is told what no pin reaches any more. Thread-safe; may take
    as long as the DAG is large, so call it off the loop; `visibility` never waits."""

    def __init__(self, path: Path | str, store: BlockStore, age: Callable[[list[bytes]], None] = _nothing) -> None:
        self._store = store
        self._age = age
        self.lock = threading.RLock()
        """While it is held, nothing is pinned or let go."""
        self._reading = threading.Lock()
        try:
            self._db = connect(path, write=True)
            self._db.executescript(TABLES)
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (SCHEMA,))
            found = self._db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise Refused(
                f"the pins {path} cannot be read ({error}): put a copy back, or remove it to keep nothing"
            ) from None
        if found != SCHEMA:
            raise Refused(f"{path} was written by a newer IPOS (schema {found}, this one reads {SCHEMA}): update IPOS")
        self._read = self._db if path == ":memory:" else connect(path, write=False)
        with self._transaction(False):  # what was under way ended with the node
            for why, root in self._db.execute("SELECT why, root FROM pins WHERE passing").fetchall():
                self._remove(why, root)

    # ---- what is pinned

    def pin(
        self,
        why: str,
        roots: Iterable[bytes],
        visibility: Visibility = Visibility.PRIVATE,
        durable: bool = False,
        passing: bool = False,
    ) -> None:
        """Keep all that the roots reach, for this reason; a root that it is pinned for already gets the new visibility. `durable`: on
        disk when this returns (else after the next one that is); `passing`: until the node ends. `Missing` if a block is not here:
        then nothing of it is pinned."""
        with self._transaction(durable):
            for root in dict.fromkeys(roots):
                self._put(why, root, visibility, passing)

    def replace(self, why: str, root: bytes, visibility: Visibility) -> None:
        """One passing pin for this reason instead of those there were; what only they reached is deleted at once."""
        with self.lock:
            with self._transaction(False):
                before = [each for (each,) in self._db.execute("SELECT root FROM pins WHERE why=?", (why,)).fetchall()]
                self._put(why, root, visibility, True)
                freed = [cid for each in before if each != root for cid in self._remove(why, each)]
            self._store.delete(freed)

    def unpin(self, why: str | None, root: bytes | None = None, delete: bool = False) -> int:
        """Let go of what is pinned for this reason (None: any), all of it or one root; how many pins that were. `delete`: what no pin
        reaches any more goes at once, not at the next garbage collection."""
        with self.lock:
            with self._transaction(False):
                asked = "SELECT why, root FROM pins WHERE (?1 IS NULL OR why=?1) AND (?2 IS NULL OR root=?2)"
                found = self._db.execute(asked, (why, root)).fetchall()
                freed = [cid for each in found for cid in self._remove(*each)]
            if delete:
                self._store.delete(freed)
            else:
                self._age(freed)
        return len(found)

    def _put(self, why: str, root: bytes, visibility: Visibility, passing: bool) -> None:
        row = self._db.execute("SELECT visibility, passing FROM pins WHERE why=? AND root=?", (why, root)).fetchone()
        if row == (visibility, passing):
            return
        since = int(time.time())
        self._db.execute("INSERT OR REPLACE INTO pins VALUES (?,?,?,?,?)", (why, root, visibility, passing, since))
        if row is not None and row[0] == visibility:
            return
        missing: list[bytes] = []
        self._count(root, visibility, missing)
        if missing:
            raise Missing(missing[0])
        if row is not None:
            self._uncount(root, Visibility(row[0]))

    def _remove(self, why: str, root: bytes) -> list[bytes]:
        """The blocks that nothing reaches any more."""
        (level,) = self._db.execute(
            "DELETE FROM pins WHERE why=? AND root=? RETURNING visibility", (why, root)
        ).fetchone()
        return self._uncount(root, Visibility(level))

    def _walk(self, root: bytes, missing: list[bytes]) -> Iterator[bytes]:
        """What the root reaches, each once; what of it is not here is added to `missing` besides."""
        seen: set[bytes] = set()
        todo = [root]
        while todo:
            cid = todo.pop()
            if cid in seen:
                continue
            seen.add(cid)
            yield cid
            try:
                if cid[:4] == c.DAG_PB:
                    todo.extend(link.cid for link in unixfs.parse(self._store.get(cid)).links)
                elif not self._store.has(cid):
                    missing.append(cid)
            except (Missing, BadRecord):
                missing.append(cid)

    def _count(self, root: bytes, visibility: Visibility, missing: list[bytes]) -> None:
        column = visibility.word
        first = ",".join(str(int(v == visibility)) for v in Visibility)
        sql = f"INSERT INTO reached VALUES (?,{first}) ON CONFLICT (cid) DO UPDATE SET {column}={column}+1"
        for cid in self._walk(root, missing):
            self._db.execute(sql, (cid,))

    def _uncount(self, root: bytes, visibility: Visibility) -> list[bytes]:
        column = visibility.word
        freed: list[bytes] = []
        for cid in self._walk(root, []):
            row = self._db.execute(
                f"UPDATE reached SET {column}=max(0, {column}-1) WHERE cid=? RETURNING private+pool+public", (cid,)
            ).fetchall()
            if row and not row[0][0]:
                self._db.execute("DELETE FROM reached WHERE cid=?", (cid,))
                freed.append(cid)
        return freed

    @contextmanager
    def _transaction(self, durable: bool) -> Generator[None]:
        with self.lock:
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise Refused(f"the pins cannot be written ({error}): free some disk and try again", 28) from None
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # ---- questions

    def _rows(self, sql: str, *values: object) -> list[tuple[int, ...]]:
        with self.lock if self._read is self._db else self._reading:
            return self._read.execute(sql, values).fetchall()

    def visibility(self, cid: bytes) -> Visibility | None:
        """The widest of the pins that reach the block; None: no pin does."""
        rows = self._rows("SELECT private, pool, public FROM reached WHERE cid=?", cid)
        return (
            max((level for level, count in zip(Visibility, rows[0], strict=True) if count), default=None)
            if rows
            else None
        )

    def may(self, cid: bytes, mine: bool) -> bool:
        """Whether the block may leave the node, `mine`: to a machine of my account."""
        level = self.visibility(cid)
        return level is Visibility.PUBLIC or (mine and level is Visibility.POOL)

    def list(self) -> list[Pin]:
        """All pins, by reason."""
        with self.lock:
            rows = self._db.execute("SELECT root, why, visibility, since FROM pins ORDER BY why, root").fetchall()
        return [Pin(root, why, Visibility(level), since) for root, why, level, since in rows]

    def roots(self, why: str) -> set[bytes]:
        """What is pinned for this reason."""
        with self.lock:
            return {root for (root,) in self._db.execute("SELECT root FROM pins WHERE why=?", (why,)).fetchall()}

    def reasons(self) -> set[str]:
        with self.lock:
            return {why for (why,) in self._db.execute("SELECT DISTINCT why FROM pins").fetchall()}

    def public_roots(self) -> list[bytes]:
        """The only ones that may ever be announced."""
        with self.lock:
            rows = self._db.execute(
                "SELECT DISTINCT root FROM pins WHERE visibility=?", (Visibility.PUBLIC,)
            ).fetchall()
        return [root for (root,) in rows]

    # ---- what garbage collection asks

    def mark(self, stop: Callable[[], bool] = lambda: False) -> list[str]:
        """Count anew, from the pins, what they reach; sentences about what is not as it should be. All of it or, if `stop` says so,
        nothing. Pins made meanwhile wait."""
        troubles: list[str] = []
        with self._transaction(False):
            self._db.execute("DELETE FROM reached")
            for why, root, level in self._db.execute("SELECT why, root, visibility FROM pins").fetchall():
                if stop():
                    raise Interrupted()
                gone: list[bytes] = []
                self._count(root, Visibility(level), gone)
                if gone:
                    troubles.append(
                        f"of {c.text(root)} ({why}) {len(gone)} blocks are missing, the first {c.text(gone[0])}"
                    )
        return troubles

    def unreached(self, cids: list[bytes]) -> list[bytes]:
        """Those among these that no pin reaches. They stay so while `lock` is held."""
        with self.lock:
            return [cid for cid in cids if not self._db.execute("SELECT 1 FROM reached WHERE cid=?", (cid,)).fetchall()]

    def close(self) -> None:
        with self.lock, self._reading:
            if self._read is not self._db:
                self._read.close()
            self._db.close()


class Interrupted(Refused):
    """Garbage collection was told to stop. Everything is as it should be."""

    def __init__(self) -> None:
        super().__init__("garbage collection was interrupted: what it had not come to is still there", 4)
