"""One run of `ipos-netd`: where it is, how it is started, how it ends.

The process inherits two sockets (9P and blocks) and the reading end of a pipe. It ends when any of them does, so it never outlives the node, however
the node dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from ipos.net.blocks import BlockLink, May
from ipos.store.blocks import BlockStore
from ipos.tree.ninep.client import Client
from ipos.wire.errors import Refused
from ipos.wire.text import parse

log = logging.getLogger("ipos.netd")

START_S = 10.0
END_S = 3.0  # between the end of its input and SIGKILL


def binary() -> Path:
    """Where ipos-netd is: $IPOS_NETD, else beside this file. `Refused` if it is not there."""
    path = Path(os.environ.get("IPOS_NETD") or Path(__file__).with_name("ipos-netd"))
    if not os.access(path, os.X_OK):
        raise Refused(
            f"there is no network process at {path}: `make setup` builds it, or IPOS_NETD names another place"
        )
    return path


def own_directory(run_dir: Path) -> Path:
    """A directory of mode 0700 for bulk sockets, beside the node's own socket."""
    path = run_dir / "net"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


class Process:
    """A running ipos-netd. `status` is its status file as it was at the start."""

    def __init__(self, child: asyncio.subprocess.Process, link: BlockLink, on_lost: Callable[[], None]) -> None:
        self.child = child
        self.link = link
        self.client = Client("9P2000", on_lost)
        self.status: dict[str, str] = {}
        self._said: list[str] = []
        self._stderr = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls,
        *,
        program: Path | None,
        key: Path,
        run_dir: Path,
        listen: Sequence[str],
        mdns: bool,
        bootstrap: Sequence[str],
        store: BlockStore,
        may: May,
        on_lost: Callable[[], None],
    ) -> Process:
        """Return when it answers. `Refused` with what it said if it does not. `mdns`: be found on the local network, and ask its router for a
        port; `on_lost`: the 9P connection has ended."""
        path, sockets = program or binary(), own_directory(run_dir)
        ours, theirs = socket.socketpair()
        blocks, their_blocks = socket.socketpair()
        with theirs, their_blocks:
            try:
                child = await asyncio.create_subprocess_exec(
                    str(path), "-key", str(key), "-listen", ",".join(listen), "-run", str(sockets),
                    *(("-mdns", "-portmap") if mdns else ()), "-bootstrap", ",".join(bootstrap),
                    "-nine", f"fd:{theirs.fileno()}", "-blocks", f"fd:{their_blocks.fileno()}",
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(), their_blocks.fileno()), start_new_session=True,
                )  # fmt: skip
            except BaseException:
                ours.close()
                blocks.close()
                raise
        loop = asyncio.get_running_loop()
        self = cls(child, BlockLink(blocks, store, may, loop), on_lost)
        self.link.start()
        ours.setblocking(False)
        try:
            await loop.create_connection(lambda: self.client, sock=ours)
            async with asyncio.timeout(START_S):
                await self.client.attach()
                self.status = parse((await self.client.read("/status")).decode())
        except (OSError, TimeoutError) as error:
            await self.end()
            said = " ".join(self._said) or str(error) or f"no answer within {START_S:g} s"
            raise Refused(f"the network process did not start: {said}") from None
        except BaseException:
            await self.end()
            raise
        return self

    async def _listen(self) -> None:
        """What it says goes to the log; the last lines explain why it ended."""
        stderr = self.child.stderr
        assert stderr is not None
        rest = b""
        while piece := await stderr.read(1 << 16):
            *whole, rest = (rest + piece).split(b"\n")
            rest = rest[-(1 << 16) :]
            for line in whole:
                words = line.decode(errors="replace").rstrip()
                self._said = [*self._said[-4:], words]
                log.info("%s", words)

    async def ended(self) -> str:
        """Wait for its end; the sentence that says how it came."""
        status = await self.child.wait()
        await self._stderr
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the network process {how}" + (f": {self._said[-1]}" if self._said else "")

    async def end(self) -> None:
        """Ask it to end, then make it; returns when it has, and the store is not used any more."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self.child.wait()
        except TimeoutError:
            self.child.kill()
            await self.child.wait()
        self.client.close()
        await self.link.close()
        await self._stderr
