"""make demo: three nodes on this machine, joined by spoken codes, map a real program over real data; one is killed with kill -9 in the
middle, the submitting node too, and is started again; the results are compared with a plain run. Then the same program in the engine: a
killed node's task is resumed, not restarted, and a task stopped by kill -9 ends in another home with the same bytes, work and root; before
it such a story is told with cat and echo alone, on the files of running nodes (`files.py`). Then
three workers with a store each run one task: one is killed, a fourth goes on from its save; one lies, is named, and its mark is proven
wrong; a receipt is judged in an empty home (`replicas.py`). Exits non-zero if a step did not happen.

The three nodes share this machine's cores, so the speed-up that is printed is that of one machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import files
import replicas

HERE = Path(__file__).parent
IPOS = Path(sys.executable).with_name("ipos")
PROGRAM = HERE / "bootstrap.py"
PARTS = 6  # the package's files are few: each is cut into so many, as a batch of measurements would be
NAMES = ("desk", "attic", "loft")
IN_ENGINE = 3  # inputs of the batch in the engine
ROUNDS = "12000"  # so that a task takes some seconds there
SAME = ("task", "exit", "work", "root", "stdout", "dir")


T = TypeVar("T")


class Failed(Exception):
    pass


def say(words: str) -> None:
    print(f"  {words}", flush=True)


def ipos(home: Path, *arguments: str, timeout: float = 60) -> str:
    environment = {**os.environ, "IPOS_HOME": str(home)}
    done = subprocess.run(  # noqa: PLW1510
        [str(IPOS), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise Failed(f"ipos {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def data(directory: Path) -> list[Path]:
    """Real data that the PyPI package vega_datasets ships, as CSV files."""
    import vega_datasets

    source = Path(vega_datasets.__file__).parent / "_data"
    directory.mkdir()
    for path in sorted(source.glob("*.csv")):
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        part = max(20, (len(lines) - 1) // PARTS)
        for i in range(PARTS):
            rows = lines[1 + i * part : 1 + (i + 1) * part]
            if rows:
                (directory / f"{path.stem}-{i}.csv").write_text("".join([lines[0], *rows]))
    return sorted(directory.iterdir())


def plain(inputs: list[Path], out: Path, *arguments: str) -> float:
    """The same batch without IPOS, one after the other; seconds."""
    from ipos.pool.native.executor import base_python

    out.mkdir()
    began = time.monotonic()
    for path in inputs:
        with open(path) as stdin, open(out / path.name, "wb") as stdout:
            subprocess.run([base_python(), str(PROGRAM), *arguments], stdin=stdin, stdout=stdout, check=True)
    return time.monotonic() - began


def differing(one: Path, two: Path) -> list[str]:
    """Names of the files that are not the same in both directories."""
    names = {path.name for path in one.iterdir()} | {path.name for path in two.iterdir()}
    return sorted(
        n
        for n in names
        if not (one / n).exists() or not (two / n).exists() or (one / n).read_bytes() != (two / n).read_bytes()
    )


def kill(home: Path) -> None:
    """kill -9 of a home's node; returns when it is gone."""
    pid = int(json.loads(ipos(home, "status", "--json"))["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_for("the end of a killed node", lambda: not Path(f"/proc/{pid}").exists())


def wait_for(what: str, condition: Callable[[], T], timeout: float = 30.0) -> T:
    """What the condition gives when it gives something."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not happen within {timeout:g} s")
        time.sleep(0.02)
    return found


def pool_size(home: Path) -> int:
    return int(json.loads(ipos(home, "pool", "--json"))["nodes"])


def runs_on(home: Path) -> bool:
    return any(row["state"] == "busy" for row in json.loads(ipos(home, "ps", "--json")))


def main() -> int:
    scratch = Path(tempfile.mkdtemp(prefix="ipos-demo-"))
    homes = {name: scratch / name for name in NAMES}
    began = time.monotonic()
    try:
        run(scratch, homes)
    except (Failed, files.Failed, replicas.Failed, OSError, subprocess.SubprocessError) as error:
        print(f"the demo failed: {error or type(error).__name__}", file=sys.stderr)
        return 1
    finally:
        for home in homes.values():
            try:
                ipos(home, "down")
            except (Failed, subprocess.SubprocessError):
                continue
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"demo: every step happened, in {time.monotonic() - began:.0f} s")
    return 0


def pool(homes: dict[str, Path]) -> None:
    """A node in each home, joined by spoken codes."""
    first = next(iter(homes.values()))
    for name, home in homes.items():
        ipos(home, "up", "--name", name, "--listen", "local", "--cores", "1")
    for home in list(homes.values())[1:]:
        code = json.loads(ipos(first, "invite", "--json"))["code"]
        ipos(home, "join", code, "--yes")
    wait_for("a pool of three nodes", lambda: pool_size(first) == 3)


def run(scratch: Path, homes: dict[str, Path]) -> None:
    desk, _, loft = homes.values()
    inputs = data(scratch / "data")
    say(f"{len(inputs)} CSV files of vega_datasets")
    seconds = plain(inputs, scratch / "plain")
    say(f"plain run, one after the other: {seconds:.1f} s")
    pool(homes)
    say(f"joined by spoken codes: {ipos(desk, 'pool').splitlines()[0]}")
    first = scratch / "first"
    command = ("map", str(PROGRAM), "--over", str(scratch / "data" / "*"))
    end = json.loads(ipos(desk, *command, "--json", "--out", str(first)).splitlines()[-1])
    if differing(scratch / "plain", first):
        raise Failed(f"the outputs differ: {differing(scratch / 'plain', first)[:3]}")
    speedup = f"speed-up {seconds / end['wall_s']:.2f} on {os.cpu_count()} cores"
    say(f"ipos map: {end['wall_s']:.1f} s, the same outputs; {speedup} ({end['nodes']})")
    disturbed(scratch, desk, loft, len(inputs), command)
    ipos(loft, "up")
    wait_for("a pool of three nodes", lambda: pool_size(desk) == 3)
    (scratch / "files").mkdir()
    files.story(scratch / "files", homes, say)
    wait_for("a pool of three nodes", lambda: pool_size(desk) == 3)
    in_engine(scratch, homes)
    elsewhere(scratch, desk)
    for home in homes.values():
        with contextlib.suppress(Failed):  # the one that was killed
            ipos(home, "down")
    (scratch / "replicas").mkdir()
    replicas.run(scratch / "replicas", say)


def disturbed(scratch: Path, desk: Path, loft: Path, count: int, command: tuple[str, ...]) -> None:
    """The same again, computed anew, while a worker and then the submitting node are killed."""
    out = scratch / "second"
    job = ipos(desk, *command, "--out", str(out), "--fresh", "--grace", "2", "--detach").strip()
    wait_for("a fifth of the batch", lambda: out.exists() and len(list(out.iterdir())) >= count // 5)
    wait_for("a task on loft", lambda: runs_on(loft))
    kill(loft)
    say("kill -9 of loft, in the middle of its tasks")
    wait_for("a third of the batch", lambda: len(list(out.iterdir())) >= count // 3)
    kill(desk)
    say("kill -9 of desk, which coordinates; started again")
    ipos(desk, "up")
    end = json.loads(ipos(desk, "wait", job, "--json", timeout=120).splitlines()[-1])
    if end["done"] != count or differing(scratch / "plain", out):
        raise Failed(f"{end['done']} of {count} done, differing: {differing(scratch / 'plain', out)[:3]}")
    if not end["moved"]:
        raise Failed("no task moved, although a node was killed while it had some")
    say(
        f"finished all the same, the same outputs: {end['moved']} moved, {end['repeated_s']:.1f} s of work repeated ({end['nodes']})"
    )
    why = json.loads(ipos(desk, "why", job, "--json"))["why"]
    moved = [line for line in why if " was on loft: " in line]
    if not moved:
        raise Failed("ipos why does not say that a task was on loft")
    task = moved[0].split(" was on ")[0]
    say(f"ipos why: {moved[0]}")
    say(f"          {next(line for line in why if line.startswith(f'{task} ran on '))[:200]}")


def in_engine(scratch: Path, homes: dict[str, Path]) -> None:
    """A batch on CPython in the engine; a node is killed for good, and another one goes on where its task was."""
    desk = homes["desk"]
    (scratch / "few").mkdir()
    few = sorted((scratch / "data").iterdir(), key=lambda path: path.stat().st_size)[-IN_ENGINE:]
    for path in few:
        shutil.copy(path, scratch / "few")
    plain(few, scratch / "plain-few", ROUNDS)
    out = scratch / "third"
    began = time.monotonic()
    ipos(desk, "run", "--wasm", "--fresh", "--stdin", str(few[0]), str(PROGRAM), "1", timeout=300)
    say(
        f"one task on CPython in the engine: {time.monotonic() - began:.1f} s (the first time on a machine it is compiled)"
    )
    command = ("map", "--wasm", "--every", "0.5s", "--args", ROUNDS, str(PROGRAM), "--over", str(scratch / "few" / "*"))
    job = ipos(desk, *command, "--out", str(out), "--fresh", "--grace", "2", "--detach").strip()
    victim = wait_for("a kept save of a task on attic or loft", lambda: saved_on(desk, job, ("attic", "loft")), 60)
    kill(homes[victim])
    say(f"kill -9 of {victim}, in the middle of a task in the engine")
    end = json.loads(ipos(desk, "wait", job, "--json", timeout=300).splitlines()[-1])
    if end["done"] != IN_ENGINE or differing(scratch / "plain-few", out):
        raise Failed(
            f"in the engine {end['done']} of {IN_ENGINE}, differing: {differing(scratch / 'plain-few', out)[:3]}"
        )
    why = json.loads(ipos(desk, "why", job, "--json"))["why"]
    resumed = [line for line in why if "resumed at" in line]
    if not end["resumed"] or not resumed:
        raise Failed("no task was resumed from its save: it was restarted")
    say(
        f"the same outputs as native; {end['moved']} moved, {end['resumed']} resumed, {end['repeated_s']:.1f} s of work repeated"
    )
    say(f"ipos why: {resumed[0].partition(' because')[0]}")


def saved_on(home: Path, job: str, nodes: tuple[str, ...]) -> str:
    """The first of the nodes that runs a task of which the submitting node keeps a save; "" if none does."""
    tasks = json.loads(ipos(home, "jobs", job, "--json"))["tasks"]
    running = [row for row in tasks if row["state"] == "running" and row.get("save_work")]
    return next((row["node"] for row in running if row["node"] in nodes), "")


def elsewhere(scratch: Path, desk: Path) -> None:
    """kill -9 in the middle of `ipos run --wasm`; the task ends in a home that never heard of this pool."""
    data = max((scratch / "data").iterdir(), key=lambda path: path.stat().st_size)
    command = ("run", "--wasm", "--every", "0.5s", "--fresh", "--nodes", "desk", "--stdin", str(data))
    straight = json.loads(ipos(desk, *command, "--json", str(PROGRAM), ROUNDS, timeout=300))
    job = ipos(desk, *command, "--detach", str(PROGRAM), ROUNDS).strip()
    wait_for("a kept save of a task on desk", lambda: saved_on(desk, job, ("desk",)), 60)
    kill(desk)
    ipos(desk, "up")
    car, other = scratch / "task.car", scratch / "other"
    at = json.loads(ipos(desk, "handover", job, "-o", str(car), "--json"))["work"]
    end = json.loads(ipos(other, "resume", str(car), "--json", timeout=300))
    if end["resumed_at"] != at or not at:
        raise Failed(f"it was not resumed at {at}, but at {end['resumed_at']}")
    if [end[key] for key in SAME] != [straight[key] for key in SAME]:
        raise Failed(f"the moved task came to something else: {end}, straight {straight}")
    say(
        f"kill -9, handed over in a file of {car.stat().st_size / (1 << 20):.0f} MiB, resumed at {100 * at / end['work']:.0f} % in another home:"
    )
    say(f"          the same output, {end['work'] / 1e9:.2f} Gop, root {end['root'][:16]}")


if __name__ == "__main__":
    sys.exit(main())
