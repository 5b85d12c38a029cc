"""The real parts of a node: opened for its home, given to a `Node`, served on its socket, and closed however it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ipos.identity.agent import Agent
from ipos.identity.machine_id import machine_id
from ipos.identity.machines import Machine
from ipos.node.config import Config
from ipos.node.daemon import Node
from ipos.node.hello import here
from ipos.node.home import Home, runtime_root
from ipos.node.identity import first_list, identity
from ipos.node.ipfs import Ipfs
from ipos.node.lag import Watched, timer
from ipos.node.logs import LogFiles
from ipos.node.machine import MachineLoad, measure_speed
from ipos.node.settings import Settings
from ipos.node.storefs import REMEDY, StoreFiles
from ipos.pool.journal import Journal
from ipos.pool.lending import Lending
from ipos.pool.native.executor import NativeExecutor
from ipos.pool.saves import Holds
from ipos.store.blocks import BlockStore, settle
from ipos.store.cache import CacheStore
from ipos.store.pack import PackStore
from ipos.store.pins import Pins
from ipos.store.quota import QuotaStore
from ipos.tree.ninep.transport import ServerProtocol, serve_tcp, serve_unix
from ipos.wire.clock import SystemClock
from ipos.wire.errors import Refused

if TYPE_CHECKING:
    from ipos.net.netd import Netd

log = logging.getLogger("ipos.node")

LISTEN = {
    "lan": tuple(
        f"/{where}/{how}"
        for how in ("tcp/0", "udp/0/quic-v1", "tcp/0/ws", "udp/0/quic-v1/webtransport", "udp/0/webrtc-direct")
        for where in ("ip4/0.0.0.0", "ip6/::")
    ),
    "local": ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"),
}


def _journal(path: Path, store: BlockStore) -> Journal:
    """`Refused` if it is damaged: nothing is changed then."""
    try:
        return Journal(path, asyncio.to_thread, True, lambda: settle(store))
    except sqlite3.DatabaseError as error:
        raise Refused(f"{path} is damaged ({error}): put a copy back, or move it away to forget all jobs") from None


async def opened(home: Home, config: Config, stack: AsyncExitStack, private: bool) -> tuple[Node, Netd]:
    """A node over the home's own parts, each of which `stack` closes; nothing of it goes on by itself yet."""
    from ipos.net.netd import Netd

    settings, thread = config.now, asyncio.to_thread
    clock = SystemClock()
    run, stored, account = await thread(identity, home)
    agent = Agent(home.path / "keys", account, clock, thread)
    packs = await thread(PackStore, home.path / "store")
    stack.callback(packs.close)
    most = settings.store_bytes
    store = QuotaStore(packs, most, packs.used, REMEDY) if most else packs
    journal = await thread(_journal, home.path / "journal.sqlite", store)
    stack.callback(journal.close)
    computer = machine_id(home.path)
    load = MachineLoad(lambda: config.now, computer)
    pins = await thread(Pins, home.path / "store" / "pins.sqlite", store, packs.age)
    stack.callback(pins.close)
    executor = NativeExecutor(
        home=home.path, hidden=(runtime_root(),), store=store, holds=Holds(pins), clock=clock, key=run
    )
    stack.push_async_callback(executor.close)
    members: set[str] = set()
    lending: list[Lending] = []  # the node's, once there is one
    alone = private and (stored is None or len(stored.machines) < 2)  # nobody waits for it
    where = "local" if alone else settings.listen
    listen = None if alone else journal.meta(f"listening-{where}")
    net = Netd(
        key=home.path / "keys" / "transport", run_dir=home.run_dir, mdns=where == "lan", store=store,
        listen=json.loads(listen) if listen else LISTEN[where], may=lambda peer, cid: pins.may(cid, peer in members) or (bool(lending) and lending[0].may(peer, cid)),
        bootstrap=() if alone else settings.bootstrap, relay=lambda: config.next.relay,
    )  # fmt: skip
    stack.push_async_callback(net.close)
    _, _, load.speed, _ = await asyncio.gather(executor.open(), net.start(), thread(measure_speed), agent.load(account))
    me = Machine(name=settings.name, peer=net.peer, run=run.address, machine=computer)
    mine = await thread(first_list, home, agent, stored, me)
    node = Node(
        home=home.path, name=settings.name, run_key=run, agent=agent, mine=mine, machine=computer, clock=clock, net=net,
        store=store, journal=journal, executor=executor, load=load, pins=pins, offload=thread,
    )  # fmt: skip
    node.private = alone
    if not alone:  # the same ports next time: peers, and routers that were told to forward them, find us where we were
        journal.note(f"listening-{where}", json.dumps(net.listening))
    await thread(node.images.open)
    lending.append(node.holding.lending)
    node.trees.watch(members)
    node.trees.mount_net(net)
    node.trees.native = executor
    node.trees.mount_machine(config, load)
    load.parents = lambda: [pid for pid in (executor.pid, executor.engine.workers.pid) if pid]
    config.changed.append(node.holding.offer_anew)
    files = StoreFiles(node, packs, most)
    node.trees.mount_store(Ipfs(node, CacheStore(store, node.fetched(asyncio.get_running_loop()))), files)
    node.spawn(files.watch())
    return node, net


async def serve(home: Home, settings: Settings, files: LogFiles, watched: Watched, private: bool) -> None:
    """Run the node of a home until it is told to stop. `Refused`: what ended it, if nobody told it to."""
    config = Config(home.toml, settings, asyncio.to_thread)
    async with AsyncExitStack() as stack:
        node, net = await opened(home, config, stack, private)
        if (twin := here(runtime_root(), net.peer, home.run_dir)) is not None:
            raise Refused(
                f"the node with pid {twin} has the transport key of this home ({net.peer}): {home.path} is a copy of its home, or it "
                f"of this one; move keys/transport, keys/run and keys/machines out of the copy, and let it join"
            )
        node.trees.mount_log(files, watched)
        node.spawn(timer(watched))

        def door() -> ServerProtocol:
            return ServerProtocol(node.trees.attach, node.me, node.trees.left)

        servers = [await serve_unix(home.socket, door)]
        if settings.tcp:
            servers.append(await serve_tcp(settings.tcp, door))
        node.start()
        if not node.private:
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
