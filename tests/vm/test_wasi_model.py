"""The WASI in C against the one in Python: by hypothesis, by the thousand random calls, and with bugs planted."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ipos.vm.wasi import boot

from . import wasi_native
from .wasi_fuzz import fuzz, fuzz_task
from .wasi_pair import Pair

ALL = (1 << 30) - 1
PATHS = st.lists(
    st.sampled_from(["a", "b", "in", "big", "up", "dir", "e1", "e2", "..", "."]), min_size=1, max_size=3
).map("/".join)
OFFSETS = st.integers(0, 200_000) | st.sampled_from([65_535, 65_536, 65_537, 1 << 28, (1 << 40) - 2])
CONTENT = st.binary(max_size=64) | st.integers(1, 140_000).map(lambda n: bytes(i % 251 for i in range(n)))


class Files(RuleBasedStateMachine):
    """What programs do with files. A counterexample comes out as the shortest list of calls."""

    @initialize(lacks=st.booleans())
    def start(self, lacks: bool) -> None:
        task, files = fuzz_task(boot.Limits(overlay_bytes=64 << 20))
        self.pair = Pair(task, files, lacks_blocks=lacks)

    def path(self, path: str, at: int = 0) -> tuple[int, int]:
        self.pair.poke(at, path.encode())
        return at, len(path.encode())

    def vector(self, length: int) -> tuple[int, int]:
        self.pair.poke(1000, struct.pack("<II", 2000, length))
        return 1000, 1

    def fd(self, choice: int) -> int:
        fds = sorted(self.pair.reference.fds)
        return fds[choice % len(fds)]

    FDS = st.integers(0, 30)

    @rule(
        fd=st.just(3) | FDS,
        path=PATHS,
        how=st.integers(0, 15),
        follow=st.integers(0, 1),
        flags=st.sampled_from([0, 0, 1]),
    )
    def open(self, fd: int, path: str, how: int, follow: int, flags: int) -> None:
        rights = ALL if not how & 2 else ALL & ~64
        self.pair("path_open", self.fd(fd), follow, *self.path(path), how, rights, ALL, flags, 900)

    @rule(fd=FDS)
    def close(self, fd: int) -> None:
        if self.fd(fd) > 3:
            self.pair("fd_close", self.fd(fd))

    @rule(fd=FDS, content=CONTENT, offset=st.none() | OFFSETS)
    def write(self, fd: int, content: bytes, offset: int | None) -> None:
        self.pair.poke(2000, content)
        content = content[: 131_072 - 2000]
        if offset is None:
            self.pair("fd_write", self.fd(fd), *self.vector(len(content)), 900)
        else:
            self.pair("fd_pwrite", self.fd(fd), *self.vector(len(content)), offset, 900)

    @rule(fd=FDS, length=st.integers(0, 129_000), offset=st.none() | OFFSETS)
    def read(self, fd: int, length: int, offset: int | None) -> None:
        if offset is None:
            self.pair("fd_read", self.fd(fd), *self.vector(length), 900)
        else:
            self.pair("fd_pread", self.fd(fd), *self.vector(length), offset, 900)

    @rule(fd=FDS, size=OFFSETS)
    def resize(self, fd: int, size: int) -> None:
        self.pair("fd_filestat_set_size", self.fd(fd), size)

    @rule(fd=FDS, to=OFFSETS, whence=st.integers(0, 2))
    def seek(self, fd: int, to: int, whence: int) -> None:
        self.pair("fd_seek", self.fd(fd), to, whence, 900)

    @rule(fd=FDS, to=FDS)
    def renumber(self, fd: int, to: int) -> None:
        if self.fd(fd) > 3 and self.fd(to) > 3:
            self.pair("fd_renumber", self.fd(fd), self.fd(to))

    @rule(
        fd=st.just(3) | FDS,
        path=PATHS,
        name=st.sampled_from(["path_create_directory", "path_remove_directory", "path_unlink_file"]),
    )
    def change(self, fd: int, path: str, name: str) -> None:
        self.pair(name, self.fd(fd), *self.path(path))

    @rule(
        fd=st.just(3) | FDS,
        path=PATHS,
        fd2=st.just(3) | FDS,
        path2=PATHS,
        name=st.sampled_from(["path_rename", "path_link"]),
    )
    def move(self, fd: int, path: str, fd2: int, path2: str, name: str) -> None:
        lookup = (0,) if name == "path_link" else ()
        self.pair(name, self.fd(fd), *lookup, *self.path(path), self.fd(fd2), *self.path(path2, 100))

    @rule(to=PATHS, path=PATHS)
    def symlink(self, to: str, path: str) -> None:
        self.pair("path_symlink", *self.path(to), 3, *self.path(path, 100))

    @rule(fd=st.just(3) | FDS, path=PATHS)
    def stat(self, fd: int, path: str) -> None:
        self.pair("path_filestat_get", self.fd(fd), 0, *self.path(path), 2000)

    @rule(fd=st.just(3) | FDS, cookie=st.integers(0, 9), room=st.integers(0, 300))
    def readdir(self, fd: int, cookie: int, room: int) -> None:
        self.pair("fd_readdir", self.fd(fd), 2000, room, cookie, 900)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.native.close()

    @invariant()
    def ends_equal(self) -> None:
        if hasattr(self, "pair"):
            self.pair.check_end()


TestFiles = Files.TestCase
TestFiles.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


@pytest.mark.slow
def test_files_for_longer() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Files, settings=settings(max_examples=500, stateful_step_count=60, deadline=None))


@pytest.mark.parametrize("seed", range(6))
def test_random_calls(seed: int) -> None:
    fuzz(seed, 800)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 600, 100))
def test_many_random_calls(first: int) -> None:
    for seed in range(first, first + 100):
        fuzz(seed, 5000)


ASAN = """
import sys
from .wasi_fuzz import fuzz
for seed in range(int(sys.argv[1]), int(sys.argv[2])): fuzz(seed, 3000)
"""


@pytest.mark.slow
@pytest.mark.skipif(not wasi_native.have_address_sanitizer(), reason="needs gcc and Linux")
def test_random_calls_under_the_address_sanitizer() -> None:
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "IPOS_TEST_ASAN": "1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    subprocess.run([sys.executable, "-c", ASAN, "5000", "5060"], env=environment, check=True)


PLANTED = [
    ("contents.c", "if (size < file->input_size) file->input_size = size;", ""),
    ("contents.c", "memset(page + within, 0, PAGE_BYTES - within);", ""),
    ("contents.c", "if (held < length) program_fill(to + held, 0, length - held);", ""),
    ("contents.c", "part == PAGE_BYTES)", "part > 30000)"),
    ("descriptor.c", "if (number < lowest_free) lowest_free = number;", ""),
    ("node.c", "else directory->first = entry->after;", ""),
    ("node.c", "if (node->names || node->opens) return;", "if (node->names) return;"),
    ("path.c", "if (here == start) return E_PERM;", "if (here == root) return E_PERM;"),
    ("paths.c", "if (directory && lies_below(to.directory, from.node)) return E_INVAL;", ""),
    ("paths.c", "if (directory) from.node->parent = to.directory;", ""),
    ("readdir.c", "if (whole) remember(open, whole, given);", ""),
    ("transfer.c", "vectors_load(list, count);\n    for (u32 i = 0; done < length; i++) {\n        u32 part = min32(vectors[i].length, length - done);\n        contents_read", "for (u32 i = 0; done < length; i++) {\n        vectors[i] = load_vector(list, i);\n        u32 part = min32(vectors[i].length, length - done);\n        contents_read"),
    ("stdio.c", "store_header(log_last, load_header(log_last) + part);", ""),
    ("clock.c", "slept_ns += min64(shortest, LONGEST_SLEEP_NS);", ""),
]  # fmt: skip


def finds(sources: Path, seeds: int) -> bool:
    code = f"import sys\nfrom tests.vm.wasi_fuzz import fuzz\nfor seed in range({seeds}): fuzz(seed, 3000)\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "IPOS_TEST_WASI_SOURCES": str(sources)}
    # a wrong answer, or a crash of the C: both are finds
    return (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode != 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(PLANTED)])
def test_the_fuzzer_finds_a_planted_bug(planted: tuple[str, str, str], tmp_path: Path) -> None:
    name, right, wrong = planted
    for source in wasi_native.SOURCES.iterdir():
        if source.is_file():
            tmp_path.joinpath(source.name).write_bytes(source.read_bytes())
    text = tmp_path.joinpath(name).read_text()
    assert text.count(right) == 1, f"{name} has changed: plant the bug anew"
    tmp_path.joinpath(name).write_text(text.replace(right, wrong))
    assert finds(tmp_path, 200)


@pytest.mark.slow
def test_the_fuzzer_finds_nothing_where_nothing_is_planted() -> None:
    assert not finds(wasi_native.SOURCES, 20)
