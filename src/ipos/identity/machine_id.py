"""Which physical computer this is, so that two homes on one PC do not count its cores twice."""

from __future__ import annotations

import hashlib
from pathlib import Path


def machine_id(home: Path) -> str:
    """32 hex digits, the same for every home on this computer; made from /etc/machine-id, which itself never leaves (machine-id(5))."""
    for source in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            raw = source.read_text().strip()
        except OSError:
            continue
        if raw:
            return hashlib.blake2s(raw.encode(), key=b"ipos machine", digest_size=16).hexdigest()
    return hashlib.blake2s(str(home).encode(), key=b"ipos home", digest_size=16).hexdigest()
