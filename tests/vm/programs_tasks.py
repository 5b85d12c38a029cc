"""Tasks for the tests of moves: a program with everything that it is started with, and what it comes to undisturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import wasmtime

from ipos.vm import engine
from ipos.vm.runner import Runner, Spec
from ipos.vm.version import cache_root
from ipos.vm.wasi.boot import Boot, Directory, File, Stdin, StdinKind

from . import programs_real
from .programs import HERE, SMALL, c
from .programs_host import Host, Outcome, outcome

LINES = b"".join(b"%d%3000s\n" % (i, b"") for i in range(8))  # longer than a program's buffers
LONG = bytes(i * i % 251 for i in range(60_000))


@dataclass(frozen=True)
class Task:
    """`files`: the input root, by name. `exit`: what it must end with, so that a program that fails at once proves nothing."""

    name: str
    program: Callable[[], bytes]
    args: tuple[str, ...] = ()
    stdin: bytes = b""
    files: dict[str, str] = field(default_factory=dict[str, str])
    mark_every: int = 2_000_000
    exit: int = 0
    every: tuple[str, ...] = ()  # the arguments that make it so small that it can be stopped everywhere

    def spec(self, args: tuple[str, ...] = ()) -> Spec:
        contents = [(HERE / "programs" / path).read_bytes() for path in self.files.values()]
        tree = Directory({name: File(i + 1, len(contents[i])) for i, name in enumerate(self.files)})
        boot = Boot((self.name, *(args or self.args)), seed=b"seed".ljust(32), stdin=Stdin(StdinKind.STREAM), tree=tree)
        return Spec(self.name, boot, 256 << 20, mark_every=self.mark_every)

    def content(self, file: int) -> bytes:
        return (HERE / "programs" / list(self.files.values())[file - 1]).read_bytes()

    def module(self) -> wasmtime.Module:
        return engine.compiled(self.program(), cache_root())


def small(name: str, many: int, few: int, exit: int = 0, stdin: bytes = b"") -> Task:
    return Task(name, lambda: c(name, SMALL), (str(many),), stdin, exit=exit, every=(str(few),))


TASKS = {
    task.name: task
    for task in (
        small("fib", 30, 8),
        small("qsort", 300_000, 60),
        small("core", 300, 1, exit=35),
        small("nbody", 100_000, 12),
        small("matmul", 160, 6),
        small("sha256", 60_000, 3),
        Task("hash", lambda: c("sha256", SMALL), ("0",), LONG, mark_every=100_000),
        Task("lua", programs_real.lua, ("bench.lua",), LINES, {"bench.lua": "lua/bench.lua"}, exit=5),
        Task("sqlite", programs_real.sqlite, ("/work.db", "batch.sql"), b"", {"batch.sql": "sqlite/batch.sql"}),
        Task("python", programs_real.cpython, ("job.py",), LINES, {"job.py": "job.py"}, 20_000_000, 9),
    )
}


@cache
def straight(name: str) -> Outcome:
    """The run that nobody disturbed."""
    task = TASKS[name]
    host = Host(task)
    runner = Runner.start(task.module(), task.spec(), host)
    while runner.ended is None:
        runner.step()
    done = outcome(runner, host)
    assert (done.exit, done.trap) == (task.exit, ""), done
    assert done.out, "a program that prints nothing proves little"
    return done
