"""How long the node's loop keeps others waiting while it hashes, compiles and serves 1,000 tasks, all at once; what blocked it, by name.

    .venv/bin/python bench/loop.py [TASKS] [MIB]

Prints the longest turn of the loop and the 99th of 100 (`/status`), and each line of the node's log that names a block.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IPOS = Path(sys.executable).with_name("ipos")

WAT = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  {functions}
  (func (export "_start") (call $exit (i32.const 0))))"""
FUNCTION = "(func $f{i} (param i64) (result i64) (local i64) {body} (local.get 1))"
BODY = "(local.set 1 (i64.add (i64.mul (local.get 0) (i64.const {n})) (local.get 1)))"


def large_program(functions: int) -> bytes:
    """A module whose compilation takes seconds."""
    import wasmtime

    body = "".join(BODY.format(n=n) for n in range(40))
    text = "\n".join(FUNCTION.format(i=i, body=body) for i in range(functions))
    return bytes(wasmtime.wat2wasm(WAT.format(functions=text)))


def measure(tasks: int, mib: int, functions: int) -> dict[str, object]:
    """The node's status after all that, and the blocks that its log names."""
    scratch = Path(tempfile.mkdtemp(prefix="ipos-loop-"))
    (scratch / "run").mkdir(mode=0o700)
    env = {**os.environ, "IPOS_HOME": str(scratch / "home"), "XDG_RUNTIME_DIR": str(scratch / "run")}

    def ipos(*arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [str(IPOS), *arguments], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if check and done.returncode:
            raise SystemExit(f"ipos {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(IPOS), *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    try:
        data = scratch / "data"
        data.mkdir()
        for i in range(tasks):
            (data / f"{i:04}").write_text(f"{i}\n")
        with (scratch / "big").open("wb") as big:
            for _ in range(mib):
                big.write(os.urandom(1 << 20))
        (scratch / "large.wasm").write_bytes(large_program(functions))
        ipos("up", "--listen", "local", "--name", "loop", "--cores", "2")
        at_start = json.loads(ipos("status", "--json"))
        began = time.monotonic()
        beside = [start("add", str(scratch / "big")), start("run", "--wasm", str(scratch / "large.wasm"))]
        mapped = ipos(
            "map",
            shutil.which("cat") or "/bin/cat",
            "--over",
            str(data / "*"),
            "--fresh",
            "--json",
            "--out",
            str(scratch / "out"),
        )
        ended = [process.wait() for process in beside]
        took = time.monotonic() - began
        done = json.loads(mapped.splitlines()[-1])
        status = json.loads(ipos("status", "--json"))
        log = (scratch / "home" / "log").read_text()
        return {
            "tasks": done["done"], "took_s": round(took, 1), "ended": ended, "start_max_ms": at_start["lag_max_ms"],
            "max_ms": status["lag_max_ms"], "p99_ms": status["lag_p99_ms"], "bad": status["lag_bad"],
            "blocks": re.findall(r"part=lag (.*)", log),
        }  # fmt: skip
    finally:
        ipos("down", check=False)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    found = measure(int((sys.argv[1:] or ["1000"])[0]), int((sys.argv[2:] or ["256"])[0]), 4000)
    blocks = found.pop("blocks")
    print(json.dumps(found))
    for block in blocks:  # pyright: ignore
        print(" ", block)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
