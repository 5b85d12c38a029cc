"""Following a job to its end: its events, one line of progress, the output of what runs, and how to say what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from typing import Any, BinaryIO

from ipos.cli.plain import pairs
from ipos.cli.printed import cut, safe
from ipos.node.home import Home
from ipos.pool.native.environment import hint
from ipos.tree.ninep.client import Client, connect_unix
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

Arguments = argparse.Namespace
RETURN_S = 120.0  # how long a command waits for a node that went away in mid-job
SHOWN = 5  # failed tasks that are explained one by one
PIECE_BYTES = 1 << 16
FAILED = ("failed", "given-up")
ENDED = ("done", *FAILED, "handed-over")


class Progress:
    """One line on a terminal's stderr; silent elsewhere. `counts`: how many tasks of how many, besides what is being prepared."""

    def __init__(self, quiet: bool, counts: bool) -> None:
        self.on = sys.stderr.isatty() and not quiet
        self.counts = counts
        self.began = time.monotonic()
        self.total = self.done = self.failed = self.moved = 0
        self.says = ""
        self.far = ""
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
        words += f"  {self.says}" if self.says else f"  {self.far}" if self.far else ""
        columns = shutil.get_terminal_size().columns
        sys.stderr.write("\r\x1b[K" + cut(safe(words.strip()), max(1, columns - 1)))
        sys.stderr.flush()

    def work(self, event: dict[str, Any]) -> None:
        """How far a task of the engine is."""
        if event["phase"] == "compiles":
            self.far = f"compiling for this machine, once ({time.monotonic() - self.began:.0f} s)"
            return
        age = event["save_age_s"]
        saved = f", saved {age:.0f} s ago" if age is not None else ""
        self.far = f"{event['work'] / 1e9:.1f} Gop, {event['speed'] / 1e9:.1f} Gop/s{saved}"

    def clear(self) -> None:
        if self.on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


async def back(job: int, deadline: float) -> Client:
    """The node's socket again, when it has gone away. `Gone` if it does not come back."""
    while True:
        if time.monotonic() > deadline:
            raise Gone(f"the node did not come back within {RETURN_S:g} s; job {job} goes on when it is up again")
        await asyncio.sleep(0.2)
        try:
            return await connect_unix(Home().socket)
        except Gone:
            continue


class Follower:
    """Follows one job's events to its end, over restarts of the node. `live`: its one task's output is copied as it comes."""

    def __init__(self, job: int, arguments: Arguments, print_outputs: bool, live: bool = False) -> None:
        self.job = job
        self.json: bool = arguments.json
        self.progress = Progress(arguments.json, not live)
        self.print_outputs = print_outputs
        self.states: dict[int, dict[str, Any]] = {}
        self.printed = 0
        self.end: dict[str, Any] | None = None
        self._live = live and not self.json
        self._told = self.json and not live  # events, a line each
        self._copies: list[asyncio.Task[None]] = []

    async def follow(self, client: Client) -> dict[str, Any]:
        """The job's last status."""
        try:
            while self.end is None:
                try:
                    await self._read(client)
                except Gone:
                    self.progress.clear()
                    print("ipos: the node went away; waiting for it (ipos up starts it again)", file=sys.stderr)
                    client = await back(self.job, time.monotonic() + RETURN_S)
            await asyncio.gather(*self._copies)
        finally:
            for copy in self._copies:
                copy.cancel()
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
                await self._task(client, event)
            case "moved" | "tried-again":
                progress.moved += event["event"] == "moved"
                if self._told:
                    print(json.dumps(event), flush=True)
            case "progress":
                progress.says = ""
                progress.work(event)
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

    async def _task(self, client: Client, event: dict[str, Any]) -> None:
        progress = self.progress
        before = self.states.get(event["i"], {}).get("state")
        self.states[event["i"]] = event
        if self._live and not self._copies:
            for which, out in (("stdout", sys.stdout.buffer), ("stderr", sys.stderr.buffer)):
                self._copies.append(asyncio.create_task(self._copy(which, out)))
        if event["state"] in ENDED and before != event["state"]:
            progress.done = sum(s["state"] in ENDED for s in self.states.values())
            progress.failed = sum(s["state"] in FAILED for s in self.states.values())
            progress.nodes.add(event.get("node", ""))
            progress.says = ""
            if self._told:
                print(json.dumps(event), flush=True)
            await self._outputs(client)

    async def _outputs(self, client: Client) -> None:
        """Results in the order of the inputs, as far as they are there."""
        if not self.print_outputs or self.json:
            return
        while (state := self.states.get(self.printed)) is not None and state["state"] in ENDED:
            if state["state"] in ("done", "failed"):
                body = await client.read(f"/job/{self.job}/{self.printed}/stdout")
                self.progress.clear()
                sys.stdout.buffer.write(body)
                sys.stdout.buffer.flush()
            self.printed += 1

    async def _copy(self, which: str, out: BinaryIO) -> None:
        """What task 0 writes, as it comes, to the end of the task; each byte once, over moves and restarts."""
        at, deadline = 0, time.monotonic() + RETURN_S
        while True:
            try:
                client = await connect_unix(Home().socket)  # of its own: a read that waits keeps nobody waiting
                async with client.open(f"/job/{self.job}/0/{which}") as file:
                    while piece := await file.read_at(at, PIECE_BYTES):
                        at += len(piece)
                        self.progress.clear()
                        out.write(piece)
                        out.flush()
                        self.progress.draw()
                        deadline = time.monotonic() + RETURN_S
                client.close()
                return
            except Gone:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)


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
    words += f"; {end['tried_again']} tried again" if end.get("tried_again") else ""
    words += f"; {end['handed_over']} handed over" if end.get("handed_over") else ""
    words += f"; {end['resumed']} resumed from a save" if end.get("resumed") else ""
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
    bad = [state for state in follower.states.values() if state["state"] in FAILED]
    for state in bad[:SHOWN]:
        words = await explain(client, follower.job, state, os.path.basename(end["program"]))
        print(f"ipos: {safe(words)}", file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"ipos: and {len(bad) - SHOWN} more: ipos jobs {follower.job}", file=sys.stderr)
    if end.get("trouble"):
        print(f"ipos: {end['trouble']}", file=sys.stderr)
    if end["state"] == "stopped":
        raise Refused(f"job {follower.job} was cancelled")
    return 0 if end["done"] == end["total"] and not end.get("trouble") else 1
