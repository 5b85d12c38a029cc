"""adding: files and directories become content of a store, in a process of its own, so that the node's loop feels nothing of it.

`python -m ipos.store.adding` reads one question (JSON, `Question`) from its standard input and answers with lines of JSON: `{"bytes": N}`
now and then, `{"left_out": PATH}`, `{"path", "cid", "size"}` for each path when all of it is on disk, at last `{"done": true}` or
`{"refused": SENTENCE}`. It may be killed at any moment: what it had written is garbage then.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import msgspec

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import Block, BlockStore, put_hashed
from ipos.store.packfile import Reference
from ipos.store.quota import QuotaStore
from ipos.store.spool import SpoolStore
from ipos.wire.errors import Refused

PROGRESS_S: Final = 0.25
BATCH_BYTES: Final = 16 << 20  # one fsync for so much; twice as much is in memory
BATCH_BLOCKS: Final = 4000


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`store`: the directory; `paths`: absolute; `most`: bytes that the store may have in all (0: as the disk has), of which `used` are
    taken; `remedy`: how to get more."""

    store: str
    paths: tuple[str, ...]
    profile: str = "unixfs-v1-2025"
    nocopy: bool = False
    most: int = 0
    used: int = 0
    remedy: str = ""


class Ahead(unixfs.Writer):
    """Writes in a thread, while the next blocks are read and hashed."""

    def __init__(self, store: BlockStore, progress: Callable[[int], None]) -> None:
        super().__init__(store)
        self._progress = progress
        self._batches: queue.Queue[list[Block] | None] = queue.Queue(1)
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="writer")
        self._thread.start()

    def put(self, cid: bytes, block: bytes) -> None:
        self.batch.append((cid, block))
        self.bytes += len(block)
        if self.bytes >= BATCH_BYTES or len(self.batch) >= BATCH_BLOCKS:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._trouble is not None:
            raise self._trouble
        self._progress(self.bytes)
        self._batches.put(self.batch)
        self.batch, self.bytes = [], 0

    def flush(self) -> None:
        """All that was put is on disk."""
        self._hand_over()
        self._batches.join()
        if self._trouble is not None:
            raise self._trouble

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                if self._trouble is None:
                    put_hashed(self.store, batch)
            except BaseException as error:
                self._trouble = error
            self._batches.task_done()

    def close(self) -> None:
        self._batches.put(None)
        self._thread.join()


class References(Protocol):
    def put_references(self, references: list[tuple[bytes, Reference]]) -> None: ...


class InPlace(Ahead):
    """Leaves stay where they are: of them the store has references only."""

    def __init__(self, store: BlockStore, progress: Callable[[int], None], into: References) -> None:
        super().__init__(store, progress)
        self._references: list[tuple[bytes, Reference]] = []
        self._into = into
        self._read = 0

    def leaf(self, cid: bytes, block: bytes, stream: BinaryIO) -> None:
        st = os.fstat(stream.fileno())
        path = os.path.realpath(str(stream.name))
        at = stream.tell() - len(block)
        if block:
            self._references.append((cid, Reference(path, at, len(block), st.st_mtime_ns, st.st_size)))
        else:
            self.put(cid, block)
        self._read += len(block)
        if len(self._references) >= BATCH_BLOCKS:
            self._refer()

    def _refer(self) -> None:
        self._into.put_references(self._references)
        self._references = []
        self._progress(self._read)
        self._read = 0

    def flush(self) -> None:
        self._refer()
        super().flush()


def add(question: Question, say: Callable[[dict[str, object]], None]) -> None:
    """See the head of this file. `Refused` with the sentence of what stands in the way."""
    if question.profile not in unixfs.PROFILES:
        raise Refused(f"{question.profile!r} is no profile: there are {', '.join(unixfs.PROFILES)}")
    profile = unixfs.PROFILES[question.profile]
    store = SpoolStore(Path(question.store))
    count, said = 0, time.monotonic()

    def progress(more: int) -> None:
        nonlocal count, said
        count += more
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            say({"bytes": count})

    room: BlockStore = store
    if question.most:
        room = QuotaStore(store, question.most, lambda: question.used + store.written, question.remedy)
    out = InPlace(room, progress, store) if question.nocopy else Ahead(room, progress)
    added: list[tuple[str, bytes, int]] = []
    for path in question.paths:
        try:
            added.append((path, *unixfs.add_tree(out, Path(path), profile, lambda each: say({"left_out": each}))))
        except OSError as error:
            if isinstance(error, Refused):
                raise
            raise Refused(f"{error.filename or path} cannot be read: {os.strerror(error.errno or 0)}") from None
    out.flush()
    out.close()
    store.close()
    say({"bytes": count})
    for path, cid, size in added:
        say({"path": path, "cid": c.text(cid), "size": size})


def main() -> int:
    def say(line: dict[str, object]) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.buffer.flush()

    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # nobody waits for it any more
        try:
            add(msgspec.json.decode(sys.stdin.buffer.read(), type=Question), say)
        except Refused as refused:
            say({"refused": str(refused)})
        else:
            say({"done": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
