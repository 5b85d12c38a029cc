"""judging: drives the `dispute` machines of one quorum: whom to ask, from which save, and what is proclaimed."""

from __future__ import annotations

from collections.abc import Callable

from ipos.pool import dispute as d
from ipos.pool import handover as h
from ipos.pool import quorum as q
from ipos.pool.bench import Bench
from ipos.pool.book import Book
from ipos.pool.commitment import Entry
from ipos.pool.machine import Event
from ipos.pool.records import Task
from ipos.pool.signing import Signer
from ipos.pool.verdict import Lie, Verdict, sentences, signed, step_of
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.wire.record import encode


class Judging:
    """`step` gives an event to the dispute about a seat; `say`: sentences."""

    def __init__(
        self, book: Book, bench: Bench, task: bytes, record: Task, store: BlockStore, key: Signer,
        step: Callable[[str, Event], None], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._book, self._bench, self._task, self._record, self._store = book, bench, task, record, store
        self._key, self._case, self._say = key, step, say

    def open(self, asked: q.Dispute) -> None:
        begin = asked.before.work if asked.before is not None else 0
        parties: list[d.Party] = []
        for id in asked.seats:
            seat = self._book.quorum.seat(id)
            assert seat is not None
            entry, chain = seat.entries[asked.index], self._book.chains[id]
            suspects: list[d.Suspect] = []
            for part in h.holders(chain, begin, entry.work) or chain.segments[-1:]:
                if not suspects or suspects[-1].node != part.node:
                    save = part.opening.cid if suspects and part.opening is not None else ""
                    suspects.append(d.Suspect(part.node, save))
            parties.append(d.Party(id, entry, tuple(suspects)))
        words = "the end" if parties[-1].entry.ending else f"mark {asked.index + 1}"
        self._say(f"seat {asked.seat} parts from the others at {words}: that interval is re-executed")
        if asked.seat not in self._book.cases:
            self._book.cases[asked.seat] = d.Open(c.text(self._task), asked.index, asked.before, tuple(parties))
        self._case(asked.seat, d.Restarted())

    async def appoint(self, id: str, barred: tuple[str, ...]) -> None:
        try:
            judge = await self._bench.judge(barred)
        except OSError as error:
            self._case(id, d.Unjudgeable(str(error)))
            return
        self._case(id, d.Appointed(judge.node))

    async def reexecute(self, id: str, judge: str, index: int, before: Entry | None) -> None:
        accused = self._book.quorum.seat(id)
        assert accused is not None
        agreed = {(entry.work, entry.root) for entry in accused.entries[:index]}
        saves = [part.closing for chain in self._book.chains.values() for part in chain.segments]
        usable = [save for save in saves if save is not None and (save.work, save.root) in agreed]
        start = max(usable, key=lambda save: save.work, default=None)
        upto = before.work if before is not None else 0
        try:
            answer = await self._bench.judged(judge, self._task, self._record, self._store, start, upto)
        except OSError as error:
            self._case(id, d.Failed(judge, str(error)))
            return
        self._book.judged[id] = (answer.since, answer.work)
        self._case(id, d.Found(judge, answer.before, answer.entry))

    async def trace(self, id: str, judge: str, seat: str, suspect: int, save: str) -> None:
        parts = [part.opening for part in self._book.chains[seat].segments]
        start = next(opening for opening in parts if opening is not None and opening.cid == save)
        try:
            answer = await self._bench.judged(judge, self._task, self._record, self._store, start, None)
        except OSError as error:
            self._case(id, d.Failed(judge, str(error)))
            return
        self._case(id, d.Traced(judge, seat, suspect, answer.entry))

    def proclaim(self, id: str, right: Entry, liars: tuple[d.Liar, ...], judge: str) -> None:
        case = self._book.cases[id]
        if id not in self._book.verdicts:
            lies = tuple(Lie(seat=liar.seat, node=liar.node, claimed=step_of(liar.claimed)) for liar in liars)
            since, work = self._book.judged.get(id, (0, 0))
            verdict = Verdict(
                task=self._task, mark=case.index + 1, before=step_of(case.before) if case.before is not None else None,
                right=step_of(right), liars=lies, judge=judge, since=since, work=work,
            )  # fmt: skip
            verdict = signed(verdict, self._key)
            self._book.verdicts[id] = encode(verdict).hex()
            for sentence in sentences(
                verdict, {**{node: self._book.name(node) for node in self._book.workers}, judge: "a judge"}
            ):
                self._say(sentence)
