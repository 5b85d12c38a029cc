"""The log: one line an event, rotated by size, read whole and followed while it is rotated."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.identity.secret import Secret
from ipos.node import logs
from ipos.node.logs import KEPT, LogFile, LogFiles, follow, quoted
from ipos.tree.file import Caller
from ipos.wire import limits
from ipos.wire.errors import Refused

ME = Caller("0x0", "me", own=True, local=True)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[LogFiles, logging.Logger]]:
    files = LogFiles(tmp_path / "log", 4096)
    logger = logging.Logger("ipos.test")
    logger.addHandler(files)
    yield files, logger
    files.close()


def pairs(line: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |$)', line))


def test_a_line_is_pairs_and_a_traceback_is_one_of_them(log: tuple[LogFiles, logging.Logger], tmp_path: Path) -> None:
    _, logger = log
    logger.warning("it has %d ends\nand a second line", 2, extra={"lag_ms": 83, "stack": "a b"})
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("it failed")
    logger.info("%s", Secret(b"hunter2"))
    first, second, third = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=warning part=test says=.*", first)
    assert (pairs(first)["says"], pairs(first)["lag_ms"], pairs(first)["stack"]) == (
        '"it has 2 ends\\nand a second line"',
        "83",
        '"a b"',
    )
    assert "ValueError: no" in pairs(second)["trace"]
    assert "hunter2" not in third


@given(st.text(max_size=60))
def test_a_value_is_one_word_on_one_line(text: str) -> None:
    made = quoted(text)
    assert made.isprintable()
    assert len(f"a={made} b=1".splitlines()) == 1
    if made.startswith('"'):
        assert len(shlex.split(made.replace("\\n", "n"))) == 1
    else:
        assert made == text


def test_what_is_too_long_is_cut(log: tuple[LogFiles, logging.Logger], tmp_path: Path) -> None:
    log[1].info("x" * (limits.log_line_bytes * 2))
    line = (tmp_path / "log").read_text().rstrip("\n")
    assert len(line) <= limits.log_line_bytes
    assert line.endswith("cut=yes")


async def everything(file: LogFile, piece: int, between: object = None) -> bytes:
    handle = await file.open(ME, 0)
    out = b""
    while got := await handle.read(len(out), piece):
        out += got
        if callable(between):
            between()
    await handle.close()
    return out


def test_it_is_bounded_and_read_in_order(log: tuple[LogFiles, logging.Logger], tmp_path: Path) -> None:
    files, logger = log
    for i in range(1000):
        logger.info("event %d", i)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= (KEPT + 1) * 4096
    body = asyncio.run(everything(LogFile(files), 777))
    numbers = [int(n) for n in re.findall(rb"event (\d+)", body)]
    assert numbers == list(range(numbers[0], 1000))
    assert len(body) == asyncio.run(LogFile(files).attr()).size


def test_rotation_under_a_reader_loses_nothing_of_what_was_there(log: tuple[LogFiles, logging.Logger]) -> None:
    files, logger = log
    for i in range(90):
        logger.info("event %d", i)
    before = asyncio.run(everything(LogFile(files), 1 << 20))
    count = 0

    def rotate() -> None:
        nonlocal count
        for _ in range(3 if count < 300 else 0):  # more than is kept at all
            count += 1
            logger.info("later %d", count)

    during = asyncio.run(everything(LogFile(files), 64, rotate))
    assert during.startswith(before)
    assert count >= 150


def test_a_follower_gets_the_last_lines_then_each_one_and_waits(log: tuple[LogFiles, logging.Logger]) -> None:
    files, logger = log

    async def story() -> None:
        for i in range(30):
            logger.info("event %d", i)
        events = follow(files)
        handle = await events.open(ME, 0)
        seen = b""
        while b"event 29" not in seen:
            seen += await handle.read(0, 1 << 16)
        assert seen.count(b"\n") == logs.LAST_LINES
        waiting = asyncio.ensure_future(handle.read(0, 1 << 16))
        await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.to_thread(lambda: [logger.info("later %d", i) for i in range(200)])  # rotates, in another thread
        seen = await waiting
        while b"later 199" not in seen:
            seen += await handle.read(0, 1 << 16)
        assert [int(n) for n in re.findall(rb"later (\d+)", seen)] == list(range(200))

    asyncio.run(story())


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LogFiles(tmp_path / "log", 4096)
    logger = logging.Logger("ipos.test")
    logger.addHandler(files)

    def full(_: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.stream, "write", full)
    logger.info("one")
    logger.info("two")
    assert files.lost == 2
    assert len(files.last) == 2, "who follows it still hears of it"
    monkeypatch.undo()
    logger.info("three")
    assert "three" in (tmp_path / "log").read_text()
    files.close()


def test_nobody_writes_it(log: tuple[LogFiles, logging.Logger]) -> None:
    with pytest.raises(Refused, match="/dev/cons"):
        asyncio.run(LogFile(log[0]).open(ME, 1))
