"""Who this node is: its run key, its account, its machine list; made when they are missing, and taken back from a backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ipos.identity import accounts, keys
from ipos.identity import machines as lists
from ipos.identity.agent import MACHINE_LIST, Agent
from ipos.identity.machines import Machine, MachineList
from ipos.identity.private import write_private
from ipos.identity.secret import Secret
from ipos.identity.typed import RunKey
from ipos.node.home import Home
from ipos.wire import limits
from ipos.wire.errors import Refused

if TYPE_CHECKING:
    from ipos.node.daemon import Node


def identity(home: Home) -> tuple[RunKey, MachineList | None, str]:
    """(run key, machine list if there is one, the account); what is missing of a fresh home is made."""
    directory = home.path / "keys"
    run = keys.load(directory / "run") or keys.create(directory / "run")
    stored = directory / "machines"
    mine = msgspec.json.decode(stored.read_bytes(), type=MachineList) if stored.exists() else None
    if mine is not None:
        lists.check(mine)
    return RunKey(run), mine, mine.account if mine is not None else accounts.only_or_fresh(directory)


def first_list(home: Home, agent: Agent, mine: MachineList | None, me: Machine) -> MachineList:
    """The list of a fresh home; and while its machine is the only one, the next list if its name has changed. A machine that was removed stays so."""
    alone = mine is not None and len(mine.machines) == 1 and lists.on(mine, me.peer)
    if mine is not None and (not alone or mine.machines == (me,) or agent.state not in ("open", "unlocked")):
        return mine
    lst = lists.sign(agent.signer(MACHINE_LIST.name), 1 if mine is None else mine.version + 1, (me,))
    write_private(home.path / "keys" / "machines", msgspec.json.encode(lst))
    return lst


async def restore(node: Node, body: bytes, passphrase: Secret, replace: bool) -> None:
    """Take an account's key from a backup. That of another account makes this machine the first of that one, if `replace` says so."""
    agent, was = node.agent, node.mine.account

    def allowed(address: str) -> None:
        if address == was:
            return
        words = f"the backup holds the key of {address}; this machine belongs to {was}"
        if len(node.mine.machines) > 1:
            raise Refused(f"{words}, with other machines: restore it in a new home")
        if not replace:
            raise Refused(f"{words}: ipos keys restore --yes makes it one of the other account")

    address = await agent.restore(body, passphrase, allowed)
    await agent.load(address)
    if address == was:
        return
    try:
        if agent.protected:
            await agent.unlock(passphrase, limits.unlock_s)
        await node.machines.restored(lists.sign(agent.signer(MACHINE_LIST.name), 1, (node.entry(),)))
        agent.lock()
    except OSError:
        await agent.load(was)
        raise
