"""The memory integral: pages times work, exact, and the same however the run was cut and moved."""

from __future__ import annotations

import random

import wasmtime

from ipos.vm.instrument import ALL_STOP, instrument

from .machine import ENGINE, Machine
from .programs import wat

# Grows by a page at a time, failing beyond 6, with loops of work in between.
GROWS = """(module (memory (export "memory") 1 6) (func (export "f") (param i32) (result i32) (local i32)
  (loop $more (local.set 1 (i32.const 500)) (loop $work (br_if $work (local.tee 1 (i32.sub (local.get 1) (i32.const 1)))))
    (drop (memory.grow (i32.const 1))) (br_if $more (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (memory.size)))"""
STEADY = """(module (memory (export "memory") 3) (func (export "f") (param i32) (result i32)
  (loop $l (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (memory.size)))"""


def module(text: str, flags: int = 0) -> wasmtime.Module:
    return wasmtime.Module(ENGINE, instrument(wat(text), flags=flags))


def run(program: wasmtime.Module, seed: int | None) -> tuple[int, int, int]:
    """Result, work, integral. `seed`: moved to a fresh instance at random moments; None: undisturbed."""
    machine = Machine(program)
    dice = random.Random(seed)
    machine.enter(1 << 40 if seed is None else 7)
    result = machine("f", 9)
    while machine("ipos_state") == 1:
        frozen = machine.freeze()
        machine.store.close()
        machine = Machine(program)
        machine.thaw(frozen)
        machine.enter(dice.randrange(1, 400) - machine.left)
        result = machine("f", 0)
    return result, machine.used, machine("ipos_pages_work")


def test_moves_do_not_change_it() -> None:
    for program in (module(GROWS), module(GROWS, ALL_STOP)):
        straight = run(program, None)
        assert straight[0] == 6
        assert straight[1] < straight[2] < 6 * straight[1]
        assert {run(program, seed) for seed in range(12)} == {straight}


def test_a_run_that_forgets_it_is_noticed() -> None:
    """The planted bug: the used work is set after the area of globals came in, as it was before the integral lived there."""
    machine = Machine(module(GROWS))
    machine.enter(200)
    machine("f", 9)
    frozen = machine.freeze()
    other = Machine(machine.module)
    other.thaw(frozen)
    assert other("ipos_pages_work") == machine("ipos_pages_work") > 0
    other("ipos_set", frozen.used)
    assert other("ipos_pages_work") == 0


def test_without_growth_it_is_the_product() -> None:
    result, work, integral = run(module(STEADY), None)
    assert (result, integral) == (3, 3 * work)


def test_it_stays_at_the_largest_number() -> None:
    machine = Machine(module(STEADY))
    machine("ipos_set", 1 << 58)
    machine("ipos_globals_in")  # an area of zeros: held since work 0
    assert machine("ipos_pages_work") == 3 << 58
    machine.memory("memory").grow(machine.store, 60)
    assert machine("ipos_pages_work") == (1 << 63) - 1
