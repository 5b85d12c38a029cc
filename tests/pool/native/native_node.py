"""What a node is to its native tasks: a home with keys, a socket, a warm parent. Started by tests as a process of its own, so that it can be
another user, live in other surroundings, or be killed. Prints one JSON object a line.

Arguments: what to do (attack | hold | fill), directory, uid (-1: stay), surroundings (see `SURROUNDINGS`), "isolate" or "bare".
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import sys
from pathlib import Path

from ipos.pool.native import kernel
from ipos.pool.native.isolate import harden
from ipos.pool.native.process import Program
from ipos.pool.native.runner import NativeRunner
from ipos.wire.errors import Refused

ATTACK = Path(__file__).with_name("native_attack.py")
SHELL = Program("sh", Path("/bin/sh"), python=False)
DAEMON = "setsid sleep 1000 & sleep 1000"


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def void(_: object) -> None:
    return None


# ---- surroundings


def own_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def alias(directory: Path) -> None:
    """The home can be reached by another path: its disk is mounted twice."""
    own_namespaces()
    (directory / "alias").mkdir()
    (directory / "home").mkdir()
    kernel.mount(str(directory / "home"), str(directory / "alias"), None, kernel.MS_BIND)


def masked(_: Path) -> None:
    """As in a container that hides parts of /proc: the kernel then gives no process namespace a /proc of its own."""
    own_namespaces()
    kernel.mount("none", "/proc/sys", "tmpfs", 0)


def refused(_: Path) -> None:
    """The kernel's limit of user namespaces is reached."""
    own_namespaces()
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    Path("/proc/sys/user/max_mnt_namespaces").write_text("0")


def unprivileged(_: Path) -> None:
    """The kernel gives namespaces, and then lets nobody use them: uid 0 cannot be mapped without CAP_SETFCAP."""
    kernel.keep_capabilities(0)


def small_disk(directory: Path) -> None:
    own_namespaces()
    kernel.mount("none", str(directory), "tmpfs", 0, "size=4m")


SURROUNDINGS = {
    "alias": alias, "masked": masked, "refused": refused, "unprivileged": unprivileged, "small_disk": small_disk,
    "soft": void,  # the node did not harden itself
}  # fmt: skip

# ---- what to do


async def attack(runner: NativeRunner, home: Path, address: str) -> None:
    program = await runner.program("attack", "attack.py", ATTACK)
    arguments = [str(home), address, str(os.getpid()), str(runner.pid)]
    process = await runner.start("attack", Program("attack.py", program, python=True), arguments)
    outcome = await process.wait()
    printed, said = outcome.stdout.read_text(), outcome.stderr.read_text()
    say(reached=json.loads(printed) if printed else None, stderr=said, exit=outcome.exit)


async def hold(runner: NativeRunner) -> None:
    """A task that never ends, with a daemon; then wait to be killed."""
    await runner.start("held", SHELL, ["-c", DAEMON])
    say(parent=runner.pid)
    await asyncio.sleep(1000)


async def fill(runner: NativeRunner, home: Path) -> None:
    """A task that writes until the disk is full; then one whose inputs do not fit any more; then one when there is room again."""
    process = await runner.start("fills", SHELL, ["-c", "cat /dev/zero > file"])
    outcome = await process.wait()
    say(exit=outcome.exit, fault=outcome.fault, killed=outcome.killed)
    try:
        await runner.start(
            "late", SHELL, ["-c", "true"], files={"input": lambda path: void(path.write_bytes(bytes(1 << 20)))}
        )
    except Refused as error:
        say(refused=str(error), left=(home / "work" / "late").exists())
    await runner.discard("fills")
    outcome = await (await runner.start("room", SHELL, ["-c", "true"])).wait()
    say(exit=outcome.exit, fault=outcome.fault)


async def main() -> None:
    what, directory, uid, surroundings, isolate = sys.argv[1:]
    if int(uid) >= 0:
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # as it is in a process that was not another user before
    if surroundings != "plain":
        SURROUNDINGS[surroundings](Path(directory))
    if surroundings != "soft":
        harden()
    home, sockets = Path(directory) / "home", Path(directory) / "sockets"
    (home / "keys").mkdir(parents=True, exist_ok=True)
    (home / "keys" / "account").write_text("SECRET")
    sockets.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(sockets)  # a socket's address is short, a test's directory is not
        Path("9p").unlink(missing_ok=True)
        server.bind("9p")
        server.listen()
        runner = NativeRunner(home, hide=[sockets], isolate=isolate == "isolate")
        strays = await runner.open()
        say(isolation=runner.isolation, strays=strays, node=os.getpid())
        try:
            match what:
                case "attack":
                    await attack(runner, home, str(sockets / "9p"))
                case "hold":
                    await hold(runner)
                case _:
                    await fill(runner, home)
        finally:
            await runner.close()


asyncio.run(main())
