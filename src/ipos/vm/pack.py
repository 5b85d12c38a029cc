"""pack: a save as one stream of frames, to be kept by another machine or put into a file; and back into a directory of `save`.

A frame is a 32-byte name, a length and zstd bytes. First the head; then each leaf that is not zeros, once, in the head's order; then what
the program had printed, in pieces of 64 KiB. A frame is stored as one block, so two saves of one program share what did not change, and a
leaf's frame is the record that stands in `leaves`, so nothing is compressed twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import zstandard
from blake3 import blake3

from ipos.vm.root import LEAF_BYTES, ZEROS, leaf_hash
from ipos.vm.save import HEAD_BYTES, RECORD, Head, View, nofollow, parse_head
from ipos.wire.errors import BadRecord

FIRST: Final = b"ipos save 1".ljust(32, b"\0")
STREAMS: Final = ("stdout", "stderr")
PRINTED: Final = tuple(b"ipos " + name.encode().ljust(27, b"\0") for name in STREAMS)
FRAME_BYTES: Final = RECORD.size + 2 * LEAF_BYTES


class Frame(NamedTuple):
    """`key` is equal for equal frames of one run, and known without reading them; `make` gives the bytes."""

    key: bytes
    make: Callable[[], bytes]


def frames(view: View) -> Iterator[Frame]:
    """Of a save on disk. The frames must be made before the view is closed."""
    pack = zstandard.ZstdCompressor(level=1)
    head = view.head
    body = msgspec.msgpack.encode(head)
    for at in range(0, len(body), LEAF_BYTES):
        piece = body[at : at + LEAF_BYTES]
        yield Frame(blake3(piece).digest(), lambda piece=piece: frame(FIRST, pack.compress(piece)))
    zero = leaf_hash(ZEROS)
    for name in dict.fromkeys(head.names()):
        if name != zero:
            yield Frame(name, lambda name=name: frame(name, view.leaves.packed(name)))
    for which, name, count in zip(STREAMS, PRINTED, head.written, strict=True):
        for at in range(0, count, LEAF_BYTES):
            n = min(LEAF_BYTES, count - at)
            key = b"%s %d %d" % (which.encode(), at, n)
            path = view.directory / which
            yield Frame(key, lambda path=path, at=at, n=n, name=name: frame(name, pack.compress(_piece(path, at, n))))


def _piece(path: Path, at: int, count: int) -> bytes:
    with open(nofollow(path), "rb") as stream:
        stream.seek(at)
        body = stream.read(count)
    if len(body) != count:
        raise BadRecord("save", f"{path.name} has fewer bytes than the save says")
    return body


def frame(name: bytes, packed: bytes) -> bytes:
    return RECORD.pack(name, len(packed)) + packed


def cut(stream: Iterable[bytes]) -> Iterator[bytes]:
    """The frames of a packed save, as `frames` made them."""
    for name, packed in _parse(stream):
        yield frame(name, packed)


def _parse(stream: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(name, packed) of each frame, however the stream is cut."""
    rest = b""
    for piece in stream:
        rest += piece
        while len(rest) >= RECORD.size:
            name, length = RECORD.unpack_from(rest)
            if length > 2 * LEAF_BYTES:
                raise BadRecord("save", f"a frame of {length} bytes, the most is {2 * LEAF_BYTES}")
            if len(rest) < RECORD.size + length:
                break
            yield name, rest[RECORD.size : RECORD.size + length]
            rest = rest[RECORD.size + length :]
    if rest:
        raise BadRecord("save", f"it ends within a frame ({len(rest)} bytes are left)")


def first(stream: Iterable[bytes]) -> Head:
    """The head of a packed save; reads no further than it must. `BadRecord` if it is none."""
    body = bytearray()
    for name, packed in _parse(stream):
        if name != FIRST:
            break
        body += _unpacked(packed)
    return parse_head(bytes(body))


def _unpacked(packed: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=LEAF_BYTES)
    except zstandard.ZstdError as error:
        raise BadRecord("save", f"a frame is damaged: {error}") from None


def unpack(stream: Iterable[bytes], directory: Path) -> Head:
    """Write a packed save as a directory of `save`, in the place of what is there. It is not verified: `View(directory).leaves.parts`
    does that. `BadRecord` if it is no save."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "head").unlink(missing_ok=True)
    body = bytearray()
    with ExitStack() as files:
        leaves, stdout, stderr = (files.enter_context(open(directory / which, "wb")) for which in ("leaves", *STREAMS))
        for name, packed in _parse(stream):
            if name == FIRST or name in PRINTED:
                if name != FIRST:
                    (stdout, stderr)[PRINTED.index(name)].write(_unpacked(packed))
                    continue
                body += _unpacked(packed)
                if len(body) > HEAD_BYTES:
                    raise BadRecord("head", f"more than {HEAD_BYTES} bytes")
            else:
                leaves.write(frame(name, packed))
        leaves.flush()
        os.fsync(leaves.fileno())
    head = parse_head(bytes(body))
    new = directory / "head.new"
    new.write_bytes(body)
    new.rename(directory / "head")
    return head


def verify(directory: Path) -> Head:
    """`BadRecord` unless the save is whole: every leaf and all of them, and what was printed."""
    with View(directory) as view:
        view.leaves.parts(view.head)
        wanted = (view.head.stdout, view.head.stderr)
        for which, count, digest in zip(STREAMS, view.head.written, wanted, strict=True):
            hasher = blake3()
            for at in range(0, count, 1 << 20):
                hasher.update(_piece(directory / which, at, min(1 << 20, count - at)))
            if hasher.digest() != digest:
                raise BadRecord("save", f"{which} is not what the program had printed")
        return view.head
