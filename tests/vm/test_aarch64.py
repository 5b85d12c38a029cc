"""On aarch64 (under qemu) the engine does what it does here: the same instrumented bytes, output, work, marks and roots; the same trap at the
limit of depth, before the native stack ends; and a save goes from one kind of machine to the other."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from . import programs_arm
from .programs import HERE, SMALL, c, wat
from .programs_marks import Plan

pytestmark = pytest.mark.real

SCRIPT = str(HERE / "programs_marks.py")


def shape(many: int, kind: str, results: int = 1) -> str:
    """Endless recursion with `many` values that live across the call: what a machine's frame must hold, beside what is handed on."""
    vector = "i64x2" if kind == "v128" else "i64"
    first = "(v128.const i64x2 1 2)" if kind == "v128" else "(i64.const 1)"
    changes = "".join(f"(local.set {i} ({vector}.add (local.get {i}) {first}))" for i in range(many))
    handed_on = "".join(f"(local.get {i})" for i in range(many))
    after = "(local.get 0)"
    for i in range(many):
        after = f"({vector}.add {after} (local.get {i}))"
    return f"""(module (memory (export "memory") 1)
      (func $deep (param {f"{kind} " * many}) (result {f"{kind} " * results}) {changes} (call $deep {handed_on})
        {"(drop)" * results} {after * results})
      (func (export "_start") (call $deep {first * many}) {"(drop)" * results}))"""


DEEP = {
    "thin": shape(1, "i64"),
    "broad": shape(60, "i64"),
    "vectors": shape(40, "v128"),
    "results": shape(2, "i64", 30),
}
ENDING = [
    Plan("fib", "fib", ["12"], "", 1_000),
    Plan("qsort", "qsort", ["3000"], "", 100_000),
    Plan("core", "core", ["4"], "", 40_000),
    Plan("nbody", "nbody", ["2000"], "", 60_000),
    Plan("matmul", "matmul", ["24"], "", 10_000),
    Plan("sha256", "sha256", ["200"], "", 40_000),
    Plan("hash", "sha256", ["0"], "".join(map(str, range(2000))), 20_000),
    *(Plan(name, name, [], "", 1 << 62) for name in DEEP),
]


def here(folder: Path) -> dict[str, Any]:
    return said([sys.executable, SCRIPT], folder)


def said(command: list[str], folder: Path) -> dict[str, Any]:
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def arm(folder: Path) -> dict[str, Any]:
    return said([*programs_arm.python(), SCRIPT], folder)


def laid_out(folder: Path, plans: list[Plan]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tasks.json").write_text(json.dumps([asdict(plan) for plan in plans]))
    for module in {plan.module for plan in plans}:
        program = wat(DEEP[module]) if module in DEEP else c(module, SMALL)
        (folder / f"{module}.wasm").write_bytes(program)
    return folder


def test_aarch64_agrees(tmp_path: Path) -> None:
    """The last one is the planted bug: its input is another one there, so it must differ."""
    wrong = Plan("wrong", "sha256", ["0"], "a" * 500, 5_000)
    ours = here(laid_out(tmp_path / "here", [*ENDING, wrong]))
    theirs = arm(laid_out(tmp_path / "arm", [*ENDING, replace(wrong, stdin="b" * 500)]))
    assert theirs["machine"] == "aarch64"
    assert ours["machine"] == platform.machine()
    for plan in ENDING:
        mine, its = ours["tasks"][plan.name], theirs["tasks"][plan.name]
        assert its == mine, plan.name
        trap = "call depth" if plan.name in DEEP else ""
        assert mine["outcome"]["trap"] == trap, (plan.name, mine["outcome"])
        assert trap or len(mine["outcome"]["marks"]) >= 3, plan.name
        print(f"{plan.name}: {mine['outcome']['work']} work, {len(mine['outcome']['marks'])} marks, {trap or 'ended'}")
    mine, its = (both["tasks"]["wrong"]["outcome"] for both in (ours, theirs))
    assert all(mine[what] != its[what] for what in ("out", "root", "marks"))


def test_a_save_goes_to_the_other_kind(tmp_path: Path) -> None:
    """From here to there and back; it ends as it does here alone."""
    plan = Plan("qsort", "qsort", ["3000"], "", 100_000)
    whole = here(laid_out(tmp_path / "whole", [plan]))["tasks"]["qsort"]["outcome"]
    for part, machine in enumerate((here, arm), 1):
        leaving = replace(plan, leave=whole["work"] * part // 3)
        assert machine(laid_out(tmp_path / "moved", [leaving]))["tasks"]["qsort"]["outcome"] is None
    assert here(laid_out(tmp_path / "moved", [plan]))["tasks"]["qsort"]["outcome"] == whole
