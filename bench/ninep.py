"""9P: our server beside diod (C) in one run, and our client over a link with a round trip of 50 ms.

    .venv/bin/python bench/ninep.py [--seconds 1.0] [--json]

Both servers are separate processes on loopback TCP with the same directory; the client is one blocking socket with requests encoded before.
Rounds alternate between the two, the best of three counts: on a shared machine only the ratio says anything. `x 16`: sixteen requests at once.
`us`: processor time that a server takes for a request, which the machine's other work hardly changes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ipos.tree.file import Caller, File
from ipos.tree.local import local
from ipos.tree.ninep.client import connect_unix
from ipos.tree.ninep.codec import ALL
from ipos.tree.ninep.messages import NOFID
from ipos.tree.ninep.transport import ServerProtocol, serve_tcp, serve_unix

L = ALL["9P2000.L"].by_name
MSIZE = 65536  # Debian's diod goes no higher
RTT_S = 0.05
ME = Caller("0x1", "bench", own=True, local=True)
TARGETS = {
    "read 64 KiB": 1.0,
    "write 64 KiB": 1.0,
    "getattr x 16": 1.2,
    "read 4 KiB x 16": 1.2,
    "walk+open+read+clunk x 16": 1.2,
}


class Bench:
    """A connection and the requests of each row, encoded before the clock runs."""

    def __init__(self, port: int, pid: int, export: Path) -> None:
        self.pid, self.cpu_us = pid, 0.0
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = memoryview(bytearray(1 << 21))
        self.ask(L["Tversion"].encode(0xFFFF, MSIZE, "9P2000.L"))
        self.ask(L["Tattach"].encode(1, 0, NOFID, "root", str(export), os.getuid()))
        self.ask(L["Twalk"].encode(1, 0, 1, ("f",)))
        self.ask(L["Tlopen"].encode(1, 1, os.O_RDWR))

    def ask(self, requests: bytes, count: int = 1) -> None:
        """Send them and take as many answers; an error ends the run."""
        self.socket.sendall(requests)
        have = at = 0
        while count:
            have += self.socket.recv_into(self.buffer[have:])
            while have - at >= 7 and have - at >= (size := int.from_bytes(self.buffer[at : at + 4], "little")):
                assert self.buffer[at + 4] != 7, f"errno {int.from_bytes(self.buffer[at + 7 : at + 11], 'little')}"
                at += size
                count -= 1
            if at == have:
                have = at = 0

    def rate(self, steps: list[tuple[bytes, int]], seconds: float) -> float:
        """Rounds of these steps a second."""
        rounds, began, used = 0, time.perf_counter(), cpu_s(self.pid)
        while (passed := time.perf_counter() - began) < seconds:
            for requests, count in steps:
                self.ask(requests, count)
            rounds += 1
        self.cpu_us = (cpu_s(self.pid) - used) * 1e6 / (rounds * sum(count for _, count in steps))
        return rounds / passed


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, user and system."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def rows() -> dict[str, tuple[list[tuple[bytes, int]], float, str]]:
    """name -> (steps of one round, what a round is in the unit, unit)."""
    many = range(16)
    io = MSIZE - 24

    def each(make: Callable[[int], bytes]) -> tuple[bytes, int]:
        return b"".join(make(i) for i in many), len(many)

    small = [
        each(lambda i: L["Twalk"].encode(i, 0, 10 + i, ("f",))),
        each(lambda i: L["Tlopen"].encode(i, 10 + i, os.O_RDONLY)),
        each(lambda i: L["Tread"].encode(i, 10 + i, 0, 4096)),
        each(lambda i: L["Tclunk"].encode(i, 10 + i)),
    ]
    return {
        "read 64 KiB": ([(L["Tread"].encode(1, 1, 0, io), 1)], io / 1e6, "MB/s"),
        "write 64 KiB": ([(L["Twrite"].encode(1, 1, 0, bytes(io)), 1)], io / 1e6, "MB/s"),
        "read 64 KiB x 4": ([(b"".join(L["Tread"].encode(i, 1, 0, io) for i in range(4)), 4)], 4 * io / 1e6, "MB/s"),
        "write 64 KiB x 4": (
            [(b"".join(L["Twrite"].encode(i, 1, 0, bytes(io)) for i in range(4)), 4)],
            4 * io / 1e6,
            "MB/s",
        ),
        "getattr": ([(L["Tgetattr"].encode(1, 1, 0x7FF), 1)], 1, "op/s"),
        "read 4 KiB": ([(L["Tread"].encode(1, 1, 0, 4096), 1)], 1, "op/s"),
        "getattr x 16": ([each(lambda i: L["Tgetattr"].encode(i, 1, 0x7FF))], 16, "op/s"),
        "read 4 KiB x 16": ([each(lambda i: L["Tread"].encode(i, 1, 0, 4096))], 16, "op/s"),
        "walk+open+read+clunk x 16": (small, 64, "op/s"),
    }


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[tuple[int, int]]:
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(400):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.05)
        yield port, child.pid
    finally:
        child.terminate()
        child.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


async def serve(port: int, directory: Path) -> None:
    root = local(directory)

    async def attach(caller: Caller, aname: str) -> File:
        return root

    server = await serve_tcp(f"127.0.0.1:{port}", lambda: ServerProtocol(attach, ME))
    await server.serve_forever()


def compared(export: Path, seconds: float) -> list[dict[str, Any]]:
    diod = shutil.which("diod") or shutil.which("diod", path="/usr/sbin:/usr/bin")
    if diod is None:
        raise SystemExit("diod is needed: `make setup` as root installs it (apt-get install diod)")
    one, two = free_port(), free_port()
    theirs = [diod, "-f", "-n", "-e", str(export), "-l", f"127.0.0.1:{two}", "-L", str(export.parent / "diod.log")]
    out: list[dict[str, Any]] = []
    with (
        running([sys.executable, __file__, "--serve", str(one), str(export)], one) as ours,
        running(theirs, two) as other,
    ):
        benches = {"ipos": Bench(*ours, export), "diod": Bench(*other, export)}
        for name, (steps, amount, unit) in rows().items():
            best, cpu = dict.fromkeys(benches, 0.0), dict.fromkeys(benches, 1e9)
            for _ in range(3):
                for who, bench in benches.items():
                    best[who] = max(best[who], bench.rate(steps, seconds / 3) * amount)
                    cpu[who] = min(cpu[who], bench.cpu_us)
            ratio = best["ipos"] / best["diod"]
            target = TARGETS.get(name)
            met = {} if target is None else {"target": target, "met": ratio >= target}
            out.append(
                {
                    "row": name,
                    **{k: round(v) for k, v in best.items()},
                    "unit": unit,
                    "ratio": round(ratio, 2),
                    "us": [round(n) for n in cpu.values()],
                    **met,
                }
            )
    return out


class Slow(asyncio.Protocol):
    """One end of a link: what comes leaves at the other end half a round trip later."""

    def __init__(self) -> None:
        self.other: asyncio.Transport | None = None
        self.kept: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.mine = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(RTT_S / 2, self.on, data)

    def on(self, data: bytes) -> None:
        if self.other is None:
            self.kept.append(data)
        elif not self.other.is_closing():
            self.other.write(data)

    def joined(self, other: asyncio.Transport) -> None:
        self.other = other
        for data in self.kept:
            other.write(data)


async def far(directory: Path) -> list[dict[str, Any]]:
    """Round trips that a command takes once connected."""
    root, loop = local(directory), asyncio.get_running_loop()

    async def attach(caller: Caller, aname: str) -> File:
        return root

    pending: set[asyncio.Task[None]] = set()

    def accept() -> Slow:
        near = Slow()

        async def join() -> None:
            transport, beyond = await loop.create_unix_connection(Slow, str(directory.parent / "s"))
            beyond.joined(near.mine)
            near.joined(transport)

        task = loop.create_task(join())
        pending.add(task)
        task.add_done_callback(pending.discard)
        return near

    server = await serve_unix(directory.parent / "s", lambda: ServerProtocol(attach, ME))
    relay = await loop.create_unix_server(accept, str(directory.parent / "l"))
    client = await connect_unix(directory.parent / "l")
    works: dict[str, Callable[[], Any]] = {
        "cat": lambda: client.read("/small"), "ls of 100": lambda: client.ls("/d"), "write": lambda: client.write("/small", b"x" * 1000),
        "cat of 64 MiB": lambda: client.read("/big"),
    }  # fmt: skip
    out: list[dict[str, Any]] = []
    for name, work in works.items():
        best = 1e9
        for _ in range(1 if "MiB" in name else 5):
            began = time.perf_counter()
            await work()
            best = min(best, time.perf_counter() - began)
        row: dict[str, Any] = {"row": f"{name} over 50 ms", "ipos": round(best / RTT_S, 2), "unit": "round trips"}
        out.append(row | ({} if "MiB" in name else {"target": 1.5, "met": best / RTT_S <= 1.5}))
    client.close()
    relay.close()
    server.close()
    await asyncio.sleep(2 * RTT_S)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(int(arguments.serve[0]), Path(arguments.serve[1])))
        return 0
    with tempfile.TemporaryDirectory(prefix="b9") as scratch:
        export = Path(scratch) / "export"
        (export / "d").mkdir(parents=True)
        (export / "f").write_bytes(os.urandom(1 << 20))
        (export / "small").write_bytes(b"x" * 1000)
        (export / "big").write_bytes(bytes(64 << 20))
        for i in range(100):
            (export / "d" / f"n{i}").touch()
        found = [*compared(export, arguments.seconds), *asyncio.run(far(export))]
    if arguments.json:
        print(json.dumps(found))
        return 0
    for row in found:
        beside = (
            f"diod {row['diod']:>9,}  {row['ratio']:.2f} x  us {row['us'][0]:>3} and {row['us'][1]:>3}"
            if "diod" in row
            else ""
        )
        verdict = "" if "met" not in row else f"  target {row['target']}: {'met' if row['met'] else 'MISSED'}"
        print(f"{row['row']:<28} {row['ipos']:>11,} {row['unit']:<12} {beside:<42}{verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
