"""Random modules: the same results and memory plain, instrumented, stopped at every safepoint, and moved at every stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .fuzz import difference, mutated, smith
from .programs import on_large_stack

FINDS = sorted((Path(__file__).parent / "finds").glob("*.wasm"))


def seeds(first: int, count: int, make: Callable[[int], bytes] = smith) -> None:
    stops = 0
    for seed in range(first, first + count):
        module = make(seed)
        why, n = difference(module, seed) if module else ("", 0)
        assert not why, f"seed {seed}: {why}"
        stops += n
    assert stops > count


def test_a_few() -> None:
    on_large_stack(lambda: seeds(0, 25))


def test_a_few_mutated() -> None:
    on_large_stack(lambda: seeds(20_000, 10, mutated))


@pytest.mark.parametrize("find", FINDS, ids=lambda path: path.stem)
def test_what_was_found_before(find: Path) -> None:
    assert difference(find.read_bytes(), int(find.stem.rsplit("-", 1)[1])) == ("", pytest.approx(0, abs=1e9))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 11000, 1000))
def test_many(first: int) -> None:
    on_large_stack(lambda: seeds(first, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(20_000, 22_000, 500))
def test_many_mutated(first: int) -> None:
    on_large_stack(lambda: seeds(first, 500, mutated))
