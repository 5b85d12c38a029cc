"""Runs a folder of tasks and says what they came to. Loads nothing but the engine, so that any processor's Python can run it.

`python programs_marks.py FOLDER`. `tasks.json` lists them; NAME.wasm is a program. One with a save in NAME/ goes on from it, one with `leave`
is saved there at that work instead of ending. Prints JSON: the machine, and for each task the hash of the instrumented module, and an Outcome.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import wasmtime
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parent))
from programs_host import Host, outcome

from ipos.vm import engine
from ipos.vm.instrument import instrument
from ipos.vm.runner import Runner, Spec
from ipos.vm.save import Saves
from ipos.vm.wasi.boot import Boot, Stdin, StdinKind


@dataclass(frozen=True)
class Plan:
    """`module`: which .wasm; `leave`: 0 = run to the end."""

    name: str
    module: str
    args: list[str]
    stdin: str
    mark_every: int
    leave: int = 0


class Input:
    def __init__(self, stdin: str) -> None:
        self.stdin = stdin.encode()

    def content(self, file: int) -> bytes:
        raise AssertionError("there are no files")


def run(plan: Plan, module: wasmtime.Module, folder: Path) -> dict[str, Any] | None:
    boot = Boot((plan.name, *plan.args), stdin=Stdin(StdinKind.STREAM))
    spec = Spec(plan.name, boot, 256 << 20, mark_every=plan.mark_every)
    saves = Saves(folder / plan.name, sync=False)
    head = saves.head()
    if head is None:
        host = Host(Input(plan.stdin))
        runner = Runner.start(module, spec, host)
    else:
        out = (folder / plan.name / "stdout").read_bytes()[: head.written[0]]
        host = Host(Input(plan.stdin), out=(out, b""))
        runner = Runner.resume(module, spec, host, saves, (out, b""))
        host.read = runner.state.call("wasi_stdin_read")
    while runner.ended is None and not (plan.leave and runner.work >= plan.leave):
        runner.step(plan.leave - runner.work if plan.leave else None)
    if runner.ended is None:
        runner.save(saves)
        (folder / plan.name / "stdout").write_bytes(host.out[0])
        runner.close()
        return None
    return asdict(outcome(runner, host))


def main(folder: Path) -> None:
    wasi = (files("ipos.vm") / "ipwasi.wasm").read_bytes()
    modules: dict[str, tuple[str, wasmtime.Module]] = {}
    said: dict[str, Any] = {}
    for one in json.loads((folder / "tasks.json").read_text()):
        plan = Plan(**one)
        if plan.module not in modules:
            made = instrument((folder / f"{plan.module}.wasm").read_bytes(), wasi)
            modules[plan.module] = blake3(made).hexdigest(), wasmtime.Module(engine.engine(), made)
        said[plan.name] = {"module": modules[plan.module][0], "outcome": run(plan, modules[plan.module][1], folder)}
    print(json.dumps({"machine": platform.machine(), "tasks": said}))


if __name__ == "__main__":
    import threading

    threading.stack_size(engine.THREAD_STACK_BYTES)
    thread = threading.Thread(target=main, args=(Path(sys.argv[1]),))
    thread.start()
    thread.join()
