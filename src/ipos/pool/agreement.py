"""agreement: what a quorum came to, read from its book."""

from __future__ import annotations

from typing import NamedTuple

from ipos.pool import handover as h
from ipos.pool.book import Book
from ipos.pool.commitment import Ending, Mark, Use
from ipos.pool.verdict import Verdict, sentences
from ipos.wire.record import decode


class Agreement(NamedTuple):
    """`seats` computed; `winners` of them agree on `ending` by `marks`. `work`: units that all of them computed, the judges too;
    `credits`: run address -> units that a keeper or the end vouches for, winners only; `moved`: sentences."""

    ending: Ending
    marks: tuple[Mark, ...]
    use: Use
    seats: int
    winners: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    exposed: dict[str, str]
    work: int
    credits: dict[str, int]
    moved: tuple[str, ...]
    names: dict[str, str]

    @property
    def extra(self) -> float:
        """Work beyond what one run takes, as a fraction of it."""
        return self.work / max(1, self.ending.work) - 1

    def told(self) -> list[str]:
        """Who deviated, and at which mark: sentences."""
        judged = [sentence for verdict in self.verdicts for sentence in sentences(verdict, self.names)]
        known = {lie.seat for verdict in self.verdicts for lie in verdict.liars}
        return [*judged, *(words for id, words in self.exposed.items() if id not in known)]


def verdicts(book: Book) -> tuple[Verdict, ...]:
    return tuple(decode(Verdict, bytes.fromhex(body)) for body in book.verdicts.values())


def of(book: Book, ending: Ending, winners: tuple[str, ...], use: Use) -> Agreement:
    first = book.quorum.seat(winners[0])
    assert first is not None
    credits: dict[str, int] = {}
    for id in winners:
        for node, work in h.credits(book.chains[id]).items():
            credits[node] = credits.get(node, 0) + work
    computed = [part.end - part.begin for chain in book.chains.values() for part in chain.segments]
    found = verdicts(book)
    names = {**{one.judge: "a judge" for one in found}, **{node: book.name(node) for node in book.workers}}
    return Agreement(
        ending=ending, marks=first.marks, use=use, seats=sum(s.claim is not None for s in book.quorum.seats),
        winners=winners, exposed=dict(book.exposed), verdicts=found, credits=credits, moved=tuple(book.moved), names=names,
        work=sum(computed) + sum(work for _, work in book.judged.values()),
    )  # fmt: skip
