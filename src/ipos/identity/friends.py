"""What accounts say to each other: introductions (who I am), grants (what you may do on my machines), and trust (how far I believe yours).

A friend is another account, met by a code that two people said to each other. Being one opens nothing: a grant lets him use a machine of mine,
trust lets his results count. The three are kept apart, and only the first is mutual.
"""

from __future__ import annotations

import msgspec

from ipos.identity import keys
from ipos.identity import machines as lists
from ipos.identity.machines import MachineList, Signer
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.record import Count, Record, cid_of, encode

TRUST = ("none", "receipt", "full")
"""A friend's results do not count; count for the job that asked, with a receipt that holds; count as those of my own machines."""


class Introduction(Record, frozen=True, kw_only=True):
    """An account to one node of another: its machines and where they were reached last (peer id -> multiaddrs). `to`: the peer id of that
    node; `signature`: EIP-191 by the account over the record without it, hex."""

    v: int = 1
    machines: MachineList
    addresses: dict[str, tuple[str, ...]]
    to: str
    signature: str = ""

    @property
    def account(self) -> str:
        return self.machines.account


class Grant(Record, frozen=True, kw_only=True):
    """`account` lets account `to` run tasks on its machine `node` (peer id). `run`: "wasm", programs of the engine and nothing else, in at most
    `cores` slots at once. `expires`: Unix time in s by the clock of that machine, 0: when it is revoked. `number` makes equal grants two."""

    v: int = 1
    account: str
    node: str
    to: str
    run: str
    cores: Count
    expires: Count
    number: Count
    signature: str = ""

    @property
    def id(self) -> str:
        return cid_of(self)[-6:].hex()


def introduce(key: Signer, machines: MachineList, addresses: dict[str, tuple[str, ...]], to: str) -> Introduction:
    """For the node `to`; of many addresses the first."""
    most = limits.introduced_addresses
    some = {peer: known[:most] for peer, known in list(addresses.items())[: limits.introduced_machines]}
    bare = Introduction(machines=machines, addresses=some, to=to)
    return msgspec.structs.replace(bare, signature=key.sign(encode(bare)).hex())


def check_introduction(said: Introduction, to: str, peer: str = "") -> None:
    """`Refused` unless the account has signed it for the node `to`, and (if it is given) `peer` is one of its machines."""
    lists.check(said.machines)
    _signed(said, said.account, f"an introduction of account {said.account}")
    if said.to != to:
        raise Refused(f"an introduction to node {said.to}: this is {to}")
    if peer and not lists.on(said.machines, peer):
        raise Refused(f"node {peer} is no machine of account {said.account}, whose introduction it shows")


def grant(key: Signer, node: str, to: str, cores: int, expires: int, number: int) -> Grant:
    if not 1 <= cores <= limits.granted_cores:
        raise Refused(f"{cores} slots cannot be granted: 1 to {limits.granted_cores}")
    bare = Grant(
        account=key.address, node=node, to=to, run="wasm", cores=cores, expires=expires, number=number
    )  # fmt: skip
    return msgspec.structs.replace(bare, signature=key.sign(encode(bare)).hex())


def check_grant(given: Grant, account: str) -> None:
    """`Refused` unless this account has signed it."""
    if given.account != account:
        raise Refused(f"a grant of account {given.account}, this machine belongs to {account}")
    if given.run != "wasm":
        raise Refused(f"a grant to run {given.run!r}: this IPOS knows wasm")
    _signed(given, account, f"grant {given.id}")


def _signed(record: Introduction | Grant, account: str, what: str) -> None:
    bare = msgspec.structs.replace(record, signature="")
    try:
        signature = bytes.fromhex(record.signature)
    except ValueError:
        raise Refused(f"{what} whose signature is not hex") from None
    if keys.signer(encode(bare), signature) != account:
        raise Refused(f"{what} that this account has not signed")


def level(word: str) -> str:
    """One of `TRUST`."""
    if word not in TRUST:
        raise Refused(f"{word!r} is no trust: none (their results do not count), receipt (with a signed receipt), full")
    return word
