"""Where marks are: at the same stops, whatever the slices, also when a stop lies exactly on the grid."""

from __future__ import annotations

from dataclasses import replace

from ipos.vm import engine
from ipos.vm.runner import Runner, Spec
from ipos.vm.version import cache_root
from ipos.vm.wasi.boot import Boot, Stdin, StdinKind

from .programs import on_large_stack, wat
from .test_runner import Host

LOOP = """(module (memory (export "memory") 1)
  (func (export "_start") (local i32)
    (loop (br_if 0 (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 1))) (i32.const 200))))))"""
SPEC = Spec("grid", Boot(("grid",), stdin=Stdin(StdinKind.STREAM)))


def marks(mark_every: int, most: int | None) -> list[tuple[int, bytes]]:
    runner = Runner.start(engine.compiled(wat(LOOP), cache_root()), replace(SPEC, mark_every=mark_every), Host())
    while runner.ended is None:
        runner.step(most)
    made = runner.ended.marks
    runner.close()
    return made


def stops() -> list[int]:
    """The work used at each safepoint."""
    runner = Runner.start(engine.compiled(wat(LOOP), cache_root()), replace(SPEC, mark_every=1 << 40), Host())
    found: list[int] = []
    while runner.ended is None:
        runner.step(0)
        found.append(runner.work)
    runner.close()
    return found


def test_a_slice_that_ends_on_the_grid_skips_no_mark() -> None:
    def check() -> None:
        for on_the_grid in stops()[10:40:15]:
            straight = marks(on_the_grid, None)
            assert len(straight) > 1
            assert marks(on_the_grid, 0) == straight
            assert marks(on_the_grid, 3) == straight

    on_large_stack(check)
