"""The pass: what a program gives and costs does not depend on where it was stopped, nor on how often it moved."""

from __future__ import annotations

import dataclasses
from importlib.resources import files

import pytest
import wasmtime

from ipos.vm.instrument import NO_NAN, OPEN, instrument

from .machine import ENGINE, Frozen, Machine, run_moving
from .programs import c, on_large_stack, wat

CALLS = [
    ("fib", [12]), ("parity", [33]), ("ackermann", [2, 3]), ("sort", [60, 0]), ("sort", [60, 1]), ("automaton", [150]),
    ("floats", [60]), ("nans", [12]), ("vectors", [60]), ("bulk", [4]), ("grow", [5]),
]  # fmt: skip


def compiled(program: bytes, flags: int = 0) -> tuple[wasmtime.Module, wasmtime.Module]:
    return wasmtime.Module(ENGINE, program), wasmtime.Module(ENGINE, instrument(program, flags=flags))


@pytest.fixture(scope="module")
def kernels() -> tuple[wasmtime.Module, wasmtime.Module]:
    return compiled(c("kernels"))


@pytest.mark.parametrize(("name", "args"), CALLS)
def test_stopped_at_every_safepoint_or_not_at_all(
    kernels: tuple[wasmtime.Module, wasmtime.Module], name: str, args: list[int]
) -> None:
    plain, instrumented = kernels
    at_once, stopped, sliced = Machine(instrumented), Machine(instrumented), Machine(instrumented)
    wanted = Machine(plain)(name, *args) if name != "nans" else Machine(instrumented).run(name, args)
    assert at_once.run(name, args) == wanted
    used = at_once.used
    assert stopped.run(name, args, 0) == wanted
    assert sliced.run(name, args, 777) == wanted
    assert (stopped.used, sliced.used) == (used, used)
    assert stopped.stops > 10
    assert bytes(stopped.memory("memory").read(stopped.store)) == bytes(sliced.memory("memory").read(sliced.store))


@pytest.mark.parametrize(("name", "args"), CALLS)
def test_moved_into_fresh_instances(
    kernels: tuple[wasmtime.Module, wasmtime.Module], name: str, args: list[int]
) -> None:
    machine = Machine(kernels[1])
    wanted = machine.run(name, args)
    result, used, moves = run_moving(kernels[1], name, args, max(machine.used // 20, 1))
    assert (result, used) == (wanted, machine.used)
    assert moves >= 5


def reach(machine: Machine, mark: int, slice_: int) -> Frozen:
    """Stops at the first safepoint whose used work exceeds `mark`, on the way there every `slice_`."""
    machine.enter(min(slice_, mark))
    machine("sort", 100, 0)
    while machine.used <= mark:
        machine.enter(min(slice_, mark - machine.used) - machine.left)
        machine("sort", 0, 0)
    return machine.freeze()


@pytest.mark.parametrize("mark", [100, 1500, 5000, 9000])
def test_marks_do_not_depend_on_slices(kernels: tuple[wasmtime.Module, wasmtime.Module], mark: int) -> None:
    """Memory, frames, globals and work at a mark are the same bytes, however often the program was stopped before."""
    straight = reach(Machine(kernels[1]), mark, mark)
    assert all(reach(Machine(kernels[1]), mark, slice_) == straight for slice_ in (1, 50, 333))


def test_a_changed_frame_changes_the_run(kernels: tuple[wasmtime.Module, wasmtime.Module]) -> None:
    """The comparison above can fail: one bit in the saved stack, and the result is another one."""
    machine = Machine(kernels[1])
    machine.enter(300)
    machine("fib", 12)
    frozen = machine.freeze()
    broken = Machine(kernels[1])
    frames = bytearray(frozen.frames)
    frames[4] ^= 1
    broken.thaw(dataclasses.replace(frozen, frames=bytes(frames)))
    broken.enter(1 << 40)
    assert broken("fib", 0) != 144


def test_a_number_of_a_stop_that_is_not_there_traps(kernels: tuple[wasmtime.Module, wasmtime.Module]) -> None:
    machine = Machine(kernels[1])
    machine.enter(300)
    machine("fib", 12)
    frozen = machine.freeze()
    broken = Machine(kernels[1])
    broken.thaw(dataclasses.replace(frozen, frames=frozen.frames[:-16] + b"\xee" * 16))
    broken.enter(1 << 40)
    with pytest.raises((wasmtime.Trap, wasmtime.WasmtimeError)):
        broken("fib", 0)


def test_endless_recursion_ends_at_the_same_depth(kernels: tuple[wasmtime.Module, wasmtime.Module]) -> None:
    def run(slice_: int | None) -> tuple[list[int], int]:
        machine = Machine(kernels[1])
        with pytest.raises((wasmtime.Trap, wasmtime.WasmtimeError, RuntimeError)):
            machine.run("endless", [0], slice_)
        return machine.traps, machine.used

    assert on_large_stack(lambda: run(None))[0] == [1]
    assert on_large_stack(lambda: run(None)) == on_large_stack(lambda: run(1_000_000))


def test_nans_are_canonical() -> None:
    text = """(module (memory (export "memory") 1)
      (func (export "f") (param f64 f64) (result i64) (i64.reinterpret_f64 (f64.neg (f64.div (local.get 0) (local.get 1))))))"""
    _, module = compiled(wat(text))
    assert Machine(module).run("f", [0.0, 0.0]) == 0x7FF8000000000000
    _, left_alone = compiled(wat(text), NO_NAN)
    assert Machine(left_alone).run("f", [0.0, 0.0]) in (0x7FF8000000000000, -0x8000000000000)


START = """(module (memory (export "memory") 1) (global $g (export "g") (mut i32) (i32.const 0)) (start $s)
  (func $s (local i32) (loop (local.set 0 (i32.add (local.get 0) (i32.const 1)))
     (global.set $g (i32.add (global.get $g) (local.get 0))) (br_if 0 (i32.lt_u (local.get 0) (i32.const 20)))))
  (func (export "get") (result i32) (global.get $g)))"""


def test_the_start_function_can_be_stopped_too() -> None:
    _, module = compiled(wat(START))
    machine = Machine(module)
    assert machine("get") == 0
    machine.run("ipos_begin", [], 0)
    assert machine.stops > 15
    assert machine("get") == 210
    run_moving(module, "ipos_begin", [], 10)


DROPPED = """(module (memory (export "memory") 1) (data $d "abcdef") (data $e "xyz")
  (func $spin (param i32) (loop (br_if 0 (i32.gt_s (local.tee 0 (i32.sub (local.get 0) (i32.const 1))) (i32.const 0)))))
  (func (export "f") (result i32)
    (memory.init $d (i32.const 0) (i32.const 1) (i32.const 3)) (data.drop $d) (call $spin (i32.const 9))
    (memory.init $e (i32.const 3) (i32.const 0) (i32.const 3)) (call $spin (i32.const 9))
    (memory.init $d (i32.const 0) (i32.const 0) (i32.const 0)) (i32.load (i32.const 2)))
  (func (export "g") (call $spin (i32.const 3)) (data.drop $d) (call $spin (i32.const 3)) (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))))"""


def test_dropped_segments_stay_dropped() -> None:
    plain, module = compiled(wat(DROPPED))
    assert run_moving(module, "f", [], 5)[0] == Machine(plain)("f") == int.from_bytes(b"dxyz", "little")
    with pytest.raises(wasmtime.Trap):
        run_moving(module, "g", [], 5)


TABLES = """(module (memory (export "memory") 1) (type $t (func (result i32)))
  (table $a 4 40 funcref) (table $b 3 3 funcref) (elem (table $a) (i32.const 1) func $one $two) (elem $p func $three $one) (elem declare func $two)
  (global $r (mut funcref) (ref.null func))
  (func $one (result i32) (i32.const 1)) (func $two (result i32) (i32.const 2)) (func $three (result i32) (i32.const 3))
  (func $spin (param i32) (loop (br_if 0 (i32.gt_s (local.tee 0 (i32.sub (local.get 0) (i32.const 1))) (i32.const 0)))))
  (func $self (result i32) (table.set $a (i32.const 3) (ref.func $two)) (call $spin (i32.const 5)) (i32.const 100))
  (elem declare func $self)
  (func $keep (param funcref) (result funcref) (call $spin (i32.const 5)) (local.get 0))
  (func (export "f") (result i32) (local $sum i32)
    (table.init $a $p (i32.const 0) (i32.const 0) (i32.const 2)) (elem.drop $p)
    (call $spin (i32.const 5))
    (local.set $sum (i32.add (call_indirect $a (type $t) (i32.const 0)) (i32.mul (i32.const 10) (call_indirect $a (type $t) (i32.const 2)))))
    (table.set $a (i32.const 3) (ref.func $self))
    (local.set $sum (i32.add (local.get $sum) (call_indirect $a (type $t) (i32.const 3))))
    (local.set $sum (i32.add (local.get $sum) (i32.mul (i32.const 1000) (call_indirect $a (type $t) (i32.const 3)))))
    (global.set $r (call $keep (table.get $a (i32.const 0))))
    (call $spin (i32.const 5))
    (table.set $b (i32.const 1) (global.get $r))
    (drop (table.grow $a (table.get $b (i32.const 1)) (i32.const 5)))
    (table.fill $a (i32.const 7) (ref.func $two) (i32.const 2))
    (table.copy $a $a (i32.const 0) (i32.const 4) (i32.const 4))
    (call $spin (i32.const 5))
    (local.set $sum (i32.add (local.get $sum) (i32.mul (i32.const 10000) (call_indirect $a (type $t) (i32.const 0)))))
    (local.set $sum (i32.add (local.get $sum) (i32.mul (i32.const 100000) (call_indirect $a (type $t) (i32.const 3)))))
    (i32.add (local.get $sum) (i32.mul (i32.const 1000000) (i32.add (table.size $a) (ref.is_null (table.get $b (i32.const 0)))))))
  (func (export "outside") (drop (table.get $a (i32.const 4))))
  (func (export "null") (drop (call_indirect $b (type $t) (i32.const 0))))
  (func (export "dropped") (elem.drop $p) (call $spin (i32.const 5)) (table.init $a $p (i32.const 0) (i32.const 0) (i32.const 1))))"""


def test_tables_that_change_and_references_as_values() -> None:
    plain, module = compiled(wat(TABLES))
    wanted = Machine(plain)("f")
    assert Machine(module).run("f") == wanted
    assert Machine(module).run("f", [], 0) == wanted
    result, _, moves = run_moving(module, "f", [], 1)
    assert (result, moves > 20) == (wanted, True)
    for name in ("outside", "null", "dropped"):
        for m in (plain, module):
            with pytest.raises(wasmtime.Trap):
                Machine(m)(name) if m is plain else Machine(m).run(name, [], 0)


MULTI = """(module (memory (export "memory") 1)
  (func $pair (param i32) (result i32 i64 f64) (local i32)
    (loop (br_if 0 (i32.lt_s (local.tee 1 (i32.add (local.get 1) (i32.const 1))) (local.get 0))))
    (local.get 1) (i64.const 5) (f64.const 0.5))
  (func (export "f") (param i32) (result i32) (local i32 i64 f64)
    (i32.const 7)
    (loop (param i32) (result i32)
      (call $pair (local.get 0)) (local.set 3) (local.set 2) (local.set 1)
      (i32.add (local.get 1))
      (block (param i32) (result i32 i32)
        (call $pair (i32.const 2)) (drop) (drop)
        (br_table 0 0 0 (i32.and (local.get 0) (i32.const 1))))
      (i32.add)
      (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
      (br_if 0 (i32.gt_s (local.get 0) (i32.const 0)))
      (if (param i32) (result i32) (i32.eq (local.get 1) (i32.const 1)) (then (call $pair (i32.const 3)) (drop) (drop) (i32.mul)) (else (i32.const 1) (i32.add))))))"""


def test_several_values() -> None:
    plain, module = compiled(wat(MULTI))
    for n in range(1, 6):
        wanted = Machine(plain)("f", n)
        machine = Machine(module)
        assert machine.run("f", [n], 0) == wanted
        assert run_moving(module, "f", [n], 3)[0] == wanted


def test_a_long_bulk_operation_stops_in_between() -> None:
    text = """(module (memory (export "memory") 100) (func (export "f") (param i32 i32 i32) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
      (func (export "c") (param i32 i32 i32) (memory.copy (local.get 0) (local.get 1) (local.get 2))))"""
    plain, module = compiled(wat(text))
    for name, args in (("f", [5, 7, 6_000_000]), ("c", [100_000, 0, 6_000_000]), ("c", [0, 100_000, 6_000_000])):
        machine, other = Machine(module), Machine(plain)
        for m in (machine, other):
            m.memory("memory").write(m.store, bytes(range(256)) * 20_000, 1000)
        other(name, *args)
        machine.run(name, args, 1)
        assert machine.stops > 20
        assert machine.used > 6_000_000 // 16
        assert machine.memory("memory").read(machine.store) == other.memory("memory").read(other.store)
    machine = Machine(module)
    with pytest.raises(wasmtime.Trap):
        machine.run("f", [1_000_000, 7, 6_000_000], 1)
    assert not any(machine.memory("memory").read(machine.store))


def test_many_bulk_operations_in_a_row_stop_in_between() -> None:
    """A length that is known does not make a body of them one long step."""
    fill = "(memory.fill (i32.const 0) (i32.const 7) (i32.const 8192))"
    _, module = compiled(wat(f'(module (memory (export "memory") 1) (func (export "f") {fill * 300}))'))
    machine = Machine(module)
    machine.run("f", [], 1)
    assert machine.stops > 290


def test_the_same_bytes_each_time() -> None:
    assert instrument(c("kernels")) == instrument(c("kernels"))


def test_a_host_function_that_waits() -> None:
    """A call that leaves the program with `ipos_stop` is made again, with the same arguments."""
    text = """(module (import "env" "ask" (func $ask (param i32 i64) (result i32)))
      (func (export "f") (param i32) (result i32) (i32.add (i32.mul (local.get 0) (i32.const 100)) (call $ask (local.get 0) (i64.const 7)))))"""
    asked: list[tuple[int, int]] = []

    def ask(a: int, b: int) -> int:
        asked.append((a, b))
        if len(asked) < 4:
            machine("ipos_stop")
            return -1
        return a + b

    machine = Machine(wasmtime.Module(ENGINE, instrument(wat(text), flags=OPEN)), {"env.ask": ask})
    assert machine.run("f", [5]) == 512
    assert asked == [(5, 7)] * 4
    assert machine.stops == 3


def test_the_pass_goes_through_itself() -> None:
    """A real program of 100 KB: the pass, instrumented by itself and stopped now and then, gives the same bytes as ever."""
    program = wat(TABLES)
    module = wasmtime.Module(ENGINE, instrument((files("ipos.vm") / "ipinst.wasm").read_bytes()))
    for slice_ in (None, 499):
        machine = Machine(module)
        at = machine.run("alloc", [len(program)], slice_)
        machine.memory("memory").write(machine.store, program, at)
        assert machine.run("instrument", [at, len(program), 0, 0, 0], slice_) == 0
        start, size = machine.run("result", [], slice_), machine.run("result_len", [], slice_)
        assert bytes(machine.memory("memory").read(machine.store, start, start + size)) == instrument(program)
    assert machine.stops > 300
