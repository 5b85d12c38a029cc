"""The WASI in C and the one in Python side by side: every call goes to both, everything that can be seen is compared."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence

from ipos.vm.wasi import boot, output

from .wasi_native import PAGE_BYTES, Native
from .wasi_reference import Wasi
from .wasi_reference_state import NOSPC, OK

memcmp = ctypes.CDLL(None).memcmp
memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def chunks(plan: Sequence[bytes | None]) -> Callable[[int], bytes | None]:
    """Standard input in pieces; None: the reader has to wait once."""
    left = list(plan)

    def stdin(room: int) -> bytes | None:
        if not left:
            return b""
        if left[0] is None:
            left.pop(0)
            return None
        given, rest = left[0][:room], left[0][room:]
        left[0:1] = [rest] if rest else []
        return given

    return stdin


class Pair:
    def __init__(
        self,
        task: boot.Boot,
        files: dict[int, bytes] | None = None,
        stdin: Sequence[bytes | None] = (),
        lacks_blocks: bool = False,
    ) -> None:
        self.native = Native(boot.encode(task), files, chunks(stdin))
        assert self.native.booted == 0
        if lacks_blocks:
            self.native.at_hand = set()
        self.mirror = (ctypes.c_ubyte * self.native.size)()
        self.reference = Wasi(task, files or {}, memoryview(self.mirror).cast("B"), chunks(stdin))
        self.files = files or {}
        self.waits = 0
        self.said = b"", b""

    def poke(self, address: int, content: bytes) -> None:
        content = content[: max(0, self.native.size - address)]
        self.native.memory[address : address + len(content)] = content
        ctypes.memmove(ctypes.addressof(self.mirror) + address, content, len(content))

    def peek(self, format_: str, address: int) -> int:
        return struct.unpack_from("<" + format_, self.native.memory, address)[0]

    def __call__(self, name: str, *arguments: int) -> int | None:
        native = self.native
        native.needed = None
        got = native(name, *arguments)
        while native.needed:
            # a block was missing: nothing was changed, and the same call goes on once it is there
            assert got is None
            self.same(name, arguments)
            file, offset, length = native.needed
            native.at_hand = {
                (file, block) for block in range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1)
            }
            native.needed = None
            self.waits += 1
            got = native(name, *arguments)
        full = None
        if got == NOSPC:
            full = 0
        elif got == OK and name in {"fd_write", "fd_pwrite"}:
            full = self.peek("I", arguments[-1])
        expected = self.reference(name, *arguments, full=full)
        assert got == expected, f"{name}{arguments}: C says {got}, Python {expected}"
        self.same(name, arguments)
        return got

    def same(self, name: str, arguments: tuple[int, ...]) -> None:
        if memcmp(self.native.address, ctypes.addressof(self.mirror), self.native.size):
            ours, theirs = bytes(self.native.memory), bytes(self.mirror)
            at = next(i for i in range(len(ours)) if ours[i] != theirs[i])
            raise AssertionError(
                f"{name}{arguments}: memory differs at {at}: C {ours[at : at + 48].hex(' ')}, Python {theirs[at : at + 48].hex(' ')}"
            )

    def work(self, amount: int) -> None:
        self.native.work.value += amount
        self.reference.work += amount

    # ---- what a program has at its end

    def check_end(self) -> None:
        for stream, content in output.output_records(self.native.drain()):
            said = list(self.said)
            said[stream] += content
            self.said = said[0], said[1]
        for stream in (0, 1):
            assert self.said[stream] == b"".join(part for to, part in self.reference.out if to == stream)
        self.check_tree(output.root(self.native), self.reference.root)
        metric = lambda which: self.native.call("wasi_metric", which)  # noqa: E731
        assert metric(output.Metric.CALLS) == self.reference.calls
        assert metric(output.Metric.OPEN) == len(self.reference.fds)
        nodes = {id(open_.node): open_.node for open_ in self.reference.fds.values() if open_.node}
        todo = [self.reference.root]
        for node in todo:
            nodes[id(node)] = node
            todo.extend(node.entries.values())
        assert metric(output.Metric.NODES) == len(nodes)

    def check_tree(self, directory: output.OutputDirectory, expected: object) -> None:
        entries = list(directory.entries())
        assert [name.encode() for name, _ in entries] == sorted(expected.entries)  # pyright: ignore
        for name, node in entries:
            other = expected.entries[name.encode()]  # pyright: ignore
            match node:
                case output.OutputDirectory():
                    assert other.kind == 3
                    self.check_tree(node, other)
                case output.OutputSymlink(target):
                    assert target.encode() == other.target
                case output.OutputFile(size=size) if size > 8 << 20:
                    assert size == other.size
                case output.OutputFile():
                    content = b"".join(
                        node.content(lambda number, offset, length: self.files[number][offset : offset + length])
                    )
                    assert content == other.read(0, other.size)
                    assert not node.untouched or content == self.files[node.untouched]
