"""doctor: what is in force on this machine, line by line: what it means, and what would mend it. /doctor, and `ipos doctor`.

Each judgement is a function of what was seen, so that a machine that lacks something can be had in a test.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ipos.vm.host import Fault
from ipos.vm.sandbox import confine, landlock, seccomp

if TYPE_CHECKING:
    from ipos.node.daemon import Node
    from ipos.pool.native.executor import NativeExecutor

DISK_BYTES: Final = 1 << 30
LANDLOCK_GOOD: Final = 6  # from which on it also keeps signals and abstract sockets in
CLOCK_UNSYNCHRONISED: Final = 0x40


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """`needed`: without it IPOS does not work here. `fix`: "" if there is nothing to mend."""

    what: str
    ok: bool
    says: str
    fix: str = ""
    needed: bool = False


WORKER: Final[Mapping[str, tuple[str, str, str]]] = {  # layer: what it is called, what it means, what would mend it
    "limits": ("worker limits", "memory, file size, open files of a worker of the engine are limited", ""),
    "uid": (
        "worker uid",
        "each worker has a user id of its own",
        "run the node as root, in a user namespace that has ids to give; without, namespaces, Landlock and seccomp stand alone",
    ),
    "tied": ("worker tied", "a worker dies with the node", ""),
    "no_new_privileges": ("no new privileges", "nothing that a worker starts can gain a privilege", ""),
    "untraceable": ("worker untraceable", "a worker's memory can be read by no other process of this user", ""),
    "files": (
        "worker files",
        "Landlock: a worker opens nothing but its save directory, its input and its output",
        "a kernel of 5.13 or later, with landlock in the boot option lsm=",
    ),
    "calls": ("worker calls", "seccomp: a worker makes no call of the kernel but the listed ones", "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or aarch64"),
}  # fmt: skip


def workers(layers: Mapping[str, str], isolation: str) -> list[Line]:
    """Of a worker that was started to see. `isolation`: of its parent."""
    why_not = isolation.removeprefix("none: ") if isolation.startswith("none: ") else ""
    lines = [
        Line(what="worker can start", ok=True, needed=True, says="a worker of the engine was started and confined"),
        Line(
            what="worker namespaces", ok=not why_not,
            says=why_not or "a worker has no network, and the home, the sockets and compiled code are hidden from it",
            fix="sysctl user.max_user_namespaces above 0, and no AppArmor rule against user namespaces" if why_not else "",
        ),
    ]  # fmt: skip
    for layer in confine.LAYERS:
        what, means, mends = WORKER[layer]
        said = layers.get(layer, "it was not tried")
        lines.append(Line(what=what, ok=not said, says=said or means, fix=mends if said else ""))
    return lines


def no_worker(why: str) -> list[Line]:
    return [
        Line(
            what="worker can start", ok=False, needed=True, says=f"no worker of the engine can be started: {why}",
            fix="see the node's log; `ulimit -v` must be unlimited and vm.overcommit_memory not 2",
        )
    ]  # fmt: skip


def native(isolation: str) -> Line:
    why_not = isolation.removeprefix("none: ") if isolation.startswith("none: ") else ""
    return Line(
        what="native namespaces", ok=not why_not,
        says=f"native programs can read the home, keys included: {why_not}" if why_not else "the home and the sockets are hidden from native programs",
        fix="sysctl user.max_user_namespaces above 0, and no AppArmor rule against user namespaces" if why_not else "",
    )  # fmt: skip


def landlock_line(abi: int) -> Line:
    if abi == 0:
        return Line(what="landlock", ok=False, says="this kernel has no Landlock", fix=WORKER["files"][2])
    less = (
        ""
        if abi >= LANDLOCK_GOOD
        else f", but not signals and abstract sockets, which ABI {LANDLOCK_GOOD} (Linux 6.12) has"
    )
    return Line(
        what="landlock",
        ok=True,
        says=f"ABI {abi}: files are kept from workers{less}",
        fix="a kernel of 6.12 or later" if less else "",
    )


def seccomp_line(why_not: str) -> Line:
    return Line(
        what="seccomp", ok=not why_not, says=why_not or "calls of the kernel can be filtered",
        fix=WORKER["calls"][2] if why_not else "",
    )  # fmt: skip


def ptrace(scope: str | None) -> Line:
    """`scope`: /proc/sys/kernel/yama/ptrace_scope; None: there is none."""
    fix = "sysctl kernel.yama.ptrace_scope=1, if the kernel has Yama"
    match scope:
        case None | "0":
            yama = "this kernel has no Yama" if scope is None else "ptrace_scope is 0"
            says = f"{yama}: processes of this user may trace each other; the node and its workers are not dumpable, native tasks can be traced"
            return Line(what="ptrace", ok=False, says=says, fix=fix)
        case _:
            who = {"1": "only a parent", "2": "only root", "3": "nobody"}.get(scope, f"scope {scope}: few")
            return Line(what="ptrace", ok=True, says=f"{who} may trace a process")


def user(uid: int, own_uids: bool) -> Line:
    if uid != 0:
        return Line(what="uid", ok=True, says=f"the node runs as uid {uid}")
    if own_uids:
        return Line(what="uid", ok=True, says="the node runs as root; its workers do not")
    return Line(what="uid", ok=False, says="the node runs as root, and so does what it starts", fix="run it as a user")


def cgroup(controllers: str | None) -> Line:
    """`controllers`: of the node's own cgroup; None: no cgroup v2."""
    if controllers is None:
        return Line(
            what="cgroup",
            ok=False,
            says="no cgroup v2: memory is limited by the address space of a process alone",
            fix="boot with systemd.unified_cgroup_hierarchy=1",
        )
    return Line(
        what="cgroup",
        ok="memory" in controllers.split(),
        says=f"controllers here: {controllers or 'none'}; IPOS sets no limit in it so far",
    )


def clock(status: int | None) -> Line:
    """`status`: of adjtimex(2); None: it may not be asked."""
    if status is None or status & CLOCK_UNSYNCHRONISED:
        return Line(
            what="clock",
            ok=False,
            says="nobody says that this clock is synchronised; leases do not need it, names of times do",
            fix="switch on NTP: timedatectl set-ntp true",
        )
    return Line(what="clock", ok=True, says="synchronised")


def disk(free: int) -> Line:
    return Line(
        what="disk", ok=free >= DISK_BYTES, needed=True, says=f"{free / (1 << 30):.1f} GiB are free where the home is",
        fix="" if free >= DISK_BYTES else f"free {DISK_BYTES >> 30} GiB, or move IPOS_HOME",
    )  # fmt: skip


def overcommit(mode: str, hard_bytes: int | None) -> Line:
    """`mode`: vm.overcommit_memory; `hard_bytes`: the address space that a process may have, None = any."""
    short = hard_bytes is not None and hard_bytes < confine.ENGINE_ADDRESSES
    ok = mode != "2" and not short
    says = (
        "a worker may reserve address space"
        if ok
        else f"a worker needs {confine.ENGINE_ADDRESSES >> 30} GiB of address space"
    )
    return Line(
        what="address space",
        ok=ok,
        needed=True,
        says=says,
        fix="" if ok else "sysctl vm.overcommit_memory=0; ulimit -v unlimited",
    )


def fuse(device: bool, helper: bool) -> Line:
    missing = [name for name, there in (("/dev/fuse", device), ("fusermount3", helper)) if not there]
    return Line(
        what="fuse", ok=not missing, says=f"no {' and no '.join(missing)}: the tree cannot be mounted" if missing else "the tree could be mounted",
        fix="install fuse3; in a container: --device /dev/fuse" if missing else "",
    )  # fmt: skip


def netd(pid: int | None, addresses: int) -> Line:
    ok = pid is not None and addresses > 0
    return Line(
        what="netd", ok=ok, needed=True,
        says=f"the network process answers, and listens at {addresses} addresses" if ok else "the network process does not answer",
        fix="" if ok else "see the node's log; make setup builds it",
    )  # fmt: skip


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _clock_status() -> int | None:
    room = ctypes.create_string_buffer(256)  # struct timex; status is its sixth field, after four longs
    libc = ctypes.CDLL(None)
    if libc.adjtimex(room) < 0:
        return None
    at = 5 * ctypes.sizeof(ctypes.c_long)  # modes (padded), offset, freq, maxerror, esterror
    return ctypes.c_int.from_buffer(room, at).value


def _machine(home: Path, layers: Mapping[str, str]) -> list[Line]:
    """In a thread: what needs nobody's answer."""
    own = (_read("/proc/self/cgroup") or "").split("::")[-1].strip()
    hard = confine.hard_address_space()
    return [
        landlock_line(landlock.abi()),
        seccomp_line(seccomp.offered()),
        ptrace(_read("/proc/sys/kernel/yama/ptrace_scope")),
        user(os.geteuid(), not layers.get("uid", "x")),
        cgroup(_read(f"/sys/fs/cgroup{own}/cgroup.controllers")),
        overcommit(_read("/proc/sys/vm/overcommit_memory") or "0", hard),
        clock(_clock_status()),
        disk(shutil.disk_usage(home).free),
        fuse(os.access("/dev/fuse", os.R_OK | os.W_OK), shutil.which("fusermount3") is not None),
    ]


async def examine(node: Node, executor: NativeExecutor, netd_pid: int | None) -> list[Line]:
    """All lines; starts a worker to see how it is confined."""
    layers: Mapping[str, str] = {}
    try:
        layers = await executor.engine.workers.probe()
        first = workers(layers, executor.engine.workers.isolation)
    except (Fault, OSError) as fault:
        first = no_worker(str(fault))
    lines = await asyncio.to_thread(_machine, node.home, layers)
    return [*first, native(executor.isolation), *lines, netd(netd_pid, len(node.net.addresses()))]
