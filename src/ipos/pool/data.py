"""data: how the bytes of a task travel: small blocks inside the messages, the rest by CID, each once per machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from ipos.pool.records import Result, Task
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore, put_soon
from ipos.wire import limits
from ipos.wire.clock import Clock
from ipos.wire.errors import BadRecord, Gone, Refused
from ipos.wire.record import encode

Fetch = Callable[[Sequence[bytes], Sequence[str], float], Awaitable[None]]
"""`NetEngine.fetch`: bring blocks from peers into the store."""

TRIES = 3
MIN_RATE_BYTES_S = 256 * limits.KiB  # slower than this a fetch is given up: its deadline grows with what is asked
BATCH = 512  # blocks asked for at once


def roots(task: Task) -> list[bytes]:
    """Every file that a run of the task reads."""
    found = [task.program, *task.files.values()]
    if task.environment is not None:
        found.append(task.environment)
    if task.stdin is not None:
        found.append(task.stdin)
    if task.image is not None:
        found.append(task.image)
    return found


def results(result: Result) -> list[bytes]:
    """Every file that a result names."""
    named = [c.parse(result.ext[key]) for key in ("marks", "save", "verification") if key in result.ext]
    return [result.stdout, result.stderr, *([result.dir] if result.dir is not None else []), *named]


def complete(store: BlockStore, cid: bytes) -> bool:
    return not unixfs.missing(store, cid)


def small(store: BlockStore, cids: Iterable[bytes]) -> list[bytes]:
    """The blocks among these that are small enough to travel inside a message."""
    out: list[bytes] = []
    for cid in dict.fromkeys(cids):
        if store.has(cid):
            block = store.get(cid)
            if len(block) <= limits.inline_bytes:
                out.append(block)
    return out


def named(cids: Iterable[bytes], block: bytes) -> bytes:
    """The CID among `cids` that this block hashes to. `BadRecord` if none: nobody may put what was not asked for into a store."""
    for cid in cids:
        if c.matches(cid, block):
            return cid
    raise BadRecord("blocks", "a block hashes to no CID that the message names")


def take(store: BlockStore, cids: Sequence[bytes], blocks: Iterable[bytes]) -> None:
    """Store blocks that came inside a message about `cids`; the journal's next commit sees that they are on disk."""
    put_soon(store, [(named(cids, block), block) for block in blocks])


def inline(store: BlockStore, task: Task, known: set[bytes]) -> tuple[bytes, ...]:
    """The small blocks of a task that a node is not known to have."""
    return tuple(small(store, (cid for cid in roots(task) if cid not in known)))


async def bring(store: BlockStore, cid: bytes, fetch: Fetch, peers: Sequence[str], clock: Clock) -> None:
    """All of the DAG under `cid`, level by level. `Refused` if no peer gives it; what arrived stays, so a later try goes on."""
    tries = 0
    while missing := unixfs.missing(store, cid):
        batch = list(missing)[:BATCH]
        before = len(batch)
        try:
            await fetch(batch, peers, 10.0 + before * limits.MiB / MIN_RATE_BYTES_S)
        except (Refused, Gone):
            left = sum(not store.has(one) for one in batch)
            tries = 0 if left < before else tries + 1
            if tries >= TRIES:
                raise
            await clock.sleep(0.2 * (tries + 1))


def record_block(record: object) -> tuple[bytes, bytes]:
    """(CID, bytes) of a record, to store it as a block."""
    body = encode(record)  # pyright: ignore[reportArgumentType]
    return c.of_dag_cbor(body), body
