"""Invite codes that a person can say, `7-guitar-upset`: a number that says which invite is meant (no secret) and two words that are the secret.

Two of 256 words are 16 bits; SPAKE2 gives one guess, so a stranger on the network has one chance in 65,536 per invite.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote

from ipos.wire.errors import Refused

WORDS = tuple(Path(__file__).with_name("words.txt").read_text().split())


class Code(NamedTuple):
    """`number` 1 to 999, `words` the two secret ones."""

    number: int
    words: tuple[str, str]

    @property
    def text(self) -> str:
        return f"{self.number}-{self.words[0]}-{self.words[1]}"


def make(dice: bytes) -> Code:
    """A code from 4 random bytes."""
    return Code(1 + int.from_bytes(dice[:2], "big") % 999, (WORDS[dice[2]], WORDS[dice[3]]))


def parse(text: str) -> Code:
    """Forgives case, spaces and underscores; `Refused` names the part that is wrong, and the word that was perhaps meant."""
    parts = text.strip().lower().replace("_", "-").replace(" ", "-").split("-")
    parts = [part for part in parts if part]
    if len(parts) != 3 or not parts[0].isdigit() or not 1 <= int(parts[0]) <= 999:
        raise Refused(f"{text!r} is not an invite code: it looks like 7-guitar-upset")
    for word in parts[1:]:
        if word not in WORDS:
            near = difflib.get_close_matches(word, WORDS, 1)
            raise Refused(f"{word!r} is not a word of invite codes" + (f": perhaps {near[0]}?" if near else ""))
    return Code(int(parts[0]), (parts[1], parts[2]))


def spoken(key: bytes, count: int = 2) -> str:
    """The words that both sides show, made from the key that they agreed on."""
    digest = hashlib.blake2s(key, person=b"ipos say").digest()
    return " ".join(WORDS[digest[i]] for i in range(count))


def qr_text(code: Code, peer: str, addresses: tuple[str, ...]) -> str:
    """What the QR shows: the code and where the inviter is."""
    return f"ipos:join/{code.text}?p={peer}" + "".join(f"&a={quote(address, safe='')}" for address in addresses)


def parse_qr(text: str) -> tuple[Code, str, tuple[str, ...]] | None:
    """(code, peer, addresses), or None if the text is no QR text."""
    if not text.startswith("ipos:join/"):
        return None
    code, _, query = text[len("ipos:join/") :].partition("?")
    fields = parse_qs(query)
    return parse(code), fields.get("p", [""])[0], tuple(fields.get("a", []))
