"""A real node's processes, steered by its files: what the kernel says of a paused one, an open standard input, limits, hand-over."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from conftest import Machine, wait_for
from test_engine import BURN

from ipos.node.home import Home
from ipos.tree.ninep.client import connect_unix
from ipos.wire.errors import Refused

pytestmark = pytest.mark.real

Make = Callable[..., Machine]
CAT = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 4096))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))))"""


class Tree:
    """`cat` and `echo` on a machine's own socket."""

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", machine.environment["XDG_RUNTIME_DIR"])
        self.socket = Home(machine.home).socket

    def cat(self, path: str) -> str:
        async def read() -> bytes:
            client = await connect_unix(self.socket)
            try:
                return await asyncio.wait_for(client.read(path), 60)
            finally:
                client.close()

        return asyncio.run(read()).decode()

    def line(self, path: str) -> str:
        """What one read gives."""

        async def read() -> bytes:
            client = await connect_unix(self.socket)
            try:
                return await asyncio.wait_for(client.read_once(path), 60)
            finally:
                client.close()

        return asyncio.run(read()).decode()

    def echo(self, text: str, path: str) -> None:
        async def write() -> None:
            client = await connect_unix(self.socket)
            try:
                await asyncio.wait_for(client.write(path, text.encode() + b"\n"), 60)
            finally:
                client.close()

        asyncio.run(write())

    def refused(self, text: str, path: str) -> str:
        with pytest.raises(Refused) as caught:
            self.echo(text, path)
        return str(caught.value)

    def start(self, **spec: object) -> str:
        """A job's directory."""
        number = self.cat("/job/clone").strip()
        self.echo(json.dumps(spec), f"/job/{number}/spec")
        self.echo("start", f"/job/{number}/ctl")
        return f"/job/{number}"

    def status(self, where: str) -> dict[str, str]:
        return {line.partition(" ")[0]: line.partition(" ")[2] for line in self.cat(f"{where}/status").splitlines()}


def state_of(pid: int) -> str:
    """Of a process, as the kernel says it (proc(5)): T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_native_processes(machines: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machines("one")
    tree = Tree(one, monkeypatch)
    code = "import os, subprocess, sys, time\nc = [subprocess.Popen(['sleep', '600'], start_new_session=own) for own in (False, True)]\nprint(os.getpid(), *(one.pid for one in c), flush=True)\ntime.sleep(600)\n"
    (tmp_path / "two.py").write_text(code)
    task = tree.start(program=str(tmp_path / "two.py")) + "/0"
    wait_for("its start", lambda: tree.status(task)["state"] == "running")
    pids = [int(word) for word in tree.line(f"{task}/stdout").split()]
    assert {state_of(pid) for pid in pids} == {"S"}
    tree.echo("pause", f"{task}/ctl")
    assert tree.status(task)["state"] == "paused"
    wait_for("the stop of all, also of one that left the group", lambda: {state_of(pid) for pid in pids} == {"T"})
    assert " paused " in one.ok("ps")
    now = int(tree.cat(f"{task}/mem").split()[1])
    assert 4 << 20 < now < 200 << 20
    assert "it can be paused and restarted, not saved" in tree.refused("save", f"/proc/{one.json('ps')[0]['pid']}/ctl")
    assert "fixed since it began: kill it" in tree.refused("limit memory 1G", f"{task}/ctl")
    tree.echo("limit wall 1", f"{task}/ctl")
    time.sleep(0.3)
    assert {state_of(pid) for pid in pids} == {"T"}, "a pause does not use its time up"
    tree.echo("resume", f"{task}/ctl")
    assert "'ran longer than 1 s" in tree.cat(f"{task}/wait")
    wait_for("the end of all", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert tree.status(task)["state"] == "failed"


def test_open_input_is_part_of_what_an_engine_task_is(
    machines: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machines("one")
    tree = Tree(one, monkeypatch)
    (tmp_path / "cat.wasm").write_bytes(bytes(wasmtime.wat2wasm(CAT)))
    spec = {"program": str(tmp_path / "cat.wasm"), "wasm": {}, "open_stdin": True}
    first = tree.start(**spec) + "/0"
    assert (tree.status(first)["state"], one.ok("ps")) == ("held", "")
    assert "begins when its standard input is closed" in tree.refused("start", f"{first}/ctl")
    tree.echo("limit memory 128M", f"{first}/ctl")
    tree.echo("hello", f"{first}/stdin")
    assert tree.cat(f"{first}/wait").endswith(" ''\n")
    assert (tree.cat(f"{first}/stdout"), tree.cat(f"{first}/stdin")) == ("hello\n", "hello\n")
    assert tree.cat(f"{first}/mem").endswith(f"limit {128 << 20}\n")
    again = tree.start(**spec) + "/0"
    tree.echo("limit memory 128M", f"{again}/ctl")
    tree.echo("hello", f"{again}/stdin")
    tree.cat(f"{again}/wait")
    assert tree.status(again)["cached"] == "yes", "the same task, the same result"
    assert tree.status(again)["task"] == tree.status(first)["task"]
    assert "is closed" in tree.refused("more", f"{first}/stdin")


def test_an_engine_task_is_paused_saved_and_handed_over(
    machines: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machines("one")
    tree = Tree(one, monkeypatch)
    (tmp_path / "burn.wasm").write_bytes(bytes(wasmtime.wat2wasm(BURN)))
    task = tree.start(program=str(tmp_path / "burn.wasm"), wasm={}, save_every_s=600, fresh=True) + "/0"
    wait_for("some work", lambda: int(tree.status(task).get("work") or 0) > 0)
    tree.echo("pause", f"{task}/ctl")
    tree.echo("save", f"{task}/ctl")
    work = int(tree.status(task)["save_work"])
    row = json.loads(one.ok("ps", "--json"))
    assert (row[0]["state"], row[0]["work"]) == ("paused", work)
    assert f"work {work}" in tree.cat(f"/proc/{row[0]['pid']}/receipt"), "what it has computed so far is signed for"
    assert "the work of task 1.0 is fixed since it began" in tree.refused("limit work 1T", f"{task}/ctl")
    assert "not an absolute path" in tree.refused("handover here.car", f"{task}/ctl")
    tree.echo(f"handover {tmp_path}/a task.car", f"{task}/ctl")
    assert tree.status(task)["state"] == "handed-over"
    assert tree.cat(f"{task}/wait") == "1.0 0 0 0 'cancelled'\n"
    other = machines("other")
    answer = other.json("resume", str(tmp_path / "a task.car"), "--detach")
    assert answer["work"] == work, "paused, it went no further than its save"
    other.ok("cancel", str(answer["job"]))
