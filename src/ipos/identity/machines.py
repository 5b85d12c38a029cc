"""The machine list: which nodes are mine, signed by my account. Peers keep the highest version they have seen; removal is a higher one."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from typing import Protocol

import msgspec

from ipos.identity import keys
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.record import Record, encode

_signer = lru_cache(64)(keys.signer)  # each receipt names a list, and there are few
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


class Machine(Record, frozen=True, kw_only=True):
    """One node: what people call it, its transport key (peer id), its run key (address), and the computer it is on (hex id)."""

    v: int = 1
    name: str
    peer: str
    run: str
    machine: str


class MachineList(Record, frozen=True, kw_only=True):
    """`version` rises with every change; `signature` (hex) is the account's EIP-191 signature over the record without it."""

    v: int = 1
    account: str
    version: int
    machines: tuple[Machine, ...]
    signature: str = ""


class Signer(Protocol):
    """A key, or the agent that holds it."""

    @property
    def address(self) -> str: ...
    def sign(self, message: bytes) -> bytes: ...


def sign(key: Signer, version: int, machines: tuple[Machine, ...]) -> MachineList:
    """A signed list; names and peers must be unique."""
    if len(machines) > limits.machines_per_account:
        raise Refused(f"{len(machines)} machines, the most is {limits.machines_per_account}")
    bare = MachineList(account=key.address, version=version, machines=machines)
    return msgspec.structs.replace(bare, signature=key.sign(encode(bare)).hex())


def check(lst: MachineList) -> None:
    """`Refused` unless the account named in the list has signed it."""
    bare = msgspec.structs.replace(lst, signature="")
    try:
        signature = bytes.fromhex(lst.signature)
    except ValueError:
        raise Refused("a machine list whose signature is not hex") from None
    if _signer(encode(bare), signature) != lst.account:
        raise Refused(f"a machine list of {lst.account} that this account has not signed")
    names = [m.name for m in lst.machines]
    if len(set(names)) < len(names) or len({m.peer for m in lst.machines}) < len(names):
        raise Refused("a machine list that names a machine twice")
    if not all(valid_name(name) for name in names):
        raise Refused("a machine list with a name that is none")


def newer(mine: MachineList, theirs: MachineList) -> MachineList | None:
    """`theirs` if it is to replace `mine`, None if it is old or the same; `Refused` if it must not be believed."""
    if theirs.account != mine.account:
        raise Refused(f"a machine list of account {theirs.account}, this machine belongs to {mine.account}")
    check(theirs)
    if theirs.version == mine.version and theirs != mine:
        raise Refused(
            f"two different machine lists of version {mine.version}: the account's key was used on two machines at once; "
            "the next change of the list, on either, counts for both"
        )
    return theirs if theirs.version > mine.version else None


def valid_name(name: str) -> bool:
    return len(name) <= limits.machine_name_bytes and NAME.fullmatch(name) is not None


def tidy(words: str) -> str:
    """A name made of what a host calls itself."""
    name = re.sub(r"[^a-z0-9]+", "-", words.lower().split(".")[0]).strip("-")[: limits.machine_name_bytes].strip("-")
    return name or "machine"


def find(lst: MachineList, word: str) -> Machine:
    """The machine of this name or peer id; `Refused` with the name that was perhaps meant."""
    for machine in lst.machines:
        if word in (machine.name, machine.peer):
            return machine
    names = [machine.name for machine in lst.machines]
    near = difflib.get_close_matches(word, names, 1)
    known = f"perhaps {near[0]}?" if near else f"they are {', '.join(names)}"
    raise Refused(f"no machine of this account is called {word!r}: {known}")


def on(lst: MachineList, peer: str) -> bool:
    """Whether the node is one of the list."""
    return any(machine.peer == peer for machine in lst.machines)


def with_machine(key: Signer, old: MachineList, machine: Machine) -> MachineList:
    """The next version, with `machine` added, or put in the place of the entry of the same peer; its name made unique."""
    return sign(key, old.version + 1, _put(old.machines, machine))


def _put(old: tuple[Machine, ...], machine: Machine) -> tuple[Machine, ...]:
    others = tuple(m for m in old if m.peer != machine.peer)
    taken = {m.name for m in others}
    name, n = machine.name, 2
    while name in taken:
        name = f"{machine.name[: limits.machine_name_bytes - 4]}-{n}"
        n += 1
    return *others, msgspec.structs.replace(machine, name=name)


def without_machine(key: Signer, old: MachineList, name: str) -> MachineList:
    """The next version, without the machine of this name or peer id. The last one stays: an account without machines has nobody to say so."""
    gone = find(old, name)
    if len(old.machines) == 1:
        raise Refused(f"{gone.name} is the only machine of this account: it cannot be removed from it")
    return sign(key, old.version + 1, tuple(m for m in old.machines if m is not gone))


def renamed(key: Signer, old: MachineList, name: str, new: str) -> MachineList:
    """The next version, in which a machine has another name."""
    machine = find(old, name)
    if not valid_name(new):
        raise Refused(f"{new!r} cannot be a name: small letters, digits and '-', at most {limits.machine_name_bytes}")
    if any(m.name == new and m is not machine for m in old.machines):
        raise Refused(f"another machine of this account is called {new} already")
    changed = tuple(msgspec.structs.replace(m, name=new) if m is machine else m for m in old.machines)
    return sign(key, old.version + 1, changed)


def merged(key: Signer, mine: MachineList, theirs: MachineList) -> MachineList:
    """The list of a home that has the account's key from a backup, and the account's list as it was meanwhile: theirs, and the machines of mine
    that it lacks. Higher than both, so that it counts for both."""
    machines = theirs.machines
    for machine in mine.machines:
        if not on(theirs, machine.peer):
            machines = _put(machines, machine)
    return sign(key, max(mine.version, theirs.version) + 1, machines)
