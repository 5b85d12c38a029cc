"""nesting: how deep a CBOR value goes, seen from its heads alone (RFC 8949, section 3).

libipld decodes by recursion on the machine's stack and ends the process where that ends: half a megabyte of `[[[[...` from a peer would
take the node down. So what others sent is measured before it is decoded.
"""

from __future__ import annotations

from typing import Final

BYTES, TEXT, ARRAY, MAP, TAG = 2, 3, 4, 5, 6  # major types
_SHORT: Final = 24  # a head's low bits below this are its argument
_OPENING: Final = bytes(range(0x80, 0xE0))
_OTHERS: Final = bytes(sorted(set(range(256)) - set(_OPENING)))


def deeper_than(body: bytes, most: int) -> bool:
    """Whether a container lies inside more than `most` others. What is no CBOR is no deeper than where it ends being some."""
    if len(body.translate(None, _OTHERS)) <= most:
        return False  # fewer bytes than that could open anything at all
    left: list[int] = []  # items that each open container still waits for
    at, size = 0, len(body)
    while at < size:
        head = body[at]
        major, argument = head >> 5, head & 31
        at += 1
        if argument >= _SHORT:
            width = 1 << (argument - _SHORT) if argument < _SHORT + 4 else 0
            if not width or at + width > size:
                return False
            argument = int.from_bytes(body[at : at + width], "big")
            at += width
        if major in (BYTES, TEXT):
            at += argument
        elif major in (ARRAY, MAP, TAG) and (argument or major == TAG):
            left.append({ARRAY: argument, MAP: 2 * argument, TAG: 1}[major])
            if len(left) > most:
                return True
            continue
        while left:
            left[-1] -= 1
            if left[-1]:
                break
            left.pop()
        else:
            return False  # the value is over
    return False
