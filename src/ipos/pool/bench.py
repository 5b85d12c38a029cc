"""bench: the processes of one replication: workers in seats, the keeper of their saves, judges. Each has a home in its directory."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

from ipos.pool import data, signing
from ipos.pool.book import Book
from ipos.pool.commitment import Entry
from ipos.pool.handover import Save
from ipos.pool.records import Task
from ipos.pool.workers import Command, Event, Worker, seat
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.wire.errors import BadRecord, Refused

KEEPER: Final = "keeper"
TRIES: Final = 10  # to start a process: somebody may kill it each time


class Judged(NamedTuple):
    """What a judge answered: the state before the step, the step, where it began, how many units it took."""

    before: Entry | None
    entry: Entry
    since: int
    work: int


class Bench:
    """`seated`: workers by run address. The book numbers them, so that a home is found again."""

    def __init__(self, directory: Path, command: Command, heard: Event, book: Book) -> None:
        self.seated: dict[str, Worker] = {}
        self._directory = directory
        self._command = command
        self._heard = heard
        self._book = book
        self._keeper: Worker | None = None
        self._keeping = asyncio.Lock()
        self._judges: dict[str, Worker] = {}
        self._all: list[Worker] = []

    async def open(self) -> None:
        await self.keeper()

    async def close(self) -> None:
        await asyncio.gather(*(worker.kill() for worker in self._all))

    def remove(self) -> None:
        """The homes; the book stays."""
        for name in ("workers", "judges", KEEPER):
            shutil.rmtree(self._directory / name, ignore_errors=True)

    def signal(self, number: int) -> None:
        """To every process."""
        for worker in self._all:
            worker.signal(number)

    def machine(self, worker: Worker) -> str:
        """Each home stands for a machine of its own, as far as who keeps whose saves is concerned."""
        return worker.home.name

    async def _up(self, number: int, home: Path, command: Command, heard: Event) -> Worker:
        """A process that was killed before it spoke is no reason to give up: it is started again."""
        tries = 0
        while True:
            worker = Worker(number, home, command, heard)
            self._all.append(worker)
            try:
                await worker.start()
                return worker
            except Refused:
                tries += 1
                if tries >= TRIES:
                    raise

    def _number(self) -> int:
        number, self._book.next = self._book.next, self._book.next + 1
        return number

    async def worker(self) -> Worker:
        """A new one. `Refused` if it does not come up."""
        number = self._number()
        worker = await self._up(number, self._home(number), self._command, self._heard)
        self._book.workers[worker.node] = number
        self.seated[worker.node] = worker
        return worker

    async def again(self, node: str) -> Worker:
        """A worker that was there before, in its home."""
        number = self._book.workers[node]
        worker = await self._up(number, self._home(number), self._command, self._heard)
        if worker.node != node:
            await worker.kill()
            raise Refused(f"the home of worker {number} has another key than it had")
        self.seated[node] = worker
        return worker

    def _home(self, number: int) -> Path:
        return self._directory / "workers" / str(number)

    async def keeper(self) -> Worker:
        """The keeper; started again if it is gone."""
        async with self._keeping:
            if self._keeper is None or not self._keeper.alive:
                self._keeper = await self._up(0, self._directory / KEEPER, seat, _unheard)
            return self._keeper

    async def kept(self, keeper: Worker, task: bytes, save: Save, holder: str) -> None:
        """The keeper signs for a save that it has. `BadRecord` if the save is not what it says."""
        answer, _ = await keeper.ask(
            "keep", task=c.text(task), save=save.cid, work=save.work, root=save.root, holder=holder
        )
        root = bytes.fromhex(save.root)
        words = {"task": c.text(task), "save": save.cid, "work": save.work, "root": root, "holder": holder}
        signing.check(keeper.node, str(answer["signature"]), signing.KEPT, **words)

    async def judge(self, barred: tuple[str, ...]) -> Worker:
        for node, worker in self._judges.items():
            if node not in barred and worker.alive:
                return worker
        number = self._number()
        worker = await self._up(number, self._directory / "judges" / str(number), seat, _unheard)
        self._judges[worker.node] = worker
        return worker

    async def judged(
        self, node: str, task: bytes, record: Task, store: BlockStore, start: Save | None, upto: int | None
    ) -> Judged:
        """Let a judge re-execute a step. What it begins from comes from the keeper, and is verified by the judge."""
        judge = self._judges.get(node)
        if judge is None:
            raise Refused(f"judge {node} is gone")
        for root in (task, *data.roots(record)):
            await judge.give(c.text(root), store)
        if start is not None:
            await judge.give(start.cid, await self.keeper())
        answer, _ = await judge.ask(
            "judge", task=c.text(task), save=start.cid if start is not None else None, upto=upto
        )
        return Judged(
            _entry(answer["before"]), _known(_entry(answer["entry"])), int(answer["since"]), int(answer["work"])
        )


def _entry(said: Any) -> Entry | None:
    return Entry(int(said[0]), str(said[1]), str(said[2])) if said is not None else None


def _known(entry: Entry | None) -> Entry:
    if entry is None:
        raise BadRecord("entry", "a judge that names no step")
    return entry


def _unheard(worker: Worker, message: dict[str, Any]) -> None:
    """Keepers and judges only answer."""
