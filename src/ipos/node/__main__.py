"""`python -m ipos.node` runs the node of $IPOS_HOME."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import sys

from ipos.node.home import Home
from ipos.node.parts import serve
from ipos.vm.sandbox.namespace import harden

log = logging.getLogger("ipos.node")


def main() -> int:
    """Exit status 0 when told to stop, 1 with a sentence on stderr when it cannot run."""
    home = Home()
    try:
        home.create()
        home.lock()
    except OSError as error:
        print(f"ipos: {error}", file=sys.stderr)
        return 1
    handler = logging.handlers.RotatingFileHandler(home.path / "log", maxBytes=4 << 20, backupCount=2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", handlers=[handler])
    harden()
    try:
        asyncio.run(serve(home))
    except OSError as error:
        log.exception("the node cannot run")
        print(f"ipos: {error}", file=sys.stderr)
        return 1
    finally:
        home.unlock()
    return 0


if __name__ == "__main__":
    sys.exit(main())
