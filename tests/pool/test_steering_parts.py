"""The small parts of steering: a clock without pauses, a JSON object in pieces, the memory of processes, the line of a wait file."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipos.pool.handin import Whole
from ipos.pool.native.memory import memory_of
from ipos.pool.native.walltime import WallTime
from ipos.pool.taskfiles import waited
from ipos.testing import run
from ipos.testing.time import WorldClock
from ipos.wire import limits
from ipos.wire.errors import Refused

STEP = st.tuples(st.sampled_from(("pause", "resume", "limit 5", "limit 0", "limit 20")), st.floats(0.01, 4))


@example([("resume", 3.3333333333333335), ("pause", 0.1), ("resume", 6.666666666666664), ("limit 20", 3.9)])
@given(st.lists(STEP, max_size=12))
def test_a_limit_of_time_counts_what_ran_and_nothing_else(story: list[tuple[str, float]]) -> None:
    async def play() -> None:
        wall = WallTime(WorldClock(7.0), 10.0)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        over = asyncio.ensure_future(wall.over(ended))
        ran, limit, paused = 0.0, 10.0, False
        for word, seconds in story:
            match word.split():
                case ["limit", value]:
                    limit = float(value)
                    wall.limit(limit)
                case [name]:
                    paused = name == "pause"
                    (wall.pause if paused else wall.resume)()
            await asyncio.sleep(seconds)
            ran += 0.0 if paused else seconds
            assert wall.used_s == pytest.approx(ran)
            late = limit and ran >= limit + 0.001 and not paused
            if late:
                assert over.done(), f"{ran} s of {limit} are used and it goes on"
            if over.done():
                assert over.result() is True
                return
        ended.set_result(None)
        await asyncio.sleep(0.01)
        assert over.result() in (False, True)

    run(play())


def test_less_time_than_the_clock_can_count_is_none() -> None:
    """It was waited for without an end: 24.3 + 1e-16 is 24.3."""

    async def play() -> bool:
        await asyncio.sleep(24.347957171526886)
        wall = WallTime(WorldClock(0.0), 1e-16)
        return await wall.over(asyncio.get_running_loop().create_future())

    assert run(play())


@given(
    st.dictionaries(st.text(max_size=6), st.text('{}"\\a ', max_size=12), max_size=4),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_an_object_ends_where_it_ends_however_it_is_cut(body: dict[str, str], cuts: list[int]) -> None:
    text = json.dumps(body).encode() + b"\n"
    at = sorted({0, len(text), *(cut % len(text) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(at)]
    whole = Whole()
    found = [got for piece in pieces if (got := whole.add(piece)) is not None]
    assert [json.loads(one) for one in found] == [body]
    assert not [i for i in range(1, len(text) - 2) if Whole().add(text[:i]) is not None], (
        "a beginning was taken for the whole"
    )


def test_what_can_be_no_job_is_refused_at_once() -> None:
    for words in (b"{nonsense}", b"[1, {}]}", b'{"a": 1}}'):
        with pytest.raises(Refused, match="not a job"):
            Whole().add(words)
    with pytest.raises(Refused, match="16 MiB: split it"):
        Whole().add(b"x" * (limits.job_spec_bytes + 1))


def test_memory_is_that_of_a_process_and_its_children() -> None:
    code = "import subprocess, sys; a = bytearray(30 << 20); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = "b = bytearray(40 << 20); print('here', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code, child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    found = memory_of(process.pid)
    process.communicate(b"\n")
    assert 70 << 20 < found.now < 200 << 20
    assert found.peak >= found.now
    assert memory_of(process.pid) == (0, 0), "it has ended"
    assert memory_of(os.getpid()).now > 1 << 20


def test_the_line_of_a_wait_file_is_quoted() -> None:
    assert waited("7.0", 1.2, 3.4567, "") == "7.0 1200 0 3457 ''\n"
    assert waited("7.0", 0, 0, "it's over") == "7.0 0 0 0 'it''s over'\n"
