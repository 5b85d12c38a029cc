"""What a command costs before its first word, beside `python -c pass` in the same run; and the tree by command: cp, ls -l, rm.

.venv/bin/python bench/cli.py
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ninep import ME, RTT_S, Slow

from ipos.cli.files import details
from ipos.tree.file import Caller, File
from ipos.tree.local import local
from ipos.tree.ninep.client import connect_unix
from ipos.tree.ninep.transport import ServerProtocol, serve_unix

IPOS = Path(sys.executable).with_name("ipos")
ROUNDS = 15
TARGETS = {"--help": 0.2, "ps": 0.35}
MANY, LARGE = 1000, 512 << 20


def once(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(seconds, seconds of CPU)."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, cpu


def starts(environment: dict[str, str]) -> None:
    """In turns, so that what else the machine does meets all of them alike."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        **{
            name: [str(IPOS), *name.split()]
            for name in ("--help", "ps", "ls /", "status", "top -n 1", "__complete ls /")
        },
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            seen[name].append(once(command, environment))
    plain = statistics.median(cpu for _, cpu in seen["python -c pass"])
    for name, took in seen.items():
        wall, cpu = (statistics.median(column) for column in zip(*took, strict=True))
        least = min(wall for wall, _ in took)
        target = f", target {TARGETS[name]:g} s" if name in TARGETS else ""
        print(
            f"{name}: {wall:.3f} s (least {least:.3f}), {cpu:.3f} s of CPU, {cpu / plain:.1f} x python -c pass{target}"
        )


def files(environment: dict[str, str], scratch: Path) -> None:
    many = scratch / "many"
    many.mkdir()
    for i in range(MANY):
        (many / f"{i:04}").write_bytes(b"x" * 1000)
    large = scratch / "large"
    with open(large, "wb") as out:
        for _ in range(LARGE >> 20):
            out.write(os.urandom(1 << 20))
    beside = {"cp -r": ["cp", "-r", many, scratch / "beside"], "cp": ["cp", large, scratch / "beside-large"]}
    rows = [
        (f"cp -r of {MANY} files of 1 kB in", ["cp", "-r", str(many), "/home/many"], beside["cp -r"]),
        (f"ls -l of {MANY}", ["ls", "-l", "/home/many"], ["ls", "-l", many]),
        ("and out", ["cp", "-r", "/home/many", str(scratch / "out")], None),
        (f"cp of {LARGE >> 20} MiB in", ["cp", str(large), "/home/large"], beside["cp"]),
        ("and out", ["cp", "/home/large", str(scratch / "large-out")], None),
        (f"rm -r of {MANY}", ["rm", "-r", "/home/many"], None),
    ]
    for words, command, other in rows:
        wall, cpu = once([str(IPOS), *command], environment)
        text = f"{words}: {wall:.2f} s, {cpu:.2f} s of CPU"
        if "MiB" in words or command[1:2] == ["/home/large"]:
            text += f", {(LARGE >> 20) / wall:.0f} MiB/s"
        if other is not None:
            text += f"; coreutils on the disk alone: {once([str(one) for one in other], environment)[0]:.3f} s"
        print(text)


async def far(scratch: Path) -> None:
    """`ls -l` over a link with a round trip of 50 ms, in this process."""
    root, loop, joined = local(scratch / "many"), asyncio.get_running_loop(), list[asyncio.Task[None]]()

    async def attach(caller: Caller, aname: str) -> File:
        return root

    def accept() -> Slow:
        near = Slow()

        async def join() -> None:
            transport, beyond = await loop.create_unix_connection(Slow, str(scratch / "s"))
            beyond.joined(near.mine)
            near.joined(transport)

        joined.append(loop.create_task(join()))
        return near

    server = await serve_unix(scratch / "s", lambda: ServerProtocol(attach, ME))
    relay = await loop.create_unix_server(accept, str(scratch / "l"))
    client = await connect_unix(scratch / "l")
    began = time.perf_counter()
    entries = await client.ls("/")
    found = await details(client, "/", entries)
    took = time.perf_counter() - began
    assert len(found) == MANY
    print(f"ls -l of {MANY} over {RTT_S * 1000:.0f} ms: {took:.2f} s, {took / RTT_S:.1f} round trips")
    client.close()
    relay.close()
    server.close()
    await asyncio.sleep(2 * RTT_S)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ipb") as directory:
        scratch = Path(directory)
        (scratch / "run").mkdir(mode=0o700)
        environment = {**os.environ, "IPOS_HOME": str(scratch / "home"), "XDG_RUNTIME_DIR": str(scratch / "run")}
        subprocess.run([IPOS, "up", "--listen", "local"], env=environment, check=True, stdout=subprocess.DEVNULL)
        try:
            starts(environment)
            files(environment, scratch)
            asyncio.run(far(scratch))
        finally:
            subprocess.run([IPOS, "down"], env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
