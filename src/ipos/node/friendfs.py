"""/friends, /grants and /trust of a node; and the whole tree that a friend's node sees: what was granted, and nothing else."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import msgspec

from ipos.identity.friends import Grant
from ipos.node.machines import list_of
from ipos.pool.records import Deal
from ipos.tree.file import Attr, Caller, File, Handle
from ipos.tree.synthetic import Clone, Dir, Text, new_qid
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.record import decode, encode
from ipos.wire.text import duration, lines

if TYPE_CHECKING:
    from ipos.node.daemon import Node


def _json(rows: list[dict[str, Any]]) -> str:
    return "".join(msgspec.json.encode(row).decode() + "\n" for row in rows)


def _local(caller: Caller) -> None:
    if not caller.local:
        raise Refused("friends, grants and trust are changed on their own machine's socket only", errno.EPERM)


class ListFile(Clone):
    """A signed machine list: reads give mine, a write offers another one."""

    def __init__(self, read: Any, take: Any) -> None:
        super().__init__(take, limits.record_bytes, at_once=True)
        self._text = Text(read)

    async def open(self, caller: Caller, flags: int) -> Any:
        return await (super().open(caller, flags) if flags & os.O_ACCMODE else self._text.open(caller, flags))


class FriendFiles:
    """Made for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def files(self) -> dict[str, File]:
        friends = self._node.friends
        return {
            "friends": Dir({"list": Text(lambda: _json(friends.rows())), "ctl": Text(None, self._friends)}),
            "grants": Dir(
                {
                    "list": Text(lambda: _json([friends.grant_row(given) for given in friends.grants.values()])),
                    "ctl": Text(None, self._grants),
                },
                lambda: list(friends.grants),
                self._grant,
            ),
            "trust": Text(lambda: "".join(f"{a} {level}\n" for a, level in friends.trust.items()), self._trust),
        }

    async def _friends(self, caller: Caller, line: str) -> None:
        _local(caller)
        match line.split():
            case ["name", old, new]:
                await self._node.friends.rename(old, new)
            case ["remove", name]:
                await self._node.friends.remove(name)
            case _:
                raise Refused(f"{line!r} is not a command of /friends/ctl; it knows name OLD NEW, remove NAME")

    async def _grants(self, caller: Caller, line: str) -> None:
        _local(caller)
        match line.split():
            case ["run", "wasm", name, "cores", cores] if cores.isdigit():
                await self._node.friends.grant(name, int(cores), 0)
            case ["run", "wasm", name, "cores", cores, "for", time] if cores.isdigit():
                await self._node.friends.grant(name, int(cores), duration(time))
            case ["revoke", id]:
                await self._node.friends.revoke(id)
            case _:
                known = "run wasm NAME cores N [for TIME], revoke ID"
                raise Refused(f"{line!r} is not a command of /grants/ctl; it knows {known}")

    def _grant(self, id: str) -> File | None:
        friends = self._node.friends
        given = friends.grants.get(id)
        if given is None:
            return None

        async def ctl(caller: Caller, line: str) -> None:
            _local(caller)
            if line.split() != ["revoke"]:
                raise Refused(f"{line!r} is not a command of a grant; it knows revoke")
            await friends.revoke(id)

        def usage() -> str:
            return lines({"running": self._node.holding.guests_busy(given.to), "cores": given.cores})

        return Dir(
            {
                "grant": Text(lambda: lines(friends.grant_row(given))),
                "ctl": Text(None, ctl),
                "usage": Text(usage),
            }
        )

    async def _trust(self, caller: Caller, line: str) -> None:
        _local(caller)
        match line.split():
            case [name, level]:
                await self._node.friends.believe(name, level)
            case _:
                raise Refused(f"{line!r}: a line of /trust is NAME LEVEL, the level one of none, receipt, full")

    # ---- what a friend sees

    def tree(self, account: str) -> File:
        """The root for the nodes of a friend."""
        node = self._node

        async def take(caller: Caller, body: bytes) -> str:
            lst = list_of(body)
            if lst.account != account:
                raise Refused(f"a list of account {lst.account}: of friends, only their own is taken", errno.EPERM)
            await node.friends.heard(lst)
            return ""

        pool = Dir({
            "status": Text(lambda: lines(self._status(account))),
            "list": ListFile(lambda: msgspec.json.encode(node.mine).decode() + "\n", take),
        })  # fmt: skip
        proc = Dir({
            "clone": Clone(lambda caller, body: self._deal(account, caller, body), limits.record_bytes, at_once=True),
            "ctl": Text(None, lambda caller, line: self._tell(account, caller, line)),
            "events": _GuestEvents(self, account),
        })  # fmt: skip

        def find(name: str) -> File | None:
            return proc if name == "proc" and node.friends.granted(account) is not None else None

        def granted() -> list[str]:
            return ["proc"] if node.friends.granted(account) is not None else []

        return Dir({"pool": pool}, granted, find)

    def _status(self, account: str) -> dict[str, Any]:
        given = self._node.friends.granted(account)
        return {
            "name": self._node.name,
            "account": self._node.mine.account,
            "list_version": self._node.mine.version,
            "run": given.run if given is not None else "nothing",
            "cores": given.cores if given is not None else 0,
            "expires": given.expires or None if given is not None else None,
        }

    def granted(self, account: str) -> Grant:
        """The live grant of this moment, asked for with each operation."""
        given = self._node.friends.granted(account)
        if given is None:
            raise Refused("proc: no such file", errno.ENOENT)
        return given

    async def _deal(self, account: str, caller: Caller, message: bytes) -> str:
        """A friend's task: of the engine, one worker, run anew; no result that is known here answers it."""
        given = self.granted(account)
        deal = decode(Deal, message)
        if not deal.task.in_engine:
            raise Refused(
                f"{self._node.name} runs programs of the engine for friends, nothing else: ipos run --wasm", errno.EPERM
            )
        if deal.ext.get("verified", "none") not in ("none", "receipt"):
            raise Refused(f"{self._node.name} runs no replicas for friends: leave --verify away", errno.EPERM)
        waiting = sum(held == caller.node for held, _ in self._node.holding.leases)
        most = given.cores * limits.guest_leases_per_slot
        if (caller.node, deal.id) not in self._node.holding.leases and waiting >= most:
            raise Refused(f"{self._node.name} holds {waiting} tasks of this friend already, the most is {most}")
        return await self._node.holding.deal(caller, encode(msgspec.structs.replace(deal, fresh=True))) + "\n"

    async def _tell(self, account: str, caller: Caller, line: str) -> None:
        self.granted(account)
        await self._node.holding.tell(caller, line)

    def events(self, caller: Caller) -> File:
        return self._node.holding.events(caller)


class _GuestEvents(File):
    """/proc/events: each of a friend's nodes sees its own leases."""

    def __init__(self, files: FriendFiles, account: str) -> None:
        self.qid = new_qid()
        self._files = files
        self._account = account

    async def attr(self) -> Attr:
        return Attr(0o100444)

    async def open(self, caller: Caller, flags: int) -> Handle:
        self._files.granted(self._account)
        return await self._files.events(caller).open(caller, flags)
