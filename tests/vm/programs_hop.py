"""One hop of a task, in a process of its own: from its save (or its start) on to a moment, where it is saved and the process dies by SIGKILL.

`python -m tests.vm.programs_hop FOLDER TASK UNTIL GIVEN`. All that goes from one process to the next is FOLDER: the save and what was
printed. It stops at the first safepoint beyond UNTIL units of work (-1: at its end), or when it waits for standard input, of which GIVEN
bytes have come. Only a process at whose hands the task ended leaves `outcome.json`, and ends with status 0.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ipos.vm.runner import Runner
from ipos.vm.save import Saves

from .programs import HERE, on_large_stack
from .programs_tasks import TASKS, Host, Outcome, Task, outcome

REPOSITORY = HERE.parents[1]
ALL = 1 << 62


def hop(task: Task, folder: Path, until: int, given: int = ALL) -> Outcome | None:
    """None: it was stopped and saved."""
    saves = Saves(folder / "saves", sync=False)
    try:
        head = saves.head()
        if head is None:
            host = Host(task, given)
            runner = Runner.start(task.module(), task.spec(), host)
        else:
            out, err = (
                (folder / which).read_bytes()[: head.written[i]] for i, which in enumerate(("stdout", "stderr"))
            )
            host = Host(task, given, (out, err))
            runner = Runner.resume(task.module(), task.spec(), host, saves, (out, err))
            host.read = runner.state.call("wasi_stdin_read")
        while runner.ended is None and not runner.waiting and (until < 0 or runner.work < until):
            runner.step(until - runner.work if until >= 0 else None)
        if runner.ended is not None:
            return outcome(runner, host)
        runner.save(saves)
        for which, printed in zip(("stdout", "stderr"), host.out, strict=True):
            (folder / which).write_bytes(printed)
        runner.close()
        return None
    finally:
        saves.close()


@dataclass
class Journey:
    """A task that lives in many processes, one after the other."""

    name: str
    folder: Path
    hops: int = 0
    waited: list[int] = field(default_factory=list[int])

    def on(self, until: int, given: int = ALL) -> Outcome | None:
        command = [sys.executable, "-m", "tests.vm.programs_hop", str(self.folder), self.name, str(until), str(given)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return msgspec.json.decode((self.folder / "outcome.json").read_bytes(), type=Outcome)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (self.folder / "outcome.json").exists()
        self.hops += 1
        return None

    def through(self, stops: list[int]) -> Outcome:
        """Killed at each of these moments, then let run to its end."""
        for until in stops:
            ended = self.on(until)
            if ended is not None:
                return ended
        ended = self.on(-1)
        assert ended is not None
        return ended


def main() -> None:
    folder, task = Path(sys.argv[1]), TASKS[sys.argv[2]]
    ended = on_large_stack(lambda: hop(task, folder, int(sys.argv[3]), int(sys.argv[4])))
    if ended is None:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "outcome.json").write_bytes(msgspec.json.encode(ended))


if __name__ == "__main__":
    main()
