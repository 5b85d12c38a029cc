"""A small task, honestly computed and signed, as evidence in a CAR; and every way to lie about it that a machine's owner has."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import wasmtime

from ipos.cli.verify import verify
from ipos.identity import keys, machines
from ipos.identity.machines import Machine, MachineList
from ipos.identity.secret import Secret
from ipos.identity.typed import RunKey
from ipos.pool import evidence, marks, saves
from ipos.pool import receipt as receipts
from ipos.pool.judge import on_large_stack
from ipos.pool.records import EngineRun, Evidence, MarkedSave, Receipt, Result, Task
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.store.car import write
from ipos.vm import engine, pack
from ipos.vm.content import Content, spec_of
from ipos.vm.replay import Met, Replay
from ipos.vm.runner import Ended
from ipos.vm.save import Saves, View
from ipos.vm.version import cache_root, platform, version
from ipos.wire.record import Record, cid_of, encode

EVERY = 1_000_000
LINES = 8
PROGRAM = f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\02\\00\\00\\00")
  (func (export "_start") (local $line i32) (local $i i32) (local $sum i64)
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (local.set $sum (i64.extend_i32_u (i32.load8_u (i32.const 16))))
    (loop $lines
      (local.set $i (i32.const 1500000))
      (loop $burn
        (local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 6364136223846793005)) (i64.extend_i32_u (local.get $i))))
        (i64.store (i32.const 64) (local.get $sum))
        (br_if $burn (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
      (i32.store8 (i32.const 16) (i32.add (i32.const 97) (i32.wrap_i64 (i64.rem_u (local.get $sum) (i64.const 26)))))
      (i32.store8 (i32.const 17) (i32.const 10))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $lines (i32.lt_u (local.tee $line (i32.add (local.get $line) (i32.const 1))) (i32.const {LINES}))))
    (call $exit (i32.const 7))))"""

ACCOUNT, RUN, OTHER = (keys.Key(Secret(bytes([n]) * 32)) for n in (1, 2, 3))
PEER = "12D3KooWliar"
LIST = machines.sign(ACCOUNT, 3, (Machine(name="liar", peer=PEER, run=RUN.address, machine="aa"),))


class Parts(NamedTuple):
    """What an evidence is made of, before it is signed and linked. `blocks`: more than the store has; `lost`: CIDs that are left out."""

    task: Task
    run: EngineRun
    result: Result
    marks: tuple[tuple[int, str], ...]
    receipt: Receipt
    machines: MachineList = LIST
    key: keys.Key = RUN
    saves: tuple[MarkedSave, ...] = ()
    before: tuple[Receipt, ...] = ()


class Lab:
    """One honest run. `saved`: index of a mark -> packed save."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        program = unixfs.add_bytes(self.store, bytes(wasmtime.wat2wasm(PROGRAM)))
        stdin = unixfs.add_bytes(self.store, b"x")
        self.run = EngineRun(engine=version(), mark_every=EVERY)
        self.task = Task(
            program=program, name="p.wasm", environment=self.put(self.run), stdin=stdin, platform=platform(),
            files={"given": unixfs.add_bytes(self.store, b"given")},
        )  # fmt: skip
        self.put(self.task)
        self.saved: dict[int, bytes] = {}
        self.stops: list[Met] = []
        self.honest = on_large_stack(self._computed)

    def put(self, record: Record) -> bytes:
        body = encode(record)
        self.store.put([(c.of_dag_cbor(body), body)])
        return c.of_dag_cbor(body)

    def _computed(self) -> Parts:
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            with open(place / "stdout", "w+b") as out, open(place / "stderr", "w+b") as err:
                host = Content(self.store, self.task.files, self.task.stdin, (out, err))
                spec = spec_of(saves.plan_of(self.task, self.run), host.tree)
                module = engine.compiled(unixfs.read(self.store, self.task.program), cache_root())
                replay = Replay(module, spec, host)
                while isinstance(stop := replay.next(), Met):
                    self.stops.append(stop)
                    out.flush()
                    kept = Saves(place, sync=False)
                    replay.runner.save(kept)
                    kept.close()
                    with View(place) as view:
                        frames = [frame.make() for frame in pack.frames(view)]
                    self.saved[stop.index] = unixfs.add_chunks(self.store, frames)
                assert isinstance(stop, Ended)
                out.flush()
                out.seek(0)
                printed = out.read()
                replay.close()
        assert len(printed) == 2 * LINES
        listed = tuple((met.work, met.root.hex()) for met in self.stops)
        return self.parts(stop, printed, listed)

    def parts(self, end: Ended, printed: bytes, listed: tuple[tuple[int, str], ...]) -> Parts:
        result = Result(
            task=cid_of(self.task), exit=end.exit, killed="", stdout=unixfs.add_bytes(self.store, printed),
            stderr=unixfs.add_bytes(self.store, b""), dir=None, cpu_ms=5, wall_ms=9, rss_bytes=1, node=PEER,
        )  # fmt: skip
        receipt = Receipt(
            task=result.task, result=None, account=ACCOUNT.address, run=RUN.address, node=PEER, machines=cid_of(LIST),
            engine=version(), since=0, since_root="", work=end.work, root=end.root.hex(), marks=None, before=None, page_work=end.page_work,
            cpu_ms=5, wall_ms=9,
        )  # fmt: skip
        return Parts(self.task, self.run, result, listed, receipt)

    def evidence(self, parts: Parts) -> bytes:
        """The root of it; everything is linked and signed by the key that the parts name."""
        marks_ = unixfs.add_bytes(self.store, marks.text(parts.marks)) if parts.marks else None
        self.put(parts.run)
        task = self.put(msgspec.structs.replace(parts.task, environment=cid_of(parts.run)))
        receipt = parts.receipt
        ext = {"work": str(receipt.work), "root": receipt.root, "resumed_at": "0"}
        ext |= {"marks": c.text(marks_)} if marks_ is not None else {}
        ext |= {"page_work": str(receipt.page_work)} if receipt.page_work else {}
        result = parts.result if parts.result.ext else msgspec.structs.replace(parts.result, ext=ext)
        if result.task == cid_of(self.task):
            result = msgspec.structs.replace(result, task=task)
        before: bytes | None = None
        for one in parts.before:
            before = self.put(self.signed(parts, msgspec.structs.replace(one, before=before)))
        linked = msgspec.structs.replace(
            receipt, task=task, result=self.put(result), marks=marks_, machines=self.put(parts.machines), before=before
        )
        signed = self.put(self.signed(parts, linked))
        return self.put(Evidence(receipt=signed, saves=parts.saves))

    @staticmethod
    def signed(parts: Parts, receipt: Receipt) -> Receipt:
        return receipts.sign(RunKey(parts.key), receipt)

    def car(self, path: Path, root: bytes, lost: Callable[[bytes], bool] = lambda cid: False) -> Path:
        with open(path, "wb") as out:
            write(out, root, [cid for cid in evidence.reach(self.store, root) if not lost(cid)], self.store)
        return path


def judged(path: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    """(exit status, what it says) of `ipos verify`."""
    said = io.StringIO()
    given = argparse.Namespace(file=str(path), full=False, mark=None, seed=None, json=True)
    for key, value in options.items():
        setattr(given, key, value)
    with contextlib.redirect_stdout(said):
        status = verify(given)
    return status, json.loads(said.getvalue())
