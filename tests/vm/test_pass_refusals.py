"""What the pass refuses: one sentence with the construct and its byte offset; and hostile modules, quickly and in bounded memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
import wasmtime

from ipos.vm.instrument import OPEN, instrument
from ipos.wire.errors import Refused

from .machine import ENGINE
from .programs import c, wat


def leb(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb(len(content)) + content


def module(*bodies: bytes, types: bytes = b"\x01\x60\x00\x00") -> bytes:
    """Functions () -> () with these bodies (local declarations and code)."""
    n = len(bodies)
    return (
        b"\0asm\1\0\0\0" + section(1, types) + section(3, leb(n) + b"\0" * n)
        + section(10, leb(n) + b"".join(leb(len(body)) + body for body in bodies))
    )  # fmt: skip


REFUSED = [
    ('(module (memory 1 1 shared))', "threads are not supported: a shared memory"),
    ('(module (memory 1) (func (drop (i32.atomic.load (i32.const 0)))))', "threads are not supported: an atomic operation"),
    ('(module (memory i64 1))', "64-bit memories are not supported"),
    ('(module (table i64 1 funcref))', "64-bit tables are not supported"),
    ('(module (memory 1) (memory 1))', "more than one memory is not supported"),
    ('(module (func (drop (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0)))))', "relaxed SIMD is not supported: operation 0xfd 0x100"),
    ('(module (type (struct)))', "garbage-collected types are not supported"),
    ('(module (type $t (func)) (func (param (ref null $t))))', "typed references are not supported"),
    ('(module (func (result i32) (ref.i31 (i32.const 1)) (drop) (i32.const 0)))', "garbage-collected types are not supported: an operation with prefix 0xfb"),
    ('(module (tag) (func (throw 0)))', "exceptions are not supported: a tag section"),
    ('(module (func (try_table)))', "exceptions are not supported: try_table"),
    ('(module (func $f (return_call $f)))', "tail calls are not supported: return_call"),
    ('(module (table 1 funcref) (type $t (func)) (func (return_call_indirect (type $t) (i32.const 0))))', "tail calls are not supported: return_call_indirect"),
    ('(module (func (param i64) (result i64 i64) (i64.mul_wide_s (local.get 0) (local.get 0))))', "wide arithmetic is not supported"),
    ('(module (memory 1 1 (pagesize 1)))', "custom page sizes are not supported"),
    ('(module (import "env" "f" (func)))', "the program imports env.f, which is not a function of WASI preview 1"),
    ('(module (import "wasi_snapshot_preview1" "fd_fly" (func)))', "the program imports wasi_snapshot_preview1.fd_fly, which is not"),
    ('(module (import "env" "memory" (memory 1)))', "the import env.memory is not a function"),
    ('(module (func (export "ipos_enter")))', "the export 'ipos_enter' has a name that is kept for the engine"),
    ('(component)', "components are not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), REFUSED)
def test_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(Refused) as refusal:
        instrument(wat(text))
    said = str(refusal.value)
    assert sentence in said
    assert "\n" not in said
    assert int(said.rsplit("at byte ", 1)[1]) < len(wat(text))


def test_a_reference_across_a_call_is_refused_only_where_it_cannot_be_a_number() -> None:
    """With OPEN, references come from outside; a closed program handles them as numbers."""
    text = (
        """(module (func $g (loop)) (func (export "f") (param externref) (result externref) (call $g) (local.get 0)))"""
    )
    with pytest.raises(Refused, match=r"references live across a call are not supported at byte \d+"):
        instrument(wat(text), flags=OPEN)
    instrument(wat(text))


def carry(locals_: int) -> bytes:
    return b"".join(b"\x20" + leb(i) + b"\x41\x01\x6a\x21" + leb(i * 3 % locals_) for i in range(locals_))


def i32s(n: int) -> bytes:
    return b"\x01" + leb(n) + b"\x7f"


DIAMONDS = b"".join(
    b"\x41\x00\x04\x40\x41\x01\x21" + leb(i) + b"\x05\x41\x02\x21" + leb(i * 7 % 50000) + b"\x0b" for i in range(5000)
)
BOMBS: dict[str, Callable[[], bytes]] = {
    "10,000 empty functions": lambda: module(*[b"\x00\x0b"] * 10000),
    "one function of 7.6 MB": lambda: module(b"\x00\x41\x01" + b"\x41\x01\x6a" * 2_500_000 + b"\x1a\x0b"),
    "50,000 nested blocks": lambda: module(b"\x00" + b"\x02\x40" * 50000 + b"\x0b" * 50001),
    "50,000 nested loops": lambda: module(b"\x00" + b"\x03\x40" * 50000 + b"\x0b" * 50001),
    "br_table of a million": lambda: module(b"\x00\x02\x40\x41\x00\x0e" + leb(1_000_000) + b"\0" * 1_000_001 + b"\x0b\x0b"),
    "20 br_tables of 100,000": lambda: module(b"\x00" + (b"\x02\x40\x41\x00\x0e" + leb(100_000) + b"\0" * 100_001 + b"\x0b") * 20 + b"\x0b"),
    "50,000 locals in 2,000 loops": lambda: module(i32s(50000) + b"\x03\x40\x20\x00\x21\x01\x41\x00\x0d\x00\x0b" * 2000 + b"\x0b"),
    "50,000 locals in 5,000 diamonds": lambda: module(i32s(50000) + DIAMONDS + b"".join(b"\x20" + leb(i) + b"\x1a" for i in range(0, 50000, 5)) + b"\x0b"),
    "2,000 locals carried by 500 nested loops": lambda: module(i32s(2000) + b"\x03\x40" * 500 + carry(2000) + b"\x41\x00\x0d\x00\x0b" * 500 + b"\x0b"),
    "1,000 locals carried by 60 nested loops": lambda: module(i32s(1000) + b"\x03\x40" * 60 + carry(1000) + b"\x41\x00\x0d\x00\x0b" * 60 + b"\x0b"),
    "1,000 locals live across 500 calls": lambda: module(i32s(1000) + carry(1000) + b"\x10\x00" * 500 + carry(1000) + b"\x0b"),
    "the same in 20 functions": lambda: module(*[i32s(1000) + carry(1000) + b"\x10\x00" * 500 + carry(1000) + b"\x0b"] * 20),
    "100,000 calls": lambda: module(b"\x00" + b"\x10\x00" * 100_000 + b"\x0b"),
    "900 operands across 500 calls": lambda: module(b"\x00" + b"\x41\x01" * 900 + b"\x10\x00" * 500 + b"\x1a" * 900 + b"\x0b"),
    "10,000 times five loops": lambda: module(b"\x00" + (b"\x03\x40" * 5 + b"\x0b" * 5) * 10_000 + b"\x0b"),
    "a chain of 1,000 calls, frames of 8 KB": lambda: module(*[i32s(1000) + b"\x10" + leb(i + 1) + b"\x0b" for i in range(2000)], b"\x00\x0b"),
}  # fmt: skip
EXTREME = {"1,000 locals carried by 60 nested loops"}  # admitted; its instrumented form takes Cranelift a second


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_or_compile_in_a_second(name: str) -> None:
    bomb = BOMBS[name]()
    instrument(module(), flags=OPEN)  # the pass itself is compiled by now
    start = time.process_time()
    sentence = refusal_of(bomb, OPEN)
    assert time.process_time() - start < 1
    assert "\n" not in sentence
    if sentence:
        return
    instrumented = instrument(bomb, flags=OPEN)
    start = time.process_time()
    wasmtime.Module(ENGINE, instrumented)
    assert time.process_time() - start < (3 if name in EXTREME else 1)


def refusal_of(program: bytes, flags: int = 0) -> str:
    """The sentence, or "" when the program is admitted; then what comes out is valid."""
    try:
        out = instrument(program, flags=flags)
    except Refused as refusal:
        return str(refusal)
    wasmtime.Module.validate(ENGINE, out)
    return ""


def test_truncated_at_every_byte() -> None:
    program = wat(
        '(module (memory (export "memory") 1) (func $g (loop)) (func (export "f") (param i32) (result i32) (call $g) (local.get 0)))'
    )
    for n in range(len(program)):
        assert "\n" not in refusal_of(program[:n])


def mutations(seed: int, count: int) -> None:
    program, rng = c("kernels"), random.Random(seed)
    admitted = 0
    for _ in range(count):
        mutant = bytearray(program)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(8, len(mutant))
            mutant[at] = rng.choice((rng.randrange(256), mutant[at] ^ 1 << rng.randrange(8), 0, 0x80, 0xFF))
        sentence = refusal_of(bytes(mutant))
        assert "\n" not in sentence
        admitted += not sentence
    assert admitted


def test_mutated() -> None:
    mutations(1, 40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_mutated_many_times(seed: int) -> None:
    mutations(100 + seed, 2000)
