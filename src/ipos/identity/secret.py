"""A value that must not be printed by accident."""

from __future__ import annotations


class Secret:
    """Bytes that show themselves only to `reveal()`: not in a log, a traceback, a format or a pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")
