"""Friends of the account, as one node knows them: who they are, what they may do here, and how far their results are believed.

Each of the three is a record of its own, in a file of its own below the home: `friends/<account>.json`, `grants/<id>.json`, `trust.json`. What is
damaged or was not signed by whom it names counts for nothing, and a line of the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ipos.identity import friends as records
from ipos.identity import machines as lists
from ipos.identity.agent import GRANT, INTRODUCTION
from ipos.identity.friends import Grant, Introduction
from ipos.identity.machines import MachineList, tidy, valid_name
from ipos.identity.private import read_private, remove_private, write_private
from ipos.node.machines import NINEP, list_of
from ipos.tree.ninep.client import Client
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

if TYPE_CHECKING:
    from ipos.node.daemon import Node

log = logging.getLogger("ipos.friends")

T = TypeVar("T")
ATTACH_S = 10.0


class Friend(msgspec.Struct, frozen=True, kw_only=True):
    """Another account. `name` is ours for it; `introduction` what it said of itself when we met; `machines` its list, at the highest version that
    was seen; `addresses` where its nodes were last; `since`: Unix time in s, for people."""

    name: str
    introduction: Introduction
    machines: MachineList
    addresses: dict[str, tuple[str, ...]]
    since: int

    @property
    def account(self) -> str:
        return self.machines.account


class Friends:
    """Made for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._home = node.home
        self.all: dict[str, Friend] = {}  # by account
        self.grants: dict[str, Grant] = {}  # by id
        self.trust: dict[str, str] = {}  # by account
        self._load()

    # ---- on disk

    def _load(self) -> None:
        for path in sorted((self._home / "friends").glob("0x*.json")):
            if (friend := _read(path, Friend)) is not None and self._counts(path, friend):
                self.all[friend.account] = friend
        for path in sorted((self._home / "grants").glob("*.json")):
            if (given := _read(path, Grant)) is not None:
                try:
                    records.check_grant(given, self._node.mine.account)
                    self.grants[given.id] = given
                except Refused as refused:
                    log.warning("%s counts for nothing: %s", path, refused)
        self.trust = {
            k: v for k, v in (_read(self._home / "trust.json", dict[str, str]) or {}).items() if v in records.TRUST
        }

    def _counts(self, path: Path, friend: Friend) -> bool:
        try:
            records.check_introduction(friend.introduction, self._node.net.peer)
            lists.check(friend.machines)
            if friend.introduction.account != friend.account:
                raise Refused(f"it has a list of account {friend.account}")
        except Refused as refused:
            log.warning("%s counts for nothing: %s", path, refused)
            return False
        return True

    async def _write(self, path: Path, record: Any) -> None:
        body = msgspec.json.encode(record)
        await self._node.offload(lambda: write_private(path, body))

    async def _keep(self, friend: Friend) -> None:
        await self._write(self._home / "friends" / f"{friend.account}.json", friend)
        self.all[friend.account] = friend
        self._node.match_members()

    # ---- who they are

    def of(self, peer: str) -> Friend | None:
        """Whose node this is, by the highest list of each friend."""
        return next((friend for friend in self.all.values() if lists.on(friend.machines, peer)), None)

    def account(self, peer: str) -> str:
        """Of a friend's node, else ""."""
        if peer in self._node.names() or (friend := self.of(peer)) is None:
            return ""
        return friend.account

    def find(self, word: str) -> Friend:
        for friend in self.all.values():
            if word in (friend.name, friend.account):
                return friend
        names = ", ".join(friend.name for friend in self.all.values()) or "there is none yet: ipos invite --as friend"
        raise Refused(f"no friend is called {word!r}: {names}")

    def may_meet(self) -> None:
        """`Refused` unless this machine could introduce its account now: it needs the account's key."""
        self._node.machines.may_change()
        self._node.agent.may(INTRODUCTION.name)

    def introduce(self, to: str) -> Introduction:
        node = self._node
        self.may_meet()
        addresses = {peer: known for peer, known in node.addresses.items() if peer in node.names()}
        known = {node.net.peer: tuple(node.net.addresses()), **addresses}
        return records.introduce(node.agent.signer(INTRODUCTION.name), node.mine, known, to)

    async def befriend(self, said: Introduction, peer: str) -> Friend:
        """Keep who was met; met again, he keeps his name. `Refused` if there are too many."""
        records.check_introduction(said, self._node.net.peer, peer)
        if said.account == self._node.mine.account:
            raise Refused("that is a machine of this very account: there is nobody to make friends with")
        known = self.all.get(said.account)
        if known is None and len(self.all) >= limits.friends:
            raise Refused(f"{limits.friends} friends are the most: ipos friends remove NAME")
        machines, name = said.machines, next(m.name for m in said.machines.machines if m.peer == peer)
        if known is not None:
            name = known.name
            machines = machines if machines.version > known.machines.version else known.machines
        else:
            taken = {friend.name for friend in self.all.values()}
            base, n = tidy(name), 2
            while name in taken:
                name, n = f"{base[: limits.machine_name_bytes - 4]}-{n}", n + 1
        since = round(self._node.clock.wall())
        friend = Friend(name=name, introduction=said, machines=machines, addresses=said.addresses, since=since)
        await self._keep(friend)
        log.info("account %s is a friend: %s", friend.account, friend.name)
        return friend

    async def heard(self, lst: MachineList) -> bool:
        """A list of another account; whether that is a friend. A newer one counts: who is not on it any more is no friend's machine."""
        friend = self.all.get(lst.account)
        if friend is None:
            return False
        newer = lists.newer(friend.machines, lst)
        if newer is not None:
            gone = [m.peer for m in friend.machines.machines if not lists.on(newer, m.peer)]
            await self._keep(msgspec.structs.replace(friend, machines=newer))
            log.info("machine list version %d of friend %s", newer.version, friend.name)
            for peer in gone:
                self._node.machines.shut(peer)
        return True

    async def rename(self, word: str, name: str) -> None:
        friend = self.find(word)
        if not valid_name(name):
            raise Refused(
                f"{name!r} cannot be a name: small letters, digits and '-', at most {limits.machine_name_bytes}"
            )
        if any(other.name == name for other in self.all.values() if other is not friend):
            raise Refused(f"another friend is called {name} already")
        await self._keep(msgspec.structs.replace(friend, name=name))

    async def remove(self, word: str) -> None:
        """He is let in no more, what he was granted and how far he was believed is forgotten."""
        friend = self.find(word)
        for given in [given for given in self.grants.values() if given.to == friend.account]:
            await self.revoke(given.id)
        if self.trust.pop(friend.account, None) is not None:
            await self._write(self._home / "trust.json", self.trust)
        path = self._home / "friends" / f"{friend.account}.json"
        await self._node.offload(lambda: remove_private(path))
        self.all.pop(friend.account, None)
        self._node.match_members()
        for machine in friend.machines.machines:
            self._node.machines.shut(machine.peer)
        log.info("%s is a friend no more", friend.name)

    # ---- their machines, as members

    def members(self) -> dict[str, tuple[str, str, str]]:
        """Peer id -> (what it is called here, its computer, its account), of all friends' machines."""
        return {
            machine.peer: (f"{friend.name}:{machine.name}", machine.machine, friend.account)
            for friend in self.all.values() for machine in friend.machines.machines if machine.peer not in self._node.names()
        }  # fmt: skip

    def objection(self, account: str) -> str:
        """Why no task of mine is dealt to machines of this account."""
        if self.level(account) != "none" or account not in self.all:
            return ""
        return f"results of {self.all[account].name} are not believed: ipos trust {self.all[account].name} receipt"

    async def connect(self, account: str, peer: str) -> Client:
        """A client of what this friend's node lets us see, if that is more than its name."""
        node, friend = self._node, self.all.get(account)
        if friend is None:
            raise Gone("it belongs to no friend any more")
        known = (*node.addresses.get(peer, ()), *node.found.get(peer, ()), *friend.addresses.get(peer, ()))
        _, client = await node.net.dial(peer, NINEP, Client, tuple(dict.fromkeys(known)))
        assert isinstance(client, Client)
        try:
            async with asyncio.timeout(ATTACH_S):
                await self._meet(client, friend, peer)
        except BaseException:
            client.close()
            raise
        node.clients[peer] = client
        return client

    async def _meet(self, client: Client, friend: Friend, peer: str) -> None:
        try:
            await client.attach()
        except Gone:
            raise
        except Refused:
            await self._node.machines.contact(peer, account=friend.account)  # that machine may be on its list no more
            raise
        theirs = list_of(await client.read("/pool/list"))
        if theirs.account != friend.account:
            raise Refused(f"it belongs to account {theirs.account} now, not to {friend.name}")
        await self.heard(theirs)
        await client.write("/pool/list", msgspec.json.encode(self._node.mine))
        if not any(entry.name == "proc" for entry in await client.ls("/")):
            raise Gone(f"{friend.name} lets this account run nothing there (there: ipos friends grant NAME)")

    # ---- what they may do here

    def granted(self, account: str) -> Grant | None:
        """The grant by which this account may run here now, the widest. Expiry is judged by this machine's clock alone."""
        now, here = self._node.clock.wall(), self._node.net.peer
        live = [
            given for given in self.grants.values()
            if given.to == account and given.node == here and (not given.expires or now < given.expires)
        ]  # fmt: skip
        return max(live, key=lambda given: given.cores, default=None) if account in self.all else None

    def guest(self, peer: str) -> tuple[str, int] | None:
        """(account, slots) of a friend's node; slots 0: nothing is granted. None: it is no friend's."""
        if peer in self._node.names() or (friend := self.of(peer)) is None:
            return None
        given = self.granted(friend.account)
        return friend.account, given.cores if given is not None else 0

    async def grant(self, word: str, cores: int, seconds: float) -> Grant:
        """Let a friend run programs of the engine on this machine; `seconds` 0: until it is revoked."""
        friend, node = self.find(word), self._node
        node.machines.may_change()
        expires = round(node.clock.wall() + seconds) if seconds else 0
        number = max((given.number for given in self.grants.values()), default=0) + 1
        given = records.grant(node.agent.signer(GRANT.name), node.net.peer, friend.account, cores, expires, number)
        await self._write(self._home / "grants" / f"{given.id}.json", given)
        self.grants[given.id] = given
        return given

    async def revoke(self, id: str) -> None:
        """From the next operation on; what runs by it ends now."""
        given = self.grants.pop(
            id, None
        )  # first: nothing runs by it while the disk is waited for, and it is revoked once
        if given is None:
            raise Refused(f"there is no grant {id!r}: ipos friends shows them")
        if (friend := self.all.get(given.to)) is not None:
            self._again(friend)
        path = self._home / "grants" / f"{id}.json"
        await self._node.offload(lambda: remove_private(path))
        log.info("grant %s to %s is revoked", id, given.to)

    def _again(self, friend: Friend) -> None:
        """What he may do has changed: his sessions end, and find what there is when they come again."""
        for machine in friend.machines.machines:
            self._node.machines.shut(machine.peer)

    async def watch(self) -> None:
        """What expires ends what runs by it."""
        while True:
            await self._node.clock.sleep(1.0)
            now = self._node.clock.wall()
            for given in list(self.grants.values()):
                if given.expires and now >= given.expires:
                    log.info("grant %s to %s has expired", given.id, given.to)
                    try:
                        await self.revoke(given.id)
                    except (
                        Refused
                    ) as refused:  # revoked meanwhile, or the disk does not take it: it has expired all the same
                        log.warning("grant %s: %s", given.id, refused)

    # ---- whom I believe

    def level(self, account: str) -> str:
        return self.trust.get(account, "none")

    async def believe(self, word: str, level: str) -> None:
        account = self.find(word).account
        self.trust[account] = records.level(level)
        await self._write(self._home / "trust.json", self.trust)
        log.info("results of account %s are believed: %s", account, level)

    # ---- rows for files

    def rows(self) -> list[dict[str, Any]]:
        now = self._node.clock.now()
        rows: list[dict[str, Any]] = []
        for friend in self.all.values():
            machines: list[dict[str, Any]] = []
            for machine in friend.machines.machines:
                member = self._node.coordinator.members.get(machine.peer)
                heard = member.last_heard if member is not None else None
                machines.append({
                    "name": machine.name, "peer": machine.peer, "connected": member is not None and member.connected,
                    "last_seen_s": round(now - heard, 1) if heard is not None else None,
                    "why_not": member.why_not if member is not None and not member.connected else None,
                })  # fmt: skip
            mine = [given for given in self.grants.values() if given.to == friend.account]
            rows.append({
                "name": friend.name, "account": friend.account, "list_version": friend.machines.version, "since": friend.since,
                "trust": self.level(friend.account), "grants": [self.grant_row(given) for given in mine], "machines": machines,
            })  # fmt: skip
        return rows

    def grant_row(self, given: Grant) -> dict[str, Any]:
        left = max(0, round(given.expires - self._node.clock.wall())) if given.expires else None
        name = self.all[given.to].name if given.to in self.all else None
        return {
            "id": given.id, "account": given.account, "node": given.node, "to": given.to, "friend": name, "run": given.run,
            "cores": given.cores, "expires": given.expires or None, "left_s": left, "signature": given.signature,
        }  # fmt: skip


async def no_bulk() -> Client:
    """Of friends' machines."""
    raise Gone("a friend's machine shows no output before the task has ended")


def _read(path: Path, kind: type[T]) -> T | None:
    """What a file of the home says; None if it is not there or says nothing of the kind."""
    try:
        body = read_private(path, limits.record_bytes)
        return msgspec.json.decode(body, type=kind) if body is not None else None
    except (Refused, msgspec.MsgspecError) as error:
        log.warning("%s counts for nothing: %s", path, error)
        return None
