"""The journal: what was committed is there after a kill -9 at any moment."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipos.pool import job as j
from ipos.pool import lease as l
from ipos.pool import task as t
from ipos.pool.journal import Journal
from ipos.testing.world import inline
from ipos.wire.errors import Refused

WRITER = """
import asyncio, sys
from ipos.pool import task as t, job as j
from ipos.pool.journal import Journal
async def main():
    journal = Journal(sys.argv[1], asyncio.to_thread)
    journal.job(1, b"{}", j.Preparing(), b"")
    for i in range(100000):
        journal.task(1, i, str(i), b"", t.Pending(i))
        journal.note("last", str(i))
        if i % 3 == 0:
            await journal.commit()
            print(i, flush=True)
asyncio.run(main())
"""


def test_every_state_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", inline)
    states = [
        t.Pending(1, (t.Past("a", "silent", False, 1.5),)),
        t.Leased(2, lease=l.Running("x", "a", 1.0, 2.0, 3.0, 4.0), why="because"),
        t.Done(1, result="cid", ok=False, node="b", wall_s=1.0),
        t.GivenUp(3, reason="nobody"),
        t.Cancelled(),
    ]
    journal.job(7, b"spec", j.Working(j.Counts(5), 1.0), b"note")
    for i, state in enumerate(states):
        journal.task(7, i, f"f{i}", b"record", state)
    asyncio.run(journal.commit())
    journal.close()
    again = Journal(tmp_path / "j", inline)
    assert [row.state for row in again.tasks(7)] == states
    assert again.jobs()[0].state == j.Working(j.Counts(5), 1.0)
    assert again.last_job() == 7


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", inline)
    journal.note("schema", "99")
    asyncio.run(journal.commit())
    journal.close()
    with pytest.raises(Refused, match="schema 99"):
        Journal(tmp_path / "j", inline)


def test_a_batch_that_cannot_be_written_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", inline)
    journal._db.execute("PRAGMA query_only=ON")
    journal.note("a", "1")
    with pytest.raises(Refused, match="the journal cannot be written"):
        asyncio.run(journal.commit())
    journal._db.execute("PRAGMA query_only=OFF")
    asyncio.run(journal.commit())
    assert journal.meta("a") == "1"


@pytest.mark.real
@pytest.mark.parametrize("seed", range(5))
def test_kill_nine(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "j"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.0, 0.2))
    os.kill(process.pid, signal.SIGKILL)
    said = [int(line) for line in process.stdout.read().split()]
    process.wait()
    journal = Journal(path, inline)
    rows = journal.tasks(1)
    last = journal.meta("last")
    assert last is not None
    assert int(last) >= (said[-1] if said else 0), "a commit that had returned is not there"
    assert [row.i for row in rows] == list(range(int(last) + 1)), "half a transaction is there"
