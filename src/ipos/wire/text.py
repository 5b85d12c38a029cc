"""Status files: `key value`, one a line. What a command prints with --json is made of the same pairs, so there is one schema."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ipos.wire.errors import Refused


def lines(pairs: Mapping[str, object]) -> str:
    """`{"a": 1, "b": "x y"}` -> "a 1\\nb x y\\n". None is written as nothing after the key; a newline in a value becomes a space."""
    out: list[str] = []
    for key, value in pairs.items():
        if not key or " " in key or "\n" in key:
            raise Refused(f"{key!r} cannot be a key of a status file")
        words = "" if value is None else "yes" if value is True else "no" if value is False else str(value)
        out.append(f"{key} {' '.join(words.splitlines())}".rstrip() + "\n")
    return "".join(out)


def parse(text: str) -> dict[str, str]:
    """The pairs of a status file; the last of equal keys counts, lines without a key are left out."""
    pairs: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key:
            pairs[key] = value
    return pairs


QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([A-Za-z]*)")
DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|d|)")


def quantity(text: str, units: Mapping[str, float], what: str) -> float:
    """A number with one of these units behind it; `what` it is is said where it is not."""
    found = QUANTITY.fullmatch(text.strip())
    unit = found[2] if found is not None else ""
    if found is None or unit not in units:
        known = ", ".join(name for name in units if name)
        raise Refused(f"{text!r} is not {what} (a number, with one of {known})")
    return float(found[1]) * units[unit]


def work(text: str) -> int:
    """Units of work; "100G" is 100 Gop, a bare number is in Gop."""
    return int(quantity(text, {"": 1e9, "M": 1e6, "G": 1e9, "T": 1e12, "Mop": 1e6, "Gop": 1e9, "Top": 1e12}, "work"))


def duration(text: str) -> float:
    """Seconds of "500ms", "5s", "10m", "1h", "2d"; a bare number is in seconds."""
    found = DURATION.fullmatch(text)
    if found is None:
        raise Refused(f"{text!r} is not a time (a number, with one of ms, s, m, h, d)")
    return float(found[1]) * {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}[found[2]]


SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([KMGT])(?:iB)?)?")


def size(text: str) -> int:
    """Bytes of "512M", "8G", "1.5T" (powers of 1024); a bare number is in bytes."""
    found = SIZE.fullmatch(text)
    if found is None:
        raise Refused(f"{text!r} is not a size (a number, with one of K, M, G, T)")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
