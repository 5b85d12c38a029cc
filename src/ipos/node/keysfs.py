"""/keys: the agent as files. Secrets go in by `ctl`, and none comes out of any file here but a backup, which is under a passphrase."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ipos.identity import accounts
from ipos.identity.secret import Secret
from ipos.node.config import owner
from ipos.node.identity import restore
from ipos.tree.file import Caller
from ipos.tree.synthetic import Clone, Dir, Text
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.text import duration, lines

if TYPE_CHECKING:
    from ipos.node.daemon import Node

KNOWN = "unlock, lock, passphrase, backup, verify, restore"


class Keys:
    """The files of one node's agent."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.dir = Dir(
            {
                "ctl": Clone(self._ctl, limits.ctl_line_bytes + limits.keystore_bytes, at_once=True),
                "sign": Clone(self._sign, limits.ctl_line_bytes + limits.record_bytes),
                "purposes": Text(lambda: "".join(msgspec.json.encode(row).decode() + "\n" for row in self.purposes())),
                "status": Text(lambda: lines(self.status())),
                "list": Text(lambda: "".join(msgspec.json.encode(row).decode() + "\n" for row in self.rows())),
            }
        )

    def status(self) -> dict[str, object]:
        agent = self._node.agent
        left = agent.locks_in_s
        return {
            "account": agent.account,
            "state": agent.state,
            "here": agent.here,
            "passphrase": agent.protected if agent.here and not agent.trouble else None,
            "locks_in_s": None if left is None else round(left),
            "wrong_passphrases": agent.failures,
            "trouble": agent.trouble or None,
            "words": words(self._node),
        }

    def rows(self) -> list[dict[str, object]]:
        """One object a key: account, run, transport, and keys of accounts that do not count here."""
        node = self._node
        directory = node.home / "keys"
        rows: list[dict[str, object]] = [
            {"key": "account", "name": node.mine.account, "file": None, "mode": None, "state": words(node)},
            {"key": "run", "name": node.entry().run, **_where(directory / "run"), "state": "open while the node runs"},
            {"key": "transport", "name": node.net.peer, **_where(directory / "transport"), "state": "in netd"},
        ]
        if node.agent.here:
            rows[0] |= _where(accounts.file_of(directory, node.mine.account))
        for address in accounts.held(directory):
            if address != node.mine.account:
                path = accounts.file_of(directory, address)
                rows.append(
                    {
                        "key": "unused",
                        "name": address,
                        **_where(path),
                        "state": "of an account that does not count here",
                    }
                )
        return rows

    def purposes(self) -> list[dict[str, str]]:
        """What the account signs: the purpose, and the kind of record it must be."""
        return [{"purpose": one.name, "record": one.kind.__name__} for one in self._node.agent.purposes]

    async def _sign(self, caller: Caller, written: bytes) -> str:
        """The purpose in the first line, behind it the record as it will be signed. The answer: 65 bytes of signature, in hexadecimal."""
        owner(caller, "the account signs")
        first, _, record = written.partition(b"\n")
        return self._node.agent.sign(first.decode(errors="replace").strip(), record).hex() + "\n"

    async def _ctl(self, caller: Caller, written: bytes) -> str:
        """One command a write: its words in the first line, passphrases in the lines after it. Nothing that was written is ever repeated."""
        owner(caller, "keys are opened")
        agent = self._node.agent
        first, _, rest = written.partition(b"\n")
        lines_ = rest.split(b"\n")
        match first.decode(errors="replace").split():
            case ["unlock"]:
                await agent.unlock(_secret(lines_, 0), limits.unlock_s)
            case ["unlock", time]:
                await agent.unlock(_secret(lines_, 0), duration(time))
            case ["lock"]:
                if agent.state == "open":
                    raise Refused(
                        "the account key has no passphrase, it cannot be locked: ipos keys passphrase sets one"
                    )
                agent.lock()
            case ["passphrase"]:
                new = _secret(lines_, 1)
                if new.empty:
                    raise Refused("an empty passphrase is none: to go without one, say so (passphrase none)")
                await agent.change(_secret(lines_, 0), new)
            case ["passphrase", "none"]:
                await agent.change(_secret(lines_, 0), accounts.NO_PASSPHRASE)
            case ["backup"]:
                return (await agent.backup(_secret(lines_, 0))).decode()
            case ["verify"]:
                await agent.verify(_body(rest), _secret(lines_, 0))
            case ["restore"]:
                await restore(self._node, _body(rest), _secret(lines_, 0), replace=False)
            case ["restore", "replace"]:
                await restore(self._node, _body(rest), _secret(lines_, 0), replace=True)
            case _:
                raise Refused(f"not a command of /keys/ctl; it knows {KNOWN}")
        return lines(self.status())


def words(node: Node) -> str:
    """How the account's key is, for people."""
    agent = node.agent
    match agent.state:
        case "unusable":
            return agent.trouble
        case "elsewhere":
            return "on another machine"
        case "open":
            return "open, without a passphrase: ipos keys passphrase sets one"
        case "locked":
            return "locked: ipos keys unlock"
        case _:
            return f"unlocked, locks in {agent.locks_in_s or 0:.0f} s"


def _secret(lines_: list[bytes], which: int) -> Secret:
    value = lines_[which] if which < len(lines_) else b""
    if len(value) > limits.passphrase_bytes:
        raise Refused(f"a passphrase of {len(value)} bytes, the most is {limits.passphrase_bytes}")
    return Secret(value)


def _body(rest: bytes) -> bytes:
    """What follows the passphrase's line: a keystore."""
    return rest.partition(b"\n")[2]


def _where(path: Path) -> dict[str, object]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return {"file": str(path), "mode": None}
    return {"file": str(path), "mode": f"{mode:04o}"}
