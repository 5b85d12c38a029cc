"""processfiles: the files of a process by which the owner of its machine steers and watches it: ctl, stdin, mem, wait, why, receipt of
/proc/<pid>."""

from __future__ import annotations

import base64
import errno

from ipos.pool import holder as h
from ipos.pool.held import Held
from ipos.pool.holding import Holding
from ipos.pool.receipt import describe
from ipos.pool.records import Result
from ipos.pool.saves import engine_run
from ipos.pool.taskfiles import how, waited
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import put_soon
from ipos.tree.file import Caller, File
from ipos.tree.synthetic import Blob, Text
from ipos.wire import text
from ipos.wire.errors import Refused
from ipos.wire.record import decode
from ipos.wire.text import lines


async def command(holding: Holding, held: Held, caller: Caller, line: str) -> None:
    """A line of /proc/<pid>/ctl. The owner of the machine may write all of them, the task's coordinator `save` and `limit`."""
    name = holding.name(held)
    words = line.split()
    if not caller.local and (caller.node != held.caller or words[:1] not in ([], ["save"], ["limit"])):
        raise Refused(f"process {name} is steered by the owner of its machine, on its own socket", errno.EPERM)
    if not isinstance(held.state, (h.Queued, h.Busy, h.Paused)):
        raise Refused(f"process {name} has ended")
    match words:
        case ["pause"]:
            holding.rest(held, h.OWNER)
        case ["resume"]:
            if held.resting == (h.JOB,):
                raise Refused(f"process {name} was paused by its job's owner: resume it in /job, where the job is")
            holding.rouse(held, h.OWNER)
        case ["kill"]:
            holding.take(held)
        case ["save"]:
            if held.run is None or held.off:
                raise Refused(f"process {name} does not run: there is nothing to save")
            held.saved_work = await held.run.save()
            holding.offering.look(held, held.run)
        case ["limit", "wall", value]:
            held.wall_s = text.duration(value)
            if held.run is not None:
                held.run.limit(held.wall_s)
        case ["limit", what, _]:
            raise Refused(f"the {what} of a process is fixed since it was dealt; its wall time can be changed")
        case []:
            return
        case _:
            known = "pause, resume, save, kill, limit wall TIME"
            raise Refused(f"{line.strip()!r} is not a command of a process; it knows {known}")


def process_files(holding: Holding, held: Held) -> dict[str, File]:
    name, task = holding.name(held), held.deal.task

    def gone() -> bool:
        return holding.leases.get((held.caller, held.deal.id)) is not held

    async def wait(offset: int, count: int) -> bytes:
        await held.until(lambda: held.outcome is not None or gone())
        outcome = held.outcome or {"event": "dropped"}
        if outcome["event"] == "ended":
            result = decode(Result, base64.b64decode(outcome["result"]))
            line = waited(name, result.cpu_ms / 1000, result.wall_ms / 1000, how(result))
        else:
            passed = holding.clock.now() - held.began if held.began is not None else 0.0
            reason = {"fault": outcome.get("reason", ""), "stopped": "saved, and given to somebody else"}
            line = waited(name, 0.0, passed, reason.get(outcome["event"], "not wanted any more"))
        return line.encode()[offset : offset + count]

    def mem() -> str:
        found = held.run.memory() if held.run is not None else None
        most = task.limits.memory_bytes
        if task.in_engine and holding.store.has(task.environment or b""):
            most = engine_run(holding.store, task).memory_bytes
        return lines({"now": found.now if found else 0, "peak": found.peak if found else 0, "limit": most})

    def stdin(offset: int, count: int) -> bytes:
        return unixfs.read(holding.store, task.stdin, offset, count) if task.stdin is not None else b""

    def size() -> int:
        here = task.stdin is not None and holding.store.has(task.stdin)
        return unixfs.size(holding.store, task.stdin) if here and task.stdin is not None else 0

    def receipt() -> str:
        """For what it has computed so far, where that is saved and signed."""
        if not held.signed:
            return ""
        cid = c.of_dag_cbor(held.signed[0])
        put_soon(holding.store, [(cid, held.signed[0])])
        return lines(describe(holding.store, cid))

    def why() -> str:
        return f"process {name} is task {held.deal.id.rpartition('.')[0]} of {held.caller}, which chose this node; {held.says}\n"

    return {
        "ctl": Text(None, lambda caller, line: command(holding, held, caller, line)),
        "stdin": Blob(stdin, size),
        "mem": Text(mem),
        "wait": Blob(wait, lambda: 0),
        "receipt": Text(receipt),
        "why": Text(why),
    }
