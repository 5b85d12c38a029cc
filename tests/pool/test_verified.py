"""Whom a known result may answer: the account that computed it, if it asks for no more than is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.pool import verified
from ipos.pool.journal import Answer, Journal
from ipos.pool.records import Result
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.testing.world import inline
from ipos.wire.errors import BadRecord
from ipos.wire.record import encode

LEVELS = ("none", "receipt", "quorum 2", "quorum 3", "quorum 21", "full")
MINE, THEIRS = "0x" + "1" * 40, "0x" + "2" * 40
TASK = c.of_dag_cbor(b"task")


@given(st.sampled_from(LEVELS), st.sampled_from(LEVELS), st.sampled_from((MINE, THEIRS, "")))
def test_it_answers_who_asks_no_more_within_one_account(known: str, asked: str, account: str) -> None:
    serves = verified.serves(Answer(b"", None, account, known), MINE, asked)
    assert serves == (account == MINE and LEVELS.index(known) >= LEVELS.index(asked))


@pytest.mark.parametrize(
    "level", ["", "quorum", "quorum 1", "quorum 03", "quorum -2", "FULL", "verified full", "quorum 99999"]
)
def test_what_is_no_level(level: str) -> None:
    with pytest.raises(BadRecord, match="is none of none, receipt, quorum"):
        verified.rank(level)


def test_it_is_looked_up_with_its_account_and_its_files() -> None:
    store = MemoryStore()
    journal = Journal(":memory:", inline, durable=False)
    out, none = unixfs.add_bytes(store, b"out"), unixfs.add_bytes(store, b"")
    result = Result(
        task=TASK, exit=0, killed="", stdout=out, stderr=none, dir=None, cpu_ms=0, wall_ms=0, rss_bytes=0, node="n"
    )
    answer = Answer(encode(result), b"receipt", MINE, verified.RECEIPT)
    assert verified.known(journal, store, TASK, MINE, verified.NONE) is None
    journal.answer(TASK, answer)
    journal._write(journal._notes)
    assert verified.known(journal, store, TASK, MINE, verified.NONE) == answer
    assert verified.known(journal, store, TASK, MINE, verified.RECEIPT) == answer
    assert verified.known(journal, store, TASK, MINE, "quorum 2") is None
    assert verified.known(journal, store, TASK, THEIRS, verified.NONE) is None
    store.delete([out])
    assert verified.known(journal, store, TASK, MINE, verified.NONE) is None
    journal.close()
