"""What is wrong with the world rather than with the bytes: a full disk, one that cannot be written, another process that swaps what we serve."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nine import Talk

from ipos.tree import local as local_module
from ipos.tree.local import local
from ipos.tree.synthetic import Dir, Events
from ipos.wire import limits

# Runs in a mount namespace of its own; argument: a directory.
DISKS = """
import asyncio, gc, os, subprocess, sys
sys.path.insert(0, sys.argv[2])
from nine import Talk
from ipos.tree.local import local

where = sys.argv[1]
gc.disable()  # what was removed is given back to the disk at once, not at the next collection
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=50", "none", where], check=True)

async def full():
    talk = await Talk(local(where), "9P2000.L").start()
    await talk.ask("Twalk", 0, 1, ())
    await talk.ask("Tlcreate", 1, "f", os.O_RDWR, 0o600, 0)
    at, answers = 0, []
    for _ in range(100):
        answers.append(await talk.ask("Twrite", 1, at, b"x" * 30_000))
        if answers[-1][0] == "Rlerror":
            break
        at += answers[-1][0]
    print("full", answers[-1], at == os.stat(where + "/f").st_size, at > 900_000)
    print("overwritten", await talk.ask("Twrite", 1, 0, b"y" * 1000))
    print("made", [await talk.ask("Tmkdir", 0, "d" * 200 + str(i), 0o700, 0) for i in range(60)][-1])
    await talk.ask("Tunlinkat", 0, "f", 0)
    await talk.ask("Tclunk", 1)
    await talk.ask("Twalk", 0, 2, ())
    await talk.ask("Tlcreate", 2, "g", os.O_RDWR, 0o600, 0)
    print("freed", await talk.ask("Twrite", 2, 0, b"z" * 1000))
    await talk.ask("Tclunk", 2)
    talk.session.reset()

async def read_only():
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)
    talk = await Talk(local(where), "9P2000.L").start()
    await talk.ask("Twalk", 0, 1, ("g",))
    await talk.ask("Twalk", 0, 2, ())
    for name, *values in (
        ("Tlopen", 1, os.O_RDWR), ("Tlcreate", 2, "n", os.O_RDWR, 0o600, 0), ("Tmkdir", 0, "n", 0o700, 0), ("Tsymlink", 0, "n", "t", 0),
        ("Tlink", 0, 1, "n"), ("Tunlinkat", 0, "g", 0), ("Trenameat", 0, "g", 0, "h"), ("Trename", 1, 0, "h"),
        ("Tsetattr", 1, 1, 0o777, 0, 0, 0, 0, 0, 0, 0), ("Tsetattr", 1, 8, 0, 0, 0, 5, 0, 0, 0, 0), ("Tsetattr", 1, 32, 0, 0, 0, 0, 0, 0, 0, 0),
    ):
        print("read-only", name, await talk.ask(name, *values))
    print("opened", (await talk.ask("Tlopen", 1, os.O_RDONLY))[0].type, bytes((await talk.ask("Tread", 1, 0, 4))[0]))
    await talk.ask("Tremove", 1)
    print("there", os.path.exists(where + "/g"))
    talk.session.reset()

asyncio.run(full())
asyncio.run(read_only())
"""


@pytest.mark.real
def test_full_and_read_only_disks(tmp_path: Path) -> None:
    command = [
        "unshare",
        "--mount",
        "--map-root-user",
        sys.executable,
        "-c",
        DISKS,
        str(tmp_path),
        str(Path(__file__).parent),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    read_only = [line for line in said if line.startswith("read-only")]
    assert [line for line in said if line not in read_only] == [
        f"full ('Rlerror', {errno.ENOSPC}) True True",
        "overwritten (1000,)",
        f"made ('Rlerror', {errno.ENOSPC})",
        "freed (1000,)",
        "opened 0 b'zzzz'",
        "there True",
    ]
    assert len(read_only) == 11
    assert all(line.endswith(f"('Rlerror', {errno.EROFS})") for line in read_only), read_only


SWAP = """
import os, sys
os.chdir(sys.argv[1])
print("ready", flush=True)
while True:
    for old, new in (("swap", "away"), ("link", "swap"), ("swap", "link"), ("away", "swap")):
        os.rename(old, new)
    os.rename("kept/f", "kept/g"); os.symlink("../../outside/secret", "kept/f"); os.unlink("kept/f"); os.rename("kept/g", "kept/f")
"""


def swapped(tmp_path: Path, rounds: int) -> tuple[int, int]:
    """Requests while another process swaps directories and files with links to outside: (how often one got out, how many were answered)."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for directory in (root / "swap", root / "kept", outside):
        directory.mkdir(parents=True)
    (outside / "secret").write_text("outside")
    (root / "swap" / "secret").write_text("inside")
    (root / "kept" / "f").write_text("inside")
    (root / "link").symlink_to(outside)
    before = outside.stat().st_mtime_ns, (outside / "secret").stat().st_ctime_ns

    async def main() -> tuple[int, int]:
        talk = await Talk(local(root), "9P2000.L").start()
        out = answered = 0

        async def ask(name: str, *values: Any) -> tuple[Any, ...]:
            nonlocal answered
            answer = await talk.ask(name, *values)
            answered += answer[:1] != ("Rlerror",)
            return answer

        for i in range(rounds):
            for path in (("swap", "secret"), ("kept", "f"), ("link", "secret")):
                if len((await ask("Twalk", 0, 1, path))[0]) == 2:
                    if (await ask("Tlopen", 1, os.O_RDWR | os.O_TRUNC * (path[0] == "link")))[0] != "Rlerror":
                        out += b"out" in bytes((await ask("Tread", 1, 0, 10))[0])
                    await ask("Tclunk", 1)
            if (await ask("Twalk", 0, 2, ("swap",)))[0] != "Rlerror":
                await ask("Tmkdir", 2, f"d{i}", 0o700, 0)
                await ask("Tunlinkat", 2, "nothing", 0)
                await ask("Tlcreate", 2, f"n{i}", os.O_WRONLY, 0o600, 0)
                await ask("Tclunk", 2)
        talk.session.reset()
        return out, answered

    with subprocess.Popen([sys.executable, "-c", SWAP, str(root)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            out, answered = asyncio.run(main())
        finally:
            other.kill()
    touched = (outside.stat().st_mtime_ns, (outside / "secret").stat().st_ctime_ns) != before
    return out + touched + len(list(outside.iterdir())) - 1, answered


def test_another_process_swaps_what_is_served(tmp_path: Path) -> None:
    out, answered = swapped(tmp_path, 200)
    assert out == 0
    assert answered > 400, "nothing was served meanwhile"


def test_the_swapping_can_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def follows(directory: int, name: str, flags: int, mode: int = 0) -> int:
        return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=directory)

    monkeypatch.setattr(local_module, "open_in", follows)
    assert any(swapped(tmp_path / str(i), 100)[0] for i in range(20)), "not one of 20 races was lost"


@pytest.mark.parametrize("dialect", ["9P2000.L", "9P2000", "9P2000.u"])
def test_names_and_walks_at_their_limits(tmp_path: Path, dialect: str) -> None:
    async def main() -> None:
        (tmp_path / "out").write_text("outside")
        deep = Path(tmp_path, "root", *["d"] * (limits.walk_names + 1))
        deep.mkdir(parents=True)
        talk = await Talk(local(tmp_path / "root"), dialect).start()
        ask, failed = talk.ask, ("Rlerror", "Rerror")

        def create(name: str) -> tuple[Any, ...]:
            if dialect == "9P2000.L":
                return ("Tlcreate", 1, name, os.O_RDWR, 0o600, 0)
            return ("Tcreate", 1, name, 0o600, 2, *([""] if dialect == "9P2000.u" else []))

        assert len((await ask("Twalk", 0, 1, ("..",) * limits.walk_names))[0]) == limits.walk_names
        assert (await ask("Twalk", 1, 2, ("out",)))[0] in failed  # `..` of the root is the root
        assert (await ask("Twalk", 0, 2, ("d",) * (limits.walk_names + 1)))[0] in failed
        assert len((await ask("Twalk", 0, 3, ("d",) * limits.walk_names))[0]) == limits.walk_names
        for name in ("", ".", "..", "a/b", "/out", "../out", "x\0y", "n" * (limits.name_bytes + 1), "é" * 128):
            assert (await ask(*create(name)))[0] in failed, name
            if name not in (".", ".."):
                assert (await ask("Twalk", 0, 4, (name,)))[0] in failed, name
        assert (await ask(*create("n" * limits.name_bytes)))[0] not in failed
        names = {path.name for path in (tmp_path / "root").iterdir()}
        assert names == {"d", "n" * limits.name_bytes}
        assert {path.name for path in tmp_path.iterdir()} == {"root", "out"}
        talk.session.reset()

    asyncio.run(main())


def test_links_attributes_locks_and_offsets_at_their_limits(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "f").write_text("text")
        talk = await Talk(local(tmp_path), "9P2000.L").start()
        ask = talk.ask
        assert await ask("Tsymlink", 0, "l", "t" * (limits.symlink_bytes + 1), 0) == ("Rlerror", errno.EINVAL)
        assert (await ask("Tsymlink", 0, "l", "t" * limits.symlink_bytes, 0))[0].type == 2
        await ask("Twalk", 0, 1, ("f",))
        assert await ask("Txattrcreate", 1, "user.x", limits.xattr_bytes + 1, 0) == ("Rlerror", errno.E2BIG)
        assert (await ask("Tlopen", 1, os.O_RDWR))[0].type == 0
        assert await ask("Tread", 1, limits.file_offset + 1, 10) == (b"",)
        assert await ask("Twrite", 1, limits.file_offset - 3, b"text") == ("Rlerror", errno.EFBIG)
        assert await ask("Twrite", 1, (1 << 64) - 1, b"text") == ("Rlerror", errno.EFBIG)
        for i in range(limits.locks_per_file):
            assert await ask("Tlock", 1, 1, 0, 2 * i, 1, 1, "me") == (0,)
        assert await ask("Tlock", 1, 1, 0, 2 * limits.locks_per_file, 1, 1, "me") == ("Rlerror", errno.ENOLCK)
        talk.session.reset()

    asyncio.run(main())


def test_bytes_in_flight_at_their_limit() -> None:
    """Reads that wait hold no more answers than that; the next request waits outside."""

    async def main() -> None:
        talk = await Talk(Dir({"e": Events()})).start(msize=limits.msize_bytes)
        for fid in range(1, 20):
            await talk.ask("Twalk", 0, fid, ("e",))
            await talk.ask("Tlopen", fid, 0)
        held = 0
        while not talk.session.full:
            held += 1
            talk.send(100 + held, "Tread", held, 0, limits.MiB)
        assert held == limits.bytes_in_flight // limits.MiB
        talk.session.reset()

    asyncio.run(main())
