"""A seat: the place where one native task runs at a time. It is the first process (pid 1) of a process namespace and serves task after task.

Because the task and everything it starts live in the seat's namespace, one system call pauses them all, one ends them all, daemons and fork
bombs included, and if the seat dies (the node was killed) the kernel ends them. And because a seat stays, a task costs a posix_spawn
and two mounts, not two namespaces and two forks.

It talks JSON lines with the node, which holds the other end of `sock`:
    -> {"do": "start", "key", "argv", "env", "stdin": bool, "writes": [path], "limits": {name: value}}
    <- {"started": pid in the namespace}  or  {"refused": errno, "why": text}
    -> {"do": "signal", "number": SIGSTOP | SIGCONT | SIGKILL}
    <- {"exited": waitstatus as exit code, "cpu_s", "rss_bytes"}
Where the kernel gives no namespaces the seat adopts orphans instead (PR_SET_CHILD_SUBREAPER) and finds what to signal by walking /proc.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

from ipos.pool.native import kernel as k
from ipos.pool.native.clear import empty
from ipos.pool.native.isolate import NAMESPACES, OWN, View

RLIMITS = {
    "output_bytes": resource.RLIMIT_FSIZE,
    "memory_bytes": resource.RLIMIT_DATA,  # what it writes to, not what it reserves: Go and Java reserve a lot
    "cpu_s": resource.RLIMIT_CPU,
    "open_files": resource.RLIMIT_NOFILE,
}
HARD_LATER = {  # at the hard limit of processor time the kernel says SIGKILL, which says nothing; open files are the program's to raise
    resource.RLIMIT_CPU: 1,
    resource.RLIMIT_NOFILE: 1 << 30,
}
TAKEN_BACK = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGCHLD,
)  # Python ignores the first two: a task does not
BUSY_TRIES, BUSY_WAIT_S = (
    50,
    0.01,
)  # ETXTBSY: the node is forking at this moment, and its child still has the program open


class Bare:
    """What stands for a `View` where there are no namespaces: everything is visible, nothing is hidden."""

    def __init__(self, home: Path, name: str) -> None:
        self._work = home / "work"
        self.cwd = ""
        self.tmp, self.own_home = (str(self._work / ".seats" / name / each) for each in OWN)

    def let_in(self, key: str, writes: object) -> None:
        os.chdir(self._work / key / "cwd")

    def let_out(self) -> None:
        os.chdir("/")
        for each in (self.tmp, self.own_home):
            empty(each)

    def open(self, name: str, flags: int) -> int:
        return os.open(self._work / name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class Seat:
    def __init__(self, sock: socket.socket, view: View | Bare) -> None:
        self._sock = sock
        self._view = view
        self._task = 0
        self._cpu_s = 0.0
        self._rss_bytes = 0

    def run(self) -> None:
        """Until the node is gone; then nothing that a task started is left."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _woken)
        rest = b""
        while True:
            ready, _, _ = select.select([self._sock, reader], [], [])
            if reader in ready:
                os.read(reader, 4096)
                self._reap()
            if self._sock in ready:
                data = self._sock.recv(1 << 18)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
        self._end_all()

    def _obey(self, command: dict[str, Any]) -> None:
        if command["do"] == "signal":
            if self._task:
                self._signal_all(command["number"])
            return
        try:
            self._task = self._start(command)
        except OSError as error:
            self._view.let_out()
            _tell(self._sock, refused=error.errno or errno.EIO, why=str(error.strerror or error))
            return
        _tell(self._sock, started=self._task)

    def _start(self, command: dict[str, Any]) -> int:
        self._cpu_s, self._rss_bytes = 0.0, 0
        key = command["key"]
        self._view.let_in(key, command["writes"])
        made = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        fds: list[int] = []
        try:
            if command["stdin"]:
                fds.append(self._view.open(f"{key}/stdin", os.O_RDONLY))
            else:
                fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            fds.append(self._view.open(f"{key}/stdout", made))
            fds.append(self._view.open(f"{key}/stderr", made))
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
            pid = _spawn(command["argv"], command["env"], actions, command["limits"])
        finally:
            for fd in fds:
                os.close(fd)
        return pid

    def _reap(self, options: int = os.WNOHANG) -> None:
        """Collect what has ended: the task itself, and orphans of it that became ours."""
        while True:
            try:
                pid, status, used = os.wait4(-1, options)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._cpu_s += used.ru_utime + used.ru_stime
            self._rss_bytes = max(self._rss_bytes, used.ru_maxrss * 1024)
            if pid == self._task:
                self._task = 0
                self._end_all()
                exited = os.waitstatus_to_exitcode(status)
                _tell(self._sock, exited=exited, cpu_s=self._cpu_s, rss_bytes=self._rss_bytes)
                self._view.let_out()

    def _end_all(self) -> None:
        """Nothing that this seat's tasks started runs when it returns."""
        if os.getpid() == 1:
            self._signal_all(signal.SIGKILL)
            self._reap(0)
            return
        while True:  # without a namespace: what is adopted while we look is found the next time round
            self._signal_all(signal.SIGKILL)
            self._reap()
            if not _children(os.getpid()):
                return
            time.sleep(0.001)

    @staticmethod
    def _signal_all(number: int) -> None:
        """In a namespace the kernel does it in one step, so that no process can fork past it: kill(2), pid -1."""
        if os.getpid() == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, number)
            return
        todo = _children(os.getpid())
        while todo:
            pid = todo.pop()
            todo += _children(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _spawn(argv: list[str], env: dict[str, str], actions: list[tuple[int, int, int]], limits: dict[str, int]) -> int:
    """posix_spawn under resource limits. It cannot set limits in the child, so they are set here, soft, for the moment of the birth, and
    then, hard, on the child itself; its own children born in between (it would have to win that race) could raise theirs again."""
    before: dict[int, tuple[int, int]] = {}
    try:
        for name, value in limits.items():
            kind = RLIMITS[name]
            before[kind] = resource.getrlimit(kind)
            hard = before[kind][1]
            resource.setrlimit(kind, (_at_most(value, hard), hard))
        pid = _born(argv, env, actions)
    finally:
        own = {kind: resource.getrlimit(kind) for kind in before}
        for kind, limit in before.items():
            resource.setrlimit(kind, limit)
    for kind, (soft, hard) in own.items():
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, (soft, _at_most(soft + HARD_LATER.get(kind, 0), hard)))
    return pid


def _at_most(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _born(argv: list[str], env: dict[str, str], actions: list[tuple[int, int, int]]) -> int:
    for _ in range(BUSY_TRIES):
        try:
            return os.posix_spawn(
                argv[0], argv, env, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=TAKEN_BACK
            )
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
            time.sleep(BUSY_WAIT_S)
    raise OSError(errno.ETXTBSY, "somebody keeps the program open for writing")


def _woken(number: int, frame: object) -> None:
    """SIGCHLD only has to write to the wake-up pipe."""


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def sit(sock: socket.socket, home: Path, hide: list[Path], processes: int, why_not: str, ids: tuple[int, int]) -> None:
    """The life of a seat, in a process just forked with `NAMESPACES`, or without if `why_not` is not empty. Its first message is
    {"isolation", "name", "cwd", "tmp", "home"}, or {"failed": why} if the kernel gave the namespaces and then refused what they are for."""
    k.prctl(k.PR_SET_PDEATHSIG, signal.SIGKILL)
    name = os.urandom(6).hex()
    for each in OWN:
        os.makedirs(home / "work" / ".seats" / name / each, mode=0o700)
    if why_not:
        view: View | Bare = Bare(home, name)
        isolation = f"none: {why_not}"
        k.prctl(k.PR_SET_CHILD_SUBREAPER, 1)
        k.keep_capabilities(0)
        k.prctl(k.PR_SET_DUMPABLE, 0)
    else:
        view = View(home, hide, processes)
        try:
            view.enter(name, *ids)
        except OSError as error:
            _tell(sock, failed=error.strerror or str(error))
            return
        isolation = "; lacks ".join(["namespaces", *([", ".join(view.lacks)] if view.lacks else [])])
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        bound = _at_most(processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (bound, bound))  # counted within the namespace
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)
    _tell(sock, isolation=isolation, name=name, cwd=view.cwd, tmp=view.tmp, home=view.own_home)
    Seat(sock, view).run()


def _tell(sock: socket.socket, **event: Any) -> None:
    sock.sendall(json.dumps(event).encode() + b"\n")


__all__ = ["NAMESPACES", "sit"]
