"""Sizes, work and times as people write them on a command line."""

from __future__ import annotations

import argparse
import re

NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([A-Za-z]*)")


def _value(text: str, units: dict[str, float], what: str) -> float:
    found = NUMBER.fullmatch(text.strip())
    unit = found[2] if found is not None else ""
    if found is None or unit not in units:
        known = ", ".join(name for name in units if name)
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} (a number, with one of {known})")
    return float(found[1]) * units[unit]


def memory(text: str) -> int:
    """Bytes; "256M", "2G", a bare number is in GiB."""
    units = {"": 2.0**30, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
    return int(_value(text, units, "a size"))


def work(text: str) -> int:
    """Units of work; "100G" is 100 Gop, a bare number is in Gop."""
    return int(_value(text, {"": 1e9, "M": 1e6, "G": 1e9, "T": 1e12, "Mop": 1e6, "Gop": 1e9, "Top": 1e12}, "work"))


def seconds(text: str) -> float:
    """ "500ms", "5s", "2m", "1h"; a bare number is in seconds."""
    return _value(text, {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}, "a time")


def replicas(text: str) -> int:
    """2 to 9 on one machine."""
    if not re.fullmatch("[2-9]", text):
        raise argparse.ArgumentTypeError(f"{text!r} replicas: 2 to 9 can be compared")
    return int(text)
