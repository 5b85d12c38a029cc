"""commitment: what a seat of a quorum says it computed, and the hash by which it binds itself before anybody shows anything.

The hash covers the seat and the node that made it, so a commitment that was copied cannot be opened by who copied it; the salt keeps a
short answer from being guessed. The bytes: docs/protocols/quorum.md.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from blake3 import blake3

from ipos.store import cid as c
from ipos.wire.errors import BadRecord
from ipos.wire.record import Link, Record, cid_of, encode

CONTEXT: Final = "ipos 2026 seat commitment"
SALT_BYTES: Final = 32
ROOT_BYTES: Final = 32

Mark = tuple[int, str]
"""Work in units, root in 64 hexadecimal digits."""


class Ending(Record, frozen=True, kw_only=True):
    """What a task came to, equal on every honest machine: `killed`: the sentence of the trap or limit that ended it, or ""; `work` in
    units, `page_work`: the memory integral; `root`: of the final state, 64 hexadecimal digits; `dir`: what it left, None if nothing."""

    v: int = 1
    exit: int
    killed: str
    work: int
    page_work: int
    root: str
    stdout: Link
    stderr: Link
    dir: Link | None


class Use(Record, frozen=True, kw_only=True):
    """What was measured, and differs from machine to machine: nobody can check it, so it counts at the majority's mean."""

    cpu_ms: int
    wall_ms: int
    rss_bytes: int


class Claim(Record, frozen=True, kw_only=True):
    """What is committed to, besides the list of marks. `node`: the run address of who holds the seat in the end."""

    v: int = 1
    task: str
    seat: str
    node: str
    ending: Ending
    use: Use


class Entry(NamedTuple):
    """One step of a claim: a mark (`ending` is ""), or its end (`ending`: the CID of its Ending record)."""

    work: int
    root: str
    ending: str = ""

    @property
    def words(self) -> str:
        return f"{'its end' if self.ending else 'a mark'} at {self.work} units with root {self.root[:16]}"


def commit(claim: Claim, marks: tuple[Mark, ...], salt: bytes) -> str:
    """64 hexadecimal digits: BLAKE3 with derive-key context `CONTEXT` over salt, length of the claim, claim, marks."""
    if len(salt) != SALT_BYTES:
        raise BadRecord("salt", f"{len(salt)} bytes, {SALT_BYTES} are due")
    body = encode(claim)
    hasher = blake3(salt + struct.pack("<Q", len(body)) + body, derive_key_context=CONTEXT)
    for work, root in marks:
        hasher.update(_packed(work, root))
    return hasher.hexdigest()


def _packed(work: int, root: str) -> bytes:
    try:
        body = struct.pack("<Q", work) + bytes.fromhex(root)
    except (ValueError, struct.error):
        raise BadRecord("marks", f"({work!r}, {root[:80]!r}) is not a mark") from None
    if len(body) != 8 + ROOT_BYTES:
        raise BadRecord("marks", f"a root of {len(body) - 8} bytes, {ROOT_BYTES} are due")
    return body


def opens(commitment: str, claim: Claim, marks: tuple[Mark, ...], salt: bytes) -> bool:
    """Whether this is what was committed to; malformed things never are."""
    try:
        return commit(claim, marks, salt) == commitment
    except BadRecord:
        return False


def entries(marks: tuple[Mark, ...], ending: Ending) -> tuple[Entry, ...]:
    """A claim step by step: its marks, and its end."""
    return (*(Entry(*mark) for mark in marks), Entry(ending.work, ending.root, c.text(cid_of(ending))))


def first_difference(one: tuple[Entry, ...], other: tuple[Entry, ...]) -> int | None:
    """The first place where two claims part; None if they are the same. From the start, step by step: states can differ and become equal
    again, so halving the lists would find some difference, not the first."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return None if len(one) == len(other) else min(len(one), len(other))
