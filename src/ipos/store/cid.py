"""CIDs (https://github.com/multiformats/cid): binary inside, base32 text at the edge; CIDv1 with sha2-256 only, as Kubo makes them."""

from __future__ import annotations

import base64
import binascii
import hashlib

from ipos.wire.errors import Refused

RAW = b"\x01\x55\x12\x20"
DAG_PB = b"\x01\x70\x12\x20"
DAG_CBOR = b"\x01\x71\x12\x20"
PREFIXES = (RAW, DAG_PB, DAG_CBOR)
LENGTH = 36


def of_raw(block: bytes) -> bytes:
    return RAW + hashlib.sha256(block).digest()


def of_dag_pb(block: bytes) -> bytes:
    return DAG_PB + hashlib.sha256(block).digest()


def of_dag_cbor(block: bytes) -> bytes:
    return DAG_CBOR + hashlib.sha256(block).digest()


def valid(cid: bytes) -> bool:
    return len(cid) == LENGTH and cid[:4] in PREFIXES


def matches(cid: bytes, block: bytes) -> bool:
    """Whether the block hashes to the CID."""
    return valid(cid) and hashlib.sha256(block).digest() == cid[4:]


def text(cid: bytes) -> str:
    return "b" + base64.b32encode(cid).decode().lower().rstrip("=")


def parse(words: str) -> bytes:
    """The binary form of a base32 CIDv1, or `Refused`."""
    body = words[1:].upper()
    try:
        cid = base64.b32decode(body + "=" * (-len(body) % 8)) if words[:1] == "b" else b""
    except binascii.Error:
        cid = b""
    if not valid(cid):
        raise Refused(f"{words!r} is not a CID that IPOS knows (CIDv1, base32, sha2-256; raw, dag-pb or dag-cbor)")
    return cid
