"""The agent: the one place where the account's key is open, as Plan 9's factotum (https://9p.io/sys/doc/auth.html).

Nobody gets the key; who needs a signature names a *purpose*, and the agent reads what it is to sign by that purpose's schema, writes a line
to the log, and signs. A purpose that the agent was not granted is refused, whatever the caller says.

An account begins without a passphrase, and then its key is open whenever the node runs: `ipos up` asks nothing. Once its owner has set one, the
key is open only between `unlock` and the end of the time he gave, and then forgotten. Wrong passphrases are followed by a pause that doubles.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ipos.identity import accounts, keystore
from ipos.identity.friends import Grant, Introduction
from ipos.identity.keys import Key
from ipos.identity.keystore import WrongPassphrase
from ipos.identity.machines import MachineList
from ipos.identity.secret import Secret
from ipos.wire import limits
from ipos.wire.clock import Clock
from ipos.wire.errors import Refused
from ipos.wire.record import Record, decode

log = logging.getLogger("ipos.agent")

LOOK_S = 5.0  # a machine that slept wakes up with timers that did not run on: the clock is looked at so often


class Purpose(NamedTuple):
    """What the account may sign: a name, the record that it must be, and `say(account, record)`: the line for the log, or `Refused`."""

    name: str
    kind: type[Record]
    say: Callable[[str, Any], str]


def _machine_list(account: str, lst: MachineList) -> str:
    if lst.account != account or lst.signature:
        raise Refused(f"the agent signs bare machine lists of {account} only", errno.EPERM)
    return f"machine list version {lst.version}: {', '.join(machine.name for machine in lst.machines)}"


MACHINE_LIST = Purpose("machine-list", MachineList, _machine_list)


def _introduction(account: str, said: Introduction) -> str:
    if said.account != account or said.signature:
        raise Refused(f"the agent signs bare introductions of {account} only", errno.EPERM)
    return f"introduction to node {said.to}"


def _grant(account: str, given: Grant) -> str:
    if given.account != account or given.signature:
        raise Refused(f"the agent signs bare grants of {account} only", errno.EPERM)
    until = f"until {given.expires}" if given.expires else "until it is revoked"
    return f"account {given.to} may run {given.run} on node {given.node}, {given.cores} at once, {until}"


INTRODUCTION = Purpose("introduction", Introduction, _introduction)
GRANT = Purpose("grant", Grant, _grant)
PURPOSES = (MACHINE_LIST, INTRODUCTION, GRANT)
"""Everything that an account signs in this version."""


class Offload(Protocol):
    def __call__(self, function: Callable[[], Any], /) -> Awaitable[Any]: ...


class Signer:
    """Signs for one purpose; `keys.Key` has the same two members."""

    def __init__(self, agent: Agent, purpose: str) -> None:
        self._agent = agent
        self._purpose = purpose
        self.address = agent.account

    def sign(self, message: bytes) -> bytes:
        """EIP-191 signature over a record that the purpose allows; `Refused` otherwise, or while the key is locked."""
        return self._agent.sign(self._purpose, message)


class Agent:
    """`directory`: the home's `keys`. `account`: whose key it holds, if it is here. `offload`: runs what takes time off the loop."""

    def __init__(
        self, directory: Path, account: str, clock: Clock, offload: Offload, purposes: tuple[Purpose, ...] = PURPOSES
    ) -> None:
        self.account = account
        self.here = False
        self.protected = False  # whether there is a passphrase
        self.trouble = ""  # why the key that is here cannot be used
        self.failures = 0
        self._directory = directory
        self._clock = clock
        self._offload = offload
        self._purposes = {purpose.name: purpose for purpose in purposes}
        self._key: Key | None = None
        self._until: float | None = None
        self._not_before = 0.0
        self._turn = asyncio.Lock()  # one scrypt at a time: each takes 128 MiB
        self._timer: asyncio.Task[None] | None = None

    # ---- what is known

    @property
    def locks_in_s(self) -> float | None:
        """Seconds until an unlocked key locks; None if it is locked, or has no passphrase."""
        if self._until is None:
            return None
        left = self._until - self._clock.now()
        if left <= 0:
            self.lock()
            return None
        return left

    @property
    def state(self) -> str:
        """`elsewhere`, `unusable`, `open` (no passphrase), `locked` or `unlocked` (for a time)."""
        if self.trouble:
            return "unusable"
        if not self.here:
            return "elsewhere"
        if not self.protected:
            return "open"
        return "locked" if self.locks_in_s is None else "unlocked"

    def _open(self) -> Key:
        """The key for a signature now; `Refused` says why there is none."""
        match self.state:
            case "unusable":
                raise Refused(self.trouble, errno.EACCES)
            case "elsewhere":
                raise Refused(f"the key of account {self.account} is not on this machine", errno.EACCES)
            case "locked":
                raise Refused("the account key is locked: ipos keys unlock", errno.EACCES)
            case _:
                assert self._key is not None
                return self._key

    # ---- signing

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        """What it is granted to sign for."""
        return tuple(self._purposes.values())

    def may(self, purpose: str) -> None:
        """`Refused` unless a signature for this purpose would be given now."""
        self._granted(purpose)
        self._open()

    def signer(self, purpose: str) -> Signer:
        """What a part of the node gets instead of the key."""
        self._granted(purpose)
        return Signer(self, purpose)

    def _granted(self, purpose: str) -> Purpose:
        granted = self._purposes.get(purpose)
        if granted is None:
            known = ", ".join(self._purposes) or "nothing"
            raise Refused(f"the agent does not sign for {purpose!r}; it is granted {known}", errno.EPERM)
        return granted

    def sign(self, purpose: str, message: bytes) -> bytes:
        """65 bytes over a record of the purpose's kind (`BadRecord` if it is none)."""
        granted = self._granted(purpose)
        line = granted.say(self.account, decode(granted.kind, message))
        signature = self._open().sign(message)
        log.info("signed for %s: %s", purpose, line)
        return signature

    # ---- opening and closing

    async def load(self, account: str) -> None:
        """Take this account for the one that counts. Its key opens at once if it has no passphrase, and only then."""
        async with self._turn:
            self.lock()
            self._key, self.account, self.trouble, self.failures, self._not_before = None, account, "", 0, 0.0
            try:
                self.here, self.protected, self._key = await self._offload(lambda: self._look(account))
            except Refused as refused:
                self.here, self.trouble = True, str(refused)
                log.warning("the account key cannot be used: %s", refused)

    def _look(self, account: str) -> tuple[bool, bool, Key | None]:
        body = accounts.load(self._directory, account)
        if body is None:
            return False, False, None
        if not keystore.cheap(body):  # ours without a passphrase always are
            return True, True, None
        try:
            return True, False, self._right(keystore.unseal(body, accounts.NO_PASSPHRASE), account)
        except WrongPassphrase:
            return True, True, None

    def _right(self, secret: Secret, account: str) -> Key:
        """The key, if it is this account's: a keystore need not say whose it is."""
        key = Key(secret)
        if key.address != account:
            raise Refused(f"{accounts.file_of(self._directory, account)} holds the key of {key.address}")
        return key

    async def _try(self, passphrase: Secret) -> Secret:
        """The key as the file has it, for the right passphrase; counts the wrong ones. Called in one's turn."""
        wait = self._not_before - self._clock.now()
        if wait > 0:
            times = "once" if self.failures == 1 else f"{self.failures} times"
            raise Refused(f"the passphrase was wrong {times}: the next try is in {wait:.1f} s", errno.EAGAIN)
        body = await self._offload(lambda: accounts.load(self._directory, self.account))
        if body is None:
            raise Refused(f"the key of account {self.account} is not on this machine", errno.EACCES)
        try:
            secret: Secret = await self._offload(lambda: keystore.unseal(body, passphrase))
        except WrongPassphrase:
            self.failures += 1
            self._not_before = self._clock.now() + min(2.0 ** (self.failures - 1), limits.wrong_passphrase_most_s)
            log.warning("a wrong passphrase for the account key (%d in a row)", self.failures)
            raise
        self._right(secret, self.account)
        self.failures = 0
        return secret

    async def unlock(self, passphrase: Secret, seconds: float) -> None:
        """Open for so long, counted on the clock of this machine, time asleep included; a second unlock sets a new end."""
        if not 0 < seconds <= limits.unlock_most_s:
            most = limits.unlock_most_s / 86_400
            raise Refused(f"the account key cannot be unlocked for {seconds:g} s: the most is {most:g} days")
        async with self._turn:
            if self.state == "open":
                raise Refused("the account key has no passphrase: it is open (ipos keys passphrase sets one)")
            secret = await self._try(passphrase)
            self.lock()
            self._key, self._until = Key(secret), self._clock.now() + seconds
            self._timer = asyncio.create_task(self._watch())
            log.info("the account key is unlocked for %g s", seconds)

    async def _watch(self) -> None:
        while (left := self.locks_in_s) is not None:
            await self._clock.sleep(min(left, LOOK_S))

    def lock(self) -> None:
        """Forget the key, if it has a passphrase to come back by."""
        if self._until is None:
            return
        self._key = self._until = None
        timer, self._timer = self._timer, None
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()
        log.info("the account key is locked")

    # ---- its passphrase, backups

    async def change(self, old: Secret, new: Secret) -> None:
        """Another passphrase, or none (empty). The key is locked afterwards, unless it has none. `old` counts only if there is one."""
        async with self._turn:
            self._usable()
            secret = await self._try(old if self.protected else accounts.NO_PASSPHRASE)
            await self._offload(lambda: accounts.keep(self._directory, secret, new))
            self.lock()
            self.protected = not new.empty
            self._key = None if self.protected else Key(secret)
            log.info("the account key has %s", "a new passphrase" if self.protected else "no passphrase any more")

    def _usable(self) -> None:
        if self.state in ("unusable", "elsewhere"):
            self._open()

    async def backup(self, passphrase: Secret) -> bytes:
        """A keystore of the key under the account's passphrase (which must be the right one), or, if it has none, under this one."""
        async with self._turn:
            self._usable()
            if passphrase.empty:
                raise Refused("a backup without a passphrase is open to whoever finds it: give it one")
            secret = await self._try(passphrase if self.protected else accounts.NO_PASSPHRASE)
            return await self._offload(lambda: keystore.seal(secret, passphrase))

    async def verify(self, body: bytes, passphrase: Secret) -> None:
        """`Refused` unless this keystore opens with the passphrase and holds the account's key."""
        async with self._turn:
            secret = await self._offload(lambda: keystore.unseal(body, passphrase))
            if Key(secret).address != self.account:
                raise Refused(f"the file holds the key of {Key(secret).address}, not that of {self.account}")

    async def restore(self, body: bytes, passphrase: Secret, allowed: Callable[[str], None]) -> str:
        """Put a keystore's key among those of this home, under the same passphrase; its address. `load` makes it the one that counts.

        `allowed(address)` may refuse before anything is written.
        """
        async with self._turn:
            secret: Secret = await self._offload(lambda: keystore.unseal(body, passphrase))
            address = Key(secret).address
            allowed(address)
            await self._offload(lambda: accounts.keep(self._directory, secret, passphrase))
            log.info("the key of account %s was restored", address)
            return address
