"""The demo's story by files alone: what a user of Plan 9 does with `cat` and `echo`, and no command of IPOS. A job is handed in by writing, its
events are read, its task is paused where it runs, saved, its machine killed; it goes on elsewhere from that very moment, and ends with the same
marks as an undisturbed run. Exits non-zero if a step did not happen.

`story` wants three nodes that are one pool; run by itself, this makes them. Each step says what a shell would, with the tree at /n/ipos.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import wasmtime

from ipos.node.home import Home
from ipos.tree.ninep.client import Client, connect_unix

IPOS = Path(sys.executable).with_name("ipos")
NAMES = ("desk", "attic", "loft")
LINES = 14
# A line of output for each 100 million steps of a linear congruence: some seconds of work that nobody can shorten.
BURN = f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\02\\00\\00\\00")
  (func (export "_start") (local $line i32) (local $i i32) (local $sum i64)
    (loop $lines
      (local.set $i (i32.const 100000000))
      (loop $burn
        (local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 6364136223846793005)) (i64.extend_i32_u (local.get $i))))
        (br_if $burn (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
      (i32.store8 (i32.const 16) (i32.add (i32.const 97) (i32.wrap_i64 (i64.rem_u (local.get $sum) (i64.const 26)))))
      (i32.store8 (i32.const 17) (i32.const 10))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $lines (i32.lt_u (local.tee $line (i32.add (local.get $line) (i32.const 1))) (i32.const {LINES}))))))"""
SUM = "import sys\nprint(sum(map(int, sys.stdin.read().split())))\n"

T = TypeVar("T")
Say = Callable[[str], None]


class Failed(Exception):
    pass


class Files:
    """The tree of one running node, as `cat` and `echo` see it."""

    def __init__(self, home: Path) -> None:
        self.socket = Home(home).socket

    def _do(self, work: Callable[[Client], Coroutine[Any, Any, T]], seconds: float = 60.0) -> T:
        async def once() -> T:
            client = await connect_unix(self.socket)
            try:
                async with asyncio.timeout(seconds):
                    return await work(client)
            finally:
                client.close()

        try:
            return asyncio.run(once())
        except TimeoutError:
            raise Failed(f"a file did not answer within {seconds:g} s") from None

    def cat(self, path: str) -> str:
        return self._do(lambda client: client.read(path)).decode()

    def echo(self, text: str, path: str) -> None:
        self._do(lambda client: client.write(path, text.encode() + b"\n"))

    def ls(self, path: str) -> list[str]:
        return [entry.name for entry in self._do(lambda client: client.ls(path))]

    def pairs(self, path: str) -> dict[str, str]:
        """Of a status file."""
        return {line.partition(" ")[0]: line.partition(" ")[2] for line in self.cat(path).splitlines()}

    def rows(self, path: str) -> list[dict[str, Any]]:
        """Of a file of JSON lines."""
        return [json.loads(line) for line in self.cat(path).splitlines()]

    def until(self, path: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line of an events file that is wanted; its reads block."""

        async def read(client: Client) -> dict[str, Any]:
            async with client.open(path) as events:
                async for line in events.lines():
                    if wanted(event := json.loads(line)):
                        return event
            raise Failed(f"{path} ended without what was waited for")

        return self._do(read)


def wait_for(what: str, condition: Callable[[], T], timeout: float = 30.0) -> T:
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not happen within {timeout:g} s")
        time.sleep(0.05)
    return found


def expect(true: object, words: str) -> None:
    if not true:
        raise Failed(words)


def handed_in(desk: Files, spec: dict[str, Any]) -> str:
    """cat clone; echo ... > spec; echo start > ctl. The directory of the job."""
    number = int(desk.cat("/job/clone"))
    desk.echo(json.dumps(spec), f"/job/{number}/spec")
    desk.echo("start", f"/job/{number}/ctl")
    return f"/job/{number}"


def with_input(desk: Files, scratch: Path, say: Say) -> None:
    """A native program that is given its input by writing."""
    program = scratch / "sum.py"
    program.write_text(SUM)
    job = handed_in(desk, {"program": str(program), "open_stdin": True, "fresh": True})
    state = desk.pairs(f"{job}/0/status")["state"]
    expect(state == "held", f"a task whose input is open is {state}, not held")
    desk.echo("17 4 21", f"{job}/0/stdin")
    waited = desk.cat(f"{job}/0/wait")
    expect(waited.endswith(" ''\n") and desk.cat(f"{job}/0/stdout") == "42\n", f"the sum was not 42: {waited}")
    say(
        f"n=`cat job/clone`; echo {{...}} > job/$n/spec; echo start > job/$n/ctl; echo 17 4 21 > job/$n/0/stdin; cat stdout: 42 ({job})"
    )
    by_diod(desk, f"{job}/0/stdout", "42\n", say)


def by_diod(desk: Files, path: str, wanted: str, say: Say) -> None:
    """Debian's 9P client, which knows nothing of IPOS, reads the same."""
    diodcat = shutil.which("diodcat", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if diodcat is None:
        say("diodcat is not installed here: only our own client read these files")
        return
    done = subprocess.run([diodcat, "-s", str(desk.socket), "-a", "/", path[1:]], capture_output=True, text=True, timeout=20, check=False)  # fmt: skip
    expect(done.stdout == wanted, f"diodcat read {done.stdout!r}: {done.stderr.strip()}")
    say(f"diodcat -s <socket> {path[1:]}: the same, with Debian's client")


def at_rest(desk: Files, job: str, holder: str) -> int:
    """echo pause > ctl, then save. The work that is saved, on the disk of this node."""
    desk.echo("pause", f"{job}/0/ctl")
    processes = f"/n/{holder}/proc/list"
    before = [row for row in desk.rows(processes) if row["state"] == "paused"]
    expect(len(before) == 1, f"{holder} has no paused process: {desk.cat(processes)}")
    desk.echo("save", f"{job}/0/ctl")
    work = int(desk.pairs(f"/n/{holder}/proc/{before[0]['pid']}/status")["saved_work"])
    time.sleep(0.4)
    kept = desk.rows(f"{job}/tasks")[0].get("save_work")
    again = int(desk.rows(processes)[0]["work"])
    expect(
        work and kept == again == work, f"it was at {work} when it was saved, {kept} is kept here, and it is at {again}"
    )
    return work


def story(scratch: Path, homes: dict[str, Path], say: Say) -> None:
    """`homes`: of three running nodes of one pool. The one that is killed is up again afterwards."""
    desk = Files(homes["desk"])
    with_input(desk, scratch, say)
    program = scratch / "burn.wasm"
    program.write_bytes(bytes(wasmtime.wat2wasm(BURN)))
    wasm = {
        "program": str(program),
        "wasm": {"mark_every": 500_000_000},
        "fresh": True,
        "save_every_s": 600,
        "grace_s": 1.5,
    }
    job = handed_in(desk, {**wasm, "nodes": ["attic", "loft"]})
    event = desk.until(f"{job}/events", lambda e: e["event"] == "progress" and e["work"] > 0)
    holder = str(desk.rows(f"{job}/tasks")[0]["node"])
    say(f"cat job/$n/events: {event['work'] / 1e9:.2f} Gop on {holder} ({job})")
    work = at_rest(desk, job, holder)
    say(f"echo pause > job/$n/0/ctl; echo save > job/$n/0/ctl: at rest at {work / 1e9:.2f} Gop, and saved here")
    say(f"cat job/$n/0/mem: {desk.cat(f'{job}/0/mem').replace(chr(10), ' ')}")
    pid = int(desk.pairs(f"/n/{holder}/status")["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_for("the loss of the lease", lambda: desk.pairs(f"{job}/0/status")["state"] == "held")
    say(f"kill -9 of {holder}: its task is held, for it was paused")
    desk.echo("resume", f"{job}/0/ctl")
    waited = desk.cat(f"{job}/0/wait")
    ended = desk.pairs(f"{job}/0/status")
    other = ended.get("node", "")
    expect(waited.endswith(" ''\n") and other not in ("", holder), f"it did not end well elsewhere: {waited} {ended}")
    expect(int(ended["resumed_at"]) == work, f"it was not resumed at {work}, but at {ended['resumed_at']}")
    say(f"echo resume > job/$n/0/ctl; cat job/$n/0/wait: {waited.strip()}; it went on from there on {other}")
    compared(desk, job, {**wasm, "nodes": [other]}, say)
    subprocess.run([str(IPOS), "up"], env={**os.environ, "IPOS_HOME": str(homes[holder])}, check=True, capture_output=True, timeout=60)  # fmt: skip


def compared(desk: Files, job: str, spec: dict[str, Any], say: Say) -> None:
    """With an undisturbed run, handed in by one echo."""
    desk.echo(json.dumps(spec), "/job/clone")
    straight = f"/job/{max(int(name) for name in desk.ls('/job') if name.isdigit())}"
    wait_for("the straight run's tasks", lambda: desk.cat(f"{straight}/tasks"))
    desk.cat(f"{straight}/0/wait")
    for name in ("stdout", "marks"):
        expect(desk.cat(f"{job}/0/{name}") == desk.cat(f"{straight}/0/{name}"), f"the {name} of both runs differ")
    expect(len(desk.cat(f"{job}/0/stdout").splitlines()) == LINES, "its output is not whole")
    receipt = desk.pairs(f"{job}/0/receipt")
    ended = desk.pairs(f"{job}/0/status")
    expect(receipt.get("root") == ended["root"], f"the receipt is for another state: {receipt}")
    marks = len(desk.cat(f"{job}/0/marks").splitlines())
    say(
        f"cat job/$n/0/marks: the same {marks} as of a straight run; receipt: {receipt.get('work')} units, root {ended['root'][:16]}"
    )


def ipos(home: Path, *arguments: str) -> str:
    environment = {**os.environ, "IPOS_HOME": str(home)}
    done = subprocess.run([str(IPOS), *arguments], env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"ipos {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def pool(homes: dict[str, Path]) -> None:
    """Three nodes, one pool."""
    desk, *others = homes.values()
    for name, home in homes.items():
        ipos(home, "up", "--name", name, "--listen", "local", "--cores", "1")
    for home in others:
        ipos(home, "join", json.loads(ipos(desk, "invite", "--json"))["code"], "--yes")
    wait_for("a pool of three nodes", lambda: json.loads(ipos(desk, "pool", "--json"))["nodes"] == 3)


def main() -> int:
    scratch = Path(tempfile.mkdtemp(prefix="ipos-files-"))
    homes = {name: scratch / name for name in NAMES}
    began = time.monotonic()
    try:
        pool(homes)
        began = time.monotonic()
        story(scratch, homes, lambda words: print(f"  {words}", flush=True))
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print(f"the story by files failed: {error or type(error).__name__}", file=sys.stderr)
        return 1
    finally:
        for home in homes.values():
            try:
                ipos(home, "down")
            except (Failed, subprocess.SubprocessError):
                continue
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"by files: every step happened, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
