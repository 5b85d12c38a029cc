"""seatrun: the run of one task in a seat's process, at marks and saves that its replicas can confirm."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from ipos.pool import saves
from ipos.pool.commitment import Ending, Mark
from ipos.pool.records import Task
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm import engine, image, made
from ipos.vm.content import Content, spec_of
from ipos.vm.plan import USED_UP
from ipos.vm.runner import Runner
from ipos.vm.save import Saves
from ipos.vm.version import cache_root
from ipos.vm.wasi import output
from ipos.wire.record import decode


class Engine:
    """One task in the engine of this process, from its start or from a save in `directory`. To be used on a thread with a large stack."""

    def __init__(self, store: BlockStore, task: bytes, directory: Path) -> None:
        self.directory = directory
        self._store = store
        self.task = decode(Task, store.get(task))
        run = saves.engine_run(store, self.task)
        self.module = engine.compiled(unixfs.read(store, self.task.program), cache_root())
        self.saves = Saves(directory)
        self.out: tuple[BinaryIO, BinaryIO] = (_log(directory / "stdout"), _log(directory / "stderr"))
        begun = b"" if self.task.image is None else image.start_file((self.task.name, *self.task.args), run.env)
        self.host = Content(store, self.task.files, self.task.stdin, self.out, begun)
        self.spec = spec_of(saves.plan_of(self.task, run), self.host.tree)
        self.runner = self._begin()

    def _begin(self) -> Runner:
        head = self.saves.head()
        if head is None:
            for file in self.out:
                file.truncate(0)
            return Runner.start(self.module, self.spec, self.host, self._image())
        printed: list[bytes] = []
        for file, count in zip(self.out, head.written, strict=True):
            file.truncate(count)
            file.seek(0)
            printed.append(file.read())
        runner = Runner.resume(self.module, self.spec, self.host, self.saves, (printed[0], printed[1]))
        self.host.skip(runner.state.call("wasi_stdin_read"))
        return runner

    def _image(self) -> image.Image | None:
        """What the task starts from, verified."""
        if self.task.image is None:
            return None
        with tempfile.TemporaryDirectory(dir=self.directory.parent, prefix=".image-") as scratch:
            packed = Path(scratch, "image")
            unixfs.export(self._store, self.task.image, packed, 0o600)
            return image.unpacked(packed, c.text(self.task.program))

    def save(self) -> None:
        for file in self.out:
            file.flush()
            os.fsync(file.fileno())
        self.runner.save(self.saves)

    @property
    def at_mark(self) -> bool:
        return bool(self.runner.marks) and self.runner.marks[-1][0] == self.runner.work

    @property
    def marks(self) -> tuple[Mark, ...]:
        return tuple((work, root.hex()) for work, root in self.runner.marks)

    def ending(self) -> Ending | None:
        """What it came to, its outputs in the store; None: it goes on."""
        runner = self.runner
        if runner.ended is None and not runner.exhausted():
            return None
        for file in self.out:
            file.flush()
        stdout, stderr = (unixfs.add_file(self._store, self.directory / which)[0] for which in ("stdout", "stderr"))
        if (ended := runner.ended) is None:
            killed = f"{USED_UP} {self.spec.work / 1e9:g} Gop of work"
            return Ending(
                exit=125,
                killed=killed,
                work=runner.work,
                page_work=runner.page_work,
                root=runner.root().hex(),
                stdout=stdout,
                stderr=stderr,
                dir=None,
            )
        killed = f"trapped: {ended.trap}" if ended.trap else ""
        left = None if ended.trap else self._left()
        return Ending(
            exit=ended.exit,
            killed=killed,
            work=ended.work,
            page_work=ended.page_work,
            root=ended.root.hex(),
            stdout=stdout,
            stderr=stderr,
            dir=left,
        )

    def _left(self) -> bytes | None:
        with tempfile.TemporaryDirectory(dir=self.directory.parent) as scratch:
            to = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                some = made.write(output.root(self.runner.state), self.host.tree, to, self.host.read)
            finally:
                os.close(to)
            return unixfs.add_dir(self._store, Path(scratch), links=True) if some else None

    def close(self) -> None:
        self.runner.close()
        self.saves.close()
        for file in self.out:
            file.close()


def _log(path: Path) -> BinaryIO:
    return open(path, "a+b")
