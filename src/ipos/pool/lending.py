"""lending: blocks that a node may have for as long as a lease lasts, though no pin allows them: a friend's node that runs a task of ours its input, the
coordinator whose task ran here its output.

What is lent is a root and what it reaches, and only to the node that the lease is with. The question of a peer comes on the network process's own
thread; what a root reaches is walked when it is first asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore, Missing
from ipos.wire.errors import BadRecord


class Lending:
    """Of one node's store. Thread-safe."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._roots: dict[str, dict[str, set[bytes]]] = {}  # peer -> lease -> roots
        self._reach: dict[bytes, frozenset[bytes]] = {}

    def lend(self, peer: str, lease: str, roots: Iterable[bytes]) -> None:
        with self._lock:
            self._roots.setdefault(peer, {}).setdefault(lease, set()).update(roots)

    def end(self, peer: str, lease: str) -> None:
        with self._lock:
            leases = self._roots.get(peer, {})
            leases.pop(lease, None)
            if not leases:
                self._roots.pop(peer, None)
            kept = {root for leases in self._roots.values() for roots in leases.values() for root in roots}
            self._reach = {root: reach for root, reach in self._reach.items() if root in kept}

    def forget(self, peer: str) -> None:
        """All that this node was lent."""
        with self._lock:
            self._roots.pop(peer, None)

    def may(self, peer: str, cid: bytes) -> bool:
        """Whether the block is lent to the node now."""
        with self._lock:
            roots = {root for roots in self._roots.get(peer, {}).values() for root in roots}
        return cid in roots or any(cid in self._reached(root) for root in roots)

    def _reached(self, root: bytes) -> frozenset[bytes]:
        if (known := self._reach.get(root)) is not None:
            return known
        seen: set[bytes] = set()
        whole, todo = True, [root]
        while todo:
            cid = todo.pop()
            if cid in seen:
                continue
            seen.add(cid)
            if cid[:4] == c.DAG_PB:
                try:
                    todo.extend(link.cid for link in unixfs.parse(self._store.get(cid)).links)
                except (Missing, BadRecord):
                    whole = False
        reach = frozenset(seen)
        if whole:
            with self._lock:
                self._reach[root] = reach
        return reach
