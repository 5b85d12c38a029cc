"""The WASI merged into the program: a small one, written for these tests (programs/smallwasi.c)."""

from __future__ import annotations

from typing import Any

import pytest
import wasmtime

from ipos.vm.instrument import instrument
from ipos.wire.errors import Refused

from .machine import ENGINE, ENOUGH, Frozen, Machine
from .programs import WASI, c, wat

FREESTANDING = "-target wasm32-freestanding -mcpu=generic+bulk_memory+sign_ext -O2 -nostdlib -ffreestanding -Wl,--no-entry -Wl,--strip-all"


class Host:
    """Standard input that comes in pieces: None = not there yet."""

    def __init__(self, pieces: list[bytes | None] | None = None) -> None:
        self.pieces = list(pieces or [])
        self.machine: Machine | None = None

    def imports(self) -> dict[str, Any]:
        return {"ipos.stdin": self.stdin, "ipos.flush": lambda at, n: None}

    def stdin(self, at: int, n: int) -> int:
        assert self.machine is not None
        if not self.pieces:
            return 0
        piece = self.pieces.pop(0)
        if piece is None:
            return -1
        assert len(piece) <= n
        self.machine.memory("ipos_wasi").write(self.machine.store, piece, at)
        return len(piece)


class Task:
    def __init__(self, module: wasmtime.Module, argument: int = 1, stdin: list[bytes | None] | None = None) -> None:
        self.module, self.host, self.stops, self.moves = module, Host(stdin), 0, 0
        self.machine = self.fresh()
        self.machine("wasi_boot", argument)

    def fresh(self) -> Machine:
        machine = Machine(self.module, self.host.imports())
        self.host.machine = machine
        return machine

    def run(self, slice_: int = ENOUGH, moving: bool = False) -> tuple[bytes, int, int]:
        """Output, exit status, work."""
        self.machine.enter(slice_ - self.machine.left)
        self.machine("_start")
        while self.machine("ipos_state") == 1 and not self.machine("wasi_exited"):
            self.stops += 1
            if moving:
                self.move()
            self.machine.enter(max(slice_ - self.machine.left, 0))
            self.machine("_start")
        place = self.machine("wasi_output")
        at, n = place >> 32, place & 0xFFFFFFFF
        return (
            bytes(self.machine.memory("ipos_wasi").read(self.machine.store, at, at + n)),
            self.machine("wasi_exited") & 0xFFFFFFFF,
            self.machine.used,
        )

    def move(self) -> None:
        frozen: Frozen = self.machine.freeze()
        self.machine.store.close()
        self.machine = self.fresh()
        self.machine.thaw(frozen)
        self.moves += 1


@pytest.fixture(scope="module")
def small() -> bytes:
    return c("smallwasi", FREESTANDING)


@pytest.fixture(scope="module")
def hello(small: bytes) -> wasmtime.Module:
    return wasmtime.Module(ENGINE, instrument(c("hello", WASI), small))


def test_a_command_program(hello: wasmtime.Module) -> None:
    out, status, work = Task(hello, 7).run()
    assert out == b"hello 7\n0 1 1 2 3 5 8 \nread 0\nbye\n"
    assert status == 3
    for slice_, moving in ((1, False), (100, False), (200, True)):
        task = Task(hello, 7)
        assert task.run(slice_, moving) == (out, status, work)
        assert task.stops > 5


def test_a_call_that_waits_is_issued_again(hello: wasmtime.Module) -> None:
    pieces: list[bytes | None] = [None, None, b"12", None, b"34\n5", None]
    task = Task(hello, 7, pieces)
    out, status, work = task.run(moving=True)
    assert b"read 6\n" in out
    assert (status, task.moves, task.host.pieces) == (3, 4, [])
    straight = Task(hello, 7, [b"12", b"34\n5"])
    assert straight.run()[:2] == (out, status)
    assert Task(hello, 7, list(pieces)).run(60)[:2] == (out, status)
    assert Task(hello, 7, list(pieces)).run(60)[2] == work


def test_what_the_runtime_asks_costs_the_program_nothing(hello: wasmtime.Module) -> None:
    machine = Task(hello).machine
    machine("ipos_set", 5)
    for name in ("wasi_exited", "wasi_calls", "wasi_output", "wasi_flush"):
        machine(name)
    machine("wasi_boot", 123456)
    assert machine.left == 0


def test_names_and_memories(hello: wasmtime.Module) -> None:
    names = [export.name for export in hello.exports]
    assert [name for name in names if name.startswith("wasi_")] == [
        "wasi_boot",
        "wasi_exited",
        "wasi_calls",
        "wasi_output",
        "wasi_flush",
        "wasi_cache",
    ]
    assert {"memory", "_start", "ipos_mem", "ipos_stack", "ipos_wasi", "ipos_cache"} <= set(names)
    assert not {"fd_write", "free_look", "proc_exit"} & set(names)
    assert {f"{i.module}.{i.name}" for i in hello.imports} == {"ipos.stdin", "ipos.flush", "ipos.trap"}


def test_the_cache_is_the_hosts(hello: wasmtime.Module) -> None:
    machine = Task(hello).machine
    assert machine("wasi_cache", 8, 77) == -1
    machine.memory("ipos_cache").grow(machine.store, 1)
    assert machine("wasi_cache", 8, 77) == 77
    assert machine.memory("memory").read(machine.store, 0, 8) == (77).to_bytes(8, "little")


WORK = """(module (import "wasi_snapshot_preview1" "{name}" (func $f {type})) (memory (export "memory") 1) (func (export "_start") {call}))"""


def work_of(name: str, type_: str, call: str, wasi: bytes, times: int) -> int:
    text = WORK.replace("{name}", name).replace("{type}", type_).replace("{call}", call * times)
    machine = Machine(wasmtime.Module(ENGINE, instrument(wat(text), wasi)), Host().imports())
    machine.run("_start")
    return machine.used


def test_work_of_calls(small: bytes) -> None:
    """`charge` and lengths count; what is free does not, however long it looks."""

    def each(name: str, type_: str, call: str) -> int:
        return (work_of(name, type_, call, small, 40) - work_of(name, type_, call, small, 20)) // 20

    assert 1000 < each("sched_yield", "(result i32)", "(drop (call $f))") < 1050
    short, long = (
        each("random_get", "(param i32 i32) (result i32)", f"(drop (call $f (i32.const 0) (i32.const {n})))")
        for n in (8, 8008)
    )
    assert long - short == 750  # 3 ticks of 32 a byte


def test_an_import_as_a_function_pointer(small: bytes) -> None:
    text = """(module (import "wasi_snapshot_preview1" "fd_read" (func $r (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1) (table 2 2 funcref) (elem (i32.const 0) func $r $r) (data (i32.const 0) "\\40\\00\\00\\00\\10\\00\\00\\00")
      (export "again" (func $r)) (type $t (func (param i32 i32 i32 i32) (result i32)))
      (func (export "_start") (drop (call_indirect (type $t) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 32) (i32.const 1)))))"""
    task = Task(wasmtime.Module(ENGINE, instrument(wat(text), small)), 1, [None, b"abc"])
    task.run(moving=True)
    assert task.moves == 1
    assert task.machine.memory("memory").read(task.machine.store, 64, 67) == b"abc"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('(module (import "wasi_snapshot_preview1" "fd_write" (func)))', "imports fd_write with another signature"),
        (
            '(module (import "wasi_snapshot_preview1" "wasi_exited" (func (result i64))))',
            "is not a function of WASI preview 1",
        ),
        (
            '(module (import "wasi_snapshot_preview1" "free_look" (func (param i32) (result i32))))',
            "is not a function of WASI preview 1",
        ),
        ('(module (import "ipos" "stdin" (func (param i32 i32) (result i32))))', "is not a function of WASI preview 1"),
        ('(module (import "x" "l8" (func (param i32) (result i32))))', "is not a function of WASI preview 1"),
        (
            '(module (memory 1) (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))))',
            "is not exported as 'memory'",
        ),
        ('(module (func (export "wasi_boot")))', "a name that is kept for the engine"),
    ],
)
def test_refused(small: bytes, text: str, sentence: str) -> None:
    text = text.replace(
        '(memory 1) (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))',
        '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32))) (memory 1)',
    )
    with pytest.raises(Refused, match=sentence):
        instrument(wat(text), small)
