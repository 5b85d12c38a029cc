"""Host directories: complete, and no way out of them."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from nine import ME, Talk

from ipos.tree import beneath
from ipos.tree import local as local_module
from ipos.tree.beneath import open_in, open_walked
from ipos.tree.file import Caller, File
from ipos.tree.local import LocalDir, local
from ipos.tree.ninep.codec import DIRENT
from ipos.tree.ninep.stat import KEEP4, KEEP8, Stat, unpack
from ipos.wire.errors import Refused

KEPT = Stat(local_module.Qid(0xFF, KEEP4, KEEP8), KEEP4, KEEP4, KEEP4, KEEP8, "")


def names(block: bytes) -> list[tuple[str, int]]:
    out, at = [], 0
    while at < len(block):
        *_, offset, _, length = DIRENT.unpack_from(block, at)
        at += DIRENT.size + length
        out.append((block[at - length : at].decode(), offset))
    return out


def test_the_messages_of_linux(tmp_path: Path) -> None:
    async def main() -> None:
        talk = await Talk(local(tmp_path), "9P2000.L.ipos").start()
        ask = talk.ask
        await ask("Tmkdir", 0, "d", 0o755, 0)
        await ask("Twalk", 0, 1, ("d",))
        await ask("Twalk", 1, 2, ())
        assert (await ask("Tlcreate", 2, "f", os.O_RDWR, 0o640, 0))[1] == 65536 - 24
        assert await ask("Twrite", 2, 0, b"hello") == (5,)
        assert await ask("Tread", 2, 1, 100) == (b"ello",)
        assert await ask("Tfsync", 2, 0) == ()
        assert (await ask("Tmknod", 1, "n", 0o666, 1, 3, 0))[:2] == ("Rlerror", errno.EPERM)
        # links
        assert (await ask("Tsymlink", 1, "s", "../../etc/passwd", 0))[0].type == 2
        await ask("Twalk", 1, 3, ("s",))
        assert await ask("Treadlink", 3) == ("../../etc/passwd",)
        assert (await ask("Tlopen", 3, 0))[:2] == ("Rlerror", errno.ELOOP)
        assert (await ask("Twalk", 3, 9, ("x",)))[:2] == ("Rlerror", errno.ENOTDIR)
        assert await ask("Tlink", 1, 2, "hard") == ()
        assert (tmp_path / "d" / "hard").stat().st_nlink == 2
        assert (await ask("Treadlink", 2))[:2] == ("Rlerror", errno.EINVAL)
        # attributes
        assert await ask("Tsetattr", 2, 1 | 8 | 16 | 128 | 32 | 256, 0o600, 0, 0, 3, 10, 11, 20, 21) == ()
        st = (tmp_path / "d" / "f").stat()
        assert (stat.S_IMODE(st.st_mode), st.st_size, st.st_atime_ns, st.st_mtime_ns) == (
            0o600,
            3,
            10 * 10**9 + 11,
            20 * 10**9 + 21,
        )
        assert await ask("Tsetattr", 2, 32, 0, 0, 0, 0, 0, 0, 0, 0) == ()
        st = (tmp_path / "d" / "f").stat()
        assert st.st_atime_ns == 10 * 10**9 + 11
        assert st.st_mtime > 10**9
        assert (await ask("Tsetattr", 2, 8, 0, 0, 0, 1 << 63, 0, 0, 0, 0))[0] == "Rlerror"
        assert (await ask("Tstatfs", 2))[-1] == 255
        # extended attributes
        assert await ask("Twalk", 2, 4, ()) == ((),)
        assert await ask("Txattrcreate", 4, "user.colour", 3, 0) == ()
        assert await ask("Twrite", 4, 0, b"red") == (3,)
        assert await ask("Tclunk", 4) == ()
        assert os.getxattr(tmp_path / "d" / "f", "user.colour") == b"red"
        assert await ask("Txattrwalk", 2, 5, "user.colour") == (3,)
        assert await ask("Tread", 5, 0, 100) == (b"red",)
        assert await ask("Txattrwalk", 2, 6, "") == (12,)
        assert await ask("Tread", 6, 0, 100) == (b"user.colour\0",)
        assert (await ask("Txattrwalk", 2, 7, "user.none"))[:2] == ("Rlerror", errno.ENODATA)
        assert (await ask("Txattrwalk", 2, 7, "security.capability"))[:2] == ("Rlerror", errno.ENODATA)
        # a directory by pieces, with stable offsets
        await ask("Twalk", 1, 8, ())
        await ask("Tlopen", 8, 0)
        seen: list[str] = []
        offset = 0
        while block := (await ask("Treaddir", 8, offset, 60))[0]:
            entries = names(block)
            seen += [name for name, _ in entries]
            offset = entries[-1][1]
        assert seen == [".", "..", "f", "hard", "s"]
        assert names((await ask("Treaddir", 8, 3, 4000))[0]) == [("hard", 4), ("s", 5)]
        assert (await ask("Treaddir", 8, 0, 10))[:2] == ("Rlerror", errno.EINVAL)

    asyncio.run(main())


@pytest.mark.parametrize("by", ["Trename", "Trenameat"])
def test_fids_below_a_renamed_directory_stay_valid(tmp_path: Path, by: str) -> None:
    async def main() -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "to").mkdir()
        (tmp_path / "a" / "b" / "f").write_text("kept")
        talk = await Talk(local(tmp_path)).start()
        ask = talk.ask
        await ask("Twalk", 0, 1, ("a", "b", "f"))
        await ask("Tlopen", 1, os.O_RDWR)
        await ask("Twalk", 0, 2, ("a", "b"))
        await ask("Twalk", 0, 3, ("a",))
        await ask("Twalk", 0, 4, ("to",))
        if by == "Trename":
            assert await ask("Trename", 3, 4, "new") == ()
        else:
            assert await ask("Trenameat", 0, "a", 4, "new") == ()
        assert (tmp_path / "to" / "new" / "b" / "f").read_text() == "kept"
        assert await ask("Tread", 1, 0, 10) == (b"kept",)
        assert await ask("Twrite", 1, 0, b"KEPT") == (4,)
        await ask("Twalk", 2, 5, ("f",))
        assert (await ask("Tgetattr", 5, 0))[7] == 4
        (qids,) = await ask("Twalk", 2, 6, ("..", ".."))
        assert qids[1].path == (await ask("Tgetattr", 4, 0))[1].path
        assert await ask("Tremove", 5) == ()
        assert not (tmp_path / "to" / "new" / "b" / "f").exists()
        assert await ask("Tread", 1, 0, 10) == (b"KEPT",), "a removed file that is open goes on"

    asyncio.run(main())


def test_remove_never_hits_another_file(tmp_path: Path) -> None:
    """The file of a fid was moved behind the session's back, and another has its name: Tremove and Trename refuse."""

    async def main() -> None:
        (tmp_path / "f").write_text("mine")
        talk = await Talk(local(tmp_path)).start()
        for fid in (1, 2):
            await talk.ask("Twalk", 0, fid, ("f",))
        (tmp_path / "f").rename(tmp_path / "g")
        (tmp_path / "f").write_text("somebody else's")
        assert (await talk.ask("Tremove", 1))[:2] == ("Rlerror", errno.ENOENT)
        assert (await talk.ask("Trename", 2, 0, "h"))[:2] == ("Rlerror", errno.ENOENT)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "g"]
        assert (await talk.ask("Tclunk", 1))[:2] == ("Rlerror", errno.EBADF)

    asyncio.run(main())


@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u"])
def test_the_messages_of_plan_9(tmp_path: Path, dialect: str) -> None:
    async def main() -> None:
        u = dialect == "9P2000.u"
        extra = ("",) if u else ()
        for i in range(20):
            (tmp_path / f"n{i:02}").touch()
        talk = await Talk(local(tmp_path), dialect).start()
        ask = talk.ask
        await ask("Twalk", 0, 1, ())
        assert (await ask("Tcreate", 1, "f", 0o640, 2, *extra))[0].type == 0
        assert await ask("Twrite", 1, 0, b"hello") == (5,)
        await ask("Twalk", 0, 2, ())
        assert (await ask("Tcreate", 2, "f", 0o640, 2, *extra))[0] == "Rerror"
        assert (await ask("Tcreate", 2, "d", 1 << 31 | 0o755, 0, *extra))[0].type == 0x80
        got = unpack((await ask("Tstat", 1))[0], u=u)[0]
        assert (got.name, got.length, got.mode) == ("f", 5, 0o640)
        assert unpack((await ask("Tstat", 2))[0], u=u)[0].mode & (1 << 31)
        # wstat: truncate, chmod, rename; all ones is fsync
        assert await ask("Twstat", 1, KEPT.pack(u)) == ()
        assert await ask("Twstat", 1, KEPT._replace(length=2, mode=0o600, name="renamed").pack(u)) == ()
        assert (tmp_path / "renamed").read_text() == "he"
        assert (await ask("Twstat", 1, KEPT._replace(name="n00").pack(u)))[0] == "Rerror"
        assert (await ask("Twstat", 1, KEPT._replace(mode=1 << 31).pack(u)))[0] == "Rerror"
        assert (await ask("Twstat", 1, b"short"))[0] == "Rerror"
        # a directory is read by whole entries, from its start or where the last read ended
        await ask("Twalk", 0, 3, ())
        await ask("Topen", 3, 0)
        offset, seen = 0, list[str]()
        while block := (await ask("Tread", 3, offset, 200))[0]:
            at = 0
            while at < len(block):
                one, at = unpack(block, at, u=u)
                seen.append(one.name)
            assert at == len(block)
            offset += len(block)
        assert seen == sorted(["d", "renamed", *(f"n{i:02}" for i in range(20))])
        assert (await ask("Tread", 3, 7, 200))[0] == "Rerror"
        assert (await ask("Topen", 0, 1))[0] == "Rerror"
        # ORCLOSE, remove, OTRUNC
        await ask("Twalk", 0, 4, ("n01",))
        await ask("Topen", 4, 0x40)
        assert await ask("Tclunk", 4) == ()
        assert not (tmp_path / "n01").exists()
        await ask("Twalk", 0, 5, ("renamed",))
        await ask("Topen", 5, 1 | 0x10)
        assert (tmp_path / "renamed").read_text() == ""
        assert await ask("Tremove", 5) == ()
        assert (await ask("Tcreate", 0, "p", 1 << 21, 0, *extra))[0] == "Rerror"
        if u:
            await ask("Twalk", 0, 6, ())
            assert (await ask("Tcreate", 6, "s", 1 << 25 | 0o777, 0, "n02"))[0].type == 2
            assert unpack((await ask("Tstat", 6))[0], u=True)[0].extension == "n02"

    asyncio.run(main())


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc/passwd", "x\0y", "é" * 128, "\ud800"])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        directory = local(tmp_path)
        (tmp_path / "f").touch()
        for call in (
            lambda: directory.walk(name),
            lambda: directory.create(ME, name, os.O_RDWR, 0o600),
            lambda: directory.mkdir(ME, name, 0o700),
            lambda: directory.remove(ME, name, False),
            lambda: directory.symlink(ME, name, "x"),
            lambda: directory.rename(ME, "f", directory, name),
        ):
            with pytest.raises(Refused):
                await call()
        assert [p.name for p in tmp_path.iterdir()] == ["f"]

    asyncio.run(main())


def openers() -> list[Callable[..., int]]:
    return [open_in, open_walked]


def race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opener: Callable[..., int]) -> int:
    """A thread swaps a directory with a link to outside, and a file too, while files are created and read in it: how often it escaped."""
    monkeypatch.setattr(local_module, "open_in", opener)
    root, outside = tmp_path / "root", tmp_path / "outside"
    for directory in (root / "swap", root / "kept", outside):
        directory.mkdir(parents=True)
    (outside / "secret").write_text("outside")
    (root / "swap" / "secret").write_text("inside")
    (root / "link").symlink_to(outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            os.rename(root / "swap", root / "away")
            os.rename(root / "link", root / "swap")
            os.rename(root / "swap", root / "link")
            os.rename(root / "away", root / "swap")

    async def main() -> int:
        directory, escaped = local(root), 0
        for i in range(300):
            try:
                inner = await directory.walk("swap")
                assert isinstance(inner, File)
                handle = await (await inner.walk("secret")).open(ME, os.O_RDONLY)
                escaped += await handle.read(0, 100) != b"inside"
                await handle.close()
                if isinstance(inner, LocalDir):
                    _, made = await inner.create(ME, f"new{i}", os.O_WRONLY, 0o600)
                    await made.close()
            except Refused:
                continue
        return escaped + len(list(outside.iterdir())) - 1

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        return asyncio.run(main())
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("opener", openers(), ids=["openat2", "walked"])
def test_a_rename_race_does_not_escape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opener: Callable[..., int]
) -> None:
    assert race(tmp_path, monkeypatch, opener) == 0


def test_the_race_checker_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def follows(directory: int, name: str, flags: int, mode: int = 0) -> int:
        return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=directory)

    assert any(race(tmp_path / str(i), monkeypatch, follows) for i in range(40)), "not one of 40 races was lost"


def test_openat2_is_what_is_used() -> None:
    """On a kernel that has it, which every machine of CI runs."""
    assert beneath.HAS_OPENAT2
    assert beneath._open is beneath._open_beneath


def test_the_kernel_refuses_to_leave(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError) as caught:
            os.close(beneath._open_beneath(fd, "../x", os.O_PATH))
        assert caught.value.errno == errno.EXDEV
        for name in ("link/passwd", "link/.."):
            with pytest.raises(OSError) as caught:
                os.close(beneath._open_beneath(fd, name, os.O_PATH))
            assert caught.value.errno in (errno.ELOOP, errno.EXDEV)
    finally:
        os.close(fd)


def test_a_long_directory_holds_no_descriptors(tmp_path: Path) -> None:
    for i in range(3000):
        (tmp_path / f"{i}").touch()

    async def main() -> None:
        handle = await local(tmp_path).open(ME, 0)
        before = len(os.listdir("/proc/self/fd"))
        entries = await handle.entries()
        assert len(entries) == 3000
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        assert (await entries[0][1].attr()).size == 0

    asyncio.run(main())


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def main() -> None:
        file = await local(tmp_path).walk("pipe")
        with pytest.raises(Refused, match="not a regular file"):
            await file.open(Caller("", "", own=True, local=True), os.O_RDONLY)

    asyncio.run(main())
