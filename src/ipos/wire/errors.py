"""Refusals: errors that are sentences for the person who meets them."""

from __future__ import annotations

import errno


class Refused(OSError):
    """What was asked is refused; `str()` is the whole sentence: what was asked, which value failed, what would fix it.

    `errno` is what a plain 9P2000.L client sees; `ipos` clients get the sentence as well.
    """

    def __init__(self, sentence: str, errno_: int = errno.EINVAL) -> None:
        super().__init__(errno_, sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class BadRecord(Refused):
    """Bytes that are not the record they should be; `field` is the path of the field that is wrong ("" = the whole)."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"not a valid record: {field + ': ' if field else ''}{why}", errno.EBADMSG)
        self.field = field


class Gone(Refused):
    """The other side is out of reach. A mutation that ended so may or may not have happened; it is never sent again."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, errno.ENOTCONN)
