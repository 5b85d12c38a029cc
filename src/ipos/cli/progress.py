"""One line on a terminal for what takes longer than a moment; nothing elsewhere."""

from __future__ import annotations

import sys
import time

from ipos.wire import limits

_EVERY_S = 0.1


class Progress:
    """`show(count)`: so many bytes so far, of `total`."""

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._began = self._drawn = time.monotonic()
        self._shown = False

    def show(self, count: int) -> None:
        now = time.monotonic()
        took = now - self._began
        if took > 0.5 and now - self._drawn > _EVERY_S and sys.stderr.isatty():
            of = f" of {self._total / limits.MiB:.0f}" if self._total else ""
            words = f"{count / limits.MiB:.0f}{of} MiB, {count / limits.MiB / took:.0f} MiB/s "
            print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)
            self._shown, self._drawn = True, now

    def close(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False
