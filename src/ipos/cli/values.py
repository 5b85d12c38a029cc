"""Sizes, work and times as people write them on a command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TypeVar

from ipos.wire import text
from ipos.wire.errors import Refused

T = TypeVar("T")


def _typed(read: Callable[[str], T]) -> Callable[[str], T]:
    """As argparse wants it: what cannot be read is a mistake in the command."""

    def typed(value: str) -> T:
        try:
            return read(value)
        except Refused as refused:
            raise argparse.ArgumentTypeError(str(refused)) from None

    return typed


def _memory(words: str) -> int:
    units = {"": 2.0**30, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
    return int(text.quantity(words, units, "a size"))


memory = _typed(_memory)  # bytes; "256M", "2G", a bare number is in GiB
work = _typed(text.work)
seconds = _typed(text.duration)


def replicas(words: str) -> int:
    """2 to 9 on one machine."""
    if not re.fullmatch("[2-9]", words):
        raise argparse.ArgumentTypeError(f"{words!r} replicas: 2 to 9 can be compared")
    return int(words)
