"""content: what a task is given, as the engine begins it: from blocks of a store, or from the plan of a worker.

A judge has the task's files as content, a worker as files of a directory. Both must number the input files alike, for the numbers are part
of the state: depth first, names in order, each regular file the next number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import BinaryIO, Final

from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm.host import Fault
from ipos.vm.image import with_start
from ipos.vm.plan import Plan
from ipos.vm.runner import Spec
from ipos.vm.wasi.boot import Boot, Directory, File, Limits, Stdin, StdinKind, Symlink
from ipos.wire.errors import BadRecord

BLOCK_BYTES: Final = 65536
SCRATCH: Final = "tmp"  # an empty directory that every program finds
NESTED: Final = 64


def spec_of(plan: Plan, tree: Directory) -> Spec:
    """How the engine begins a task: a function of its descriptor alone."""
    boot = Boot(
        args=plan.args, env=plan.env, seed=bytes.fromhex(plan.seed), stdin=Stdin(StdinKind.STREAM), tree=tree,
        limits=Limits(overlay_bytes=plan.memory_bytes // 2, output_bytes=plan.output_bytes),
    )  # fmt: skip
    return Spec(plan.task, boot, plan.memory_bytes, plan.work, plan.mark_every)


class Content:
    """`host.FileHost` over blocks: `files` is the input root, by name. What the program prints goes to `out`, two files open for
    reading and writing. A block that is not in the store is a `Fault`."""

    def __init__(
        self,
        store: BlockStore,
        files: Mapping[str, bytes],
        stdin: bytes | None,
        out: tuple[BinaryIO, BinaryIO],
        start: bytes = b"",
    ) -> None:
        """`start`: what a task that starts from an image finds as `image.START`."""
        self._store = store
        self._numbers: list[bytes] = []
        self._stdin, self._read = stdin, 0
        self._size = unixfs.size(store, stdin) if stdin is not None else 0
        self.out = out
        root = dict(files)
        self.tree = self._directory(root, SCRATCH if SCRATCH not in root else None)
        self._start = start
        if start:
            self.tree = with_start(self.tree, len(self._numbers) + 1, start)

    def _directory(self, names: Mapping[str, bytes], scratch: str | None = None, depth: int = 0) -> Directory:
        if depth > NESTED:
            raise BadRecord("files", f"directories nested deeper than {NESTED}")
        entries: dict[str, Directory | File | Symlink] = {}
        ordered: list[str] = sorted([*names, scratch] if scratch is not None else names)
        for name in ordered:
            if name == scratch:
                entries[name] = Directory()
                continue
            cid = names[name]
            node = unixfs.parse(self._store.get(cid)) if cid[:4] == c.DAG_PB else None
            if node is not None and node.kind == unixfs.DIR:
                entries[name] = self._directory({link.name: link.cid for link in node.links}, depth=depth + 1)
            elif node is not None and node.kind == unixfs.SYMLINK:
                entries[name] = Symlink(os.fsdecode(node.data))
            else:
                self._numbers.append(cid)
                entries[name] = File(len(self._numbers), unixfs.size(self._store, cid))
        return Directory(entries)

    def ready(self, file: int, first: int, last: int) -> bool:
        return True

    def block(self, file: int, n: int) -> bytes:
        return self.read(file, n * BLOCK_BYTES, BLOCK_BYTES)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Of an input file."""
        if number > len(self._numbers):
            return self._start[offset : offset + length]
        try:
            return unixfs.read(self._store, self._numbers[number - 1], offset, length)
        except OSError as error:
            raise Fault(f"an input file cannot be read: {error}") from None

    def stdin(self, count: int) -> bytes | None:
        if self._stdin is None or self._read >= self._size:
            return b""
        try:
            piece = unixfs.read(self._store, self._stdin, self._read, count)
        except OSError as error:
            raise Fault(f"the standard input cannot be read: {error}") from None
        self._read += len(piece)
        return piece

    def skip(self, count: int) -> None:
        """So much of its standard input had been read before."""
        self._read = count

    def output(self, stream: int, content: bytes) -> None:
        try:
            self.out[stream].write(content)
        except OSError as error:
            raise Fault(f"what the program prints cannot be kept: {os.strerror(error.errno or 0)}") from None

    def printed(self, before: tuple[bytes, bytes]) -> None:
        """Its output begins with this."""
        for stream, content in enumerate(before):
            self.output(stream, content)
