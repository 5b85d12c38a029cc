"""A file server of one's own in the tree: `python examples/clock.py`, then `ipos cat /srv/clock/now`, or `ipos ns mount -a /srv/clock /home`
to find its files there. When it ends the name stays, without an answer, until it is started again or `ipos rm /srv/clock`."""

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path

from ipos.node.home import Home
from ipos.tree.file import Caller, File
from ipos.tree.ninep.client import connect_unix
from ipos.tree.ninep.transport import ServerProtocol, serve_unix
from ipos.tree.synthetic import Dir, Text
from ipos.wire.errors import Refused

laps: list[str] = []


def lap(caller: Caller, line: str) -> None:
    laps.append(f"{time.strftime('%H:%M:%S')} {line}\n")


async def attach(caller: Caller, aname: str) -> File:
    return Dir({"now": Text(lambda: time.strftime("%H:%M:%S\n")), "laps": Text(lambda: "".join(laps), lap)})


async def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        me = Caller("", "clock", own=True, local=True)
        server = await serve_unix(Path(scratch, "9p"), lambda: ServerProtocol(attach, me))
        node = await connect_unix(Home().socket)
        with contextlib.suppress(Refused):  # nothing was posted
            await node.remove("/srv/clock")
        await node.create("/srv/clock", f"unix {scratch}/9p".encode())
        print("posted: ipos cat /srv/clock/now", flush=True)
        await server.serve_forever()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
