"""marks: a task's chain of marks as content: a file of lines `work root`, in order. It is what replicas compare and receipts sign."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ipos.pool.records import Mark
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm.plan import mark_index
from ipos.wire import limits
from ipos.wire.errors import BadRecord

LINE = re.compile(rb"(0|[1-9][0-9]{0,18}) ([0-9a-f]{64})")


def text(marks: Iterable[tuple[int, str]]) -> bytes:
    """Of (work, root) in order."""
    return "".join(f"{work} {root}\n" for work, root in marks).encode()


def parse(body: bytes, mark_every: int) -> tuple[Mark, ...]:
    """`BadRecord` with the number of the line that cannot be one, or that does not lie on the grid beyond the line before."""
    if body and not body.endswith(b"\n"):
        raise BadRecord("marks", "the last line is not whole")
    made: list[Mark] = []
    last = 0
    for n, line in enumerate(body.split(b"\n")[:-1], 1):
        found = LINE.fullmatch(line)
        if found is None:
            raise BadRecord(f"marks, line {n}", "not 'work root'")
        work = int(found[1])
        k = mark_index(work, mark_every)
        if k <= last:
            where = f"mark {last}" if last else "the first point of the grid"
            raise BadRecord(f"marks, line {n}", f"work {work} is not beyond {where}: marks are out of order")
        made.append(Mark(index=k, work=work, root=found[2].decode()))
        last = k
    return tuple(made)


def read(store: BlockStore, cid: bytes | None, mark_every: int) -> tuple[Mark, ...]:
    """The marks in a file; none of None. `Missing` if a block is not here."""
    if cid is None:
        return ()
    if (size := unixfs.size(store, cid)) > limits.marks_bytes:
        raise BadRecord("marks", f"{size} bytes, the most is {limits.marks_bytes}")
    return parse(unixfs.read(store, cid), mark_every)
