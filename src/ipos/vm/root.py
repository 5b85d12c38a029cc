"""root: the one hash of a state, equal on every machine: a Merkle tree of BLAKE3 over 64 KiB leaves.

The canonical state is a header (work used, the lengths of the parts, the hashes of what was printed so far) and the parts, each padded with
zeros to whole leaves: globals, frames, the program's memory, the WASI's. A leaf of zeros has a hash like any other. Two nodes are hashed
into their parent in order; one without a partner goes up as it is. Leaves and nodes are hashed in different contexts, so neither can be
taken for the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from blake3 import blake3

LEAF_BYTES = 65536
LEAF, NODE = "ipos 2026 state leaf", "ipos 2026 state node"
ZEROS = bytes(LEAF_BYTES)
HEADER = struct.Struct("<8sQ4Q32s32s")
MAGIC = b"ipos-st1"


class Parts(NamedTuple):
    """The state of a stopped program, besides the work it used."""

    globals: bytes
    frames: bytes
    memory: bytes
    wasi: bytes


class Header(NamedTuple):
    work: int
    lengths: tuple[int, int, int, int]
    stdout: bytes
    stderr: bytes

    def encode(self) -> bytes:
        return HEADER.pack(MAGIC, self.work, *self.lengths, self.stdout, self.stderr)


def leaf_hash(leaf: bytes) -> bytes:
    return _zero() if leaf == ZEROS else blake3(leaf, derive_key_context=LEAF).digest()


@cache
def _zero() -> bytes:
    return blake3(ZEROS, derive_key_context=LEAF).digest()


def leaves(parts: Parts) -> Iterator[bytes]:
    """All leaves of all parts, in order, padded."""
    for part in parts:
        for at in range(0, len(part), LEAF_BYTES):
            leaf = part[at : at + LEAF_BYTES]
            yield leaf if len(leaf) == LEAF_BYTES else leaf.ljust(LEAF_BYTES, b"\0")


def root(header: Header, hashes: list[bytes]) -> bytes:
    """`hashes` of the leaves in order."""
    level = [blake3(header.encode(), derive_key_context=LEAF).digest(), *hashes]
    while len(level) > 1:
        pairs = [blake3(level[i] + level[i + 1], derive_key_context=NODE).digest() for i in range(0, len(level) - 1, 2)]
        level = [*pairs, level[-1]] if len(level) % 2 else pairs
    return level[0]


def trapped(work: int, word: str, stdout: bytes, stderr: bytes) -> bytes:
    """The root of a task that trapped: how, after how much work, with what output; memory does not matter any more."""
    return blake3(
        struct.pack("<8sQ32s32s", MAGIC, work, stdout, stderr) + word.encode(), derive_key_context=LEAF
    ).digest()
