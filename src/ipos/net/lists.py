"""lists: two nodes show each other the machine lists of their accounts. Protocol /ipos/list/1; docs/protocols/join.md.

It is how a list reaches those whom 9P does not let in any more, or not yet: a machine that was removed learns it from the list itself, not from
a refusal that anybody could make; a home that has the account's key from a backup finds the others; friends hear of each other's newer lists.
Whoever shows no list on which he stands himself is told nothing.
"""

from __future__ import annotations

from ipos.identity import machines as lists
from ipos.identity.machines import MachineList
from ipos.net.join import Sorry
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import Record, decode

PROTOCOL = "/ipos/list/1"


class Shown(Record, frozen=True, kw_only=True):
    """Either way. `merging`: the list is that of a home that was restored from a backup; it is no news to anybody until it was merged."""

    v: int = 1
    machines: MachineList
    merging: bool = False


def read(body: bytes, peer: str) -> Shown:
    """What the node `peer` shows, if it stands on it; `Refused` says why it counts for nothing, or what the other side says instead."""
    shown = _shown(body)
    if not lists.on(shown.machines, peer):
        raise Refused(f"the list that it shows (version {shown.machines.version}) does not name it")
    return shown


def _shown(body: bytes) -> Shown:
    try:
        shown = decode(Shown, body)
    except BadRecord:
        try:
            sorry = decode(Sorry, body)
        except BadRecord:
            raise Refused("what it sent is no message of /ipos/list/1") from None
        raise Refused(sorry.sorry) from None
    lists.check(shown.machines)
    return shown


def told(body: bytes, account: str) -> MachineList:
    """The answer of a machine of `account`: it need not stand on the list itself, since the account has signed it."""
    shown = _shown(body)
    if shown.machines.account != account:
        raise Refused(f"it answered with a list of account {shown.machines.account}")
    return shown.machines
