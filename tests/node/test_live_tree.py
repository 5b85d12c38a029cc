"""docs/tree.md is the tree of a real node: what is served has a row, what has a row is served, and it can be read and written as the row says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import wasmtime
from tree_rows import DOCUMENT, Row, any_below, differences, row_of, rows

from ipos.node.home import Home
from ipos.tree.ninep.client import Client, connect_unix

IPOS = Path(sys.executable).with_name("ipos")
SPIN = """(module (memory (export "memory") 1) (func (export "_start") (local $i i64)
  (loop $spin (br_if $spin (i64.ne (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const -1))))))"""
Live = dict[tuple[str, ...], int | None]


async def walk(client: Client, listed: list[Row], names: tuple[str, ...] = ()) -> Live:
    """Everything below; of what has a row that ends in `...` only if some of it has rows of its own."""
    live: Live = {}
    for entry in await client.ls("/" + "/".join(names)):
        here = (*names, entry.name)
        live[here] = None if entry.directory else (await client.stat("/" + "/".join(here))).mode
        row = row_of(listed, here)
        if entry.directory and (row is None or not row.below or any_below(listed, here)):
            live |= await walk(client, listed, here)
    return live


class Nodes:
    """Homes below a short directory."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(scratch / "run")}

    def ipos(self, home: str, *arguments: str) -> str:
        environment = {**self.environment, "IPOS_HOME": str(self.scratch / home)}
        done = subprocess.run(
            [str(IPOS), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def two() -> Iterator[Nodes]:
    """Two nodes, one pool, and a friend who was granted something on the first."""
    with tempfile.TemporaryDirectory(prefix="ipt") as directory:
        nodes = Nodes(Path(directory))
        (nodes.scratch / "run").mkdir(mode=0o700)
        try:
            for name in ("one", "two", "friend"):
                nodes.ipos(name, "up", "--name", name, "--listen", "local", "--cores", "2")
            nodes.ipos("two", "join", nodes.ipos("one", "invite", "--yes").split()[-1], "--yes")
            nodes.ipos("friend", "join", nodes.ipos("one", "invite", "--as", "friend", "--yes").split()[-1], "--yes")
            nodes.ipos("one", "friends", "grant", "friend", "--yes")
            yield nodes
        finally:
            for name in ("one", "two", "friend"):
                nodes.ipos(name, "down")


def until(what: str, nodes: Nodes, count: int) -> None:
    deadline = time.monotonic() + 40
    while nodes.ipos("one", "ps").count(what) < count:
        assert time.monotonic() < deadline, f"not {count} {what} processes"
        time.sleep(0.1)


@pytest.mark.real
def test_the_tree_of_a_node_is_the_one_that_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = rows(DOCUMENT.read_text())
    with two() as nodes:
        (nodes.scratch / "spin.wasm").write_bytes(bytes(wasmtime.wat2wasm(SPIN)))
        (nodes.scratch / "wait.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(600)\n")
        (nodes.scratch / "hello.py").write_text("print('hello')\n")
        nodes.ipos("one", "run", str(nodes.scratch / "hello.py"))
        nodes.ipos("one", "run", "--detach", "--nodes", "one", str(nodes.scratch / "wait.py"))
        nodes.ipos("one", "run", "--detach", "--wasm", "--nodes", "one", str(nodes.scratch / "spin.wasm"))
        nodes.ipos("one", "add", str(nodes.scratch / "hello.py"))
        until(" busy ", nodes, 2)
        monkeypatch.setenv("XDG_RUNTIME_DIR", nodes.environment["XDG_RUNTIME_DIR"])

        async def look() -> Live:
            client = await connect_unix(Home(nodes.scratch / "one").socket)
            (nodes.scratch / "shown").mkdir()
            try:
                await client.create("/srv/hi")
                await client.write("/disk/ctl", f"add shown {nodes.scratch}/shown".encode())
                return await walk(client, listed)
            finally:
                client.close()

        live = asyncio.run(look())
    assert len({names[1] for names in live if names[:1] == ("job",) and len(names) == 4}) == 3, "three jobs were walked"
    assert differences(listed, live) == []


TABLE = """
| file | read | write | errors |
|---|---|---|---|
| `/job/clone` | a number | a job | |
| `/job/<n>/ctl` | - | `cancel` | |
| `/job/<n>/{status,why}` | lines | - | |
| `/home/...` | files | the same | |
"""
LIVE: Live = {
    ("job",): None, ("job", "clone"): 0o666, ("job", "1"): None, ("job", "1", "ctl"): 0o222, ("job", "1", "status"): 0o444,
    ("job", "1", "why"): 0o444, ("home",): None,
}  # fmt: skip


def test_a_table_that_says_what_is_there_is_right() -> None:
    assert differences(rows(TABLE), LIVE) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({("job", "1", "new"): 0o444}, "/job/1/new is served and docs/tree.md has no row for it"),
        ({("job", "1", "status"): 0o666}, "/job/1/status can be written, docs/tree.md says otherwise"),
        ({("job", "1", "ctl"): 0o666}, "/job/1/ctl can be read, docs/tree.md says otherwise"),
        ({("job", "clone"): 0o444}, "/job/clone cannot be written, docs/tree.md says otherwise"),
        ({("job", "1", "why"): ...}, "docs/tree.md has a row for /job/<n>/why, and no node here serves it"),
        ({("home",): ...}, "docs/tree.md has a row for /home/..., and no node here serves it"),
    ],
)
def test_each_difference_is_seen(change: dict[tuple[str, ...], int], sentence: str) -> None:
    """Planted: a file without a row, wrong permissions, rows without a file."""
    live = {names: mode for names, mode in {**LIVE, **change}.items() if mode is not ...}
    assert differences(rows(TABLE), live) == [sentence]
