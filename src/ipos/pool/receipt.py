"""receipt: who computed what, signed so that anybody can check it without asking anybody (docs/protocols/receipts.md).

The signature says only that the owner of a machine's run key claims this; the list that the receipt names says whose machine that is.
Whether the claim is true the program says, when it is run again (`proof`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from ipos.identity import machines as lists
from ipos.identity.machines import MachineList
from ipos.identity.typed import Domain, RunKey, Schema, signer_typed
from ipos.pool.records import Receipt, Result, Task
from ipos.store import cid as c
from ipos.store.blocks import Block, BlockStore
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import cid_of, decode, encode

DOMAIN = Domain("IPOS receipt", "1")
SCHEMA = Schema(
    "Receipt",
    {
        "Receipt": (
            ("task", "bytes"), ("result", "bytes"), ("account", "address"), ("run", "address"), ("node", "string"),
            ("machines", "bytes"), ("engine", "string"), ("since", "uint64"), ("sinceRoot", "bytes"), ("work", "uint64"),
            ("root", "bytes"), ("marks", "bytes"), ("before", "bytes"), ("pageWork", "uint64"), ("cpuMs", "uint64"),
            ("wallMs", "uint64"),
        )
    },
)  # fmt: skip


def message(receipt: Receipt) -> dict[str, Any]:
    """What is signed: every field but the signature. A link that is None is signed as no bytes."""
    if receipt.ext:
        raise BadRecord("ext", f"{min(receipt.ext)!r} would not be signed: a receipt has no such fields")
    return {
        "task": receipt.task, "result": receipt.result or b"", "account": receipt.account, "run": receipt.run,
        "node": receipt.node, "machines": receipt.machines, "engine": receipt.engine, "since": receipt.since,
        "sinceRoot": bytes.fromhex(receipt.since_root), "work": receipt.work, "root": bytes.fromhex(receipt.root),
        "marks": receipt.marks or b"", "before": receipt.before or b"", "pageWork": receipt.page_work,
        "cpuMs": receipt.cpu_ms, "wallMs": receipt.wall_ms,
    }  # fmt: skip


def sign(key: RunKey, receipt: Receipt) -> Receipt:
    """With the run key that the receipt names."""
    return msgspec.structs.replace(receipt, signature=key.sign(DOMAIN, SCHEMA, message(receipt)).hex())


def check(receipt: Receipt, machines: MachineList) -> None:
    """`Refused` unless the run key signed it, and the account's list has that key for that node."""
    try:
        signature = bytes.fromhex(receipt.signature)
    except ValueError:
        raise BadRecord("signature", "not hex") from None
    if signature.hex() != receipt.signature:
        raise BadRecord("signature", "not hex as it is written here")
    who = signer_typed(DOMAIN, SCHEMA, message(receipt), signature)
    if who != receipt.run:
        raise Refused(f"the receipt is not signed by its run key {receipt.run}: this signature would be {who}'s")
    if cid_of(machines) != receipt.machines:
        raise Refused("this is not the machine list that the receipt names")
    lists.check(machines)
    if machines.account != receipt.account:
        raise Refused(f"the receipt is of account {receipt.account}, its machine list of {machines.account}")
    if not any(m.run == receipt.run and m.peer == receipt.node for m in machines.machines):
        raise Refused(
            f"account {receipt.account} has no machine {receipt.node} with the run key {receipt.run} "
            f"on its list (version {machines.version})"
        )


def describe(store: BlockStore, cid: bytes) -> dict[str, Any]:
    """The pairs of /job/<n>/<i>/receipt: a receipt as people read it; CIDs as text."""
    one = decode(Receipt, store.get(cid))
    return {
        "receipt": c.text(cid), "task": c.text(one.task), "result": _text(one.result), "account": one.account, "run": one.run,
        "node": one.node, "machines": c.text(one.machines), "engine": one.engine or None, "native": not one.engine,
        "since": one.since, "since_root": one.since_root or None, "work": one.work, "root": one.root or None,
        "marks": _text(one.marks), "before": _text(one.before), "page_work": one.page_work or None, "cpu_ms": one.cpu_ms,
        "wall_ms": one.wall_ms, "signature": one.signature,
    }  # fmt: skip


def _text(cid: bytes | None) -> str | None:
    return c.text(cid) if cid is not None else None


class Segment(NamedTuple):
    """Where a node began with a task."""

    since: int = 0
    root: str = ""
    before: bytes | None = None


class Receipts:
    """Of one node: signs what it computed, and believes what others sent if it is signed. `mine`: the account's list as it is now."""

    def __init__(self, key: RunKey, node: str, mine: Callable[[], MachineList], store: BlockStore) -> None:
        self._key = key
        self._node = node
        self._mine = mine
        self._store = store
        self._list: tuple[MachineList, bytes] | None = None
        self.whose: Callable[[str], str] = lambda node: ""
        """The account of a friend's node, "" of my own: whose receipts its receipts must be."""

    @property
    def account(self) -> str:
        return self._mine().account

    def machines(self) -> bytes:
        """The CID of the account's list, which is in the store then."""
        mine = self._mine()
        if self._list is None or self._list[0] is not mine or not self._store.has(self._list[1]):
            body = encode(mine)
            cid = c.of_dag_cbor(body)
            self._store.put([(cid, body)])
            self._list = mine, cid
        return self._list[1]

    def with_list(self, receipt: bytes | None) -> list[bytes]:
        """A receipt's record and that of the list which it names; nothing if the list is not here any more."""
        if receipt is None:
            return []
        machines = decode(Receipt, receipt).machines
        return [receipt, self._store.get(machines)] if self._store.has(machines) else []

    def of_result(self, task: Task, result: Result, segment: Segment) -> Receipt:
        """For the end of a task."""
        said = result.ext
        return self._signed(
            task=result.task, result=cid_of(result), engine=task.engine, segment=segment, work=int(said.get("work", "0")),
            root=said.get("root", ""), marks=c.parse(said["marks"]) if "marks" in said else None,
            page_work=int(said.get("page_work", "0")), cpu_ms=result.cpu_ms, wall_ms=result.wall_ms,
        )  # fmt: skip

    def of_segment(self, task: Task, segment: Segment, work: int, root: str) -> Receipt:
        """For a task that goes on elsewhere."""
        return self._signed(
            task=cid_of(task), result=None, engine=task.engine, segment=segment, work=work, root=root, marks=None,
            page_work=0, cpu_ms=0, wall_ms=0,
        )  # fmt: skip

    def _signed(self, *, segment: Segment, **fields: Any) -> Receipt:
        return sign(
            self._key,
            Receipt(
                account=self.account, run=self._key.address, node=self._node, machines=self.machines(), since=segment.since,
                since_root=segment.root, before=segment.before, **fields,
            ),
        )  # fmt: skip

    def accept(self, body: bytes, machines: bytes, task: bytes, result: bytes | None, node: str) -> list[Block]:
        """A receipt that came with a result of `node`, or with its save (None), and the machine list that it names. `Refused` says why it
        is none for that. As blocks, the receipt's first."""
        receipt = decode(Receipt, body)
        if receipt.task != task or receipt.result != result:
            raise Refused("the receipt is for another task or another result")
        if receipt.node != node:
            raise Refused(f"the receipt is of node {receipt.node}, the work of {node}")
        lst = decode(MachineList, machines)
        check(receipt, lst)
        whose = self.whose(node)
        if lst.account != (whose or self.account):
            raise Refused(f"the receipt is of account {lst.account}, not of {whose or 'this one'}")
        return [(c.of_dag_cbor(body), body), (receipt.machines, machines)]
