"""book: what the coordinator of a quorum must not forget, in one SQLite file: the states of all its machines, written before anybody is
told of them. A coordinator that was killed at any instruction reads a past that its workers agree with."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from ipos.pool import dispute as d
from ipos.pool import handover as h
from ipos.pool import lease as l
from ipos.pool import quorum as q
from ipos.wire.errors import Refused

QuorumState = q.New | q.Gathering | q.Revealing | q.Disputing | q.Agreed | q.Undecided | q.Cancelled
ChainState = h.Vacant | h.Held | h.Pulling | h.Leaving | h.Closed
LeaseState = l.Offered | l.Waiting | l.Running | l.Silent | l.Finished | l.Returned | l.Lost | l.Withdrawn
CaseState = d.Open | d.Judging | d.Tracing | d.Decided | d.Stuck


class Book(msgspec.Struct):
    """`chains`, `leases`: by seat; `cases`: by the seat that is accused; `workers`: run address -> number of its home; `next`: the next
    number; `verdicts`: by accused seat, encoded Verdict records in hexadecimal digits; `judged`: what each re-execution took, (since,
    work); `moved`: sentences about seats that changed hands; `done`: the outputs are in the coordinator's store."""

    quorum: QuorumState
    chains: dict[str, ChainState] = {}
    leases: dict[str, LeaseState] = {}
    cases: dict[str, CaseState] = {}
    workers: dict[str, int] = {}
    next: int = 1
    verdicts: dict[str, str] = {}
    judged: dict[str, tuple[int, int]] = {}
    exposed: dict[str, str] = {}
    moved: list[str] = []
    done: bool = False

    def name(self, node: str) -> str:
        """What a worker is called in sentences."""
        return f"worker {self.workers[node]}" if node in self.workers else node


_book = msgspec.json.Decoder(Book)


class Shelf:
    """One file, one book. Methods block."""

    def __init__(self, path: Path, sync: bool = True) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._path = path
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={'FULL' if sync else 'OFF'}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS book (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT NULL)"
        )

    def read(self) -> Book | None:
        row = self._db.execute("SELECT body FROM book").fetchone()
        if row is None:
            return None
        try:
            return _book.decode(row[0])
        except msgspec.MsgspecError as error:
            raise Refused(f"{self._path} was written by another IPOS: {error} (remove it to begin again)") from None

    def write(self, book: Book) -> None:
        """Returns when it is on disk. `Refused` if the disk is full."""
        try:
            self._db.execute("INSERT OR REPLACE INTO book VALUES (1, ?)", (msgspec.json.encode(book),))
        except sqlite3.Error as error:
            raise Refused(f"{self._path} cannot be written: {error}") from None

    def close(self) -> None:
        self._db.close()
