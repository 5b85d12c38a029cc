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


memory = _typed(text.size)
work = _typed(text.work)
seconds = _typed(text.duration)


def replicas(words: str) -> int:
    """2 to 9 on one machine."""
    if not re.fullmatch("[2-9]", words):
        raise argparse.ArgumentTypeError(f"{words!r} replicas: 2 to 9 can be compared")
    return int(words)
