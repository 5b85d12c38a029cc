"""A value that must not be printed by accident."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Bytes that show themselves only to `reveal()`: not in a log, a traceback, a format, a pickle, a copy or a JSON.

    Two of them are compared in a time that does not depend on where they differ; with anything else they are unequal, and they have no hash.
    What Python itself keeps (bytes that were freed but not overwritten) is out of its reach: docs/security.md.
    """

    __slots__ = ("__value",)

    def __init__(self, value: bytes) -> None:
        self.__value = value

    def reveal(self) -> bytes:
        return self.__value

    @property
    def empty(self) -> bool:
        return not self.__value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.__value, other.__value)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled or copied")
