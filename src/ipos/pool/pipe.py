"""pipe: what a coordinator and a worker process of it say to each other: lines of JSON, and blocks.

A message is one line; if it has `blocks`, a list of sizes, so many bytes follow it. `ask` numbers a question, `re` its answer; what has
`event` nobody asked for. Blocks are named by the message's `cids` and believed only when they hash to them. docs/protocols/quorum.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, BinaryIO, Final

from ipos.store import cid as c
from ipos.store.blocks import Block
from ipos.wire import limits
from ipos.wire.errors import BadRecord

Message = dict[str, Any]
LINE_BYTES: Final = 64 << 20  # the longest list of marks
BATCH_BYTES: Final = 16 << 20  # of blocks in one message
BATCH_BLOCKS: Final = 2048


def pack(message: Message, blocks: Iterable[Block] = ()) -> bytes:
    """A message as it goes down the pipe."""
    pairs = list(blocks)
    if pairs:
        message = {**message, "cids": [c.text(cid) for cid, _ in pairs], "blocks": [len(block) for _, block in pairs]}
    line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(line) > LINE_BYTES:
        raise BadRecord("message", f"{len(line)} bytes, the most is {LINE_BYTES}")
    return line + b"".join(block for _, block in pairs)


def sizes(message: Message) -> list[int]:
    """Of the blocks that follow a message; `BadRecord` if they cannot be."""
    given = message.get("blocks", [])
    most = limits.block_bytes
    if not isinstance(given, list) or len(given) > BATCH_BLOCKS:
        raise BadRecord("blocks", f"not a list of at most {BATCH_BLOCKS} sizes")
    if any(type(size) is not int or not 0 <= size <= most for size in given):
        raise BadRecord("blocks", f"a size that is not between 0 and {most}")
    if sum(given) > BATCH_BYTES + most or len(message.get("cids", [])) != len(given):
        raise BadRecord("blocks", "more bytes than one message carries, or not one CID for each")
    return given


def named(message: Message, bodies: list[bytes]) -> list[Block]:
    """The blocks of a message, each as its CID says; `BadRecord` otherwise."""
    pairs = [(c.parse(text), body) for text, body in zip(message["cids"], bodies, strict=True)]
    for cid, body in pairs:
        if not c.matches(cid, body):
            raise BadRecord("blocks", f"{c.text(cid)} came with other bytes")
    return pairs


def parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise BadRecord("message", f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadRecord("message", "not an object")
    return message


def read(stream: BinaryIO) -> tuple[Message, list[Block]] | None:
    """The next message; None at the end."""
    line = stream.readline(LINE_BYTES)
    if not line.endswith(b"\n"):
        return None
    message = parse(line)
    bodies: list[bytes] = []
    for size in sizes(message):
        body = stream.read(size)
        if len(body) != size:
            return None
        bodies.append(body)
    return message, named(message, bodies) if bodies else []


def batches(cids: list[bytes], size_of: dict[bytes, int] | None = None) -> Iterable[list[bytes]]:
    """Lists of CIDs, each small enough for one message."""
    most = BATCH_BYTES // limits.block_bytes if size_of is None else BATCH_BLOCKS
    for at in range(0, len(cids), most):
        yield cids[at : at + most]
