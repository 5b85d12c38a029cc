"""The loop-lag watch: what blocks is measured, and named; nothing is said of a loop that works."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.node.lag import Lag, Watched, timer
from ipos.wire import limits


def planted_block(seconds: float) -> None:
    time.sleep(seconds)


def sleeps(selector: Watched) -> bool:
    """Whether the thread goes to sleep between two timers; seen from a third."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not selector._asleep.is_set():  # pyright: ignore[reportPrivateUsage]
        time.sleep(0.02)
    return selector._asleep.is_set()  # pyright: ignore[reportPrivateUsage]


def watched(story: Callable[[Watched], Coroutine[Any, Any, None]]) -> Watched:
    selector = Watched()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(story(selector))
    return selector


def test_a_call_that_blocks_is_found_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async def story(selector: Watched) -> None:
        await asyncio.sleep(0)
        planted_block(3 * limits.lag_bad_s)
        await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING, "ipos.lag"):
        found = watched(story)
    assert found.lag.most >= 3 * limits.lag_bad_s
    [record] = [r for r in caplog.records if r.getMessage() == "the loop was blocked"]
    assert vars(record)["lag_ms"] >= 3000 * limits.lag_bad_s
    assert vars(record)["stack"].startswith("node/test_lag.py:")
    assert "planted_block <" in vars(record)["stack"]


def test_the_same_in_a_thread_blocks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def story(selector: Watched) -> None:
        await asyncio.to_thread(planted_block, 3 * limits.lag_bad_s)

    with caplog.at_level(logging.WARNING, "ipos.lag"):
        found = watched(story)
    assert found.lag.most < 3 * limits.lag_bad_s
    assert not [r for r in caplog.records if "planted_block" in str(vars(r).get("stack"))]


def test_a_loop_that_never_turns_is_named_while_it_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    async def story(selector: Watched) -> None:
        await asyncio.sleep(0)
        planted_block(1.2)

    with caplog.at_level(logging.WARNING, "ipos.lag"):
        watched(story)
    assert [r.getMessage() for r in caplog.records][:2] == ["the loop is blocked", "the loop was blocked"]


def test_a_timer_that_is_late_is_no_turns_fault(caplog: pytest.LogCaptureFixture) -> None:
    selector = Watched()
    try:
        with caplog.at_level(logging.WARNING, "ipos.lag"):
            selector.late(0.2)
        assert selector.lag.most == 0.2
        assert "no turn of the loop was to blame" in caplog.text
    finally:
        selector.close()


def test_the_watcher_sleeps_while_the_loop_does() -> None:
    async def story(selector: Watched) -> None:
        ticking = asyncio.create_task(timer(selector))
        assert await asyncio.to_thread(sleeps, selector)
        ticking.cancel()

    selector = watched(story)
    assert selector.lag.turns > 0
    for thread in threading.enumerate():
        if thread.name == "lag":
            thread.join(5)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=300))
def test_the_99th_is_at_most_a_fifth_too_high(values: list[float]) -> None:
    lag = Lag()
    for value in values:
        lag.add(value)
    exact = sorted(values)[len(values) - 1 - len(values) // 100]
    assert exact * 0.999 <= lag.p99() <= exact * 2 ** (1 / 4) + 1e-6
    assert lag.most == max(values)
