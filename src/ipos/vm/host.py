"""FileHost: all that a running program can ask of the machine it runs on."""

from __future__ import annotations

from typing import Protocol


class Fault(Exception):
    """The node failed, not the program: out of memory, a block that is gone. The task is tried elsewhere; nothing of it is a result."""


class FileHost(Protocol):
    """Input by number of file, in blocks of 64 KiB; output as it comes. Called between two instructions of the program: never slow."""

    def ready(self, file: int, first: int, last: int) -> bool:
        """Whether these blocks are at hand; if not the program stops until they are."""
        ...

    def block(self, file: int, n: int) -> bytes:
        """The n-th 64 KiB of an input file; the last may be short."""
        ...

    def stdin(self, count: int) -> bytes | None:
        """Exactly min(count, what is left) bytes, b"" at the end; None: not there yet, the program stops."""
        ...

    def output(self, stream: int, content: bytes) -> None:
        """0 stdout, 1 stderr."""
        ...
