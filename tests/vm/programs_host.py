"""A host for the tests, and what a run came to. Needs nothing but the engine: other processors load it, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ipos.vm.runner import Runner

BLOCK_BYTES = 65536


class Given(Protocol):
    """What a task is given."""

    @property
    def stdin(self) -> bytes: ...

    def content(self, file: int) -> bytes: ...


class Host:
    """`ipos.vm.host.FileHost` of a task. Of its standard input `given` bytes are there, the rest is not yet; `read` is where it goes on."""

    def __init__(self, task: Given, given: int = 1 << 62, out: tuple[bytes, bytes] = (b"", b"")) -> None:
        self.task, self.given, self.read, self.refused = task, given, 0, 0
        self.out = bytearray(out[0]), bytearray(out[1])

    def ready(self, file: int, first: int, last: int) -> bool:
        return True

    def block(self, file: int, n: int) -> bytes:
        return self.task.content(file)[n * BLOCK_BYTES :][:BLOCK_BYTES]

    def stdin(self, count: int) -> bytes | None:
        piece = self.task.stdin[self.read : self.read + count]
        if self.read + len(piece) > self.given:
            self.refused += 1
            return None
        self.read += len(piece)
        return piece

    def output(self, stream: int, content: bytes) -> None:
        self.out[stream].extend(content)


@dataclass(frozen=True)
class Outcome:
    """All that must not depend on moves."""

    exit: int
    trap: str
    work: int
    root: str
    marks: tuple[tuple[int, str], ...]
    page_work: int
    out: str
    err: str


def outcome(runner: Runner, host: Host) -> Outcome:
    ended = runner.ended
    assert ended is not None
    runner.close()
    marks = tuple((work, root.hex()) for work, root in ended.marks)
    texts = [bytes(part).decode(errors="backslashreplace") for part in host.out]
    return Outcome(ended.exit, ended.trap, ended.work, ended.root.hex(), marks, ended.page_work, *texts)
