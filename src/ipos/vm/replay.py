"""replay: a task run again, from its start or from a save, to see whether somebody's marks are those of the program.

Everything that a judge needs of the engine and nothing of who is judged: it is given a program, how it begins and what it reads, and says
which marks it met. Two judges who are given the same say the same, on any machine. `Fault` is a failure of this machine, never a verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import wasmtime

from ipos.vm import pack
from ipos.vm.content import Content
from ipos.vm.image import Image
from ipos.vm.plan import mark_index
from ipos.vm.runner import Ended, Runner, Spec
from ipos.vm.save import Saves


@dataclass(frozen=True)
class Met:
    """A mark as it was computed here: `index` k is the highest with work > k x mark_every."""

    index: int
    work: int
    root: bytes


@dataclass(frozen=True)
class Beyond:
    """The program had not ended when it had used more than `Spec.work` allows."""

    work: int


Stop = Met | Ended | Beyond


class Replay:
    """One run, mark by mark, on a thread with a large stack (`engine.THREAD_STACK_BYTES`). `save`: a directory of `vm.save` that is known
    to be the state at a mark, by its root; None: from the start. To be closed. `Refused` if the program cannot begin, `BadRecord` if the
    save is damaged. `tell` is called with the work used, some hundred times a second."""

    def __init__(
        self,
        module: wasmtime.Module,
        spec: Spec,
        host: Content,
        save: Path | None = None,
        tell: Callable[[int], None] = lambda work: None,
        image: Image | None = None,
    ) -> None:
        self._every = spec.mark_every
        self._tell = tell
        self.host = host
        self.since = 0
        if save is None:
            self.runner = Runner.start(module, spec, host, image)
            return
        saves = Saves(save, sync=False)
        try:
            head = pack.verify(save)
            out, err = ((save / which).read_bytes() for which in pack.STREAMS)
            printed = out[: head.written[0]], err[: head.written[1]]
            self.runner = Runner.resume(module, spec, host, saves, printed)
            self.runner.marks = [(head.work, head.root)]  # what its head says of earlier marks nobody has signed
            self.since = head.work
            host.printed(printed)
            host.skip(self.runner.state.call("wasi_stdin_read"))
        finally:
            saves.close()

    def next(self) -> Stop:
        """On to the next mark, or to the end."""
        runner = self.runner
        before = len(runner.marks)
        while runner.ended is None and len(runner.marks) == before:
            if runner.exhausted():
                return Beyond(runner.work)
            runner.step()
            self._tell(runner.work)
        if len(runner.marks) > before:
            work, root = runner.marks[-1]
            return Met(mark_index(work, self._every), work, root)
        assert runner.ended is not None
        return runner.ended

    def close(self) -> None:
        self.runner.close()


def reexecute(
    module: wasmtime.Module, spec: Spec, host: Content, save: Path | None = None, upto: int | None = None
) -> list[Stop]:
    """The marks after `save` up to the first whose index is at least `upto`; None: to the end, which is then the last in the list."""
    replay = Replay(module, spec, host, save)
    try:
        found: list[Stop] = []
        while True:
            stop = replay.next()
            found.append(stop)
            if not isinstance(stop, Met) or (upto is not None and stop.index >= upto):
                return found
    finally:
        replay.close()
