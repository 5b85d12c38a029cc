"""verified: how sure a known result is, and whom it may answer.

A result that is in the store answers a later request for the same task without running: if the request asks for no more certainty than the
result has, and comes from the account that computed it. What another account computed is its word, whatever it was verified by there.
"""

from __future__ import annotations

import re

from ipos.pool import data
from ipos.pool.journal import Answer, Journal
from ipos.pool.records import Result
from ipos.store.blocks import BlockStore
from ipos.wire.errors import BadRecord
from ipos.wire.record import decode

NONE, RECEIPT, FULL = "none", "receipt", "full"
QUORUM = re.compile(r"quorum ([2-9]|[1-9][0-9]{1,3})")


def rank(level: str) -> int:
    """What is sure beyond what: nothing; a receipt whose signature was checked; so many replicas that agreed; all of it run again here."""
    if (found := QUORUM.fullmatch(level)) is not None:
        return int(found[1])
    try:
        return {NONE: 0, RECEIPT: 1, FULL: 1 << 20}[level]
    except KeyError:
        raise BadRecord("verified", f"{level!r} is none of none, receipt, quorum 2 and more, full") from None


def replicas(level: str) -> int:
    """How many workers a request of this level wants; 0: one, and no comparison."""
    found = QUORUM.fullmatch(level)
    return int(found[1]) if found is not None else 0


def serves(known: Answer, account: str, asked: str) -> bool:
    """Whether a known result may answer a request of this account that asks for this level."""
    return known.account == account and rank(known.verified) >= rank(asked)


def known(journal: Journal, store: BlockStore, task: bytes, account: str, asked: str) -> Answer | None:
    """The result that answers such a request, if all that it names is here."""
    answer = journal.answer_of(task)
    if answer is None or not serves(answer, account, asked):
        return None
    named = data.results(decode(Result, answer.result))
    return answer if all(data.complete(store, cid) for cid in named) else None
