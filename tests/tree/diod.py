"""Debian's diod, the reference of 9P2000.L: its server, and its clients against ours."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

HINT = "diod is needed here: `make setup` as root installs it (apt-get install diod)"


def program(name: str) -> str:
    """Where one of diod's programs is; a missing one fails the test, it does not skip it."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin")
    assert path is not None, HINT
    return path


def run(*command: str, timeout: float = 60.0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def diod(export: Path) -> Iterator[int]:
    """A diod server of `export` on a loopback port of its own choice; the port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    log = export.parent / "diod.log"
    with log.open("w") as out:
        child = subprocess.Popen(
            [program("diod"), "-f", "-n", "-e", str(export), "-l", f"127.0.0.1:{port}", "-L", str(log)],
            stdout=out,
            stderr=out,
        )
        try:
            deadline = time.monotonic() + 30
            while True:
                assert child.poll() is None, f"diod ended: {log.read_text()}"
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                assert time.monotonic() < deadline, f"diod does not listen: {log.read_text()}"
                time.sleep(0.05)
            yield port
        finally:
            child.terminate()
            child.wait(10)
