"""Advisory record locks (Tlock, Tgetlock): who holds which bytes of which file. Nothing here waits: a client that wants to asks again.

Rules of fcntl(2): locks of one owner replace each other, write locks exclude all others, length 0 means to the end of the file.
"""

from __future__ import annotations

from typing import NamedTuple

from ipos.wire import limits
from ipos.wire.errors import Refused

READ, WRITE, UNLOCK = 0, 1, 2  # the kinds, as in Linux
SUCCESS, BLOCKED, ERROR = 0, 1, 2  # the statuses of Rlock
END = 1 << 64


class Owner(NamedTuple):
    """`session` tells connections apart; `client` and `process` are what the client says of itself."""

    session: int
    client: str
    process: int


class Lock(NamedTuple):
    owner: Owner
    kind: int
    start: int
    end: int

    def meets(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end


class Locks:
    """The locks of one node, by the path of the qid."""

    def __init__(self) -> None:
        self.held: dict[int, list[Lock]] = {}

    def conflict(self, file: int, owner: Owner, kind: int, start: int, length: int) -> Lock | None:
        """A lock of somebody else that stands in the way."""
        end = start + length if length else END
        for lock in self.held.get(file, ()):
            if lock.owner != owner and lock.meets(start, end) and WRITE in (kind, lock.kind):
                return lock
        return None

    def take(self, file: int, owner: Owner, kind: int, start: int, length: int) -> int:
        """Lock or unlock; the status."""
        if kind not in (READ, WRITE, UNLOCK):
            return ERROR
        if kind != UNLOCK and self.conflict(file, owner, kind, start, length) is not None:
            return BLOCKED
        end = start + length if length else END
        kept = list[Lock]()
        for lock in self.held.get(file, ()):
            if lock.owner != owner or not lock.meets(start, end):
                kept.append(lock)
                continue
            if lock.start < start:
                kept.append(lock._replace(end=start))
            if lock.end > end:
                kept.append(lock._replace(start=end))
        if kind != UNLOCK:
            kept.append(Lock(owner, kind, start, end))
        if len(kept) > limits.locks_per_file:
            raise Refused(f"more than {limits.locks_per_file} locks on one file", 37)  # ENOLCK
        self.held[file] = kept
        if not kept:
            del self.held[file]
        return SUCCESS

    def drop(self, session: int, file: int | None = None) -> None:
        """Everything that a session holds, on one file or on all."""
        for path in [file] if file is not None else list(self.held):
            kept = [lock for lock in self.held.get(path, ()) if lock.owner.session != session]
            if kept:
                self.held[path] = kept
            else:
                self.held.pop(path, None)


SHARED = Locks()
"""Of this process: a node is one process, and a file has one qid whoever asks for it."""
