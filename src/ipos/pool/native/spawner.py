"""ipos-worker: the warm parent of native tasks. One small process without threads, from which seats (seat.py) are forked.

Started by the node as `python -I -m ipos.pool.native.spawner FD HOME PROCESSES NICE HIDE...`. FD is a SOCK_SEQPACKET socket. One message asks
for a seat: {"bare": why} ("" = with namespaces) and the seat's end of a socket as SCM_RIGHTS; the answer is {"seat": pid} or
{"failed": why}. It ends when the node does, and with it every seat and everything in them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from ipos.pool.native import kernel as k
from ipos.pool.native.seat import NAMESPACES, sit


def main() -> None:
    fd, home, processes, nice, *hide = sys.argv[1:]
    k.set_title("ipos-worker")
    control = socket.socket(fileno=int(fd))
    control.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # seats that end need no funeral
    with contextlib.suppress(OSError):
        os.nice(int(nice))
    with contextlib.suppress(OSError):  # one scheduling group for all tasks: nice counts only within one, sched(7)
        Path("/proc/self/autogroup").write_text(nice)
    ids = os.getuid(), os.getgid()
    gc.collect()
    gc.freeze()
    while True:
        message, fds, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            return
        why_not = json.loads(message)["bare"]
        sock = socket.socket(fileno=fds[0])
        try:
            pid = k.fork(0 if why_not else NAMESPACES)
        except OSError as error:
            control.send(json.dumps({"failed": error.strerror or str(error)}).encode())
        else:
            if pid == 0:
                control.close()
                _seat(partial(sit, sock, Path(home), [Path(path) for path in hide], int(processes), why_not, ids))
            control.send(json.dumps({"seat": pid}).encode())
        sock.close()


def _seat(life: Callable[[], None]) -> NoReturn:
    """A seat never comes back into the spawner's loop."""
    try:
        life()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
