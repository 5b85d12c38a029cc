"""The commands that hand in work and follow it: map, run, wait."""

from __future__ import annotations

import argparse
import asyncio
import glob
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ipos.cli import stdin
from ipos.cli.connect import node
from ipos.cli.plain import pairs
from ipos.node.home import Home
from ipos.pool.native.environment import hint
from ipos.tree.ninep.client import Client, connect_unix
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

Arguments = argparse.Namespace
RETURN_S = 120.0  # how long a command waits for a node that went away in mid-job
SHOWN = 5  # failed tasks that are explained one by one


def spec_of(arguments: Arguments, over: list[str] | None, args: list[str], out: str | None, stdin: str | None) -> bytes:
    program = shutil.which(str(arguments.program)) if "/" not in arguments.program else None
    path = os.path.abspath(arguments.program if os.path.exists(arguments.program) else program or arguments.program)
    if not os.path.isfile(path):
        raise Refused(f"there is no program {arguments.program}")
    spec: dict[str, Any] = {
        "program": path,
        "args": args,
        "over": None
        if over is None
        else [{"name": os.path.basename(one), "path": os.path.abspath(one)} for one in over],
        "stdin": stdin,
        "out": None if out is None else os.path.abspath(out),
        "nodes": [name for name in arguments.nodes.split(",") if name],
        "with": arguments.with_,
        "output_bytes": int(arguments.max_output * limits.MiB),
        "memory_bytes": int(arguments.memory * limits.GiB),
        "wall_s": arguments.timeout,
        "retries": arguments.retries,
        "fresh": arguments.fresh,
        "grace_s": arguments.grace,
    }
    return json.dumps(spec).encode()


async def hand_in(client: Client, spec: bytes) -> int:
    async with client.open("/job/clone", os.O_RDWR) as file:
        await file.write(spec)
        return int(await file.read_at(0, 32))


class Progress:
    """One line on a terminal's stderr; silent elsewhere. `counts`: how many tasks of how many, besides what is being prepared."""

    def __init__(self, quiet: bool, counts: bool) -> None:
        self.on = sys.stderr.isatty() and not quiet
        self.counts = counts
        self.began = time.monotonic()
        self.total = self.done = self.failed = self.moved = 0
        self.says = ""
        self.nodes: set[str] = set()

    def draw(self) -> None:
        if not self.on:
            return
        passed = time.monotonic() - self.began
        left = (
            f", about {passed / self.done * (self.total - self.done):.0f} s left" if 0 < self.done < self.total else ""
        )
        words = f"{self.done}/{self.total} done on {len(self.nodes)} nodes{left}" if self.total and self.counts else ""
        words += (f", {self.failed} failed" if self.failed else "") + (f", {self.moved} moved" if self.moved else "")
        words += f"  {self.says}" if self.says else ""
        sys.stderr.write("\r\x1b[K" + words[:110])
        sys.stderr.flush()

    def clear(self) -> None:
        if self.on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Follower:
    """Follows one job's events to its end, over restarts of the node."""

    def __init__(self, job: int, arguments: Arguments, print_outputs: bool, counts: bool = True) -> None:
        self.job = job
        self.json: bool = arguments.json
        self.progress = Progress(arguments.json, counts)
        self.print_outputs = print_outputs
        self.states: dict[int, dict[str, Any]] = {}
        self.printed = 0
        self.end: dict[str, Any] | None = None

    async def follow(self, client: Client) -> dict[str, Any]:
        """The job's last status."""
        deadline = None
        while self.end is None:
            try:
                await self._read(client)
            except Gone:
                self.progress.clear()
                if deadline is None:
                    print("ipos: the node went away; waiting for it (ipos up starts it again)", file=sys.stderr)
                    deadline = time.monotonic() + RETURN_S
                if time.monotonic() > deadline:
                    raise Gone(
                        f"the node did not come back within {RETURN_S:g} s; job {self.job} goes on when it is up again"
                    ) from None
                await asyncio.sleep(0.2)
                try:
                    client = await connect_unix(Home().socket)
                    deadline = None
                except Gone:
                    continue
        self.progress.clear()
        return self.end

    async def _read(self, client: Client) -> None:
        async with client.open(f"/job/{self.job}/events") as events:
            async for line in events.lines():
                await self._event(client, json.loads(line))
                if self.end is not None:
                    return
        raise Gone("the event stream ended before the job")

    async def _event(self, client: Client, event: dict[str, Any]) -> None:
        progress = self.progress
        match event["event"]:
            case "job":
                progress.total = event["total"]
            case "task":
                before = self.states.get(event["i"], {}).get("state")
                self.states[event["i"]] = event
                if event["state"] in ("done", "failed", "given-up") and before != event["state"]:
                    progress.done = sum(s["state"] in ("done", "failed", "given-up") for s in self.states.values())
                    progress.failed = sum(s["state"] in ("failed", "given-up") for s in self.states.values())
                    progress.nodes.add(event.get("node", ""))
                    progress.says = ""
                    if self.json:
                        print(json.dumps(event), flush=True)
                    await self._outputs(client)
            case "moved":
                progress.moved += 1
                if self.json:
                    print(json.dumps(event), flush=True)
            case "says":
                node = self.states.get(event["i"], {}).get("node")
                progress.says = f"{node}: {event['text']}" if node else event["text"]
            case "end":
                self.end = event
            case _:
                pass
        if not progress.total and event["event"] == "task":
            progress.total = int(str((await pairs(client, f"/job/{self.job}/status"))["total"]))
        progress.draw()

    async def _outputs(self, client: Client) -> None:
        """Results in the order of the inputs, as far as they are there."""
        if not self.print_outputs or self.json:
            return
        while (state := self.states.get(self.printed)) is not None and state["state"] in ("done", "failed", "given-up"):
            if state["state"] != "given-up":
                body = await client.read(f"/job/{self.job}/{self.printed}/stdout")
                self.progress.clear()
                sys.stdout.buffer.write(body)
                sys.stdout.buffer.flush()
            self.printed += 1


async def explain(client: Client, job: int, state: dict[str, Any], program: str) -> str:
    """Why a task failed, in a sentence."""
    where = f"{state['name'] or 'task'} on {state.get('node', 'no node')}"
    if state["state"] == "given-up":
        return f"{where}: given up: {state.get('reason', '')}"
    status = await pairs(client, f"/job/{job}/{state['i']}/status")
    if status.get("killed"):
        return f"{where}: {status['killed']}"
    stderr = (await client.read(f"/job/{job}/{state['i']}/stderr"))[-limits.stderr_tail_bytes :].decode(
        errors="replace"
    )
    last = stderr.strip().splitlines()[-1] if stderr.strip() else "it printed no reason"
    code = int(str(status["exit"]))
    how = f"ended by signal {-code}" if code < 0 else f"exit status {code}"
    return f"{where}: {how}: {hint(program, stderr) or last}"


def summary(end: dict[str, Any]) -> str:
    words = f"{end['done']} of {end['total']} done"
    words += f" in {end['wall_s']:.1f} s" if end.get("wall_s") is not None else ""
    words += f" ({end['nodes']})" if end.get("nodes") else ""
    words += f"; {end['from_store']} answered from the store" if end.get("from_store") else ""
    words += f"; {end['moved']} moved, {end['repeated_s']:.1f} s of work repeated" if end.get("moved") else ""
    if end.get("estimate_s") and end.get("wall_s"):
        words += f"; the estimate was {end['estimate_s']:.1f} s"
    return words


async def finish(client: Client, follower: Follower, end: dict[str, Any]) -> int:
    """Say how it ended; the exit status."""
    if follower.json:
        print(json.dumps(end), flush=True)
    if end["state"] == "refused":
        raise Refused(str(end["refused"]))
    if not follower.json:
        print(f"job {follower.job}: {summary(end)}", file=sys.stderr)
    bad = [state for state in follower.states.values() if state["state"] in ("failed", "given-up")]
    for state in bad[:SHOWN]:
        print(f"ipos: {await explain(client, follower.job, state, os.path.basename(end['program']))}", file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"ipos: and {len(bad) - SHOWN} more: ipos jobs {follower.job}", file=sys.stderr)
    if end.get("trouble"):
        print(f"ipos: {end['trouble']}", file=sys.stderr)
    if end["state"] == "stopped":
        raise Refused(f"job {follower.job} was cancelled")
    return 0 if end["done"] == end["total"] and not end.get("trouble") else 1


async def to_the_end(client: Client, follower: Follower) -> dict[str, Any]:
    """The job's last status; Ctrl-C leaves it alone, and says how to come back."""
    try:
        return await follower.follow(client)
    except asyncio.CancelledError:
        follower.progress.clear()
        job = follower.job
        print(
            f"ipos: detached; job {job} goes on: ipos wait {job} follows it, ipos cancel {job} stops it",
            file=sys.stderr,
        )
        raise


async def follow(client: Client, job: int, arguments: Arguments, print_outputs: bool) -> int:
    follower = Follower(job, arguments, print_outputs)
    end = await to_the_end(client, follower)
    fresh = client if client.lost is None else await connect_unix(Home().socket)
    return await finish(fresh, follower, end)


async def map_(arguments: Arguments) -> int:
    over: list[str] = []
    for pattern in arguments.over:
        found = sorted(path for path in glob.glob(os.path.expanduser(pattern)) if os.path.isfile(path))
        if not found:
            raise Refused(f"no files match {pattern!r}")
        over += found
    spec = spec_of(arguments, over, shlex.split(arguments.args), arguments.out, None)
    async with node() as client:
        job = await hand_in(client, spec)
        if arguments.detach:
            print(json.dumps({"job": job}) if arguments.json else job)
            return 0
        return await follow(client, job, arguments, arguments.out is None)


async def run(arguments: Arguments) -> int:
    body = b"" if sys.stdin.isatty() else await stdin.read()
    async with node() as client:
        handed = leave(body) if body else None
        try:
            job = await hand_in(client, spec_of(arguments, None, list(arguments.arguments), None, handed))
        except OSError:
            if handed is not None:
                os.unlink(handed)
            raise
        if arguments.detach:
            print(json.dumps({"job": job}) if arguments.json else job)
            return 0
        follower = Follower(job, argparse.Namespace(json=False), print_outputs=False, counts=False)
        follower.progress.on &= not arguments.json
        end = await to_the_end(client, follower)
        return await _ran(client, job, follower, end, arguments)


def leave(body: bytes) -> str:
    """A file for the node, which outlives this command: the job may go on without it."""
    directory = Home().handed
    fd, path = tempfile.mkstemp(dir=directory)
    try:
        with open(fd, "wb") as out:
            out.write(body)
    except OSError as error:
        os.unlink(path)
        raise Refused(f"the standard input cannot be kept in {directory}: {error.strerror}") from None
    return path


async def _ran(client: Client, job: int, follower: Follower, end: dict[str, Any], arguments: Arguments) -> int:
    client = client if client.lost is None else await connect_unix(Home().socket)
    if end["state"] == "refused":
        raise Refused(str(end["refused"]))
    state = follower.states.get(0)
    if state is None or state["state"] not in ("done", "failed"):
        raise Refused(f"job {job} has no result: {state.get('reason', end['state']) if state else end['state']}")
    status = await pairs(client, f"/job/{job}/0/status")
    code = int(str(status["exit"]))
    if arguments.json:
        same = {key: status.get(key) for key in ("task", "exit", "stdout", "stderr", "dir", "cached")}
        print(json.dumps({**same, "work": None, "root": None, "receipt": None, "node": state.get("node"), "job": job}))
    else:
        sys.stdout.buffer.write(await client.read(f"/job/{job}/0/stdout"))
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(await client.read(f"/job/{job}/0/stderr"))
        if status.get("cached"):
            print(
                "ipos: the same task ran before; this is its result from the store (--fresh runs it again)",
                file=sys.stderr,
            )
    if state["state"] == "failed":
        print(f"ipos: {await explain(client, job, state, os.path.basename(arguments.program))}", file=sys.stderr)
    return code if code >= 0 else 128 - code


async def wait(arguments: Arguments) -> int:
    async with node() as client:
        return await follow(client, arguments.number, arguments, False)


COMMANDS: dict[str, Callable[[Arguments], Awaitable[int]]] = {"map": map_, "run": run, "wait": wait}
