"""/proc: what runs on this node, for whichever coordinator of its account."""

from __future__ import annotations

import errno

import msgspec

from ipos.pool.holding import Held, Holding
from ipos.pool.processfiles import process_files
from ipos.tree.file import Attr, Caller, File, Handle
from ipos.tree.synthetic import Blob, Clone, Dir, Text, new_qid
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.text import lines

PEEK_S = 0.05  # between two looks at the output of a run


class _MyEvents(File):
    """/proc/events: each coordinator sees its own leases."""

    def __init__(self, holding: Holding) -> None:
        self.qid = new_qid()
        self._holding = holding

    async def attr(self) -> Attr:
        return Attr(0o100444)

    async def open(self, caller: Caller, flags: int) -> Handle:
        _own(caller)
        return await self._holding.events(caller).open(caller, flags)


def _own(caller: Caller) -> None:
    if not caller.own:
        raise Refused("only machines of this account may run work here", errno.EPERM)


def proc_dir(holding: Holding) -> Dir:
    """The directory /proc."""

    async def deal(caller: Caller, message: bytes) -> str:
        _own(caller)
        return await holding.deal(caller, message) + "\n"

    async def ctl(caller: Caller, line: str) -> None:
        _own(caller)
        await holding.tell(caller, line)

    def find(name: str) -> File | None:
        for held in holding.leases.values():
            if holding.name(held) == name:
                return _process_dir(holding, held)
        return None

    files: dict[str, File] = {
        "clone": Clone(deal, limits.record_bytes, at_once=True),
        "ctl": Text(None, ctl),
        "events": _MyEvents(holding),
        "list": Text(lambda: "".join(msgspec.json.encode(row).decode() + "\n" for row in holding.listing())),
    }
    return Dir(files, lambda: [holding.name(held) for held in holding.leases.values()], find)


def _process_dir(holding: Holding, held: Held) -> Dir:
    def status() -> str:
        return lines(
            {
                "lease": held.deal.id,
                "coordinator": held.caller,
                "job": held.deal.job,
                "state": held.word,
                "says": held.says,
                "resting": " ".join(held.resting),
                "wall_s": held.wall_s if held.wall_s is not None else held.deal.task.limits.wall_ms / 1000,
                "saved_work": held.saved_work,
            }
        )

    def output(which: str) -> Blob:
        async def read(offset: int, count: int) -> bytes:
            """What is there; waits for more while it runs."""
            while held.run is None or not (piece := held.run.peek(which, offset, count)):
                if held.outcome is not None or held.off or holding.leases.get((held.caller, held.deal.id)) is not held:
                    return b""
                await holding.clock.sleep(PEEK_S)
            return piece

        return Blob(read, lambda: 0)

    def marks() -> str:
        return "".join(f"{work} {root}\n" for work, root in (held.run.marks() if held.run is not None else []))

    task = held.deal.task
    return Dir(
        {
            "status": Text(status),
            "cmd": Text(lambda: " ".join([task.name, *task.args]) + "\n"),
            "stdout": output("stdout"),
            "stderr": output("stderr"),
            "marks": Text(marks),
            **process_files(holding, held),
        }
    )
