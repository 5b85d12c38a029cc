"""The warm parent of the engine's workers: it has loaded the engine and the programs in use, has no threads, holds no secret, and forks.

Started by `client` as `python -I -m ipos.vm.parent FD HIDDEN-HOME HIDDEN...`. FD is a socket of packets, one JSON object each; with `fork` come
descriptors: the worker's pipe, the code of its program, and the image that it starts from, if any. It ends when the socket does, and every worker with it. Each worker is a process
of its own that never returns from `fork`: confined before it reads the first byte that anybody else wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import wasmtime

from ipos.vm import engine, worker
from ipos.vm.plan import Confined
from ipos.vm.runner import Held
from ipos.vm.sandbox import linux, namespace
from ipos.vm.sandbox.confine import UID_BASE, Given, confine
from ipos.vm.version import version
from ipos.vm.warm import Warm

PACKET_BYTES: Final = 1 << 16
SHOWN: Final = ("work", "env")
NICE: Final = 5
ABOVE: Final = 32  # where the parent's own descriptors are: below are the numbers of a worker's
ROOT_KEEPS: Final = (
    namespace.CAP_CHOWN, namespace.CAP_DAC_OVERRIDE, namespace.CAP_KILL, namespace.CAP_SETGID, namespace.CAP_SETUID,
)  # fmt: skip

Child = Callable[[wasmtime.Module, worker.Pipe, Held | None], None]


def woken(number: int, frame: object) -> None:
    """SIGCHLD only has to end a select."""


class Parent:
    def __init__(self, sock: socket.socket, own_uids: bool, child: Child) -> None:
        self.sock = sock
        self.warm = Warm()
        self._own_uids = own_uids
        self._child = child
        self._keys: dict[int, str] = {}

    def say(self, **event: Any) -> None:
        self.sock.send(json.dumps(event).encode())

    def obey(self, command: dict[str, Any], fds: list[int]) -> None:
        key = command["key"]
        match command["op"]:
            case "fork":
                try:
                    pid = self._fork(command, *fds)
                except (OSError, ValueError) as error:
                    self.say(event="failed", key=key, why=str(error))
                else:
                    self._keys[pid] = key
                    self.say(event="forked", key=key, pid=pid)
            case "kill":
                for pid in [pid for pid, one in self._keys.items() if one == key]:
                    os.kill(pid, signal.SIGKILL)
            case other:
                self.say(event="failed", key=key, why=f"unknown command {other}")

    def _fork(self, command: dict[str, Any], pipe: int, code: int, image: int | None = None) -> int:
        program = self.warm.program(command["program"], code) if command["program"] else None
        held = self.warm.image(command["program"], command["image"], image) if image is not None else None
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                self.warm.only(held)
                layers = self._become(command, pipe, program.fds if program else frozenset(), parent)
                pipe_of_child = worker.Pipe()
                pipe_of_child.say(Confined(layers))
                if program is not None:  # else it was only to say how it is confined
                    self._child(program.module, pipe_of_child, held)
                os._exit(0)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        return pid

    def _become(self, command: dict[str, Any], pipe: int, keep: frozenset[int], parent: int) -> dict[str, str]:
        """In the child: its descriptors, and nothing else but those of its program."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.nice(NICE)
        made = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
        opened = [os.open(command["stdin"] or os.devnull, os.O_RDONLY)]
        opened += [os.open(command[which], made, 0o600) for which in ("stdout", "stderr")]
        opened.append(pipe)
        opened += [os.open(command[which], os.O_RDONLY | os.O_DIRECTORY) for which in ("saves", "root", "out")]
        for number, fd in enumerate(opened):
            os.dup2(fd, number)
        end = len(opened)
        for fd in sorted(keep):
            os.closerange(end, fd)
            end = fd + 1
        os.closerange(end, os.sysconf("SC_OPEN_MAX"))
        uid = None
        if self._own_uids:
            uid = UID_BASE + os.getpid()
            for fd in (worker.SAVES, worker.ROOT, worker.OUT):
                _give(fd, uid)
        given = Given(
            worker.SAVES, worker.ROOT, worker.OUT, command["memory_bytes"], command["file_bytes"], uid, parent
        )
        return confine(given)

    def reap(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            key, code = self._keys.pop(pid), os.waitstatus_to_exitcode(status)
            self.say(event="exited", key=key, code=code, cpu_s=used.ru_utime + used.ru_stime, rss=used.ru_maxrss * 1024)

    def run(self) -> None:
        wake_reader, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_writer)
        signal.signal(signal.SIGCHLD, woken)
        while True:
            ready, _, _ = select.select([self.sock, wake_reader], [], [])
            if wake_reader in ready:
                os.read(wake_reader, 4096)
            self.reap()
            if self.sock in ready:
                packet, fds, _, _ = socket.recv_fds(self.sock, PACKET_BYTES, 3)
                if not packet:
                    return
                self.obey(json.loads(packet), fds)
                for fd in fds:
                    os.close(fd)


def _give(directory: int, uid: int) -> None:
    """To the worker's user, with all that is below. What has a second name is left alone: it may be somebody else's file."""
    os.fchown(directory, uid, uid)
    with os.scandir(directory) as listed:
        for one in list(listed):
            seen = one.stat(follow_symlinks=False)
            if one.is_dir(follow_symlinks=False):
                below = os.open(one.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                _give(below, uid)
                os.close(below)
            elif seen.st_nlink == 1:
                os.chown(one.name, uid, uid, dir_fd=directory, follow_symlinks=False)


def own_uids() -> bool:
    """Whether a worker can get a user id that nobody else has: as root, where such ids exist (not in every container)."""
    if os.geteuid() != 0:
        return False
    maps = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(int(first) <= UID_BASE and int(first) + int(count) >= UID_BASE + (1 << 22) for first, _, count in maps)


def isolated(home: Path | None, hidden: tuple[Path, ...]) -> tuple[str, bool]:
    """Once, for all workers: no network, nothing of the home but what tasks are given. ("" or why not, whether workers have own users)."""
    also, root = namespace.CLONE_NEWNET | namespace.CLONE_NEWIPC, own_uids()
    why_not = namespace.isolate(home, SHOWN, hidden, also, user=not root)
    if why_not and root:  # in a container: root without the right to mount
        why_not = namespace.isolate(home, SHOWN, hidden, also)
        root = bool(why_not)
    namespace.drop_privileges()
    namespace.keep_only(*(ROOT_KEEPS if root else ()))
    namespace.harden()
    return why_not, root


def main(child: Child = worker.work) -> None:
    fd, home, *hidden = sys.argv[1:]
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, ABOVE))
    while os.open(os.devnull, os.O_RDONLY) < ABOVE:
        pass
    os.environ.clear()  # Python itself puts a locale there
    engine.engine()
    version()  # a worker can read no file to find out
    why_not, root = isolated(Path(home) if home else None, tuple(Path(path) for path in hidden))
    parent = Parent(sock, root, child)
    gc.collect()
    gc.freeze()  # the collector must not touch, and so copy, what every worker shares
    parent.say(event="ready", isolation=why_not)
    parent.run()


if __name__ == "__main__":
    main()
