"""ipwasi.wasm in wasmtime: real programs on it, and what a save would see."""

from __future__ import annotations

import importlib.util
import re
import struct
import sys

import pytest

from ipos.vm.wasi import boot, output

from .wasi_native import PAGE_BYTES, REPOSITORY
from .wasi_plain import Plain, compiled, module_text

HELLO = r"""
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **arguments) {
    for (int i = 1; i < count; i++) printf("argument %s\n", arguments[i]);
    printf("HOME=%s tty=%d\n", getenv("HOME"), isatty(1));
    char line[100];
    while (fgets(line, sizeof line, stdin)) printf("read %s", line);
    FILE *in = fopen("/in/text", "r");
    printf("text %s", fgets(line, sizeof line, in));
    fclose(in);
    mkdir("/out", 0777);
    FILE *out = fopen("/out/result", "w");
    for (int i = 0; i < 30000; i++) fprintf(out, "line %d\n", i);
    fclose(out);
    out = fopen("/out/result", "a+");
    fputs("the end\n", out);
    fseek(out, -8, SEEK_END);
    printf("last %s", fgets(line, sizeof line, out));
    fclose(out);
    rename("/out/result", "/out/renamed");
    symlink("renamed", "/out/link");
    link("/out/renamed", "/out/hard");
    struct stat status;
    stat("/out/link", &status);
    printf("size %lld names %d\n", (long long)status.st_size, (int)status.st_nlink);
    DIR *directory = opendir("/out");
    for (struct dirent *entry; (entry = readdir(directory));) printf("entry %s\n", entry->d_name);
    closedir(directory);
    printf("%d %s\n", open("/none", O_RDONLY), strerror(errno));
    printf("%d %s\n", rmdir("/out"), strerror(errno));
    printf("outside %d\n", open("/../etc/passwd", O_RDONLY));
    struct timespec before, after, nap = {5, 0};
    clock_gettime(CLOCK_MONOTONIC, &before);
    nanosleep(&nap, 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    printf("slept %ld\n", (long)(after.tv_sec - before.tv_sec));
    fprintf(stderr, "done\n");
    return 7;
}
"""


@pytest.mark.real
def test_a_program_of_wasi_libc() -> None:
    task = boot.Boot(
        args=["hello", "a b"],
        env={"HOME": "/home"},
        stdin=boot.Stdin(boot.StdinKind.STREAM),
        tree=boot.Directory({"in": boot.Directory({"text": boot.File(1, 11)})}),
    )
    left = [b"one\ntwo\n"]
    plain = Plain(task, {1: b"hello text\n"}, compiled(HELLO), lambda _: left.pop() if left else b"")
    status, out, err = plain.run()
    assert (status, err) == (7, b"done\n")
    assert out.decode().splitlines() == [
        "argument a b", "HOME=/home tty=0", "read one", "read two", "text hello text", "last the end", "size 318898 names 2",
        "entry .", "entry ..", "entry hard", "entry link", "entry renamed",
        "-1 No such file or directory", "-1 Directory not empty", "outside -1", "slept 5",
    ]  # fmt: skip
    out_directory = dict(output.root(plain).entries())["out"]
    assert isinstance(out_directory, output.OutputDirectory)
    found = dict(out_directory.entries())
    assert found["link"] == output.OutputSymlink("renamed")
    file = found["renamed"]
    assert isinstance(file, output.OutputFile)
    assert b"".join(file.content(lambda *_: b"")) == b"".join(b"line %d\n" % i for i in range(30000)) + b"the end\n"


INPUT = bytes(range(251)) * 3000
VECTOR, BUFFER, RESULT = 64, 65536, 8


def opened(task_files: dict[int, bytes]) -> tuple[Plain, int]:
    plain = Plain(
        boot.Boot(stdin=boot.Stdin(boot.StdinKind.STREAM), tree=boot.Directory({"f": boot.File(1, len(INPUT))})),
        task_files,
    )
    plain.program_memory.write(plain.store, b"f", 1024)
    assert plain("path_open", 3, 0, 1024, 1, 0, (1 << 30) - 1, 0, 0, RESULT) == 0
    return plain, struct.unpack("<I", plain.program_memory.read(plain.store, RESULT, RESULT + 4))[0]


@pytest.mark.parametrize(
    "call", [("fd_pread", 1), ("fd_pwrite", 1), ("fd_read", 0), ("fd_read", 3), ("fd_pread", 3), ("fd_write", 3)]
)
def test_a_call_that_waits_leaves_no_trace_in_memory_or_work(call: tuple[str, int]) -> None:
    name, vectors = call
    plain, fd = opened({1: INPUT})
    plain.at_hand, plain.stdin = set(), lambda _: None
    fd = 0 if vectors == 0 else fd
    listed = b"".join(struct.pack("<II", BUFFER + i * 30_000, 30_000) for i in range(vectors or 1))
    plain.program_memory.write(plain.store, listed, VECTOR)
    before, work = plain.state(), plain.wasi["work"].value(plain.store)  # pyright: ignore
    where = () if name in {"fd_read", "fd_write"} else (100_000,)
    for _ in range(3):
        assert plain(name, fd, VECTOR, vectors or 1, *where, RESULT) is None
        assert plain.state() == before
        assert plain.wasi["work"].value(plain.store) == work  # pyright: ignore
    plain.at_hand, plain.stdin = None, lambda n: b"x" * min(n, 3)
    assert plain(name, fd, VECTOR, vectors or 1, *where, RESULT) == 0
    assert plain.state() != before


def test_state_and_work_do_not_depend_on_the_cache_or_on_when_the_log_is_drained() -> None:
    ends = []
    for slots, drains in ((1, False), (8, True)):
        plain = Plain(boot.Boot(tree=boot.Directory({"f": boot.File(1, len(INPUT))})), {1: INPUT}, cache_slots=slots)
        memory = plain.program_memory
        memory.write(plain.store, b"f", 1024)
        assert plain("path_open", 3, 0, 1024, 1, 0, (1 << 30) - 1, 0, 0, RESULT) == 0
        memory.write(plain.store, struct.pack("<II", BUFFER, 100_000), VECTOR)
        for i in range(30):
            assert plain("fd_pread", 4, VECTOR, 1, i * 7919 % 500_000, RESULT) == 0
            assert plain("fd_write", 1 + i % 2, VECTOR, 1, RESULT) == 0
            assert plain("fd_pwrite", 4, VECTOR, 1, i * 70_001, RESULT) == 0
            if drains:
                plain._flush(plain.call("wasi_log"), plain.call("wasi_log_bytes"))
                plain.call("wasi_log_drained")
        plain._flush(plain.call("wasi_log"), plain.call("wasi_log_bytes"))
        plain.call("wasi_log_drained")
        streams = {0: b"", 1: b""}
        for stream, content in output.output_records(plain.log):
            streams[stream] += content
        ends.append((plain.state(), plain.wasi["work"].value(plain.store), streams))  # pyright: ignore
        assert len(streams[0]) == len(streams[1]) == 1_500_000
    assert ends[0] == ends[1]


def test_what_was_freed_is_zero_in_memory() -> None:
    plain, _ = opened({1: INPUT})
    memory = plain.program_memory
    memory.write(plain.store, b"g", 1024)
    memory.write(plain.store, struct.pack("<II", 0, 4 * PAGE_BYTES), VECTOR)
    assert plain("path_open", 3, 0, 1024, 1, 1, (1 << 30) - 1, 0, 0, RESULT) == 0
    memory.write(plain.store, b"\xaa" * 200_000, BUFFER - 5000)
    for _ in range(4):
        assert plain("fd_write", 5, VECTOR, 1, RESULT) == 0
    assert plain.state().count(b"\xaa" * 1000) > 700
    assert plain("path_unlink_file", 3, 1024, 1) == 0
    assert plain("fd_close", 5) == 0
    for _ in range(10):
        assert plain("sched_yield") == 0
    assert b"\xaa" * 16 not in plain.state()


def test_the_built_module_is_the_one_of_the_sources() -> None:
    spec = importlib.util.spec_from_file_location("wasi_build", REPOSITORY / "instrument/wasi/build.py")
    assert spec
    assert spec.loader
    build = importlib.util.module_from_spec(spec)
    sys.modules["wasi_build"] = build
    spec.loader.exec_module(build)
    fresh = REPOSITORY / "src/ipos/vm/ipwasi.fresh.wasm"
    try:
        build.build(fresh)
        assert fresh.read_bytes() == build.BUILT.read_bytes(), "run python instrument/wasi/build.py"
    finally:
        fresh.unlink(missing_ok=True)


MAY_CALL_METERED = {"fd_read", "fd_write", "fd_pread", "fd_pwrite"}


def test_what_is_free_calls_nothing_that_is_metered() -> None:
    """The pass does not meter functions exported as free_*, but it does those that they call."""
    text = module_text((REPOSITORY / "src/ipos/vm/ipwasi.wasm").read_bytes())
    exported = dict(re.findall(r'\(export "([^"]+)" \(func (\$\S+?)\)\)', text))
    free = {function: name for name, function in exported.items() if name.startswith("free_")}
    imported = set(re.findall(r'\(import "[^"]+" "[^"]+" \(func (\$\S+)', text))
    bodies = dict(re.findall(r"\n  \(func (\$\S+) (.*?)\n  \)", text, re.DOTALL))
    assert {name.removeprefix("free_") for name in free.values()} >= {
        *MAY_CALL_METERED,
        "input_waits",
        "log_append",
        "wasi_exited",
    }
    for function, name in free.items():
        called = set(re.findall(r"\bcall (\$\S+)", bodies[function]))
        if name.removeprefix("free_") not in MAY_CALL_METERED:
            assert called <= {*imported, *free}, name
        assert "loop" not in bodies[function] or name in {"free_input_waits", "free_log_append"}
    # functions of the runtime that are called between slices must not write to the shadow stack, which is state
    for function, name in free.items():
        if name.startswith("free_wasi_"):
            assert "global.set" not in bodies[function], name
