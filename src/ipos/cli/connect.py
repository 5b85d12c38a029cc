"""How a command reaches its node: over the socket of $IPOS_HOME, starting a node for itself if none is up."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ipos.node.home import BARE, Home
from ipos.tree.ninep.client import Client, connect_unix
from ipos.wire.errors import Gone, Refused

START_S = 20.0


async def begin(home: Home, private: bool = False) -> None:
    """Start a node in the background; returns when it answers. `Refused` with its own sentence if it does not come up.

    A `private` one is there for a command: unless its home is in a pool, it listens on this machine only and announces itself to nobody.
    """
    if home.create() and private:
        print(f"ipos: {home.path} is a new home of a node", file=sys.stderr)
    import subprocess

    process = subprocess.Popen(  # noqa: ASYNC220  (it outlives this loop)
        [sys.executable, "-m", "ipos.node", *(["--private"] if private else [])],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "IPOS_HOME": str(home.path)}, cwd="/",
    )  # fmt: skip
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            words = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise Refused((words[-1] if words else "the node ended as it started").removeprefix("ipos: "))
        try:
            client = await connect_unix(home.socket)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            client.close()
            return
    raise Refused(f"the node did not answer within {START_S:g} s; its log is {home.path / 'log'}")


@asynccontextmanager
async def node(own: bool = True, make: bool = False, aname: str = "") -> AsyncGenerator[Client]:
    """The node of $IPOS_HOME, through the owner's namespace (`aname` BARE: without). With `own`, a private one is started if none is up, and
    ended when the command is, unless a job goes on.

    Only with `make` does a directory become a home by it: who mistyped IPOS_HOME and looks is told so.
    """
    home = Home()
    started = False
    try:
        client = await connect_unix(home.socket, aname)
    except Gone:
        if not own:
            raise Gone("no node is up: ipos up starts one") from None
        if not make and not home.there:
            raise Refused(
                f"{home.path} is no home of a node: ipos up makes one there, IPOS_HOME names another"
            ) from None
        await begin(home, private=True)
        started = True
        client = await connect_unix(home.socket, aname)
    try:
        yield client
    finally:
        if started and client.lost is None:
            await _leave(home)
        client.close()


async def _leave(home: Home) -> None:
    """End the node that was started, if nothing goes on in it; whatever is mounted over its files."""
    client = await connect_unix(home.socket, BARE)
    open_jobs = 0
    for line in (await client.read("/status")).decode().splitlines():
        if line.startswith("jobs_open "):
            open_jobs = int(line.split()[1])
    if open_jobs == 0:
        await client.write("/ctl", b"down")
    client.close()
