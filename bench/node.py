"""A node alone: how long until it is ready, and what it costs while nothing happens: processor and memory of all its processes.

    .venv/bin/python bench/node.py [SECONDS]

Memory is PSS (what two processes share counts half in each); `without netd` and `netd` apart, because they are two programs. After that, the
same with a job of the engine behind it (its warm parent stays up).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from usage import usage

IPOS = Path(sys.executable).with_name("ipos")
STARTS = 5


def main() -> None:
    seconds = float((sys.argv[1:] or ["20"])[0])
    scratch = Path(tempfile.mkdtemp(prefix="ipos-node-"))
    (scratch / "run").mkdir(mode=0o700)
    env = {**os.environ, "IPOS_HOME": str(scratch / "home"), "XDG_RUNTIME_DIR": str(scratch / "run")}

    def ipos(*arguments: str) -> str:
        return subprocess.run(
            [str(IPOS), *arguments], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
        ).stdout

    def idle(what: str) -> None:
        pid = int(json.loads(ipos("status", "--json"))["pid"])
        time.sleep(3)
        before = usage(pid)
        time.sleep(seconds)
        after = usage(pid)
        netd = int(json.loads(ipos("status", "--json"))["netd_pid"])
        print(
            f"{what:34} {100 * (after[1] - before[1]) / seconds:5.2f} % CPU, {after[0]:6.1f} MB, of it netd {usage(netd)[0]:.1f} MB (PSS, {seconds:g} s)"
        )

    try:
        first = json.loads(ipos("up", "--listen", "local", "--json"))["ready_s"]
        ready: list[float] = []
        for _ in range(STARTS):
            ipos("down")
            ready.append(json.loads(ipos("up", "--json"))["ready_s"])
        print(
            f"ready: a new home {first:.2f} s, then {min(ready):.2f} to {max(ready):.2f} s, median {statistics.median(ready):.2f} s"
        )
        bare = statistics.median(_timed([sys.executable, "-c", "import asyncio, sqlite3, ssl"]) for _ in range(STARTS))
        print(
            f"(an interpreter that loads asyncio, sqlite3 and ssl: {bare:.2f} s; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)"
        )
        idle("idle")
        (scratch / "hello.py").write_text("print('hello')\n")
        ipos("run", str(scratch / "hello.py"))
        idle("idle, after a native task")
    finally:
        subprocess.run([str(IPOS), "down"], env=env, capture_output=True, check=False)
        shutil.rmtree(scratch, ignore_errors=True)


def _timed(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
