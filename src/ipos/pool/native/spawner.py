"""ipos-worker: the warm parent of native tasks. A small process without threads; forking it costs little, and it holds no secret.

Started by the node as `python -I -m ipos.pool.native.spawner FD HOME HIDDEN...`; FD is a socket that carries JSON lines both ways. It ends
when the socket does, and everything it started with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ipos.vm.sandbox.linux import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from ipos.vm.sandbox.namespace import drop_privileges, isolate

SHOWN = ("work", "env")
RLIMITS = {"fsize": resource.RLIMIT_FSIZE, "as": resource.RLIMIT_AS, "core": resource.RLIMIT_CORE}


def woken(number: int, frame: object) -> None:
    """SIGCHLD only has to end a select."""


def children(pid: int) -> list[int]:
    """Of its main thread; none of a process that has ended."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def below(pids: list[int]) -> list[int]:
    """These processes and all that come of them, parents first."""
    found = list(pids)
    for one in found:
        found += children(one)
    return found


class Spawner:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.keys: dict[int, str] = {}
        self.pids: dict[str, int] = {}
        self.parked: dict[str, tuple[int, int]] = {}

    def say(self, **event: Any) -> None:
        self.sock.sendall(json.dumps(event).encode() + b"\n")

    def obey(self, command: dict[str, Any]) -> None:
        key = command["key"]
        match command["op"]:
            case "park":
                self.park(command)
            case "start":
                self.start(command)
            case "unpark":
                self.unpark(key)
            case "pause":
                self.signal(key, signal.SIGSTOP)
            case "resume":
                self.signal(key, signal.SIGCONT)
            case "stop":
                self.signal(key, signal.SIGTERM)
            case "kill":
                self.signal(key, signal.SIGKILL)
            case _:
                self.say(event="failed", key=key, why=f"unknown command {command['op']}")

    def signal(self, key: str, number: int) -> None:
        pid = self.pids.get(key)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        if number in (
            signal.SIGSTOP,
            signal.SIGCONT,
        ):  # what left the group: a killed one is swept when the task has ended
            for one in below([pid, *self.strays(key)]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, number)

    def park(self, command: dict[str, Any]) -> None:
        """Fork the task's process up to its exec, where it waits for `start`: half of what a start costs is over when its turn comes."""
        go_reader, go_writer = os.pipe2(os.O_CLOEXEC)
        why_reader, why_writer = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                become(command, parent, go_reader)
            except BaseException as error:
                os.write(why_writer, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(127)
        os.close(go_reader)
        os.close(why_writer)
        self.keys[pid], self.pids[command["key"]] = command["key"], pid
        self.parked[command["key"]] = go_writer, why_reader

    def start(self, command: dict[str, Any]) -> None:
        key = command["key"]
        if key not in self.parked:
            self.park(command)
        go_writer, why_reader = self.parked.pop(key)
        with contextlib.suppress(BrokenPipeError):  # it failed before its turn; `why` says how
            os.write(go_writer, b"g")
        os.close(go_writer)
        why = os.read(why_reader, 4096).decode(errors="replace")  # empty: exec closed it
        os.close(why_reader)
        pid = self.pids[key]
        if why:
            os.waitpid(pid, 0)
            del self.keys[pid], self.pids[key]
            self.say(event="failed", key=key, why=why)
            return
        self.say(event="started", key=key, pid=pid)

    def unpark(self, key: str) -> None:
        """Its turn will not come: closing its pipe ends it."""
        for fd in self.parked.pop(key, ()):
            os.close(fd)

    def reap(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            key = self.keys.pop(pid, None)
            if key is None:
                continue  # an orphan that a task left and that has ended
            if self.pids.get(key) == pid:
                del self.pids[key]
            if key in self.parked:  # it could not become the task; `start` tries again and has the reason
                self.unpark(key)
                continue
            self.sweep(pid, key)
            code = os.waitstatus_to_exitcode(status)
            self.say(event="exited", key=key, code=code, cpu_s=used.ru_utime + used.ru_stime, rss=used.ru_maxrss * 1024)

    def sweep(self, group: int, key: str) -> None:
        """End what the task left running: its process group, and what of it we have adopted since it made itself a daemon."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        for child in self.strays(key):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def strays(self, key: str) -> list[int]:
        """Processes of the task that we have adopted."""
        mark = f"IPOS_TASK={key}".encode()
        found: list[int] = []
        for child in children(os.getpid()):
            with contextlib.suppress(OSError):
                if child not in self.keys and mark in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    found.append(child)
        return found

    def run(self) -> None:
        wake_reader, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_writer)
        signal.signal(signal.SIGCHLD, woken)
        rest = b""
        while True:
            ready, _, _ = select.select([self.sock, wake_reader], [], [])
            if wake_reader in ready:
                os.read(wake_reader, 4096)
            self.reap()
            if self.sock in ready:
                data = self.sock.recv(1 << 20)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line))
                self.reap()


def become(command: dict[str, Any], parent: int, go: int) -> None:
    """In the child: turn into the task when told to."""
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(127)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    stdin = os.open(command["stdin"] or os.devnull, os.O_RDONLY)
    made = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    files = (stdin, os.open(command["stdout"], made, 0o600), os.open(command["stderr"], made, 0o600))
    for number, fd in enumerate(files):
        os.dup2(fd, number)
    os.chdir(command["cwd"])
    os.nice(5)
    if not os.read(go, 1):
        os._exit(127)
    for name, value in command["rlimits"].items():
        resource.setrlimit(RLIMITS[name], (value, value))
    os.execve(command["argv"][0], command["argv"], command["env"])


def main() -> None:
    fd, home, *hidden = sys.argv[1:]
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spawner = Spawner(socket.socket(fileno=int(fd)))
    spawner.sock.set_inheritable(False)
    why_not = isolate(Path(home), SHOWN, tuple(Path(path) for path in hidden))
    drop_privileges()
    spawner.say(event="ready", isolation=why_not)
    spawner.run()


if __name__ == "__main__":
    main()
