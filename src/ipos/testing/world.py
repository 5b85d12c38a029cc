"""World: real nodes in one process, virtual time, a seeded network; machines are unplugged, put to sleep, cut off, killed and started again.

    async def story() -> None:
        async with World(seed=7, machines=3) as world:
            job = await world.map(20)
            world.unplug("m1")
            await world.finish(job)
            world.check(job)

    run(story())

What is real: the node, its journal (SQLite on disk), its file servers, 9P between nodes, all machines of the pool, UnixFS and records.
What is not: the network, the clock, block stores (memory that survives a kill), and the programs, which sleep and then upper-case their input.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from ipos.identity import accounts, keys, machines
from ipos.identity.agent import Agent
from ipos.identity.machines import Machine, MachineList
from ipos.identity.secret import Secret
from ipos.identity.typed import RunKey
from ipos.node.daemon import Node
from ipos.node.home import BARE
from ipos.pool.execute import Memory, Ran
from ipos.pool.jobs import Job
from ipos.pool.journal import Journal
from ipos.pool.native.walltime import WallTime
from ipos.pool.records import Task
from ipos.pool.saves import Save
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.store.pins import Pins
from ipos.testing.memory import MemoryNet
from ipos.testing.time import VirtualLoop, WorldClock, run
from ipos.testing.wires import Wires, pipe
from ipos.tree.ninep.client import Client
from ipos.tree.ninep.transport import ServerProtocol
from ipos.vm.plan import RUNNING, Progress
from ipos.wire.errors import Gone, Refused

__all__ = ["VirtualLoop", "World", "run"]

GIB = 1 << 30


async def inline(function: Callable[[], Any]) -> Any:
    """Off the loop, as far as virtual time is concerned: at once."""
    return function()


class SleepRun:
    """A run that needs `seconds` of a core of speed 1.0, shared with whatever else its machine does, and then gives its input in capitals."""

    def __init__(self, site: Site, task: Task, seconds: float) -> None:
        self._site, self._task, self.left = site, task, seconds
        self.slept_before = 0  # in ns, by the runs that this one goes on from
        self._whole = seconds
        self._offered = 0
        self._going = asyncio.Event()
        self._going.set()
        self._wall = WallTime(site.clock, task.limits.wall_ms / 1000)
        self._killed = ""
        self.dead = False

    async def exited(self) -> None:
        self._site.running += 1
        work = asyncio.ensure_future(self._slept())
        try:
            if await self._wall.over(work):
                self._killed = self._wall.sentence
            elif not work.cancelled():
                work.result()
        finally:
            work.cancel()
            self._site.running -= 1

    async def _slept(self) -> None:
        while self.left > 0 and not self.dead:
            await self._going.wait()
            rate = self._site.rate
            piece = min(0.25, self.left / rate)
            await self._site.clock.sleep(piece)
            if self._going.is_set():
                self.left -= piece * rate

    async def wait(self) -> Ran:
        store = self._site.store
        body = unixfs.read(store, self._task.stdin) if self._task.stdin is not None else b""
        self._site.executor.computed += not (self._killed or self.dead)
        stdout, stderr = unixfs.add_bytes(store, body.upper()), unixfs.add_bytes(store, b"")
        took = self._wall.used_s
        return Ran(-9 if self._killed else 0, self._killed, stdout, stderr, None, took, took, 1 << 20)

    @property
    def slept(self) -> int:
        """ns of a core of speed 1.0 so far: what stands for work in the engine."""
        return round((self._whole - self.left) * 1e9)

    def stop(self) -> None:
        raise AssertionError("only tasks of the engine are stopped")

    async def saved(self, again: bool) -> Save | None:
        if self.slept <= max(self._offered, self.slept_before) and not again:
            return None
        self._offered = self.slept
        return Save(
            unixfs.add_bytes(self._site.store, f"{self.slept} of {self._task.name} {self._task.stdin}".encode()),
            self.slept,
        )

    def progress(self) -> Progress | None:
        return Progress(RUNNING, self.slept, self._site.rate * 1e9, 0.0) if self._site.world.saving else None

    def marks(self) -> list[tuple[int, str]]:
        return []

    def pause(self) -> None:
        self._wall.pause()
        self._going.clear()

    def resume(self) -> None:
        self._wall.resume()
        self._going.set()

    def limit(self, wall_s: float) -> None:
        self._wall.limit(wall_s)

    def memory(self) -> Memory | None:
        return Memory(1 << 20, 2 << 20)

    async def save(self) -> int:
        if not self._site.world.saving:
            raise Refused(f"{self._task.name} cannot be saved")
        return self.slept

    async def kill(self) -> None:
        self.dead = True
        self._going.set()

    def peek(self, which: str, offset: int, count: int) -> bytes:
        return b""


class SleepExecutor:
    """`execute.Executor`. Fails as a node does now and then: `faults` is the chance of it per task."""

    def __init__(self, site: Site, dice: random.Random) -> None:
        self._site, self._dice = site, dice
        self.computed = 0
        self.faults = 0.0

    async def prepare(self, key: str, task: Task, say: Callable[[str], None], save_every_s: float) -> None:
        return

    async def start(self, key: str, task: Task, save: bytes | None, replicas: int = 0) -> SleepRun:
        if self._dice.random() < self.faults:
            raise Gone("the disk of this node is full (a planted fault)")
        size = unixfs.size(self._site.store, task.stdin) if task.stdin is not None else 0
        run = SleepRun(self._site, task, self._site.world.cost(self._site, task, size))
        if save is not None:
            done = int(unixfs.read(self._site.store, save).split()[0])
            run.slept_before = done
            run.left -= done / 1e9
        return run

    async def discard(self, key: str) -> None:
        return


class SleepLoad:
    """`holding.Load`: what the site says of itself, as it is now."""

    def __init__(self, site: Site) -> None:
        self._site = site

    @property
    def slots(self) -> int:
        return self._site.slots

    @property
    def declined(self) -> str:
        return ""

    def figures(self, busy: int) -> dict[str, Any]:
        site = self._site
        return {
            "cores": site.slots, "slots": site.slots, "said": False, "speed": site.speed, "memory_total": 8 * GIB,
            "memory_free": 4 * GIB, "foreign": site.foreign, "platform": "virtual", "machine": site.name, "declined": "",
        }  # fmt: skip


class WorldNode(Node):
    """A node whose own tree is reached without a socket."""

    wires: Wires

    async def local_client(self) -> Client:
        client = Client()
        pipe(self.wires, self.net.peer, self.net.peer, client, ServerProtocol(self.trees.attach, self.me))
        return await client.attach(BARE)


class Site:
    """One machine: what stays when its node is killed. `speed`, `slots` (as many cores) and `foreign` (cores' worth of work that is not
    IPOS's; processes share the cores evenly) may be changed at any time."""

    def __init__(self, world: World, name: str, directory: Path) -> None:
        self.world, self.name, self.home = world, name, directory
        self.peer = f"peer-{name}"
        (directory / "keys").mkdir(parents=True)
        (directory / "handed").mkdir()
        self.run_key = RunKey(keys.create(directory / "keys" / "run"))
        self.store = MemoryStore()
        self.clock = WorldClock(world.dice.uniform(0, 1e6))
        self.speed = world.dice.choice((0.5, 1.0, 2.0))
        self.slots = world.dice.choice((1, 2, 4))
        self.foreign = 0.0
        self.running = 0
        self.executor = SleepExecutor(self, world.dice)
        self.node: WorldNode | None = None

    @property
    def up(self) -> bool:
        return self.node is not None

    @property
    def rate(self) -> float:
        """Seconds of a core of speed 1.0 that a run gets in a second."""
        return self.speed * min(1.0, self.slots / max(1.0, self.running + self.foreign))

    def entry(self) -> Machine:
        return Machine(name=self.name, peer=self.peer, run=self.run_key.address, machine=self.name)

    def start(self) -> None:
        pins = Pins(":memory:", self.store)
        names = {site.peer for site in self.world.sites.values()}
        net = MemoryNet(
            self.world.wires, self.peer, self.clock, self.store, lambda peer, cid: pins.may(cid, peer in names)
        )
        body = (self.home / "keys" / "machines").read_bytes()
        import msgspec

        mine = msgspec.json.decode(body, type=MachineList)
        journal = Journal(self.home / "journal.sqlite", inline, durable=False)
        self.node = WorldNode(
            home=self.home, name=self.name, run_key=self.run_key, agent=Agent(self.home / "keys", mine.account, self.clock, inline),
            mine=mine, machine=self.name,
            clock=self.clock, net=net, store=self.store, journal=journal, executor=self.executor,
            load=SleepLoad(self), pins=pins, offload=inline,
        )  # fmt: skip
        self.node.wires = self.world.wires
        self.node.start()
        self.node.spawn(self.node.agent.load(mine.account))

    async def kill(self, silent: bool) -> None:
        """kill -9 (or a pulled plug): nothing is written any more, nothing is said."""
        node, self.node = self.node, None
        if node is None:
            return
        net = node.net
        assert isinstance(net, MemoryNet)
        net.vanish(silent)
        node.journal.die()
        tasks = [*node.parts()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        node.journal.close()


class World:
    """`machines` nodes m0, m1, ... of one account; m0 hands in jobs. The same seed is the same story.

    `saving`: runs can be saved, as those of the engine. `cost(site, task, bytes)`: seconds of a core of speed 1.0 that a run of the task needs there; random if it is not set.
    """

    def __init__(self, seed: int, machines: int = 3, saving: bool = False) -> None:
        self.seed = seed
        self.saving = saving
        self.dice = random.Random(seed)
        self.wires = Wires(self.dice)
        self.directory = Path(tempfile.mkdtemp(prefix="ipos-world-"))
        self.sites: dict[str, Site] = {}
        self.cost: Callable[[Site, Task, int], float] = lambda site, task, size: self.dice.uniform(0.2, 4.0)
        self._count = machines
        self._inputs = 0
        self._stories: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> World:
        for i in range(self._count):
            self.sites[f"m{i}"] = Site(self, f"m{i}", self.directory / f"m{i}")
        account = keys.create(self.directory / "account")
        lst = machines.sign(account, 1, tuple(site.entry() for site in self.sites.values()))
        import msgspec

        for site in self.sites.values():
            (site.home / "keys" / "machines").write_bytes(msgspec.json.encode(lst))
            site.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._stories:
            task.cancel()
        await asyncio.gather(*self._stories, return_exceptions=True)
        for site in self.sites.values():
            await site.kill(silent=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    async def give_key(self, name: str) -> None:
        """The account's key, without a passphrase, into the home of a machine."""
        site = self.sites[name]
        secret = Secret(bytes.fromhex((self.directory / "account").read_text()))
        address = accounts.keep(site.home / "keys", secret, accounts.NO_PASSPHRASE)
        if site.node is not None:
            await site.node.agent.load(address)

    # ---- work

    @property
    def first(self) -> WorldNode:
        node = self.sites["m0"].node
        if node is None:
            raise Gone("m0 is off")
        return node

    async def map(self, tasks: int | Sequence[int], grace_s: float = 6.0, program: str = "upper", **more: Any) -> int:
        """Hand in a job of so many tasks, or one with inputs of about so many bytes, on m0; its number. `more`: fields of the spec."""
        path = self.directory / f"{program}.py"
        path.write_text(f"# {program}\nprint(input().upper())\n")
        over: list[dict[str, str]] = []
        for size in [0] * tasks if isinstance(tasks, int) else tasks:
            file = self.directory / f"in-{self._inputs}"
            self._inputs += 1
            file.write_text(f"seed {self.seed} input {file.name} ".ljust(size, "."))
            over.append({"name": file.name, "path": str(file)})
        spec = {"program": str(path), "over": over, "out": str(self.directory / "out"), "grace_s": grace_s, **more}
        return (await self.first.submit(json.dumps(spec).encode())).id

    def job(self, id: int) -> Job:
        return self.first.coordinator.jobs[id]

    async def finish(self, id: int, within_s: float = 3600.0) -> None:
        """Wait until the job is over; `TimeoutError` names the seed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while self.sites["m0"].node is None or not self.job(id).over:
            if loop.time() > deadline:
                raise TimeoutError(
                    f"seed {self.seed}: job {id} did not end: {self.job(id).status()}\n"
                    + "".join(map(self.job(id).why, self.job(id).rows))
                )
            await asyncio.sleep(0.5)

    def check(self, id: int) -> None:
        """Every task done, every output what a plain run gives. AssertionError names the seed."""
        job = self.job(id)
        status = job.status()
        assert status["done"] == status["total"] == len(job.rows), f"seed {self.seed}: {status}"
        assert job.spec.over is not None
        for one in job.spec.over:
            want = Path(one.path).read_bytes().upper()
            got = (self.directory / "out" / one.name).read_bytes()
            assert got == want, f"seed {self.seed}: {one.name} is {got!r}"

    # ---- weather

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self._stories.add(asyncio.create_task(work))

    def sleep(self, name: str, seconds: float) -> None:
        """Close the lid of a machine for so long."""

        async def lid() -> None:
            site = self.sites[name]
            site.clock.freeze()
            await asyncio.sleep(seconds)
            site.clock.thaw()

        self._later(lid())

    def partition(self, a: str, b: str, seconds: float) -> None:
        async def cut() -> None:
            pair = frozenset((self.sites[a].peer, self.sites[b].peer))
            self.wires.cut.add(pair)
            await asyncio.sleep(seconds)
            self.wires.cut.discard(pair)

        self._later(cut())

    def kill(self, name: str, seconds: float, silent: bool = False) -> None:
        """kill -9 of a node (`silent`: its plug is pulled); it is started again after so many seconds."""

        async def dead() -> None:
            site = self.sites[name]
            if site.node is None:
                return
            await site.kill(silent)
            await asyncio.sleep(seconds)
            if not site.up:
                site.start()

        self._later(dead())

    def unplug(self, name: str, seconds: float = 1e6) -> None:
        self.kill(name, seconds, silent=True)

    async def weather(self, events: int) -> None:
        """So many faults, of every kind, at random moments; m0 only dies for a while."""
        names = list(self.sites)
        for _ in range(events):
            await asyncio.sleep(self.dice.uniform(0.1, 6.0))
            name, other = self.dice.sample(names, 2)
            seconds = self.dice.choice((0.5, 3.0, 8.0, 30.0))
            match self.dice.randrange(4):
                case 0:
                    self.sleep(name, seconds)
                case 1:
                    self.partition(name, other, seconds)
                case 2:
                    self.kill(name, seconds)
                case _:
                    self.unplug(name, seconds)
