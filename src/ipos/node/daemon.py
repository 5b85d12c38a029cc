"""The node: parts that were made for it (`parts`, or `ipos.testing`), what it is to the others, and what goes on in it by itself."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ipos.identity.agent import Agent
from ipos.identity.machines import Machine, MachineList
from ipos.identity.typed import RunKey
from ipos.net import join, lists
from ipos.net.engine import NetEngine
from ipos.node import hello
from ipos.node.bulk import Bulk
from ipos.node.friends import Friends, no_bulk
from ipos.node.home import BARE, runtime_root
from ipos.node.joining import Joining
from ipos.node.machines import NINEP, Machines
from ipos.node.submitting import Submissions
from ipos.node.tree import Trees
from ipos.pool.coordinator import Coordinator
from ipos.pool.execute import Executor
from ipos.pool.holding import Holding, Load
from ipos.pool.image import Images
from ipos.pool.journal import Journal, Offload
from ipos.pool.member import Member
from ipos.pool.pinning import Pinning
from ipos.pool.receipt import Receipts
from ipos.pool.saves import Holds
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.store.pins import Pins
from ipos.tree.file import Caller
from ipos.tree.ninep.client import Client
from ipos.tree.ninep.inside import connect_inside
from ipos.tree.ninep.transport import ServerProtocol
from ipos.wire.clock import Clock
from ipos.wire.errors import Gone, Refused

log = logging.getLogger("ipos.node")

WRITE_BYTES = 1 << 20
FETCH_S = 5.0  # how long a reader of /ipfs waits for a block that is not here


class Node:
    """One node over parts that were made for it: real ones (`parts`), or those of `ipos.testing`."""

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
        self.bulk = Bulk(self._dial)
        self._run_key = run_key
        self._machine = machine
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._vital: set[asyncio.Task[Any]] = set()  # without which there is no node
        self.private = False  # whether it is there for a command only, and nobody can reach it
        self.failure = ""  # why it ends, if not because it was told to
        self._members: dict[str, asyncio.Task[None]] = {}
        self.pins = pins
        holds, pinning = Holds(pins), Pinning(pins, store, offload)
        receipts = Receipts(run_key, net.peer, lambda: self.mine, store)
        self.holding = Holding(
            clock=clock, store=store, journal=journal, executor=executor, load=load, fetch=net.fetch, holds=holds,
            pinning=pinning, receipts=receipts, offload=offload, node=net.peer,
        )  # fmt: skip
        self.submissions = Submissions(self, pinning)
        self.submit = self.submissions.submit
        self.coordinator = Coordinator(
            clock=clock, store=store, journal=journal, fetch=net.fetch, holds=holds, pinning=pinning, receipts=receipts,
            offload=offload,
            node=net.peer, deliver=self.submissions.deliver,
        )  # fmt: skip
        self.machines = Machines(self)
        self.friends = Friends(self)
        receipts.whose = self.friends.account
        self.holding.guest = self.friends.guest
        self.coordinator.lending, self.coordinator.level = self.holding.lending, self.friends.level
        self.joining = Joining(
            net=net, clock=clock, admit=self.machines.admit, adopt=self._adopt, me=self.entry, mine=lambda: self.mine,
            may_invite=self.machines.may_invite, nearby=self.nearby, friends=self.friends,
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
        """Peer id -> name of the machines that are mine; of one that was removed, itself alone."""
        if self.machines.removed:
            return {self.net.peer: self._name}
        return {m.peer: m.name for m in self.mine.machines}

    def caller(self, peer: str) -> Caller:
        """Who is at the other end of a stream whose transport key is `peer`."""
        own, friend = peer in self.names(), self.friends.of(peer)
        account = self.mine.account if own else friend.account if friend is not None else ""
        return Caller(account, peer, own=own, local=False)

    async def _adopt(self, lst: MachineList) -> None:
        """This machine joins the account of `lst`; the key of its own fresh account stays in the home and counts no more."""
        await self.machines.adopt(lst)
        await self.agent.load(lst.account)

    # ---- members

    def match_members(self) -> None:
        """One member for each machine of the list."""
        names = self.names()
        self.net.pool(names)
        for machine in self.mine.machines if not self.machines.removed else (self.entry(),):
            if machine.peer in self._members:
                self.coordinator.members[machine.peer].name = machine.name
                continue
            local = machine.peer == self.net.peer
            member = Member(
                node=machine.peer, name=machine.name, machine=machine.machine, local=local, listener=self.coordinator,
                connect=lambda peer=machine.peer: self._connect(peer), bulk=lambda peer=machine.peer: self.client_of(peer),
                clock=self.clock,
            )  # fmt: skip
            self.coordinator.join(member)
            self._members[machine.peer] = self.spawn(member.run())
        friends = self.friends.members()
        for peer, (name, machine, account) in friends.items():
            if peer in self._members and self.coordinator.members[peer].account == account:
                self.coordinator.members[peer].name = name
            elif peer not in self._members:
                self._befriend(peer, name, machine, account)
        for peer in [peer for peer in self._members if peer not in names and peer not in friends]:
            self._members.pop(peer).cancel()
            self.coordinator.leave(peer, "is no machine of this account any more")

    def _befriend(self, peer: str, name: str, machine: str, account: str) -> None:
        """A member of which nothing is known but that it is a friend's."""
        member = Member(
            node=peer, name=name, machine=machine, local=False, listener=self.coordinator, clock=self.clock,
            connect=lambda: self.friends.connect(account, peer), bulk=no_bulk, account=account,
        )  # fmt: skip
        member.objection = lambda: self.friends.objection(account)
        self.coordinator.join(member)
        self._members[peer] = self.spawn(member.run())

    async def local_client(self) -> Client:
        """A client of this node's own tree, whatever its owner has mounted."""
        return await connect_inside(ServerProtocol(self.trees.attach, self.me), BARE)

    async def _connect(self, peer: str) -> Client:
        client = await self._dial(peer)
        if peer != self.net.peer:
            async with asyncio.timeout(10):
                await self._compare(client)
                if twin := await hello.say(client, self.holding.boot):
                    client.close()
                    raise Gone(twin)
        self.clients[peer] = client
        return client

    async def _dial(self, peer: str) -> Client:
        """A session of its own with a machine, this one included."""
        if peer == self.net.peer:
            return await self.local_client()
        known = (*self.addresses.get(peer, ()), *self.found.get(peer, ()))
        _, protocol = await self.net.dial(peer, NINEP, Client, tuple(dict.fromkeys(known)))
        assert isinstance(protocol, Client)
        try:
            async with asyncio.timeout(10):
                return await protocol.attach()
        except Gone:
            raise
        except Refused:
            protocol.close()
            await self.machines.contact(peer)  # it may have a newer list, and this machine may not be on it
            raise

    async def _compare(self, client: Client) -> None:
        """On a new connection both sides end with the higher list, and learn where the others are."""
        theirs = msgspec.json.decode(await client.read("/pool/list"), type=MachineList)
        await self.machines.offered(theirs)
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
        """The session for /n and whatever else may be large, while the machine is in reach."""
        control = self.clients.get(peer)
        if control is None or control.lost is not None:
            member = self.coordinator.members.get(peer)
            why = member.why_not if member is not None else "it is no machine of this account"
            raise Gone(f"{self.names().get(peer, peer)} is out of reach: {why}")
        return await self.bulk.client(peer)

    def fetched(self, loop: asyncio.AbstractEventLoop) -> Callable[[bytes], bytes | None]:
        """Fetches a block, in a thread, from the machines of the pool that are in reach."""

        async def bring(cid: bytes) -> None:
            members = self.coordinator.members.values()
            if peers := [
                member.node for member in members if member.connected and not (member.local or member.account)
            ]:
                await self.net.fetch([cid], peers, FETCH_S)

        def fetch(cid: bytes) -> bytes | None:
            try:
                asyncio.run_coroutine_threadsafe(bring(cid), loop).result()
                return self.store.get(cid)
            except OSError as error:
                log.info("block %s: %s", c.text(cid), error)
                return None

        return fetch

    def nearby(self) -> list[tuple[str, tuple[str, ...]]]:
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
        self.submissions.load()
        self.net.listen(NINEP, self.machines.door)
        self.net.listen(join.PROTOCOL, self.joining.accept)
        self.net.listen(lists.PROTOCOL, self.machines.accept)
        self._vital = {self.spawn(self.coordinator.run()), self.spawn(self.holding.run())}
        self.spawn(self._watch_peers())
        self.spawn(self.friends.watch())
        self.match_members()
        self.machines.seek()

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
        self.trees.srv.close()
        self.bulk.close()
