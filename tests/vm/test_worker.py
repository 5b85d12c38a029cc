"""The worker's pipe, without a node: every command, every answer, and a worker that says what no worker says."""

from __future__ import annotations

import asyncio
import fcntl
import json
import mmap
import os
from pathlib import Path

import msgspec
import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from ipos.vm import code, plan
from ipos.vm.client import Workers
from ipos.vm.host import Fault
from ipos.vm.plan import Plan
from ipos.vm.process import Ended, Worker
from ipos.vm.save import read_head
from ipos.wire.errors import Refused

from .test_overtaken import FILE_BYTES, a_home, places, until

SPIN = """(module (memory (export "memory") 1) (func (export "_start") (local $i i64)
  (loop (local.set $i (i64.add (local.get $i) (i64.const 1))) (br_if 0 (i64.lt_u (local.get $i) (i64.const {turns}))))))"""


def spin(at: Path, turns: int) -> Path:
    path = at / f"spin{turns}.wasm"
    path.write_bytes(bytes(wasmtime.wat2wasm(SPIN.format(turns=turns))))
    return path


@pytest.mark.real
def test_every_command(tmp_path: Path) -> None:
    asyncio.run(_every_command(tmp_path))


async def _every_command(at: Path) -> None:
    home, said = a_home(at), list[plan.Event]()
    what = Plan(task="spin", memory_bytes=128 << 20, mark_every=50_000_000, every_s=3600)

    def heard(kind: type) -> list[plan.Event]:
        return [event for event in said if isinstance(event, kind)]

    async with Workers(home, cache=at / "cache") as workers:
        where = places(home, "one", {})
        worker = await workers.start(what, where, spin(at, 10**12), said.append)
        await until(lambda: len(worker.marks) > 2 and worker.work > 0)
        assert isinstance(said[0], plan.Confined)
        assert isinstance(said[1], plan.Began)
        assert heard(plan.Saved) == []
        worker.save()  # of a running task
        await until(lambda: worker.saved is not None)
        head = read_head(where.saves)
        assert head is not None
        assert worker.saved is not None
        assert (head.work, head.root.hex()) == (worker.saved.work, worker.saved.root)
        worker.pause()
        await until(lambda: worker.paused)
        stood = worker.work
        worker.save()
        await until(lambda: len(heard(plan.Saved)) == 2)
        last = heard(plan.Saved)[-1]
        assert isinstance(last, plan.Saved)
        (paused,) = heard(plan.Paused)
        assert isinstance(paused, plan.Paused)
        assert last.work == paused.work >= stood, "paused, it saves and does not compute"
        worker.resume()
        await until(lambda: not worker.paused and worker.work > last.work)
        worker.hand_over()
        ended = await worker.ended
        assert (ended.report.stopped, ended.silent, ended.code) == (True, False, 0)
        again = await workers.start(what, places(home, "two", {})._replace(saves=where.saves), spin(at, 10**12))
        await until(lambda: again.work > ended.report.work)
        assert again.marks[: len(ended.marks)] == ended.marks, "those of the save are said again"
        again.kill()
        killed = await again.ended
        assert killed.silent
        assert killed.report.fault
        three = places(home, "three", {})
        (three.out / "half").write_text("what a killed worker left of its output")
        short = await workers.start(what, three, spin(at, 1000))
        assert (await short.ended).report.exit == 0
        assert list(three.out.iterdir()) == []
        with pytest.raises(Refused, match="refused"):
            bad = at / "bad.wasm"
            bad.write_bytes(b"\0asm\1\0\0\0\x0a\x05\x01")
            await workers.start(what, places(home, "four", {}), bad)
        assert workers.starts == 1
    with pytest.raises(Fault, match="did not start"):
        await Workers(cache=at / "cache", module="ipos.no.such").start(what, where, spin(at, 1000))


async def overtaken(at: Path, script: str) -> Ended:
    (at / "script.py").write_text(script)
    home = a_home(at)
    async with Workers(
        home, cache=at / "cache", module="ipos.testing.overtaken", arguments=("", str(at / "script.py"))
    ) as workers:
        worker: Worker = await workers.start(
            Plan(task="x", memory_bytes=64 << 20), places(home, "one", {}), at / "empty.wasm", file_bytes=FILE_BYTES
        )
        async with asyncio.timeout(30):
            return await worker.ended


ROOT = "0" * 64
SLEEP = "\nimport time\ntime.sleep(3600)"


@pytest.mark.real
@pytest.mark.parametrize(
    ("script", "words"),
    [('import os; os.write(3, b"no json\\n")' + SLEEP, "says what no worker says"),
     ('import os; os.write(3, b"x" * (3 << 20))' + SLEEP, "says what no worker says"),
     ('import os; os.write(3, b\'{"event":"mark","work":1,"root":"' + ROOT + '"}\\n\' * 2)' + SLEEP, "2 marks after 1 unit"),
     ("import os\nfor n in range(9):\n os.write(os.open(f'f{n}', os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=4), bytes(16 << 20))" + SLEEP,
      "has written 1.. MiB, more than the 64 MiB"),
     ("import os; os._exit(0)", "ended with status 0"),
     ("raise ValueError('the last words')", "ended with status 1: ValueError: the last words")],
    ids=["garbage", "endless line", "marks", "files", "silent", "raises"],
)  # fmt: skip
def test_a_worker_that_lies_is_ended(script: str, words: str, tmp_path: Path) -> None:
    ended = asyncio.run(overtaken(tmp_path, script))
    assert ended.report.fault
    with pytest.raises(Fault, match=words):
        raise Fault(ended.report.fault)


@given(st.binary(max_size=200))
def test_lines_that_are_none(line: bytes) -> None:
    for decode in (plan.event, plan.command):
        try:
            message = decode(line)
        except msgspec.DecodeError:
            continue
        assert decode(plan.line(message)) == message


@pytest.mark.parametrize("word", ["start", "pause", "resume", "save", "handover", "kill"])
def test_commands_are_as_written(word: str) -> None:
    body = {"op": word} | ({"plan": {"task": "t"}} if word == "start" else {})
    assert json.loads(plan.line(plan.command(json.dumps(body))))["op"] == word


def test_sealed_code_cannot_be_changed(tmp_path: Path) -> None:
    fd = code.sealed(b"code")
    try:
        for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 9), lambda: os.ftruncate(fd, 0),
                       lambda: mmap.mmap(fd, 4, prot=mmap.PROT_WRITE), lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0)):  # fmt: skip
            with pytest.raises(PermissionError):
                change()
        assert os.pread(fd, 9, 0) == b"code"
    finally:
        os.close(fd)
