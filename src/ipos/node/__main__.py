"""`python -m ipos.node` runs the node of $IPOS_HOME; with `--private` one that is there for a command, which ends it."""

from __future__ import annotations

import asyncio
import logging
import sys

from ipos.node import logs
from ipos.node.home import Home
from ipos.node.lag import Watched
from ipos.node.parts import serve
from ipos.vm.sandbox.namespace import harden

log = logging.getLogger("ipos.node")


def main() -> int:
    """Exit status 0 when told to stop, 1 with a sentence on stderr when it cannot run."""
    private = "--private" in sys.argv[1:]
    home = Home()
    try:
        home.create()
        home.lock()
        home.upgrade()
        settings = home.settings()
        files = logs.begin(home.log, settings.log_bytes)
    except OSError as error:
        print(f"ipos: {error}", file=sys.stderr)
        home.unlock()
        return 1
    harden()
    watched = Watched()
    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watched)) as runner:
            if sys.version_info < (3, 12):  # as later versions do by themselves: no thread for each child
                watcher = asyncio.PidfdChildWatcher()
                watcher.attach_loop(runner.get_loop())
                asyncio.set_child_watcher(watcher)  # pyright: ignore[reportDeprecated]
            runner.run(serve(home, settings, files, watched, private))
    except OSError as error:
        log.exception("the node cannot run")
        print(f"ipos: {error}", file=sys.stderr)
        return 1
    finally:
        home.unlock()
    return 0


if __name__ == "__main__":
    sys.exit(main())
