"""Three nodes against one and against joblib on one, the same batch, in one run; per-task overhead; idle; cold start to a joined pool.

    .venv/bin/python bench/batch.py        (root: each node gets a control group that limits it to SHARE of a core)

A machine with two cores cannot be three PCs, so each node, and joblib, is limited to the same share of one core.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from usage import usage

HERE = Path(__file__).parent
IPOS = Path(sys.executable).with_name("ipos")
SHARE = 0.6
TASKS = 36
LIMIT = 60_000
SMALL = 300
GROUPS = Path("/sys/fs/cgroup/cpu")

JOBLIB = """
import sys, time
from joblib import Parallel, delayed
sys.path.insert(0, {here!r})
from burn import primes
began = time.perf_counter()
Parallel(n_jobs=1)(delayed(primes)({limit}) for _ in range({tasks}))
print(time.perf_counter() - began)
"""


def group(name: str) -> Path | None:
    """A control group limited to SHARE of a core; None where the kernel or the user does not allow it."""
    path = GROUPS / f"ipos-bench-{os.getpid()}-{name}"
    try:
        path.mkdir()
        (path / "cpu.cfs_period_us").write_text("20000")
        (path / "cpu.cfs_quota_us").write_text(str(int(20000 * SHARE)))
    except OSError:
        return None
    return path


def within(path: Path | None, command: list[str], environment: dict[str, str]) -> str:
    enter = (lambda: (path / "cgroup.procs").write_text("0")) if path is not None else None
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=enter,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def main() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="ipos-bench-"))
    homes = [scratch / name for name in ("one", "two", "three")]
    groups = [group(home.name) for home in homes]
    env = dict(os.environ)

    def ipos(i: int, *arguments: str) -> str:
        return within(None, [str(IPOS), *arguments], {**env, "IPOS_HOME": str(homes[i])})

    try:
        if groups[0] is None:
            print("no control groups here: the nodes share the cores, the first ratio says little")
        data, small = scratch / "data", scratch / "small"
        data.mkdir()
        small.mkdir()
        for i in range(TASKS):
            (data / f"{i:03}").write_text(f"{LIMIT}")
        for i in range(SMALL):
            (small / f"{i:03}").write_text(str(i))
        began = time.monotonic()
        for home, path in zip(homes, groups, strict=True):
            command = [str(IPOS), "up", "--name", home.name, "--listen", "local", "--cores", "1"]
            within(path, command, {**env, "IPOS_HOME": str(home)})
        for i in (1, 2):
            ipos(i, "join", json.loads(ipos(0, "invite", "--json"))["code"], "--yes")
        while json.loads(ipos(0, "pool", "--json"))["nodes"] < 3:
            time.sleep(0.02)
        print(
            f"three cold nodes to a joined pool       {time.monotonic() - began:6.1f} s (each limited to {SHARE} of a core)"
        )
        joblib = float(
            within(groups[0], [sys.executable, "-c", JOBLIB.format(here=str(HERE), limit=LIMIT, tasks=TASKS)], env)
        )

        def mapped(*nodes: str) -> float:
            over = str(data / "*")
            out = ipos(0, "map", str(HERE / "burn.py"), "--over", over, "--json", "--fresh", "--nodes", ",".join(nodes))
            return json.loads(out.splitlines()[-1])["wall_s"]

        began = time.perf_counter()
        for _ in range(10):
            within(groups[0], [os.path.realpath(sys._base_executable), "-c", "pass"], env)  # pyright: ignore
        start = (time.perf_counter() - began) / 10
        print(f"an interpreter that does nothing        {start * 1e3:6.1f} ms; joblib starts one, IPOS one a task")
        one, three = mapped("one"), mapped("one", "two", "three")
        print(f"{TASKS} tasks, joblib on one node            {joblib:6.1f} s")
        print(f"{TASKS} tasks, IPOS on one node              {one:6.1f} s")
        print(
            f"{TASKS} tasks, IPOS on three nodes           {three:6.1f} s = {joblib / three:.2f} x joblib, {one / three:.2f} x one node"
        )
        true = shutil.which("true") or "/bin/true"
        for path in groups:
            if path is not None:
                (path / "cpu.cfs_quota_us").write_text("-1")
        began = time.perf_counter()
        for _ in range(SMALL):
            subprocess.run([true], stdin=subprocess.DEVNULL, check=True)
        bare = (time.perf_counter() - began) / SMALL
        out = ipos(0, "map", true, "--over", str(small / "*"), "--json", "--fresh", "--nodes", "one")
        local = json.loads(out.splitlines()[-1])["wall_s"] / SMALL
        out = ipos(0, "map", true, "--over", str(small / "*"), "--json", "--fresh", "--nodes", "two")
        remote = json.loads(out.splitlines()[-1])["wall_s"] / SMALL
        print(
            f"a task that does nothing: bare process  {bare * 1e3:6.2f} ms; on this node {local * 1e3:.2f} ms, on another {remote * 1e3:.2f} ms (one slot)"
        )
        time.sleep(5)
        pids = [int(json.loads(ipos(i, "status", "--json"))["pid"]) for i in range(3)]
        before = [usage(pid) for pid in pids]
        time.sleep(20)
        after = [usage(pid) for pid in pids]
        memory = max(a[0] for a in after)
        cpu = max(a[1] - b[1] for a, b in zip(after, before, strict=True)) / 20
        print(f"idle, all processes of a node           {memory:6.0f} MB (PSS), {cpu * 100:.2f} % of a core")
    finally:
        for i in range(3):
            ipos(i, "down")
        for path in groups:
            if path is not None:
                time.sleep(0.1)
                path.rmdir()
        shutil.rmtree(scratch, ignore_errors=True)


main()
