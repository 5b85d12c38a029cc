"""image: a start state: a program that has initialised itself and waits at its marker for a task (docs/protocols/engine.md).

Of a stopped program an image keeps the program's own part: its memory, its frames, its globals. The WASI is no part of it: a task that
starts from an image boots it as any task does, with the task's arguments, files, seed and limits, from work 0. So what a task starts
from is a function of its descriptor, and nothing that the image's making left (time, random numbers, open files) can get into it.
On disk an image is a packed save without the WASI's part. It belongs to one program and one engine version. `imager` makes it.
"""

from __future__ import annotations

import hmac
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from ipos.vm import code, pack
from ipos.vm.root import Parts
from ipos.vm.save import Head, View
from ipos.vm.version import version
from ipos.vm.wasi.boot import Directory, File
from ipos.wire.errors import BadRecord, Refused

START: Final = (
    ".ipos-start"  # a file in the root of a task that starts from an image; the image's runner reads and removes it
)
LENGTHS: Final = struct.Struct("<4I")


class Image(NamedTuple):
    """`export`: what to call to go on; `root`: of this state; `parts`: without a WASI."""

    export: str
    root: bytes
    parts: Parts


def name_of(program: str) -> str:
    """What an image's save says that it is of; `program`: its CID as text."""
    return f"image of {program}"


def start_file(args: Sequence[str], env: Mapping[str, str]) -> bytes:
    """The contents of START: arguments as the program gets them, and environment."""
    return msgspec.json.encode({"args": list(args), "env": dict(sorted(env.items()))})


def with_start(tree: Directory, number: int, start: bytes) -> Directory:
    """The input root of a task that starts from an image: START is its last input file."""
    if START in tree.entries:
        raise Refused(f"the task's root has a file {START} of its own: rename it")
    return Directory({**tree.entries, START: File(number, len(start))})


def check(head: Head, program: str) -> None:
    """`Refused` unless a task of this program can start from it."""
    if head.engine != version():
        raise Refused(
            f"the image was made by engine {head.engine}, this is engine {version()}: ipos image build makes it anew"
        )
    if head.task != name_of(program):
        raise Refused(f"the image is of another program ({head.task}), not of {program}")
    if head.marks or head.written != (0, 0) or head.lengths[3]:
        raise BadRecord("image", "it is a save of a task, not an image")


def unpacked(packed: Path, program: str) -> Image:
    """Verified against its root: `BadRecord` says what is damaged, `Refused` if it is not for this engine or program."""
    with tempfile.TemporaryDirectory(dir=packed.parent, prefix=".image-") as scratch, open(packed, "rb") as stream:
        directory = Path(scratch, "save")
        pack.unpack(iter(lambda: stream.read(1 << 20), b""), directory)
        with View(directory) as view:
            check(view.head, program)
            return Image(view.head.export, view.head.root, view.leaves.parts(view.head))


def loaded(packed: Path, program: str, cache: Path) -> bytes:
    """`encoded`, as `unpacked` gives it; once verified it is kept beside this user's compiled code, under the same key. `packed` is named by
    its CID."""
    own = code.key(cache)
    path = cache / f"image-{blake3(f'{packed.name} {program} {version()}'.encode()).hexdigest()}"
    if body := kept(path, own):
        return body
    body = encoded(unpacked(packed, program))
    keep(path, own, body)
    return body


def kept(path: Path, own: bytes) -> bytes:
    """What `keep` put there; b"" if nothing did, or if it is not this user's."""
    try:
        body = memoryview(path.read_bytes())
    except FileNotFoundError:
        return b""
    mac, rest = body[: code.MAC_BYTES], bytes(body[code.MAC_BYTES :])
    return rest if hmac.compare_digest(bytes(mac), blake3(rest, key=own).digest()) else b""


def keep(path: Path, own: bytes, body: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as new:
        new.writelines((blake3(body, key=own).digest(), body))
    os.replace(new.name, path)


def encoded(image: Image) -> bytes:
    """As the node hands it to the parent of its workers."""
    pieces = (image.export.encode(), image.root, image.parts.globals, image.parts.frames)
    return b"".join([LENGTHS.pack(*map(len, pieces)), *pieces, image.parts.memory])


def decoded(body: bytes) -> Image:
    at, pieces = LENGTHS.size, list[bytes]()
    for length in LENGTHS.unpack_from(body):
        pieces.append(body[at : at + length])
        at += length
    export, own, area, frames = pieces
    return Image(export.decode(), own, Parts(area, frames, body[at:], b""))
