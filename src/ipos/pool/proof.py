"""proof: what can be said of a receipt without running anything: that it is whole, signed, and says one thing.

`examine` reads the evidence and gives a `Case`, or raises `Refused` with the sentence of what is wrong first. `Undecided` means that this
IPOS cannot say, and never that something is wrong.
"""

from __future__ import annotations

from typing import NamedTuple

from ipos.identity.machines import MachineList
from ipos.pool import evidence, marks, saves
from ipos.pool.records import EngineRun, Evidence, Mark, Receipt, Result, Task
from ipos.pool.saves import HandOver
from ipos.store import cid as c
from ipos.store.blocks import BlockStore, Missing
from ipos.vm.plan import USED_UP
from ipos.vm.version import version
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import decode

TRAPPED = "trapped: "
REFUSED = 125  # the exit status of a program that cannot begin


class Undecided(Exception):
    """This machine or this version cannot judge; the sentence says what could."""


class Case(NamedTuple):
    """`chain`: the receipt, then those before it; `marks` in order; `saves`: index of a mark -> its packed save. `run`: None for a native
    task. `mute`: why there is nothing to run again, "" = there is."""

    store: BlockStore
    chain: list[Receipt]
    task: Task
    result: Result
    run: EngineRun | None
    marks: tuple[Mark, ...]
    saves: dict[int, bytes]
    mute: str

    @property
    def receipt(self) -> Receipt:
        return self.chain[0]

    @property
    def name(self) -> str:
        """What its account calls the machine that signed."""
        lst = decode(MachineList, self.store.get(self.receipt.machines))
        return next(m.name for m in lst.machines if m.run == self.receipt.run and m.peer == self.receipt.node)

    @property
    def used_up(self) -> bool:
        return self.result.killed.startswith(USED_UP)

    @property
    def refused(self) -> bool:
        """The program is said to be one that cannot begin."""
        return self.result.exit == REFUSED and bool(self.result.killed) and not self.receipt.root


def examine(store: BlockStore, root: bytes) -> Case:
    """All but the running. `Refused`: it is not true, or not whole; `Undecided`."""
    try:
        return _examined(store, root)
    except Missing as lost:
        raise Refused(f"block {c.text(lost.cid)} is missing: it is not whole") from None


def _handed_over(body: bytes) -> bool:
    try:
        decode(HandOver, body)
    except BadRecord:
        return False
    return True


def _examined(store: BlockStore, root: bytes) -> Case:
    if root[:4] != c.DAG_CBOR:
        raise BadRecord("", "its root is not an Evidence record")
    body = store.get(root)
    try:
        all_of_it = decode(Evidence, body)
    except BadRecord:
        if _handed_over(body):
            raise Undecided("it is a handed-over task, not a receipt: ipos resume goes on with it") from None
        raise
    if lost := evidence.missing(store, root):
        raise Missing(lost[0])
    chain = evidence.chain(store, all_of_it.receipt)
    receipt = chain[0]
    if receipt.result is None:
        raise Refused("the receipt is of a segment of a task that went on elsewhere: it names no result")
    task, result = decode(Task, store.get(receipt.task)), decode(Result, store.get(receipt.result))
    _agree(receipt, result)
    if receipt.engine != task.engine:
        raise Refused(f"the receipt is for engine {receipt.engine or 'none'}, the task for {task.engine or 'none'}")
    if not task.in_engine:
        native = "a native program: the receipt proves who claims this result, not that it is right"
        return Case(store, chain, task, result, None, (), {}, native)
    run = saves.engine_run(store, task)
    if run.engine != task.engine:
        raise Refused(f"the task is for engine {task.engine}, what it runs with is for {run.engine}")
    _same_task(store, chain, task, run)
    if run.engine != version():
        raise Undecided(
            f"it is for engine {run.engine}, this IPOS has {version()}: verify it with a version that has it"
        )
    if run.mark_every <= 0:
        raise BadRecord("mark_every", f"{run.mark_every} is no grid")
    listed = marks.read(store, receipt.marks, run.mark_every)
    if listed and listed[-1].work > receipt.work:
        raise Refused(f"mark {listed[-1].index} is at work {listed[-1].work}, the receipt ends at {receipt.work}")
    known = {mark.index for mark in listed}
    for save in all_of_it.saves:
        if save.index not in known:
            raise Refused(f"it has a save at mark {save.index}, which is not among its marks")
    mute = ""
    if not receipt.root and result.exit != REFUSED:
        mute = f"the task was ended ({result.killed or 'no final state'}): there is nothing to run again"
    return Case(store, chain, task, result, run, listed, {s.index: s.save for s in all_of_it.saves}, mute)


def _agree(receipt: Receipt, result: Result) -> None:
    """Field by field, what the two say of one thing."""
    said = result.ext
    for what, ours, theirs in (
        ("task", c.text(receipt.task), c.text(result.task)),
        ("node", receipt.node, result.node),
        ("work", str(receipt.work), said.get("work", "0")),
        ("root", receipt.root, said.get("root", "")),
        ("marks", c.text(receipt.marks) if receipt.marks is not None else "", said.get("marks", "")),
        ("page_work", str(receipt.page_work), said.get("page_work", "0")),
        ("cpu_ms", str(receipt.cpu_ms), str(result.cpu_ms)),
        ("wall_ms", str(receipt.wall_ms), str(result.wall_ms)),
    ):
        if ours != theirs:
            raise Refused(
                f"receipt and result do not belong together: {what} is {ours or 'none'} and {theirs or 'none'}"
            )


def _same_task(store: BlockStore, chain: list[Receipt], task: Task, run: EngineRun) -> None:
    """A task whose work was raised on its way is the same but for that."""
    wanted = saves.identity(task, run)
    for one in chain[1:]:
        if one.task != chain[0].task:
            other = decode(Task, store.get(one.task))
            if saves.identity(other, saves.engine_run(store, other)) != wanted:
                raise Refused(f"the segment of {one.node} is of another task, {c.text(one.task)}")
