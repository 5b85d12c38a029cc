"""netd: the real NetEngine. Keeps an `ipos-netd` running and speaks 9P2000 to it (docs/protocols/netd.md).

When the process dies it is started again, on the same ports: protocols are announced again, peers that were connected are connected again, and
`events()` tells that they were gone meanwhile. Streams do not survive; whoever had one sees it end.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ipos.net.blocks import May
from ipos.net.engine import Accept, PeerId, PeerSeen, Way
from ipos.net.process import Process
from ipos.net.topic import NetdTopic
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.tree.ninep.client import Client
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused
from ipos.wire.text import parse

log = logging.getLogger("ipos.netd")

BACKOFF_S = (0.1, 0.3, 1.0, 3.0, 5.0)
STEADY_S = 10.0  # a run at least so long was a good one: the next death waits BACKOFF_S[0]
RECONNECT_S = (0.0, 1.0, 5.0)  # tries to reach a peer again after a restart
OUT_OF_REACH = "is out of reach"  # words of netd's sentence, part of the protocol


class _Line(msgspec.Struct):
    """A line of netd's /events."""

    event: str
    peer: str
    addresses: tuple[str, ...] = ()


class Netd:
    """`key`: file of the transport key, made if missing; `run_dir`: a short directory; `listen`: multiaddrs, none = only dial;
    `bootstrap`: multiaddrs with /p2p/ of peers to stay connected to; `relay`: what is written to netd's /relay at each start;
    `program`: another ipos-netd than this installation's."""

    def __init__(
        self,
        *,
        key: Path,
        run_dir: Path,
        listen: Sequence[str],
        mdns: bool,
        store: BlockStore,
        may: May,
        bootstrap: Sequence[str] = (),
        relay: Callable[[], str] = lambda: "",
        program: Path | None = None,
    ) -> None:
        self.starts = 0
        self._key = key
        self._run_dir = run_dir
        self._listening = tuple(listen)
        self._mdns = mdns
        self._program = program
        self._bootstrap = tuple(bootstrap)
        self._relay = relay
        self._pool: tuple[PeerId, ...] = ()
        self._store = store
        self._may = may
        self._peer = ""
        self._addresses: tuple[str, ...] = ()
        self._process: Process | None = None
        self._up = asyncio.Event()
        self._down_because = "the network process has not been started"
        self._accepts: dict[str, Accept] = {}
        self._connected: dict[PeerId, tuple[str, ...]] = {}
        self._found: dict[PeerId, tuple[str, ...]] = {}
        self._cut_off: dict[PeerId, tuple[str, ...]] = {}  # who was connected when the process died
        self._queues: weakref.WeakSet[asyncio.Queue[PeerSeen | None]] = weakref.WeakSet()
        self._supervisor: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # of the run of now

    # ---- life

    async def start(self) -> None:
        """Return when it is ready; from then on it is started again whenever it dies. `Refused` if it cannot start."""
        await self._begin()
        self._supervisor = asyncio.create_task(self._supervise())

    @property
    def pid(self) -> int | None:
        return self._process.child.pid if self._process is not None else None

    async def _begin(self) -> None:
        process = await Process.start(
            program=self._program, key=self._key, run_dir=self._run_dir, listen=self._listening, mdns=self._mdns,
            bootstrap=self._bootstrap, store=self._store, may=self._may, on_lost=self._up.clear,
        )  # fmt: skip
        self._peer = process.status["peer"]
        self._addresses = tuple(process.status.get("addresses", "").split())
        # The same ports next time, so that peers find us where we were.
        self._listening = tuple(process.status.get("listening", "").split()) or self._listening
        self.starts += 1
        self._process = process
        self._do(self._read_events(process.client))
        self._do(self._tell_netd(process.client, relay=True))
        for protocol in self._accepts:
            self._do(self._announce(process.client, protocol))
        cut_off, self._cut_off = self._cut_off, {}
        for peer, addresses in cut_off.items():
            self._do(self._reconnect(process.client, peer, addresses))
        if process.client.lost is None:
            self._up.set()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._did)

    def _did(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("netd's client: %s", error, exc_info=error)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            if self._process is not None:
                self._down_because = await self._process.ended()
                log.warning("%s; it is started again", self._down_because)
                self._cut_off |= self._connected
                await self._end()
                failures = 0 if loop.time() - began > STEADY_S else failures
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1
            try:
                await self._begin()
            except OSError as error:
                self._down_because = str(error)
                log.error("%s", error)

    async def _end(self) -> None:
        """Whatever belongs to this run of the process. May be called again if it was cancelled."""
        self._up.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._process is not None:
            await self._process.end()
            self._process = None
        self._found.clear()
        for peer in list(self._connected):
            self._tell(PeerSeen("gone", peer))

    async def close(self) -> None:
        """The process has ended, and the store is not used any more, when this returns."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._down_because = "the network process was ended"
        await self._end()

    async def _reconnect(self, client: Client, peer: PeerId, addresses: Sequence[str]) -> None:
        words = " ".join(f"{address}/p2p/{peer}" for address in addresses)
        for wait in RECONNECT_S:
            await asyncio.sleep(wait)
            if peer in self._connected:
                return
            try:
                await client.write("/ctl", f"connect {words}".encode())
            except OSError as error:
                log.info("after a restart: %s", error)

    async def _tell_netd(self, client: Client, relay: bool = False) -> None:
        """What a fresh netd does not know."""
        try:
            await client.write("/ctl", " ".join(["pool", *self._pool]).encode())
            if relay and (command := self._relay()):
                await client.write("/relay", command.encode())
        except Gone:
            return
        except Refused as refused:
            log.error("%s", refused)

    # ---- NetEngine

    @property
    def peer(self) -> PeerId:
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def pool(self, peers: Iterable[PeerId]) -> None:
        """See `Peers.pool`."""
        new = tuple(sorted(set(peers) - {self._peer}))
        if new != self._pool:
            self._pool = new
            if self._process is not None:
                self._do(self._tell_netd(self._process.client))

    async def way(self, peer: PeerId) -> Way:
        """See `Peers.way`."""
        try:
            status = parse((await (await self.client()).read(f"/peers/{peer}/status")).decode())
        except Gone:
            raise
        except Refused:
            return Way("none", why="not connected")
        kind, _, via = status["path"].partition(" ")
        return Way(kind, via, status["why"], float(status["rtt_ms"]) if "rtt_ms" in status else None)

    @property
    def listening(self) -> tuple[str, ...]:
        """What it listens on, with the ports it got; given as `listen` next time, peers find the node where it was."""
        return self._listening

    async def client(self) -> Client:
        """The 9P client of now, for /net. Waits for a restart that is under way, then `Gone`."""
        try:
            async with asyncio.timeout(limits.outage_s):
                await self._up.wait()
        except TimeoutError:
            raise Gone(f"the network process has been down for {limits.outage_s:g} s: {self._down_because}") from None
        assert self._process is not None
        return self._process.client

    async def dial(
        self, peer: PeerId, protocol: str, factory: Callable[[], asyncio.BaseProtocol], addresses: Sequence[str] = ()
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """See `NetEngine.dial`. `Refused` if the peer is there but does not serve the protocol."""
        try:
            async with asyncio.timeout(limits.dial_s):
                while True:
                    client = await self.client()
                    try:
                        return await self._dial(client, ["connect", peer, protocol, *addresses], factory)
                    except Gone:
                        if client.lost is None:
                            raise
        except TimeoutError:
            why = self._down_because if self._process is None else "no answer"
            raise Gone(f"{peer} was not reached within {limits.dial_s:g} s: {why}") from None

    async def _dial(
        self, client: Client, words: Sequence[str], factory: Callable[[], asyncio.BaseProtocol]
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        try:
            async with client.open("/clone", os.O_RDWR) as clone:
                number = (await clone.read_at(0, 32)).decode().strip()
                await clone.write_at(0, " ".join(words).encode())
                return await self._bulk(client, number, factory)
        except Refused as refused:
            if OUT_OF_REACH in str(refused) and not isinstance(refused, Gone):
                raise Gone(str(refused)) from None
            raise

    async def _bulk(
        self, client: Client, number: str, factory: Callable[[], asyncio.BaseProtocol]
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        path = (await client.read_once(f"/{number}/bulk")).decode().strip()
        try:
            return await asyncio.get_running_loop().create_unix_connection(factory, path)
        except OSError as error:
            raise Gone(f"stream {number} ended before it began: {error}") from None

    def listen(self, protocol: str, accept: Accept) -> None:
        """See `NetEngine.listen`. A second call for the same protocol replaces `accept`."""
        known = protocol in self._accepts
        self._accepts[protocol] = accept
        if self._process is not None and not known:
            self._do(self._announce(self._process.client, protocol))

    async def _announce(self, client: Client, protocol: str) -> None:
        try:
            async with client.open("/clone", os.O_RDWR) as clone:
                number = (await clone.read_at(0, 32)).decode().strip()
                await clone.write_at(0, f"announce {protocol}".encode())
                async with client.open(f"/{number}/listen") as calls:
                    while True:
                        call = (await calls.read()).decode().strip()
                        self._do(self._accept(client, protocol, call))
        except Gone:
            return  # netd ended: its next life announces anew

    async def _accept(self, client: Client, protocol: str, call: str) -> None:
        try:
            async with client.open(f"/{call}/ctl", os.O_RDWR):  # as long as it is open, so is the stream
                peer = (await client.read_once(f"/{call}/remote")).decode().split()[0]
                wanted = self._accepts[protocol](peer)
                if wanted is not None:
                    await self._bulk(client, call, lambda: wanted)
        except OSError as error:
            log.info("a stream of %s that came in: %s", protocol, error)

    def events(self) -> AsyncIterator[PeerSeen]:
        """See `NetEngine.events`. A reader that falls `limits.events_waiting` behind gets `Gone`: let it begin anew."""
        queue: asyncio.Queue[PeerSeen | None] = asyncio.Queue()  # `_tell` bounds it
        for kind, known in (("connected", self._connected), ("found", self._found)):
            for peer, addresses in known.items():
                queue.put_nowait(PeerSeen(kind, peer, addresses))
        self._queues.add(queue)
        return self._drain(queue)

    @staticmethod
    async def _drain(queue: asyncio.Queue[PeerSeen | None]) -> AsyncIterator[PeerSeen]:
        while (seen := await queue.get()) is not None:
            yield seen
        raise Gone(f"this reader of network events fell {limits.events_waiting} events behind")

    def _tell(self, seen: PeerSeen) -> None:
        if seen.kind == "connected":
            self._connected[seen.peer] = seen.addresses
        elif seen.kind == "gone":
            self._connected.pop(seen.peer, None)
        elif seen.kind == "found":
            self._found[seen.peer] = seen.addresses
        for queue in list(self._queues):
            if queue.qsize() >= limits.events_waiting:
                queue.put_nowait(None)
                self._queues.discard(queue)
            else:
                queue.put_nowait(seen)

    async def _read_events(self, client: Client) -> None:
        try:
            async with client.open("/events") as events:
                async for text in events.lines():
                    line = msgspec.json.decode(text, type=_Line)
                    if line.event == "addresses":
                        self._addresses = line.addresses
                    else:
                        self._tell(PeerSeen(line.event, line.peer, line.addresses))
        except Gone:
            return

    async def fetch(self, cids: Sequence[bytes], peers: Sequence[PeerId], timeout_s: float) -> None:
        """See `NetEngine.fetch`. If netd dies in the middle, the rest is fetched by its next life, within the same time."""
        until = asyncio.get_running_loop().time() + timeout_s
        while True:
            await self.client()
            process = self._process
            assert process is not None
            left = until - asyncio.get_running_loop().time()
            try:
                return await process.link.fetch(cids, peers, max(0.0, left))
            except Gone:
                if left <= 0 or not process.link.over:
                    raise
                await asyncio.wait({asyncio.create_task(process.child.wait())})

    # ---- routing and topics

    async def _ask(self, question: str) -> str:
        client = await self.client()
        async with client.open("/routing", os.O_RDWR) as file:
            await file.write_at(0, question.encode())
            answer = bytearray()
            while piece := await file.read_at(len(answer), limits.MiB):
                answer += piece
            return answer.decode()

    async def provide(self, cid: bytes) -> None:
        """See `Routing.provide`. `Refused` while no other node is connected."""
        await self._ask(f"provide {c.text(cid)}")

    async def providers(self, cid: bytes, most: int = 20) -> dict[PeerId, tuple[str, ...]]:
        """See `Routing.providers`."""
        answer = await self._ask(f"find {c.text(cid)} {most}")
        return {peer: tuple(addresses) for peer, *addresses in map(str.split, answer.splitlines())}

    async def publish(self, name: str, value: bytes) -> None:
        """See `Routing.publish`."""
        if not name or len(name) > 100 or set(name) & set("/ \n\t") or not 1 <= len(value) <= limits.route_value_bytes:
            raise Refused(
                f"a record has a name of 1 to 100 characters without / and spaces, and 1 to {limits.route_value_bytes} "
                f"bytes: not {name[:100]!r} with {len(value)}"
            )
        await self._ask(f"put {name} {base64.b64encode(value).decode()}")

    async def record(self, peer: PeerId, name: str) -> bytes:
        """See `Routing.record`."""
        return base64.b64decode(await self._ask(f"get {peer} {name}"))

    async def join(self, topic: str) -> NetdTopic:
        """See `PubSub.join`."""
        made = NetdTopic(topic, self.client)
        await made.joined()
        return made
