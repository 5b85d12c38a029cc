"""What is printed for people: text from names, programs and other machines cannot move the cursor, hide, or begin a line."""

from __future__ import annotations

import unicodedata

_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (bidi), surrogates, line and paragraph separators


def safe(text: str, keep: str = "") -> str:
    """On one line: what would not be seen as itself is written as an escape, and then so is a backslash. `keep`: characters left alone."""
    if text.isascii() and text.isprintable():
        return text
    if not any(unicodedata.category(one) in _UNSEEN for one in text if one not in keep):
        return text
    return "".join(one if one in keep else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    if one in _SHORT:
        return _SHORT[one]
    if unicodedata.category(one) not in _UNSEEN:
        return one
    return (
        f"\\x{ord(one):02x}"
        if ord(one) < 0x100
        else f"\\u{ord(one):04x}"
        if ord(one) < 0x10000
        else f"\\U{ord(one):08x}"
    )


def cut(text: str, columns: int | None) -> str:
    """As much of a line as fits; None: all of it. Wide characters take two columns, combining ones none."""
    if columns is None or (text.isascii() and len(text) <= columns):
        return text
    used = 0
    for i, one in enumerate(text):
        used += 0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        if used > columns:
            return text[:i]
    return text
