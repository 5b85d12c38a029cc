"""spin: a small program for the engine that computes for as long as one likes, with a state that every round changes."""

from __future__ import annotations

import wasmtime

from ipos.pool import data
from ipos.pool.records import EngineRun, Task
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm.version import platform

PROGRAM = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 3)
  (func $round (param $x i32) (result i32) (local $at i32)
    (local.set $x (i32.add (i32.mul (local.get $x) (i32.const 1664525)) (i32.const 1013904223)))
    (local.set $at (i32.shl (i32.shr_u (local.get $x) (i32.const 17)) (i32.const 2)))
    (i32.store offset=65536 (local.get $at) (i32.add (i32.load offset=65536 (local.get $at)) (local.get $x)))
    (local.get $x))
  (func (export "_start") (local $i i32) (local $x i32) (local $sum i32)
    (loop $again
      (local.set $x (call $round (local.get $x)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $i) (i32.const ROUNDS))))
    (local.set $i (i32.const 0))
    (loop $more
      (local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 31)) (i32.load offset=65536 (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 4)))
      (br_if $more (i32.lt_u (local.get $i) (i32.const 131072))))
    (local.set $i (i32.const 0))
    (loop $digit
      (i32.store8 offset=64 (local.get $i)
        (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $sum) (i32.shl (local.get $i) (i32.const 2))) (i32.const 15))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $digit (i32.lt_u (local.get $i) (i32.const 8))))
    (i32.store8 (i32.const 72) (i32.const 10))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 9))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""


def program(rounds: int) -> bytes:
    """WebAssembly. A million rounds are about 0.005 Gop and some milliseconds; it prints nine bytes."""
    return bytes(wasmtime.wat2wasm(PROGRAM.replace("ROUNDS", str(rounds))))


def task(store: BlockStore, rounds: int, mark_every: int) -> bytes:
    """CID of a task that runs it; everything that it names is in the store."""
    env, body = data.record_block(EngineRun(engine=platform()[5:], mark_every=mark_every))
    record = Task(
        program=unixfs.add_bytes(store, program(rounds)), name="spin.wasm", environment=env, platform=platform()
    )
    cid, block = data.record_block(record)
    store.put([(env, body), (cid, block)])
    return cid
