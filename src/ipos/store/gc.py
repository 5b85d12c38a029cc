"""gc: delete what no pin reaches, and give the disk back.

Mark: the pins' counts are made anew from the pins. Sweep: blocks that no pin reaches and that nobody has put for `grace_s` go, a page at a
time, each page in one transaction during which nothing can be pinned. So a block that is put while this runs stays, however far it is; a
crash or an interruption between two pages leaves fewer blocks of no use, and nothing else. What was pinned and is no more has no grace.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from ipos.store.pins import Interrupted, Pins

PAGE: Final = 500
GRACE_S: Final = 3600.0  # what was just put and is pinned by nobody is for something that is under way


class Collectable(Protocol):
    """What a store must know for this; `PackStore` does."""

    def idle(self, seconds: float) -> Iterator[bytes]:
        """Blocks that nobody has put for so long."""
        ...

    def drop_idle(self, cids: list[bytes], seconds: float) -> tuple[int, int]:
        """Delete those that nobody has put for so long; (blocks, bytes)."""
        ...

    def compact(self, stop: Callable[[], bool]) -> int:
        """Rewrite packs that are mostly garbage; how many went."""
        ...


class Collected(NamedTuple):
    """`troubles`: sentences about pins that reach blocks which are not there."""

    blocks: int
    bytes: int
    packs: int
    troubles: tuple[str, ...]


def collect(
    store: Collectable, pins: Pins, grace_s: float = GRACE_S, stop: Callable[[], bool] = lambda: False
) -> Collected:
    """In a thread. `Interrupted` if `stop` came to say so."""
    troubles = pins.mark(stop)
    blocks = freed = 0
    found = store.idle(grace_s)
    while page := list(itertools.islice(found, PAGE)):
        if stop():
            raise Interrupted()
        with pins.lock:
            count, size = store.drop_idle(pins.unreached(page), grace_s)
        blocks, freed = blocks + count, freed + size
    return Collected(blocks, freed, store.compact(stop), tuple(troubles))
