"""The engine's side of NativeExecutor: the files by which a node and the worker of a task (`vm.worker`) know of each other."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Final

import msgspec

from ipos.pool import saves
from ipos.pool.records import Task
from ipos.store.blocks import BlockStore
from ipos.vm.plan import Plan, Report
from ipos.vm.save import read_head
from ipos.vm.version import cache_root
from ipos.wire import limits
from ipos.wire.errors import BadRecord

FORGET_S: Final = 30 * 24 * 3600  # a save that nobody has gone on from for so long is removed when the node starts


class EngineFiles:
    """Of one home."""

    def __init__(self, home: Path, store: BlockStore) -> None:
        self._root = home / "env" / "saves"
        self._store = store

    def saves(self, task: Task) -> Path:
        """The directory of a task's saves; outlives the run and the node."""
        return self._root / saves.identity(task, saves.engine_run(self._store, task))

    def lay_out(self, task: Task, save: bytes) -> None:
        """In a thread: the save that the task goes on from, unless a later one is here."""
        saves.lay_out(self._store, save, self.saves(task))

    def forget(self, task: Task) -> None:
        """It is over: its saves are of no use any more."""
        shutil.rmtree(self.saves(task), ignore_errors=True)

    def clean(self) -> None:
        """Remove saves of tasks that went elsewhere, and what a crash left half laid out."""
        for directory in self._root.glob("*"):
            with contextlib.suppress(OSError):
                aged = time.time() - directory.stat().st_mtime > FORGET_S
                if aged or directory.name.startswith(".save-"):
                    shutil.rmtree(directory, ignore_errors=True)

    def plan(self, directory: Path, task: Task, program: Path, every_s: float) -> None:
        """In a thread: everything the worker needs to know, as `plan.json` in the task's directory."""
        run = saves.engine_run(self._store, task)
        place = self._root / saves.identity(task, run)
        place.mkdir(parents=True, exist_ok=True)
        (directory / "out").mkdir()
        plan = Plan(
            task=place.name, program=str(program), args=(task.name, *task.args), env=run.env, seed=run.seed,
            root=str(directory / "cwd"), out=str(directory / "out"), saves=str(place),
            report=str(directory / "report.json"), progress=str(directory / "progress"), cache=str(cache_root()),
            memory_bytes=run.memory_bytes, output_bytes=task.limits.output_bytes or limits.output_bytes, work=run.work,
            mark_every=run.mark_every, every_s=every_s,
        )  # fmt: skip
        (directory / "plan.json").write_bytes(msgspec.json.encode(plan))


def report(directory: Path, code: int) -> Report:
    """What the worker says it came to; `code`: its exit status."""
    try:
        return msgspec.json.decode((directory / "report.json").read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError):
        last = (directory / "stderr").read_bytes()[-400:].decode(errors="replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return Report(fault=f"the engine's worker ended with {how}" + (f": {last[-1]}" if last else ""))


def marks(saves_at: Path) -> list[tuple[int, str]]:
    """(work, root) of the marks in the newest save of a directory."""
    try:
        head = read_head(saves_at)
    except BadRecord:
        return []
    return [(work, root.hex()) for work, root in head.marks] if head is not None else []
