"""WebAssembly's own tests: plain, instrumented, and stopped at every safepoint, with the same outcome of every assertion."""

from __future__ import annotations

from pathlib import Path

import pytest

from .programs import CACHE, on_large_stack, spec
from .wast import Report, World, run_script

QUICK = {
    "block", "br", "br_if", "br_table", "call", "call_indirect", "fac", "float_exprs", "global", "if", "labels", "local_tee", "loop",
    "memory_grow", "nop", "ref_func", "return", "select", "simd_lane", "stack", "start", "switch", "table_get", "table_init", "unwind",
}  # fmt: skip
# Refused on purpose, each for the reason given; nothing else may be.
REFUSED = {
    "skip-stack-guard-page.wast": "a function with more than 1000 locals",
    "simd_memory-multi.wast": "more than one memory is not supported",
    "table_fill.wast": "references live across a call",
    "table_grow.wast": "references live across a call",
}
# Cranelift's own verdict on the plain module differs from the script's (proposals that are on by default since).
OUTDATED = {"binary-leb128.wast", "binary.wast", "imports.wast", "memory.wast"}


def files() -> list[Path]:
    return sorted([*spec().glob("wasm-v2/*.wast"), *spec().glob("proposals/simd/*.wast")])


def run(wast: Path, world: World, folder: Path) -> Report:
    return on_large_stack(lambda: run_script(wast, world, folder))


def check(wast: Path, folder: Path) -> int:
    plain = run(wast, "plain", folder)
    assert not plain.failed or wast.name in OUTDATED
    stops = 0
    for world in ("at once", "every safepoint"):
        report = run(wast, world, folder)
        assert all(wast.name in REFUSED and REFUSED[wast.name] in refusal for refusal in report.refused), report.refused
        assert not report.failed
        if not report.refused:
            assert report.passed >= plain.passed
        stops = report.stops
    return stops


@pytest.mark.parametrize("name", sorted(QUICK))
def test_quick(name: str, tmp_path: Path) -> None:
    stops = check(next(wast for wast in files() if wast.stem == name), tmp_path)
    assert stops or name in {"start", "simd_lane", "nop", "table_get", "ref_func", "local_tee", "switch"}


@pytest.mark.slow
def test_all(tmp_path: Path) -> None:
    assert CACHE.exists()
    stops = {wast.name: check(wast, tmp_path) for wast in files()}
    print(f"{len(stops)} scripts, {sum(stops.values())} stops")
    assert sum(stops.values()) > 80_000
