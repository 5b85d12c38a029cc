"""judge: a receipt's task run again, and compared: the first mark or field that differs is the verdict (docs/protocols/receipts.md).

Only what was run again is judged; `Seen` says how much that was. What fails on this machine is a `Fault` and never a verdict.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from ipos.pool import saves
from ipos.pool.proof import TRAPPED, Case
from ipos.pool.records import EngineRun, Mark
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import Block, BlockStore, MemoryStore
from ipos.vm import engine, made, pack
from ipos.vm.content import Content, spec_of
from ipos.vm.host import Fault
from ipos.vm.image import Image, start_file, unpacked
from ipos.vm.replay import Beyond, Met, Replay
from ipos.vm.runner import Ended
from ipos.vm.save import Saves, View
from ipos.vm.wasi import output
from ipos.wire.errors import BadRecord, Refused

T = TypeVar("T")
Tell = Callable[[int], None]


class Seen(NamedTuple):
    """What was run again and found right: the intervals after mark `after` (0 = the start) up to mark `upto`; `end`: also the last one, to
    the end of the task. Of `intervals` that there are; `work`: units run here."""

    after: int
    upto: int
    end: bool
    checked: int
    intervals: int
    work: int


class Wanted(NamedTuple):
    """Which intervals: to the end of the task from its start (`full`), or the one that ends with the `n`-th mark; n = marks + 1: the last
    one, which ends with the task."""

    full: bool = False
    n: int = 0


def choose(case: Case, seed: int) -> Wanted:
    """One interval by lot; the same seed gives the same one."""
    return Wanted(n=random.Random(seed).randrange(len(case.marks) + 1) + 1)


def judge(case: Case, wanted: Wanted, scratch: Path, cache: Path, tell: Tell = lambda work: None) -> Seen:
    """`Refused` with the first mark or field that differs; `Fault`, OSError, MemoryError: this machine failed. `scratch`: an empty
    directory."""
    return on_large_stack(lambda: _Judge(case, scratch, cache, tell).run(wanted))


class _Judge:
    def __init__(self, case: Case, scratch: Path, cache: Path, tell: Tell) -> None:
        assert case.run is not None
        self.case = case
        self.run_as: EngineRun = case.run
        self.scratch = scratch
        self._cache = cache
        self._tell = tell

    def run(self, wanted: Wanted) -> Seen:
        case = self.case
        first = 0 if wanted.full else self._nearest(wanted.n - 1)
        last = None if wanted.full or wanted.n > len(case.marks) else wanted.n
        with ExitStack() as stack:
            directory = self._save(case.marks[first - 1]) if first else None
            try:
                host, replay = self._begin(stack, directory)
            except Refused as refused:
                if isinstance(refused, BadRecord) or not case.refused:
                    raise Refused(f"the task cannot be run again: {refused}") from None
                return Seen(0, 0, True, 1, 1, 0)
            if case.refused:
                raise Refused(f"the receipt says that the program cannot begin ({case.result.killed}): it does begin")
            at = self._marks(replay, first, last)
            if last is None:
                self._end(replay, host)
            work = replay.runner.work - replay.since
        return Seen(first, at, last is None, at - first + (last is None), len(case.marks) + 1, work)

    def _nearest(self, n: int) -> int:
        """The last of the first n marks that there is a save for; 0 = the start."""
        return max((i for i, mark in enumerate(self.case.marks[:n], 1) if mark.index in self.case.saves), default=0)

    def _begin(self, stack: ExitStack, save: Path | None) -> tuple[Content, Replay]:
        case = self.case
        out = (self._file(stack, "stdout"), self._file(stack, "stderr"))
        start = b"" if case.task.image is None else start_file((case.task.name, *case.task.args), self.run_as.env)
        host = Content(case.store, case.task.files, case.task.stdin, out, start)
        most = self.run_as.work if case.used_up else case.receipt.work
        plan = saves.plan_of(case.task, self.run_as)
        spec = replace(spec_of(plan, host.tree), work=max(1, most))
        program = unixfs.read(case.store, case.task.program)
        try:
            module = engine.compiled(program, self._cache)
        except Refused as refused:
            if str(refused).startswith("the program could not be compiled within"):
                raise Fault(str(refused)) from None
            raise
        replay = Replay(module, spec, host, save, self._tell, self._image() if save is None else None)
        stack.callback(replay.close)
        return host, replay

    def _image(self) -> Image | None:
        """What the task starts from, verified."""
        task = self.case.task
        if task.image is None:
            return None
        packed = self.scratch / c.text(task.image)
        if not packed.exists():
            unixfs.export(self.case.store, task.image, packed, 0o600)
        return unpacked(packed, c.text(task.program))

    def _file(self, stack: ExitStack, name: str) -> BinaryIO:
        return stack.enter_context(open(self.scratch / name, "w+b"))

    def _save(self, mark: Mark) -> Path:
        """The state at a mark, from a save that is in the evidence. It is used only if its root is the mark's."""
        directory = self.scratch / "save"
        head = pack.unpack(unixfs.stream(self.case.store, self.case.saves[mark.index]), directory)
        if (head.work, head.root.hex()) != (mark.work, mark.root):
            raise Refused(
                f"the save at mark {mark.index} is of another state: work {head.work}, root {head.root.hex()[:16]}"
            )
        return directory

    def _marks(self, replay: Replay, first: int, last: int | None) -> int:
        """Up to the last mark that is to be compared; how many that were."""
        claimed, at = self.case.marks, first
        while last is None or at < last:
            if last is None and at == len(claimed):
                return at
            stop = replay.next()
            self.passed(replay, stop)
            mark = claimed[at]
            match stop:
                case Met(k, work, root):
                    if (k, work) != (mark.index, mark.work):
                        raise Refused(
                            f"mark {mark.index} differs: it is said to be at work {mark.work}, it is at {work}"
                        )
                    if root.hex() != mark.root:
                        raise Refused(
                            f"mark {mark.index} differs: its root is said to be {mark.root[:16]}..., it is {root.hex()[:16]}..."
                        )
                case Ended():
                    raise Refused(
                        f"the program ends after {stop.work} units of work, before mark {mark.index} at {mark.work}: the receipt "
                        f"counts work that was not done"
                    )
                case Beyond(work):
                    raise Refused(f"the program reaches no mark {mark.index} before {work} units of work")
            at += 1
        return at

    def passed(self, replay: Replay, stop: object) -> None:
        """Called at each mark; `Packer` makes saves here."""

    def _end(self, replay: Replay, host: Content) -> None:
        """The rest of the task, and what it came to."""
        case, stop = self.case, replay.next()
        said = case.receipt.work
        if isinstance(stop, Met):
            raise Refused(
                f"the program has a mark {stop.index} at work {stop.work}: the receipt has none, it ends early"
            )
        if isinstance(stop, Beyond):
            if not case.used_up:
                raise Refused(
                    f"the program has not ended after {said} units of work, as the receipt says: it ends early"
                )
            self._same("work", said, stop.work)
            self._same("root", case.receipt.root, replay.runner.root().hex())
        else:
            if case.used_up:
                raise Refused(
                    f"the program ends by itself after {stop.work} units of work: it has not used up its work"
                )
            self._ended(stop)
        self._same("stdout", case.result.stdout, self._stored(host.out[0]))
        self._same("stderr", case.result.stderr, self._stored(host.out[1]))
        trapped = isinstance(stop, Ended) and bool(stop.trap)
        self._same("dir", case.result.dir, None if trapped or isinstance(stop, Beyond) else self._made(replay, host))

    def _ended(self, end: Ended) -> None:
        case = self.case
        self._same("work", case.receipt.work, end.work)
        self._same("exit", case.result.exit, end.exit)
        self._same("killed", case.result.killed, TRAPPED + end.trap if end.trap else "")
        self._same("root", case.receipt.root, end.root.hex())

    @staticmethod
    def _same(field: str, said: object, found: object) -> None:
        if said != found:
            words = [x.hex()[8:24] if isinstance(x, bytes) else str(x)[:64] for x in (said, found)]
            raise Refused(f"{field} differs: it is said to be {words[0] or 'none'}, it is {words[1] or 'none'}")

    @staticmethod
    def _stored(out: BinaryIO) -> bytes:
        out.flush()
        out.seek(0)
        return unixfs.add_stream(_Nowhere(), out)[0]

    def _made(self, replay: Replay, host: Content) -> bytes | None:
        to = self.scratch / "made"
        to.mkdir()
        fd = os.open(to, os.O_RDONLY | os.O_DIRECTORY)
        try:
            made.write(output.root(replay.runner.state), host.tree, fd, host.read)
        finally:
            os.close(fd)
        return unixfs.add_dir(_Nowhere(), to, links=True) if any(to.iterdir()) else None


class Packer(_Judge):
    """Judges all of it, and keeps saves at the marks of these indices, in a store."""

    def __init__(self, case: Case, scratch: Path, cache: Path, tell: Tell, at: set[int], store: BlockStore) -> None:
        super().__init__(case, scratch, cache, tell)
        self._at = at
        self._store = store
        self.saves: dict[int, bytes] = {}

    def passed(self, replay: Replay, stop: object) -> None:
        if not isinstance(stop, Met) or stop.index not in self._at:
            return
        directory = self.scratch
        kept = Saves(directory, sync=False)
        try:
            replay.runner.save(kept)
        finally:
            kept.close()
        for out in replay.host.out:
            out.flush()
        with View(directory) as view:
            self.saves[stop.index] = unixfs.add_chunks(self._store, (frame.make() for frame in pack.frames(view)))


def on_large_stack(what: Callable[[], T]) -> T:
    """In a thread in which the engine has room; what it raises is raised here. Ctrl-C leaves it behind."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(what())
        except BaseException as error:
            raised.append(error)

    before = threading.stack_size(engine.THREAD_STACK_BYTES)
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    while thread.is_alive():
        thread.join(0.1)
    if raised:
        raise raised[0]
    return found[0]


class _Nowhere(MemoryStore):
    """Content that is only named, not kept."""

    def put(self, blocks: Any) -> None:
        for _ in cast("list[Block]", blocks):
            pass
