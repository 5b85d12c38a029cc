"""The tree of a node: which file servers are mounted where, and who may attach."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from ipos.node import doctor
from ipos.node.config import Config, owner
from ipos.node.devfs import dev_dir
from ipos.node.diskfs import Disks
from ipos.node.friendfs import FriendFiles, ListFile
from ipos.node.handover import HandOvers, marks
from ipos.node.hello import Hello
from ipos.node.home import BARE
from ipos.node.ipfs import Ipfs
from ipos.node.joining import describe
from ipos.node.keysfs import Keys, words
from ipos.node.lag import Watched
from ipos.node.logs import LogFile, LogFiles, follow
from ipos.node.machine import MachineLoad
from ipos.node.machinefs import cpu_dir, mem_dir
from ipos.node.machines import list_of
from ipos.node.namespaces import AttachRoot, HomeNamespace
from ipos.node.storefs import StoreFiles
from ipos.pool.imagefs import image_dir
from ipos.pool.jobfs import jobs_dir
from ipos.pool.procfs import proc_dir
from ipos.tree.file import Caller, File
from ipos.tree.local import local
from ipos.tree.remote import RemoteFile, remote
from ipos.tree.srv import Srv
from ipos.tree.synthetic import Clone, Dir, Text
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.text import lines

if TYPE_CHECKING:
    from ipos.net.netd import Netd
    from ipos.node.daemon import Node
    from ipos.pool.native.executor import NativeExecutor
    from ipos.tree.ninep.transport import ServerProtocol


class Trees:
    """Made for one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.native: NativeExecutor | None = None
        self._netd: Netd | None = None
        self._nodes: dict[str, RemoteFile] = {}
        self._logs: LogFiles | None = None
        self._watched: Watched | None = None
        self._members: set[str] = set()
        handovers = HandOvers(node)
        self.srv = Srv()
        files: dict[str, File] = {
            "ctl": Text(None, self._ctl),
            "status": Text(lambda: lines(self.status())),
            "doctor": Text(self._doctor),
            "job": jobs_dir(
                handovers.steering,
                node.submit,
                node.offload,
                node.home / "handed",
                handovers.answers(),
                marks,
                self._content,
            ),
            "image": image_dir(node.images),
            "proc": proc_dir(node.holding),
            "pool": self._pool(),
            "keys": Keys(node).dir,
            "n": Dir({}, lambda: list(node.names().values()), self._find_node),
            "srv": self.srv,
        }
        self._guests = FriendFiles(node)
        files |= self._guests.files()
        if (node.home / "home").is_dir():
            files["home"] = local(node.home / "home")
        self.root = Dir(files)
        self.home = HomeNamespace(node.home / "ns", self.root)
        self.root.files["lib"] = Dir({"namespace": self.home.file})

    def mount_net(self, netd: Netd) -> None:
        self._netd = netd
        self.root.files["net"] = remote(netd.client)

    def mount_store(self, ipfs: Ipfs, store: StoreFiles) -> None:
        self.root.files["ipfs"] = ipfs
        self.root.files["store"] = store.dir()

    def mount_machine(self, config: Config, load: MachineLoad) -> None:
        """What a real machine has: its settings, processor, memory, directories, devices."""
        self.root.files |= {
            "config": config.file(),
            "cpu": cpu_dir(config, load, self.node.holding),
            "mem": mem_dir(config, load),
            "disk": Disks(self.node.home, config),
            "dev": dev_dir(),
        }

    def mount_log(self, files: LogFiles, watched: Watched) -> None:
        self._logs, self._watched = files, watched
        self.root.files |= {"log": LogFile(files), "events": follow(files)}

    async def _content(self, cid: bytes) -> File:
        ipfs = self.root.files.get("ipfs")
        if not isinstance(ipfs, Ipfs):
            raise Refused("this node shows no content: it runs in a test", errno.EOPNOTSUPP)
        return await ipfs.file(cid)

    def watch(self, members: set[str]) -> None:
        """Keep this set equal to the peers of the machine list: the block link's thread asks it."""
        self._members = members
        self.refresh()

    def refresh(self) -> None:
        self._members.clear()
        self._members.update(self.node.names())

    async def attach(self, caller: Caller, aname: str) -> File:
        """The root that this caller sees: everything for my own machines, what was granted for friends', nothing
        for anybody else. The owner's programs have a namespace
        each, which begins as the home's, unless they ask for the bare tree."""
        self.refresh()
        if not caller.own and (friend := self.node.friends.of(caller.node)) is not None:
            return self._guests.tree(friend.account)
        if not caller.own and caller.node not in self.node.names():
            raise Refused(
                f"peer {caller.node} is not on the machine list (version {self.node.mine.version}) of account "
                f"{self.node.mine.account}: ipos invite here, ipos join there",
                errno.EACCES,
            )
        if not caller.local or aname == BARE:
            return self.root
        return AttachRoot(self.root, await self.home.table()).namespace.root

    def left(self, protocol: ServerProtocol) -> None:
        """A local client has gone."""

    # ---- files

    def _ctl(self, caller: Caller, line: str) -> None:
        owner(caller, "a node is told to stop")
        if line.split() == ["down"]:
            self.node.stopping.set()
        elif line.strip():
            raise Refused(f"{line!r} is not a command of /ctl; it knows down")

    async def _doctor(self) -> str:
        if self.native is None:
            raise Refused("this node has no machine to examine: it runs in a test", errno.EOPNOTSUPP)
        seen = await doctor.examine(self.node, self.native, self._netd.pid if self._netd is not None else None)
        return "".join(msgspec.json.encode(line).decode() + "\n" for line in seen)

    def status(self) -> dict[str, Any]:
        node = self.node
        return {
            "name": node.name,
            "state": "up",
            "private": node.private,
            "pid": os.getpid(),
            "peer": node.net.peer,
            "account": node.mine.account,
            "account_key_here": node.agent.here,
            "account_key": words(node),
            "machines": len(node.mine.machines),
            "list_version": node.mine.version,
            "addresses": " ".join(node.net.addresses()),
            "uptime_s": round(time.time() - node.began),
            "running": node.holding.busy,
            "jobs_open": sum(not job.rests for job in node.coordinator.jobs.values()),
            "isolation": self.native.isolation if self.native is not None else None,
            "netd_starts": self._netd.starts if self._netd is not None else None,
            "netd_pid": self._netd.pid if self._netd is not None else None,
            "engine_pid": self.native.engine.workers.pid if self.native is not None else None,
            "worker_pid": self.native.pid if self.native is not None else None,
            "lag_max_ms": round(self._watched.lag.most * 1e3, 1) if self._watched is not None else None,
            "lag_p99_ms": round(self._watched.lag.p99() * 1e3, 2) if self._watched is not None else None,
            "lag_bad": self._watched.bad if self._watched is not None else None,
            "log_lost": self._logs.lost if self._logs is not None else None,
            "removed": node.machines.removed or None,
            "trouble": node.coordinator.trouble or self.home.trouble or node.machines.trouble or None,
        }

    def _find_node(self, name: str) -> File | None:
        for peer, called in self.node.names().items():
            if name in (called, peer):
                if peer not in self._nodes:
                    self._nodes[peer] = remote(lambda peer=peer: self.node.client_of(peer))
                return self._nodes[peer]
        return None

    def members(self) -> list[dict[str, Any]]:
        now = self.node.clock.now()
        return [
            {
                "name": member.name,
                "peer": member.node,
                "here": member.local,
                "connected": member.connected,
                "last_seen_s": round(now - member.last_heard, 1) if member.last_heard is not None else None,
                "why_not": None if member.connected else member.why_not,
                "answer_ms": round(1000 * member.answer_s, 1) if member.answer_s is not None else None,
                "machine": member.beat.machine or member.machine,
                "engine": member.beat.engine or None,
                "cores": member.beat.cores,
                "slots": member.beat.slots,
                "speed": member.beat.speed,
                "memory_total": member.beat.memory_total,
                "memory_free": member.beat.memory_free,
                "load": member.beat.foreign,
                "leases": member.ours,
            }
            for member in self.node.coordinator.members.values()
            if not member.account
        ]

    def pool_status(self) -> dict[str, Any]:
        """Cores and memory once per physical machine, of those that are in reach."""
        members = [m for m in self.members() if m["connected"]]
        cores: dict[str, int] = {}
        memory: dict[str, int] = {}
        for member in members:
            cores[member["machine"]] = min(member["cores"], cores.get(member["machine"], 0) + member["slots"])
            memory[member["machine"]] = member["memory_total"]
        return {
            "machines": len(cores),
            "nodes": len(members),
            "cores": sum(cores.values()),
            "memory_bytes": sum(memory.values()),
            "out_of_reach": len(self.members()) - len(members),
            "account": self.node.mine.account,
            "list_version": self.node.mine.version,
        }

    def _pool(self) -> Dir:
        node = self.node

        async def take(caller: Caller, body: bytes) -> str:
            await node.machines.offered(list_of(body))
            return ""

        async def ctl(caller: Caller, line: str) -> None:
            match line.split():
                case ["confirm", number] if number.isdigit() and caller.local:
                    node.joining.confirm(int(number), True)
                case ["deny", number] if number.isdigit() and caller.local:
                    node.joining.confirm(int(number), False)
                case ["remove", name] if caller.local:
                    await node.machines.remove(name)
                case ["name", name, new] if caller.local:
                    await node.machines.rename(name, new)
                case _:
                    known = "confirm N, deny N, remove NAME, name OLD NEW, on its own machine's socket"
                    raise Refused(f"{line!r} is not a command of /pool/ctl; it knows {known}")

        def addresses() -> str:
            return msgspec.json.encode({**node.addresses, node.net.peer: node.net.addresses()}).decode()

        return Dir(
            {
                "status": Text(lambda: lines(self.pool_status())),
                "members": Text(lambda: "".join(msgspec.json.encode(m).decode() + "\n" for m in self.members())),
                "list": ListFile(lambda: describe(node.mine), take),
                "addresses": Text(addresses),
                "invite": Clone(node.joining.invite, limits.ctl_line_bytes),
                "join": Clone(node.joining.join, limits.ctl_line_bytes),
                "invites": node.joining.events,
                "hello": Hello(),
                "ctl": Text(None, ctl),
            }
        )
