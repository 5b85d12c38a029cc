"""Copies: whole or not at all, links as links, bounded, and never out of the directory that was named."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.tree import copy as copy_module
from ipos.tree.copy import PIECE, Copying, each
from ipos.tree.file import SYMLINK, Attr, Caller, Directory, File, Handle
from ipos.tree.local import LocalHandle, local
from ipos.tree.synthetic import Dir, Text, new_qid
from ipos.wire.errors import Refused


def copying(troubles: list[str] | None = None, keep: bool = False) -> Copying:
    told = troubles if troubles is not None else []
    return Copying(lambda _: None, lambda path, error: told.append(f"{path}: {error}"), keep)


async def copy(source: Path, into: Path, name: str = "", recursive: bool = False, keep: bool = False) -> Copying:
    one = copying(keep=keep)
    file = await local(source.parent).walk(source.name)
    await one.copy(file, local(into), name or source.name, recursive)
    return one


def test_there_is_all_of_it(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    (source / "sub" / "empty").mkdir(parents=True)
    target.mkdir()
    body = os.urandom(3 * PIECE + 17)
    (source / "large").write_bytes(body)
    (source / "sub" / "run").write_text("#!/bin/sh\n")
    (source / "sub" / "run").chmod(0o750)
    (source / "sub" / "out").symlink_to("/etc")
    (source / "gone").symlink_to("nowhere")
    os.utime(source / "large", ns=(5, 1_000_000_007))
    (source / "sub").chmod(0o500)
    os.utime(source / "sub", ns=(5, 2_000_000_000))
    done = asyncio.run(copy(source, target, recursive=True))
    assert (done.files, done.directories, done.links, done.bytes) == (2, 3, 2, len(body) + 10)
    copied = target / "s"
    assert (copied / "large").read_bytes() == body
    assert (copied / "large").stat().st_mtime_ns == 1_000_000_007
    assert stat.S_IMODE((copied / "sub" / "run").stat().st_mode) == 0o750
    assert os.readlink(copied / "sub" / "out") == "/etc"
    assert os.readlink(copied / "gone") == "nowhere"
    assert stat.S_IMODE((copied / "sub").stat().st_mode) == 0o500
    assert (copied / "sub").stat().st_mtime_ns == 2_000_000_000
    assert not [name for _, _, names in os.walk(target) for name in names if name.startswith(".ipos-")]
    for directory in (source / "sub", copied / "sub"):
        directory.chmod(0o700)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=6), st.integers(0, 16))
@settings(max_examples=60, deadline=None)
def test_sizes_and_holes(tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bool, int]], tail: int) -> None:
    """Whatever is data and whatever is a hole, with pieces of 16 bytes."""
    root = tmp_path_factory.mktemp("c")
    body = b"".join((b"x" if data else b"\0") * count for data, count in pieces) + b"\0" * tail
    (root / "s").write_bytes(body)
    (root / "t").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copy_module, "PIECE", 16)
        patched.setattr(copy_module, "_ZEROS", bytes(16))
        asyncio.run(copy(root / "s", root / "t"))
    assert (root / "t" / "s").read_bytes() == body


def test_sparse_files_stay_sparse(tmp_path: Path) -> None:
    with open(tmp_path / "s", "wb") as out:
        out.truncate(64 * PIECE)
        out.seek(40 * PIECE)
        out.write(b"middle")
    (tmp_path / "t").mkdir()
    asyncio.run(copy(tmp_path / "s", tmp_path / "t"))
    assert (tmp_path / "t" / "s").stat().st_size == 64 * PIECE
    assert (tmp_path / "t" / "s").stat().st_blocks * 512 <= 2 * PIECE


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("old")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "d").write_text("a file")
    with pytest.raises(Refused, match="-r copies it"):
        asyncio.run(copy(tmp_path / "d", tmp_path / "t"))
    with pytest.raises(Refused, match="not a directory"):
        asyncio.run(copy(tmp_path / "d", tmp_path / "t", recursive=True))
    with pytest.raises(Refused, match="Is a directory"):
        asyncio.run(copy(tmp_path / "f", tmp_path, "d"))
    with pytest.raises(Refused, match="-n replaces nothing"):
        asyncio.run(copy(tmp_path / "f", tmp_path / "t", "d", keep=True))
    assert (tmp_path / "t" / "d").read_text() == "a file"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="not a regular file"):
        asyncio.run(copy(tmp_path / "pipe", tmp_path / "t"))
    assert os.listdir(tmp_path / "t") == ["d"]


def test_into_itself_comes_to_an_end(tmp_path: Path) -> None:
    (tmp_path / "d" / "x").mkdir(parents=True)
    (tmp_path / "d" / "f").write_text("f")
    troubles: list[str] = []

    async def main() -> None:
        one = copying(troubles)
        await one.copy(await local(tmp_path).walk("d"), local(tmp_path / "d"), "copy", recursive=True)

    asyncio.run(main())
    assert troubles == ["copy/copy: copy: a directory cannot be copied into itself"]
    assert (tmp_path / "d" / "copy" / "f").read_text() == "f"


def test_one_that_cannot_be_read_stops_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in "abc":
        (tmp_path / "d" / name).write_text(name)
    os.mkfifo(tmp_path / "d" / "pipe")
    Path(os.fsdecode(os.fsencode(tmp_path / "d") + b"/\xff")).write_text("not UTF-8")
    (tmp_path / "t").mkdir()
    troubles: list[str] = []

    async def main() -> None:
        await copying(troubles).copy(await local(tmp_path).walk("d"), local(tmp_path / "t"), "d", recursive=True)

    asyncio.run(main())
    assert sorted(os.listdir(tmp_path / "t" / "d")) == ["a", "b", "c"]
    assert any("pipe: not a regular file" in one for one in troubles)
    assert any("names in the tree are UTF-8" in one for one in troubles)


class _Moving(File):
    """Another content at each look."""

    def __init__(self, settles_after: int) -> None:
        self.qid = new_qid()
        self.looks = 0
        self._settles_after = settles_after

    async def attr(self) -> Attr:
        self.looks += 1
        return Attr(stat.S_IFREG | 0o644, 4, mtime_ns=min(self.looks, self._settles_after))

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _Four()


class _Four(Handle):
    async def read(self, offset: int, count: int) -> bytes:
        return b"four"[offset : offset + count]


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    asyncio.run(copying().copy(_Moving(2), local(tmp_path), "f"))
    assert (tmp_path / "f").read_text() == "four"
    (tmp_path / "f").write_text("old")
    with pytest.raises(Refused, match="changed while it was copied"):
        asyncio.run(copying().copy(_Moving(99), local(tmp_path), "f"))
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.mkdir()
    target.mkdir()
    for i in range(20):
        (source / f"{i:02}").write_bytes(b"new" * PIECE)
    (target / "s").mkdir()
    (target / "s" / "07").write_text("old")
    write = LocalHandle.write

    async def full(self: LocalHandle, offset: int, data: bytes) -> int:
        if offset >= PIECE:
            raise Refused("write: No space left on device", errno.ENOSPC)
        return await write(self, offset, data)

    monkeypatch.setattr(LocalHandle, "write", full)
    with pytest.raises(Refused, match="No space left"):
        asyncio.run(copy(source, target, recursive=True))
    assert (target / "s" / "07").read_text() == "old"
    assert os.listdir(target / "s") == ["07"], "and no temporary file is left"


class _Hostile(Directory):
    """Lists a link and a directory of one name, and names that are no names."""

    def __init__(self, out: Path) -> None:
        self.qid = local(out).qid
        self._entries: list[tuple[str, File]] = [
            ("a", _Link(str(out))), ("a", Dir({"evil": Text(lambda: "evil")})), ("../evil", Text(lambda: "evil")),
            ("..", Dir({"evil": Text(lambda: "evil")})), ("", Text(lambda: "evil")), ("good", Text(lambda: "good")),
        ]  # fmt: skip

    async def attr(self) -> Attr:
        return Attr(stat.S_IFDIR | 0o755)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _Entries(self._entries)


class _Entries(Handle):
    def __init__(self, entries: Sequence[tuple[str, File]]) -> None:
        self._entries = entries

    async def entries(self) -> Sequence[tuple[str, File]]:
        return self._entries


class _Link(File):
    def __init__(self, target: str) -> None:
        self.qid = new_qid(SYMLINK)
        self._target = target

    async def readlink(self) -> str:
        return self._target


def test_a_hostile_server_writes_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "t").mkdir()
    troubles: list[str] = []
    asyncio.run(copying(troubles).copy(_Hostile(tmp_path / "out"), local(tmp_path / "t"), "d", recursive=True))
    assert os.listdir(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path)) == ["out", "t"]
    assert (tmp_path / "t" / "d" / "good").read_text() == "good"
    assert len(troubles) >= 4


def test_a_control_file_is_written_in_place(tmp_path: Path) -> None:
    said: list[str] = []
    root = Dir({"ctl": Text(None, lambda caller, line: said.append(line))})
    (tmp_path / "f").write_text("one\ntwo\n")

    async def main() -> None:
        await copying().copy(await local(tmp_path).walk("f"), root, "ctl")

    asyncio.run(main())
    assert said == ["one", "two"]
    with pytest.raises(Refused, match="files cannot be made here"):
        asyncio.run(copying().copy(_Moving(1), root, "other"))


def test_interrupted(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")

    class _Slow(_Moving):
        async def open(self, caller: Caller, flags: int) -> Handle:
            return _Waits()

    class _Waits(Handle):
        async def read(self, offset: int, count: int) -> bytes:
            await asyncio.Event().wait()
            return b""

    async def main() -> None:
        task = asyncio.create_task(copying().copy(_Slow(1), local(tmp_path), "f"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(os.listdir(tmp_path)) == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_each_is_bounded_and_ends_at_the_first_error() -> None:
    now = most = 0

    async def work(i: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await asyncio.sleep(0)
            if i == 50:
                raise Refused("fifty")
        finally:
            now -= 1

    asyncio.run(each(range(40), work, 7))
    assert most == 7
    with pytest.raises(Refused, match="fifty"):
        asyncio.run(each(range(10**9), work, 7))
    assert now == 0
