"""The node: builds its parts, mounts their file servers, owns their life. `python -m ipos.node.daemon` runs one for $IPOS_HOME."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ipos.identity import machines as lists
from ipos.identity.agent import MACHINE_LIST, Agent
from ipos.identity.machine_id import machine_id
from ipos.identity.machines import Machine, MachineList
from ipos.identity.private import write_private
from ipos.identity.typed import RunKey
from ipos.net import join
from ipos.net.engine import NetEngine
from ipos.node.home import Home, runtime_root
from ipos.node.identity import first_list, identity
from ipos.node.ipfs import Ipfs
from ipos.node.joining import Joining
from ipos.node.machine import MachineLoad, measure_speed
from ipos.node.storefs import REMEDY, StoreFiles
from ipos.node.tree import Trees
from ipos.pool import prepare
from ipos.pool import task as t
from ipos.pool.coordinator import Coordinator
from ipos.pool.execute import Executor
from ipos.pool.holding import Holding, Load
from ipos.pool.image import Images
from ipos.pool.job import Preparing
from ipos.pool.jobs import Job, Row
from ipos.pool.journal import Journal, Offload
from ipos.pool.member import Member
from ipos.pool.native.executor import NativeExecutor
from ipos.pool.pinning import Pinning
from ipos.pool.receipt import Receipts
from ipos.pool.records import Result
from ipos.pool.saves import Holds, Save
from ipos.pool.spec import parse as parse_spec
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.store.cache import CacheStore
from ipos.store.pack import PackStore
from ipos.store.pins import Pins
from ipos.store.quota import QuotaStore
from ipos.tree.file import Caller
from ipos.tree.ninep.client import Client, connect_unix
from ipos.tree.ninep.transport import ServerProtocol, serve_tcp, serve_unix
from ipos.vm.sandbox.namespace import harden
from ipos.wire.clock import Clock, SystemClock
from ipos.wire.errors import Gone, Refused
from ipos.wire.record import decode

log = logging.getLogger("ipos.node")

NINEP = "/ipos/9p/1"
WRITE_BYTES = 1 << 20
FETCH_S = 5.0  # how long a reader of /ipfs waits for a block that is not here


class Node:
    """One node over parts that were made for it: real ones (`real`), or those of `ipos.testing`."""

    def __init__(
        self,
        *,
        home: Path,
        name: str,
        run_key: RunKey,
        agent: Agent,
        mine: MachineList,
        machine: str,
        clock: Clock,
        net: NetEngine,
        store: BlockStore,
        journal: Journal,
        executor: Executor,
        load: Load,
        pins: Pins,
        offload: Offload,
    ) -> None:
        self.home = home
        self.clock = clock
        self.net = net
        self.store = store
        self.journal = journal
        self.executor = executor
        self.offload = offload
        self.agent = agent
        self.mine = mine
        self.began = time.time()
        self.found: dict[str, tuple[str, ...]] = {}
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.clients: dict[str, Client] = {}
        self._run_key = run_key
        self._machine = machine
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._vital: set[asyncio.Task[Any]] = set()  # without which there is no node
        self.failure = ""  # why it ends, if not because it was told to
        self._members: dict[str, asyncio.Task[None]] = {}
        self.pins = pins
        holds, pinning = Holds(pins), Pinning(pins, store, offload)
        receipts = Receipts(run_key, net.peer, lambda: self.mine, store)
        self._pinning = pinning
        self.holding = Holding(
            clock=clock, store=store, journal=journal, executor=executor, load=load, fetch=net.fetch, holds=holds,
            pinning=pinning, receipts=receipts, offload=offload, node=net.peer,
        )  # fmt: skip
        self.coordinator = Coordinator(
            clock=clock, store=store, journal=journal, fetch=net.fetch, holds=holds, pinning=pinning, receipts=receipts,
            offload=offload,
            node=net.peer, deliver=self._deliver,
        )  # fmt: skip
        self.joining = Joining(
            net=net, clock=clock, admit=self._admit, adopt=self._adopt, me=self.entry, mine=lambda: self.mine,
            may_invite=self._may_invite, nearby=self._nearby,
        )  # fmt: skip
        self.images = Images(home / "env" / "images", store, holds, offload)
        self.stopping = asyncio.Event()
        self.trees = Trees(self)

    # ---- who I am

    def entry(self) -> Machine:
        return Machine(name=self._name, peer=self.net.peer, run=self._run_key.address, machine=self._machine)

    @property
    def name(self) -> str:
        return next((m.name for m in self.mine.machines if m.peer == self.net.peer), self._name)

    @property
    def me(self) -> Caller:
        return Caller(self.mine.account, self.net.peer, own=True, local=True)

    def names(self) -> dict[str, str]:
        return {m.peer: m.name for m in self.mine.machines}

    def caller(self, peer: str) -> Caller:
        """Who is at the other end of a stream whose transport key is `peer`."""
        own = peer in self.names()
        return Caller(self.mine.account if own else "", peer, own=own, local=False)

    def _may_invite(self) -> None:
        if not self.agent.here:
            holder = self.mine.machines[0].name
            raise Refused(f"the account's key is on {holder}: run ipos invite there")
        self.agent.may(MACHINE_LIST.name)

    async def _admit(self, machine: Machine) -> MachineList:
        self._may_invite()
        lst = lists.with_machine(self.agent.signer(MACHINE_LIST.name), self.mine, machine)
        await self.keep(lst)
        return lst

    async def _adopt(self, lst: MachineList) -> None:
        """This machine joins the account of `lst`; the key of its own fresh account stays in the home and counts no more."""
        await self.keep(lst)
        await self.agent.load(lst.account)

    async def keep(self, lst: MachineList) -> None:
        body = msgspec.json.encode(lst)
        path = self.home / "keys" / "machines"
        await self.offload(lambda: write_private(path, body))
        self.mine = lst
        log.info("machine list version %d: %s", lst.version, ", ".join(m.name for m in lst.machines))
        self._match_members()
        self.spawn(self._spread())

    async def offered(self, lst: MachineList) -> None:
        """Somebody shows a list; keep it if it is newer and signed."""
        newer = lists.newer(self.mine, lst)
        if newer is not None:
            await self.keep(newer)

    async def _spread(self) -> None:
        for peer, client in list(self.clients.items()):
            if peer != self.net.peer:
                try:
                    await client.write("/pool/list", msgspec.json.encode(self.mine))
                except OSError as error:
                    log.info("the list did not reach %s: %s", self.names().get(peer, peer), error)

    # ---- members

    def _match_members(self) -> None:
        """One member for each machine of the list."""
        names = self.names()
        for machine in self.mine.machines:
            if machine.peer in self._members:
                self.coordinator.members[machine.peer].name = machine.name
                continue
            local = machine.peer == self.net.peer
            member = Member(
                node=machine.peer, name=machine.name, machine=machine.machine, local=local, listener=self.coordinator,
                connect=lambda peer=machine.peer: self._connect(peer), clock=self.clock,
            )  # fmt: skip
            self.coordinator.join(member)
            self._members[machine.peer] = self.spawn(member.run())
        for peer in [peer for peer in self._members if peer not in names]:
            self._members.pop(peer).cancel()
            self.coordinator.leave(peer)

    async def local_client(self) -> Client:
        """A client of this node's own tree."""
        return await connect_unix(Home(self.home).socket)

    async def _connect(self, peer: str) -> Client:
        if peer == self.net.peer:
            client = await self.local_client()
        else:
            known = (*self.addresses.get(peer, ()), *self.found.get(peer, ()))
            _, protocol = await self.net.dial(peer, NINEP, Client, tuple(dict.fromkeys(known)))
            assert isinstance(protocol, Client)
            async with asyncio.timeout(10):
                client = await protocol.attach()
                await self._compare(client)
        self.clients[peer] = client
        return client

    async def _compare(self, client: Client) -> None:
        """On a new connection both sides end with the higher list, and learn where the others are."""
        theirs = msgspec.json.decode(await client.read("/pool/list"), type=MachineList)
        await self.offered(theirs)
        if theirs.version < self.mine.version:
            await client.write("/pool/list", msgspec.json.encode(self.mine))
        heard = msgspec.json.decode(await client.read("/pool/addresses"), type=dict[str, tuple[str, ...]])
        for peer, addresses in heard.items():
            if peer in self.names() and peer != self.net.peer:
                self.know(peer, addresses)

    def know(self, peer: str, addresses: tuple[str, ...]) -> None:
        if addresses and self.addresses.get(peer) != addresses:
            self.addresses[peer] = addresses
            self.journal.note("addresses", json.dumps(self.addresses))
            if (member := self.coordinator.members.get(peer)) is not None:
                member.nudge()

    async def client_of(self, peer: str) -> Client:
        """The open connection to another node, for /n."""
        client = self.clients.get(peer)
        if client is None or client.lost is not None:
            member = self.coordinator.members.get(peer)
            why = member.why_not if member is not None else "it is no machine of this account"
            raise Gone(f"{self.names().get(peer, peer)} is out of reach: {why}")
        return client

    def fetched(self, loop: asyncio.AbstractEventLoop) -> Callable[[bytes], bytes | None]:
        """Fetches a block, in a thread, from the machines of the pool that are in reach."""

        async def bring(cid: bytes) -> None:
            members = self.coordinator.members.values()
            if peers := [member.node for member in members if member.connected and not member.local]:
                await self.net.fetch([cid], peers, FETCH_S)

        def fetch(cid: bytes) -> bytes | None:
            try:
                asyncio.run_coroutine_threadsafe(bring(cid), loop).result()
                return self.store.get(cid)
            except OSError as error:
                log.info("block %s: %s", c.text(cid), error)
                return None

        return fetch

    def _nearby(self) -> list[tuple[str, tuple[str, ...]]]:
        """Where an inviter may be: other homes of this user on this machine, and what mDNS has found."""
        places = dict(self.found)
        for where in runtime_root().glob("*/where"):
            try:
                entry = json.loads(where.read_text())
            except (OSError, ValueError):
                continue
            if Path(f"/proc/{entry['pid']}").exists():  # a node that was killed leaves its file behind
                places[entry["peer"]] = tuple(entry["addresses"])
        places.pop(self.net.peer, None)
        return list(places.items())

    # ---- jobs

    async def submit(self, spec: bytes) -> Job:
        parse_spec(spec)
        id = max([self.journal.last_job(), *self.coordinator.jobs]) + 1
        job = Job(id, spec, Preparing())
        job.names = _Names(self)
        self.coordinator.add(job)
        await self.journal.commit()
        self.spawn(self._prepare(job))
        return job

    async def _prepare(self, job: Job) -> None:
        try:
            rows, known = await prepare.prepare(
                job, store=self.store, journal=self.journal, offload=self.offload, names=set(self.names().values()),
                account=self.mine.account, images=self.images, say=lambda text: job.say(None, text),
            )  # fmt: skip
        except OSError as error:
            self.coordinator.unprepared(job, str(error))
        except Exception as error:
            log.exception("job %d", job.id)
            self.coordinator.unprepared(job, f"a mistake in IPOS: {type(error).__name__}: {error}")
        else:
            offers = [member.offer(0) for member in self.coordinator.members.values()]
            job.info.estimate_s = await self.offload(lambda: prepare.foretell(job, rows, known, offers))
            job.say(None, "")
            resume = job.spec.resume
            if resume is not None and resume.save is not None and 0 not in known:
                receipt = c.parse(resume.receipt) if resume.receipt is not None else None
                self.coordinator.keeping.put(job, rows[0], Save(c.parse(resume.save), resume.work, receipt))
            self._pinning.inputs(job.id, (row.task for row in rows))
            await self._pinning.settled()  # before anybody is told to fetch them
            self.coordinator.prepared(job, rows, known)
        handed = job.spec.stdin
        if handed is not None and Path(handed).parent == Home(self.home).handed:
            await self.journal.commit()
            await self.offload(lambda: Path(handed).unlink(missing_ok=True))

    async def _deliver(self, job: Job, row: Row) -> None:
        state = row.state
        if job.spec.out is None or not isinstance(state, t.Done) or not (state.ok or job.spec.over is None):
            return
        result = decode(Result, self.store.get(c.parse(state.result)))
        target = Path(job.spec.out) / row.name
        try:
            if job.spec.over is not None:
                await self.offload(lambda: _write_out(self.store, result.stdout, target))
            elif (made := result.dir) is not None:
                await self.offload(lambda: _write_dir(self.store, made, target))
        except OSError as error:
            job.info.trouble = f"{target} could not be written ({os.strerror(error.errno or 0)}); it is in /job/{job.id}/{row.i}/stdout"
            job.say(row, job.info.trouble)

    # ---- life

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of the node failed", exc_info=error)
            if task in self._vital:  # better down, and up again from the journal, than up and deaf
                self.failure = f"a mistake in IPOS ended this node: {type(error).__name__}: {error} (its log has more)"
                self.stopping.set()

    def start(self) -> None:
        """Everything that goes on by itself. The tree is served by the caller."""
        stored = self.journal.meta("addresses")
        self.addresses = {peer: tuple(a) for peer, a in json.loads(stored).items()} if stored else {}
        self.coordinator.load()
        for job in self.coordinator.jobs.values():
            job.names = _Names(self)
            if isinstance(job.state, Preparing):
                self.spawn(self._prepare(job))
        self.net.listen(NINEP, lambda peer: ServerProtocol(self.trees.attach, self.caller(peer)))
        self.net.listen(join.PROTOCOL, self.joining.accept)
        self._vital = {self.spawn(self.coordinator.run()), self.spawn(self.holding.run())}
        self.spawn(self._watch_peers())
        self._match_members()

    async def _watch_peers(self) -> None:
        while True:
            try:
                async for seen in self.net.events():
                    if seen.kind == "found":
                        self.found[seen.peer] = seen.addresses
                    if seen.peer in self.coordinator.members:
                        self.coordinator.members[seen.peer].nudge()
            except Gone as error:
                log.info("%s; it begins anew", error)

    def parts(self) -> list[asyncio.Task[Any]]:
        """Everything of it that goes on by itself."""
        return list(self._tasks)

    async def stop(self) -> None:
        tasks = self.parts()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.agent.lock()
        await self.journal.commit()
        for client in self.clients.values():
            client.close()


class _Names(dict[str, str]):
    """Peer id -> name, as the machine list is now."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    def get(self, key: str, default: Any = None) -> Any:
        return self._node.names().get(key, default)


def _write_out(store: BlockStore, cid: bytes, target: Path) -> None:
    """Atomically, so that nobody meets half an output."""
    new = target.with_name(f".{target.name}.ipos-new")
    try:
        with open(new, "wb") as out:
            for piece in unixfs.stream(store, cid):
                out.write(piece)
        new.replace(target)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _write_dir(store: BlockStore, cid: bytes, target: Path) -> None:
    """The files that a program made, into a directory that may have others; those of the same name are replaced."""
    with tempfile.TemporaryDirectory(dir=target, prefix=".ipos-") as scratch:
        whole = Path(scratch, "made")
        unixfs.export(store, cid, whole)
        for directory, _, names in os.walk(whole):
            to = target / Path(directory).relative_to(whole)
            to.mkdir(exist_ok=True)
            for name in names:
                os.replace(Path(directory, name), to / name)


# ---- the real one


LISTEN = {
    "lan": ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/tcp/0", "/ip6/::/udp/0/quic-v1"),
    "local": ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"),
}


async def serve(home: Home) -> None:
    """Run the node of a home until it is told to stop."""
    from ipos.net.netd import Netd

    settings = home.settings()
    clock = SystemClock()
    run, stored, account = await asyncio.to_thread(identity, home)
    agent = Agent(home.path / "keys", account, clock, asyncio.to_thread)
    packs = await asyncio.to_thread(PackStore, home.path / "store")
    most = settings.store_bytes
    store = QuotaStore(packs, most, packs.used, REMEDY) if most else packs
    journal = await asyncio.to_thread(Journal, home.path / "journal.sqlite", asyncio.to_thread)
    computer = machine_id(home.path)
    load = MachineLoad(settings.cores, settings.native, computer)
    pins = await asyncio.to_thread(Pins, home.path / "store" / "pins.sqlite", store, packs.age)
    executor = NativeExecutor(
        home=home.path, hidden=(runtime_root(),), store=store, holds=Holds(pins), clock=clock, key=run
    )
    members: set[str] = set()
    listen = journal.meta(f"listen-{settings.listen}")
    net = Netd(
        key=home.path / "keys" / "transport", run_dir=home.run_dir, mdns=settings.listen == "lan", store=store,
        listen=json.loads(listen) if listen else LISTEN[settings.listen], may=lambda peer, cid: pins.may(cid, peer in members),
    )  # fmt: skip
    try:
        _, _, load.speed, _ = await asyncio.gather(
            executor.open(), net.start(), asyncio.to_thread(measure_speed), agent.load(account)
        )
        me = Machine(name=settings.name, peer=net.peer, run=run.address, machine=computer)
        mine = await asyncio.to_thread(first_list, home, agent, stored, me)
        node = Node(
            home=home.path, name=settings.name, run_key=run, agent=agent, mine=mine, machine=computer, clock=clock, net=net,
            store=store, journal=journal, executor=executor, load=load, pins=pins, offload=asyncio.to_thread,
        )  # fmt: skip
        if settings.listen == "local":
            journal.note(
                "listen-local", json.dumps(net.addresses())
            )  # the same ports next time: peers find us where we were
        await asyncio.to_thread(node.images.open)
        node.trees.watch(members)
        node.trees.mount_net(net)
        node.trees.native = executor
        files = StoreFiles(node, packs, most)
        node.trees.mount_store(Ipfs(node, CacheStore(store, node.fetched(asyncio.get_running_loop()))), files)
        node.spawn(files.watch())

        def door() -> ServerProtocol:
            return ServerProtocol(node.trees.attach, node.me, node.trees.left)

        servers = [await serve_unix(home.socket, door)]
        if settings.tcp:
            servers.append(await serve_tcp(settings.tcp, door))
        node.start()
        (home.run_dir / "where").write_text(
            json.dumps({"pid": os.getpid(), "peer": net.peer, "addresses": net.addresses()})
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, node.stopping.set)
        log.info("up: %s, peer %s", settings.name, net.peer)
        await node.stopping.wait()
        log.info("going down")
        for server in servers:
            server.close()
        await node.stop()
        if node.failure:
            raise Refused(node.failure)
    finally:
        await asyncio.gather(net.close(), executor.close(), return_exceptions=True)
        pins.close()
        packs.close()
        journal.close()


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
