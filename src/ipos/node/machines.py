"""The machines of the account, as one node knows them: its list, who is let in by it, and what happens when it changes.

The list is shown on every contact and the higher version wins, whoever brings it; a node that was away with an old one gives it up with the first
machine that it meets. Changes are made one at a time: two that were signed at once would be two lists of one version.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from ipos.identity import machines as lists
from ipos.identity.agent import MACHINE_LIST
from ipos.identity.machines import Machine, MachineList
from ipos.identity.private import write_private
from ipos.net import lists as shown
from ipos.net.join import Sorry
from ipos.node.messages import Messages
from ipos.tree.ninep.transport import ServerProtocol
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.record import encode

if TYPE_CHECKING:
    from ipos.node.daemon import Node

log = logging.getLogger("ipos.machines")

NINEP = "/ipos/9p/1"
SEEK_S = 2.0  # how often a restored home looks for the other machines of its account
AGAIN_S = 30.0  # before the same node is asked again
ASK_S = 3.0  # what another machine has to answer a question of ours


class Machines:
    """Made for one node. `node.mine` is the list that counts; only `change` replaces it."""

    def __init__(self, node: Node) -> None:
        self.trouble = ""  # why the lists of two machines do not come together
        self._node = node
        self._turn = asyncio.Lock()
        self._doors: dict[str, set[ServerProtocol]] = {}
        self._contacts = 0
        self._restored = node.home / "keys" / "restored"

    # ---- the list

    @property
    def removed(self) -> str:
        """The sentence of a machine that is no longer on its account's list, else ""."""
        mine = self._node.mine
        if lists.on(mine, self._node.net.peer):
            return ""
        return (
            f"this machine was removed from account {mine.account} (list version {mine.version}): "
            "ipos join CODE makes it one of an account again; its home is as it was"
        )

    async def change(self, make: Callable[[MachineList], MachineList | None]) -> MachineList:
        """The next list, made of the one that counts now, on disk before anybody acts on it; None of `make`: it stays."""
        node = self._node
        async with self._turn:
            lst = make(node.mine)
            if lst is None:
                return node.mine
            path, body = node.home / "keys" / "machines", msgspec.json.encode(lst)
            await node.offload(lambda: write_private(path, body))
            before, node.mine = node.mine, lst
        log.info("machine list version %d: %s", lst.version, ", ".join(m.name for m in lst.machines))
        self.trouble = ""
        if self.removed:
            log.warning("%s", self.removed)
        self._changed(before)
        return lst

    def _changed(self, before: MachineList) -> None:
        node = self._node
        node.match_members()
        names = node.names()
        gone = [machine.peer for machine in before.machines if machine.peer not in names]
        for peer in gone:
            self.shut(peer)
        node.trees.refresh()
        node.spawn(self._spread(gone if not self.removed else []))

    def shut(self, peer: str) -> None:
        """Whoever is not let in any more: his connections end, and what he runs here."""
        node = self._node
        if (client := node.clients.pop(peer, None)) is not None:
            client.close()
        node.bulk.shut(peer)
        for door in list(self._doors.get(peer, ())):
            door.abort()
        node.holding.forget(peer)

    async def _spread(self, gone: list[str]) -> None:
        """To the machines that are connected, and to those that were just removed: they are to know."""
        node = self._node
        for peer, client in list(node.clients.items()):
            if peer != node.net.peer:
                try:
                    await client.write("/pool/list", msgspec.json.encode(node.mine))
                except OSError as error:
                    log.info("the list did not reach %s: %s", node.names().get(peer, peer), error)
        for peer in gone:
            await self.contact(peer)

    async def offered(self, lst: MachineList) -> None:
        """Somebody shows a list of this account; keep it if it is newer and signed."""
        if lists.newer(self._node.mine, lst) is not None:
            await self.change(lambda mine: lists.newer(mine, lst))
            await self._merge_is_over()

    async def adopt(self, lst: MachineList) -> None:
        """A join gave this list: of another account, or of this one, which then must be newer."""

        def taken(mine: MachineList) -> MachineList:
            if lst.account == mine.account and lists.newer(mine, lst) is None:
                raise Refused(
                    f"the machine that invited has an old list (version {lst.version - 1}, this one knows {mine.version}): "
                    "let it meet the others first"
                )
            return lst

        await self.change(taken)
        await self._merge_is_over()

    # ---- what its owner does

    async def admit(self, machine: Machine) -> MachineList:
        self.may_change()
        return await self.change(lambda mine: lists.with_machine(self._signer(), mine, machine))

    async def remove(self, name: str) -> None:
        await self._may_now(f"ipos machines remove {name}")
        await self.change(lambda mine: lists.without_machine(self._signer(), mine, name))

    async def rename(self, name: str, new: str) -> None:
        await self._may_now(f"ipos machines name {name} {new}")
        await self.change(lambda mine: lists.renamed(self._signer(), mine, name, new))

    def _signer(self) -> Any:
        return self._node.agent.signer(MACHINE_LIST.name)

    def may_invite(self) -> None:
        if self._node.private:
            raise Refused(
                "a command started this node for itself, on this machine only: ipos down, ipos up, then invite"
            )
        self.may_change()

    def may_change(self) -> None:
        """`Refused` unless this machine could sign the next list now."""
        if self.removed:
            raise Refused(self.removed)
        if not self._node.agent.here:
            raise Refused(f"the account's key is on {self._node.mine.machines[0].name}: run ipos invite there")
        self._node.agent.may(MACHINE_LIST.name)

    async def _may_now(self, command: str) -> None:
        if not self.removed and not self._node.agent.here:
            raise Refused(f"{await self.where_key()}: {command} is for a machine that has it", errno.EACCES)
        self.may_change()

    async def where_key(self) -> str:
        """On which machines the account's key is, as far as they are in reach and say so."""
        node = self._node
        away: list[str] = []
        have: list[str] = []
        for machine in node.mine.machines:
            if machine.peer == node.net.peer:
                continue
            try:
                client = await node.client_of(machine.peer)
                async with asyncio.timeout(ASK_S):
                    status = (await client.read("/keys/status")).decode()
                if "here yes" in status.splitlines():
                    have.append(machine.name)
            except (OSError, TimeoutError):
                away.append(machine.name)
        if have:
            return f"the account's key is on {' and '.join(have)}"
        unasked = f" (out of reach: {', '.join(away)})" if away else ""
        return f"the account's key is on no machine in reach{unasked}; ipos keys restore takes it from a backup"

    # ---- who is let in

    def door(self, peer: str) -> ServerProtocol:
        """The session of a stream that came in; it ends when the list says so."""
        node = self._node
        doors = self._doors.setdefault(peer, set())

        def closed(protocol: ServerProtocol) -> None:
            doors.discard(protocol)
            if not doors and self._doors.get(peer) is doors:
                del self._doors[peer]

        protocol = ServerProtocol(node.trees.attach, node.caller(peer), closed)
        doors.add(protocol)
        return protocol

    def doors(self, peer: str) -> int:
        """How many of a peer's sessions are served: those that were let in."""
        return sum(bool(door.session.fids) for door in self._doors.get(peer, ()))

    # ---- contacts besides 9P

    def accept(self, peer: str) -> asyncio.BaseProtocol | None:
        """A stream of /ipos/list/1 came in."""
        if self._contacts >= limits.contacts_at_once:
            log.warning("a contact of %s was not taken: %d are under way", peer, self._contacts)
            return None
        messages = Messages()
        self._contacts += 1
        self._node.spawn(self._answer(peer, messages))
        return messages

    async def _answer(self, peer: str, messages: Messages) -> None:
        node = self._node
        try:
            body = await messages.next()
            try:
                theirs = shown.read(body, peer)
                mine = theirs.machines.account == node.mine.account
                if not mine and not await node.friends.heard(theirs.machines):
                    raise Refused("this machine belongs to another account")
                messages.send(encode(shown.Shown(machines=node.mine)))
                if mine and not theirs.merging:
                    await self.offered(theirs.machines)
            except Refused as refused:
                log.warning("a contact of %s: %s", peer, refused)
                messages.send(encode(Sorry(sorry=str(refused))))
            await messages.ended()
        except (OSError, TimeoutError) as error:
            log.info("a contact of %s: %s", peer, error)
        finally:
            self._contacts -= 1
            messages.close()

    async def contact(self, peer: str, addresses: tuple[str, ...] = (), account: str = "") -> None:
        """Show a node my list and hear its own, that of `account` (default: mine); what is newer is kept. Best effort: who is out of reach hears it
        another time."""
        node = self._node
        messages = Messages()
        known = (*addresses, *node.addresses.get(peer, ()), *node.found.get(peer, ()))
        try:
            await node.net.dial(peer, shown.PROTOCOL, lambda: messages, tuple(dict.fromkeys(known)))
            messages.send(encode(shown.Shown(machines=node.mine, merging=self.merging)))
            theirs = shown.told(await messages.next(), account or node.mine.account)
            if account:
                await node.friends.heard(theirs)
            elif self.merging:
                await self._merge(theirs)
            else:
                await self.offered(theirs)
        except (OSError, TimeoutError) as error:
            log.info("no contact with %s: %s", node.names().get(peer, peer), error)
        finally:
            messages.close()

    # ---- a home that was restored from a backup

    @property
    def merging(self) -> bool:
        """The account's key came from a backup, and no other machine of the account was met since."""
        return self._restored.exists()

    async def restored(self, lst: MachineList) -> None:
        """This home begins a list of its own, until it meets another machine of the account."""
        await self._node.offload(lambda: write_private(self._restored, b"1\n"))
        await self.change(lambda mine: lst)
        self.seek()

    def seek(self) -> None:
        if self.merging:
            self._node.spawn(self._seek())

    async def _seek(self) -> None:
        node, asked = self._node, dict[str, float]()
        while self.merging:
            for peer, addresses in node.nearby():
                now = node.clock.now()
                if self.merging and now - asked.get(peer, now - AGAIN_S) >= AGAIN_S:
                    asked[peer] = now
                    await self.contact(peer, addresses)
                    if not self.trouble and not self.merging:
                        return
                    asked[peer] -= AGAIN_S - SEEK_S if self.trouble else 0.0
            await node.clock.sleep(SEEK_S)

    async def _merge(self, theirs: MachineList) -> None:
        def both(mine: MachineList) -> MachineList | None:
            if theirs.account != mine.account:
                return None
            if theirs.version > mine.version and all(lists.on(theirs, m.peer) for m in mine.machines):
                return theirs
            return lists.merged(self._signer(), mine, theirs)

        try:
            await self.change(both)
        except Refused as refused:
            self.trouble = f"other machines of the account were found, but this one cannot join them yet: {refused}"
            log.warning("%s", self.trouble)
            return
        await self._merge_is_over()

    async def _merge_is_over(self) -> None:
        if self.merging:
            await self._node.offload(lambda: self._restored.unlink(missing_ok=True))


def list_of(body: bytes) -> MachineList:
    """As files of the tree have it; not checked."""
    try:
        return msgspec.json.decode(body, type=MachineList)
    except msgspec.MsgspecError as error:
        raise Refused(f"not a machine list: {error}") from None
