"""/cpu and /mem: what this machine gives to tasks, how much of it is in use, and the owner's say about both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipos.node.config import Config, owner
from ipos.node.machine import MachineLoad, memory
from ipos.tree.file import Caller
from ipos.tree.synthetic import Dir, Text
from ipos.wire.errors import Refused
from ipos.wire.text import lines, size

if TYPE_CHECKING:
    from ipos.pool.holding import Holding


def cpu_dir(config: Config, load: MachineLoad, holding: Holding) -> Dir:
    """/cpu"""

    def status() -> str:
        return lines(
            {
                "cores": load.cores,
                "given": config.now.cores or load.cores,
                "share": config.now.share,
                "slots": load.slots,
                "running": holding.busy,
                "load": load.others,
                "speed": load.speed,
            }
        )

    async def ctl(caller: Caller, line: str) -> None:
        owner(caller, "what the processor gives is set")
        match line.split():
            case ["share", word]:
                await config.change({"share": _number(word, "percent")})
            case ["cores", "all"]:
                await config.change({"cores": 0})
            case ["cores", word]:
                await config.change({"cores": _number(word, "cores")})
            case []:
                return
            case words:
                raise Refused(f"'{words[0]}' is not a command of /cpu/ctl; it knows share PERCENT, cores N, cores all")

    return Dir({"ctl": Text(None, ctl), "status": Text(status)})


def mem_dir(config: Config, load: MachineLoad) -> Dir:
    """/mem"""

    def status() -> str:
        total, free = memory()
        return lines(
            {
                "total_bytes": total,
                "free_bytes": free,
                "cap_bytes": config.now.memory_bytes,
                "tasks_bytes": load.tasks_bytes(),
                "offered_bytes": load.offered(total, free)[1],
            }
        )

    async def ctl(caller: Caller, line: str) -> None:
        owner(caller, "what memory is given is set")
        match line.split():
            case ["cap", "none"]:
                await config.change({"memory": ""})
            case ["cap", word]:
                size(word)
                await config.change({"memory": word})
            case []:
                return
            case words:
                raise Refused(f"'{words[0]}' is not a command of /mem/ctl; it knows cap SIZE, cap none")

    return Dir({"ctl": Text(None, ctl), "status": Text(status)})


def _number(word: str, what: str) -> int:
    if not word.isdecimal():
        raise Refused(f"{word!r} is not a number of {what}")
    return int(word)
