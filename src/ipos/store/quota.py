"""QuotaStore: a store that takes so many bytes and no more."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from ipos.store import blocks as b
from ipos.store.blocks import Block, BlockStore, checked
from ipos.wire import limits
from ipos.wire.errors import Refused


class QuotaStore:
    """`BlockStore` over `inner`. `most`: bytes of blocks; `used`: how many there are now, if the inner store knows it better than adding up
    all its sizes; `remedy`: the end of the sentence of a refusal."""

    def __init__(
        self,
        inner: BlockStore,
        most: int,
        used: Callable[[], int] | None = None,
        remedy: str = "delete some, or allow more",
    ) -> None:
        self._inner = inner
        self._most = most
        self._used = used or (lambda: sum(inner.size(cid) for cid in inner))
        self._remedy = remedy
        self._lock = threading.Lock()  # two puts that fit one by one may not fit together

    def get(self, cid: bytes) -> bytes:
        return self._inner.get(cid)

    def put(self, blocks: Iterable[Block]) -> None:
        self.put_hashed(checked(blocks))

    def put_hashed(self, blocks: Sequence[Block]) -> None:
        """See `blocks.Hashed`."""
        with self._lock:
            self._fits(blocks)
            b.put_hashed(self._inner, blocks)

    def put_soon(self, blocks: Iterable[Block]) -> None:
        """See `blocks.Late`."""
        batch = list(blocks)
        with self._lock:
            self._fits(batch)
            b.put_soon(self._inner, batch)

    def settle(self) -> None:
        """See `blocks.Late`."""
        b.settle(self._inner)

    def _fits(self, blocks: Sequence[Block]) -> None:
        new = {cid: len(block) for cid, block in blocks if not self._inner.has(cid)}
        if new:
            used, more = self._used(), sum(new.values())
            if used + more > self._most:
                raise Refused(
                    f"{more} bytes more are {used + more - self._most} over the {self._most / limits.GiB:.3g} GiB "
                    f"({self._most} bytes) of this store: {self._remedy}",
                    errno.EDQUOT,
                )

    def has(self, cid: bytes) -> bool:
        return self._inner.has(cid)

    def size(self, cid: bytes) -> int:
        return self._inner.size(cid)

    def delete(self, cids: Iterable[bytes]) -> None:
        self._inner.delete(cids)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._inner)
