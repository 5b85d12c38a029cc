"""top: what runs here (`--pool`: on all machines), how fast, with how much memory, and how old its save is; once a second, in place."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sys
import termios
import time
import tty
from collections.abc import Generator
from typing import Any, NamedTuple

from ipos.cli.connect import node
from ipos.cli.plain import pairs, rows
from ipos.cli.printed import cut, safe
from ipos.node.home import Home
from ipos.tree.copy import each
from ipos.tree.ninep.client import Client, connect_unix
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

Arguments = argparse.Namespace
ANSWER_S = 2.0  # how long a machine may take to say what runs on it
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # a screen of its own, without a cursor
_HEAD = ("PROCESS", "STATE", "TIME", "WORK", "RATE", "MEMORY", "SAVED", "NAME")


class Sample(NamedTuple):
    """One look. `machines` as in /pool/members, `processes` as in /proc/list with `node`, `rate` (units a second) and `memory` (bytes) besides;
    `trouble`: machines that did not answer, in sentences."""

    at: float
    name: str
    uptime_s: int
    machines: list[dict[str, Any]]
    processes: list[dict[str, Any]]
    trouble: list[str]


async def top(arguments: Arguments) -> int:
    if arguments.count is not None and arguments.count < 1:
        raise Refused(f"-n {arguments.count}: at least once")
    live = sys.stdout.isatty() and not arguments.json and arguments.count is None
    with screen() if live else contextlib.nullcontext(asyncio.Event()) as quits:
        await _looks(arguments, live, quits)
    return 0


async def _looks(arguments: Arguments, live: bool, quits: asyncio.Event) -> None:
    before: Sample | None = None
    left: int | None = arguments.count
    async with node(own=False) as client:
        while True:
            try:
                before = await look(client, arguments.pool, before)
                show(before, arguments, live)
            except Gone as gone:
                if not live:
                    raise
                _draw([f"{gone}; ipos up starts it again", "q quits"])
                with contextlib.suppress(Gone):
                    client = await connect_unix(Home().socket)
            left = None if left is None else left - 1
            if left == 0:
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(quits.wait(), arguments.delay)
            if quits.is_set():
                return


async def look(client: Client, pool: bool, before: Sample | None) -> Sample:
    """Two round trips, and as many to each other machine."""
    status, members = await asyncio.gather(pairs(client, "/status"), rows(client, "/pool/members"))
    machines = [one for one in members if pool or one["here"]]
    found: dict[str, list[dict[str, Any]]] = {}
    trouble: list[str] = []

    async def ask(machine: dict[str, Any]) -> None:
        name, root = str(machine["name"]), "" if machine["here"] else f"/n/{machine['name']}"
        if not machine["here"] and not machine["connected"]:
            trouble.append(f"{name}: {machine['why_not']}")
            return
        try:
            async with asyncio.timeout(ANSWER_S):
                found[name] = await _processes(client, root, name)
        except TimeoutError:
            trouble.append(f"{name} has not answered for {ANSWER_S:g} s")
        except Refused as error:
            if machine["here"]:
                raise
            trouble.append(f"{name}: {error}")

    await each(machines, ask, len(machines) or 1)
    now = Sample(
        time.time(), str(status["name"]), int(str(status["uptime_s"])), machines,
        [row for one in machines for row in found.get(str(one["name"]), ())], trouble,
    )  # fmt: skip
    _rates(now, before)
    return now


async def _processes(client: Client, root: str, name: str) -> list[dict[str, Any]]:
    listed = await rows(client, f"{root}/proc/list")

    async def memory(row: dict[str, Any]) -> None:
        row |= {"node": name, "memory": None}
        with contextlib.suppress(Refused):  # it has ended since
            found = (await pairs(client, f"{root}/proc/{row['pid']}/mem")).get("now")
            row["memory"] = found if isinstance(found, int) else None

    await each(listed, memory, 64)
    return listed


def _rates(now: Sample, before: Sample | None) -> None:
    """Units of work a second since the look before, else as the process says."""
    was = {(row["node"], row["pid"]): row["work"] for row in before.processes} if before is not None else {}
    passed = now.at - before.at if before is not None else 0.0
    for row in now.processes:
        old = was.get((row["node"], row["pid"]))
        row["rate"] = row["speed"]
        if old is not None and row["work"] is not None and row["work"] >= old and passed > 0:
            row["rate"] = round((row["work"] - old) / passed)


def show(sample: Sample, arguments: Arguments, live: bool) -> None:
    if arguments.json:
        print(json.dumps(sample._asdict()), flush=True)
    elif live:
        size = shutil.get_terminal_size()
        _draw(frame(sample, size.columns, size.lines))
    else:
        print("\n".join(frame(sample)), end="\n\n" if arguments.count is None else "\n", flush=True)


def _draw(lines: list[str]) -> None:
    """Over what was there, with no line feed at the end, which would scroll."""
    sys.stdout.write("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")
    sys.stdout.flush()


def frame(sample: Sample, columns: int | None = None, height: int | None = None) -> list[str]:
    """The lines of one look, no longer than `columns` and no more than `height`: what does not fit is counted."""
    table = [
        _HEAD,
        *(_cells(row) for row in sorted(sample.processes, key=lambda row: (-(row["rate"] or 0), row["pid"]))),
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(_HEAD) - 1)]
    body = [
        " ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in table
    ]
    lines = [_summary(sample), *sample.trouble, *(body if sample.processes else ["nothing runs"])]
    if height is not None and len(lines) > height:
        hidden = len(lines) - height + 1
        lines = [*lines[: max(0, height - 1)], f"and {hidden} more lines"][: max(1, height)]
    return [cut(safe(line), columns) for line in lines]


def _summary(sample: Sample) -> str:
    there = [one for one in sample.machines if one["connected"] or one["here"]]
    busy = sum(row["state"] in ("busy", "running") for row in sample.processes)
    rate = sum(row["rate"] or 0 for row in sample.processes)
    free, total = (sum(one[key] for one in _computers(there)) for key in ("memory_free", "memory_total"))
    names = sample.name if len(sample.machines) == 1 else f"{len(there)} of {len(sample.machines)} nodes"
    slots, load = sum(one["slots"] for one in there), sum(one["load"] for one in there)
    words = f"{names}: {busy} run in {slots} slots, {rate / 1e9:.2f} Gop/s, others' load {load:.1f}"
    return (
        f"{words}, {(total - free) / limits.GiB:.1f} of {total / limits.GiB:.1f} GiB used, up {_time(sample.uptime_s)}"
    )


def _computers(machines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each physical machine once, however many nodes it has."""
    return list({one["machine"]: one for one in machines}.values())


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["pid"]) if row["node"] in ("", None) else f"{row['node']}:{row['pid'].partition('@')[0]}",
        str(row["state"]),
        _time(row["seconds"]),
        "-" if row["work"] is None else f"{row['work'] / 1e9:.1f} Gop",
        "-" if row["rate"] is None else f"{row['rate'] / 1e9:.2f}/s",
        "-" if row["memory"] is None else f"{row['memory'] / limits.MiB:.0f} MiB",
        "-" if row["save_age_s"] is None else f"{row['save_age_s']:.0f} s ago",
        f"{row['name']} {row['says'] if row['says'] != 'runs' else ''}".strip(),
    )


def _time(seconds: float) -> str:
    """1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@contextlib.contextmanager
def screen() -> Generator[asyncio.Event]:
    """The terminal for itself; the event is set by the key q. It is given back however this ends."""
    quits, loop = asyncio.Event(), asyncio.get_running_loop()
    keys = os.isatty(0)
    was = termios.tcgetattr(0) if keys else None

    def pressed() -> None:
        typed = os.read(0, 64)
        if b"q" in typed.lower() or not typed:
            quits.set()

    try:
        if keys:
            tty.setcbreak(0)
            loop.add_reader(0, pressed)
        sys.stdout.write(_ENTER)
        yield quits
    finally:
        if was is not None:
            loop.remove_reader(0)
            termios.tcsetattr(0, termios.TCSADRAIN, was)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
