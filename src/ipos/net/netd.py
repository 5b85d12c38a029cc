"""netd: the real NetEngine. Starts `ipos-netd`, speaks 9P2000 to it, restarts it when it dies.

The process inherits two sockets (9P and blocks) and a pipe whose end ends it, so it never outlives the node, however that dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from ipos.net.blocks import BlockLink, May
from ipos.net.engine import Accept, PeerSeen
from ipos.store.blocks import BlockStore
from ipos.tree.ninep.client import Client
from ipos.wire.errors import Gone, Refused
from ipos.wire.text import parse

log = logging.getLogger("ipos.netd")

START_S = 10.0
BACKOFF_S = (0.1, 0.3, 1.0, 3.0, 5.0)
OUTAGE_S = 10.0  # how long a dial waits for a restart


def binary() -> Path:
    """Where ipos-netd is: $IPOS_NETD, else beside this file."""
    path = Path(os.environ.get("IPOS_NETD") or Path(__file__).with_name("ipos-netd"))
    if not os.access(path, os.X_OK):
        raise Refused(f"the network process {path} is not there: `make setup` builds it (or set IPOS_NETD)")
    return path


class _Life:
    """One run of the process."""

    def __init__(self, process: asyncio.subprocess.Process, client: Client, link: BlockLink) -> None:
        self.process = process
        self.client = client
        self.link = link


class Netd:
    """`key`: file of the transport key; `run_dir`: short directory for sockets; `listen`: multiaddrs, empty = none."""

    def __init__(
        self, *, key: Path, run_dir: Path, listen: Sequence[str], mdns: bool, store: BlockStore, may: May
    ) -> None:
        self.peer = ""
        self.starts = 0
        self._key = key
        self._run_dir = run_dir
        self._listen = tuple(listen)
        self._mdns = mdns
        self._store = store
        self._may = may
        self._life: _Life | None = None
        self._up = asyncio.Event()
        self._addresses: tuple[str, ...] = ()
        self._accepts: dict[str, Accept] = {}
        self._listeners: dict[str, asyncio.Task[None]] = {}
        self._queues: set[asyncio.Queue[PeerSeen]] = set()
        self._main: asyncio.Task[None] | None = None

    # ---- life

    async def start(self) -> None:
        """Return when it is ready; from then on it is restarted whenever it dies."""
        await self._begin()
        self._main = asyncio.create_task(self._supervise())

    @property
    def pid(self) -> int | None:
        return self._life.process.pid if self._life is not None else None

    async def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        our_blocks, their_blocks = socket.socketpair()
        with theirs, their_blocks:
            process = await asyncio.create_subprocess_exec(
                str(binary()), "-key", str(self._key), "-listen", ",".join(self._listen), "-run", str(self._run_dir),
                "-nine", str(theirs.fileno()), "-blocks", str(their_blocks.fileno()), f"-mdns={str(self._mdns).lower()}",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(), their_blocks.fileno()), start_new_session=True,
            )  # fmt: skip
        loop = asyncio.get_running_loop()
        link = BlockLink(our_blocks, self._store, self._may, loop)
        link.start()
        said: list[str] = []
        self._errors = asyncio.create_task(self._stderr(process, said))
        ours.setblocking(False)
        try:
            _, client = await loop.create_connection(lambda: Client("9P2000"), sock=ours)
            async with asyncio.timeout(START_S):
                await client.attach()
                status = parse((await client.read("/status")).decode())
        except (OSError, TimeoutError) as error:
            link.close()
            if process.returncode is None:
                process.kill()
            await process.wait()
            raise Refused(f"the network process did not start: {' '.join(said) or error}") from None
        self.peer = status["peer"]
        self._addresses = tuple(status.get("addresses", "").split())
        self.starts += 1
        self._life = _Life(process, client, link)
        for protocol in self._accepts:
            self._relisten(protocol)
        self._up.set()

    async def _stderr(self, process: asyncio.subprocess.Process, said: list[str]) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            words = line.decode(errors="replace").rstrip()
            said.append(words)
            del said[:-5]
            log.info("%s", words)

    async def _supervise(self) -> None:
        failures = 0
        while True:
            life = self._life
            if life is not None:
                reader = asyncio.create_task(self._read_events(life.client))
                began = asyncio.get_running_loop().time()
                try:
                    await life.process.wait()
                finally:
                    reader.cancel()
                self._up.clear()
                self._life = None
                life.client.close()
                life.link.close()
                log.warning("the network process ended with status %s; it is started again", life.process.returncode)
                for queue in self._queues:
                    queue.put_nowait(PeerSeen("restarted", self.peer))
                failures = 0 if asyncio.get_running_loop().time() - began > 10 else failures
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1
            try:
                # The same ports as before, so that peers find us where we were.
                self._listen = self._addresses or self._listen
                await self._begin()
            except (OSError, TimeoutError) as error:
                log.error("%s", error)

    async def close(self) -> None:
        for task in [self._main, *self._listeners.values()]:
            if task is not None:
                task.cancel()
        life, self._life = self._life, None
        if life is not None:
            life.client.close()
            life.link.close()
            if life.process.stdin is not None:
                life.process.stdin.close()
            try:
                async with asyncio.timeout(3):
                    await life.process.wait()
            except TimeoutError:
                life.process.kill()
                await life.process.wait()

    # ---- NetEngine

    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    async def client(self) -> Client:
        """netd's tree, for /net. Waits a little for a restart, then `Gone`."""
        try:
            async with asyncio.timeout(OUTAGE_S):
                await self._up.wait()
        except TimeoutError:
            raise Gone(f"the network process has not been running for {OUTAGE_S:g} s") from None
        assert self._life is not None
        return self._life.client

    async def dial(
        self, peer: str, protocol: str, factory: Callable[[], asyncio.BaseProtocol], addresses: Sequence[str] = ()
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        client = await self.client()
        try:
            async with client.open("/clone", os.O_RDWR) as clone:
                number = (await clone.read_at(0, 32)).decode().strip()
                await clone.write_at(0, " ".join(["connect", peer, protocol, *addresses]).encode())
                return await self._bulk(client, number, factory)
        except Refused as refused:
            if isinstance(refused, Gone):
                raise
            raise Gone(str(refused)) from None

    async def _bulk(
        self, client: Client, number: str, factory: Callable[[], asyncio.BaseProtocol]
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        path = (await client.read(f"/{number}/bulk")).decode().strip()
        try:
            transport, protocol = await asyncio.get_running_loop().create_unix_connection(factory, path)
        except OSError as error:
            raise Gone(f"the stream {number} ended: {error}") from None
        return transport, protocol

    def listen(self, protocol: str, accept: Accept) -> None:
        self._accepts[protocol] = accept
        if self._life is not None:
            self._relisten(protocol)

    def _relisten(self, protocol: str) -> None:
        if (old := self._listeners.get(protocol)) is not None:
            old.cancel()
        self._listeners[protocol] = asyncio.create_task(self._listen_loop(protocol))

    async def _listen_loop(self, protocol: str) -> None:
        assert self._life is not None
        client = self._life.client
        try:
            async with client.open("/clone", os.O_RDWR) as clone:
                number = (await clone.read_at(0, 32)).decode().strip()
                await clone.write_at(0, f"announce {protocol}".encode())
                while True:
                    call = (await client.read_once(f"/{number}/listen")).decode().strip()
                    try:
                        await self._accept(client, protocol, call)
                    except OSError as error:
                        log.info("a call of %s: %s", protocol, error)
        except Gone:
            return  # netd ended: its next life listens anew

    async def _accept(self, client: Client, protocol: str, call: str) -> None:
        async with client.open(f"/{call}/ctl", os.O_RDWR):  # an open file keeps the conversation
            peer = (await client.read(f"/{call}/remote")).decode().split()[0]
            wanted = self._accepts[protocol](peer)
            if wanted is not None:
                await self._bulk(client, call, lambda: wanted)

    async def events(self) -> AsyncIterator[PeerSeen]:
        queue: asyncio.Queue[PeerSeen] = asyncio.Queue()
        self._queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)

    async def _read_events(self, client: Client) -> None:
        try:
            async with client.open("/events") as events:
                async for line in events.lines():
                    event = msgspec.json.decode(line, type=dict[str, object])
                    addresses = event.get("addresses")
                    listed = tuple(str(a) for a in addresses) if isinstance(addresses, list) else ()
                    if event["event"] == "addresses":
                        self._addresses = listed
                    for queue in self._queues:
                        queue.put_nowait(PeerSeen(str(event["event"]), str(event["peer"]), listed))
        except Gone:
            return

    async def fetch(self, cids: Sequence[bytes], peers: Sequence[str], timeout_s: float) -> None:
        await self.client()
        assert self._life is not None
        await self._life.link.fetch(cids, peers, timeout_s)
