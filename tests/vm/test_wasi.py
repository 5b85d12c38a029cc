"""What the WASI promises, one promise a test, on the C built for this machine."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest

from ipos.vm.wasi import boot, output
from ipos.wire.errors import BadRecord, Refused

from .wasi_native import PAGE_BYTES, Native
from .wasi_pair import chunks
from .wasi_reference_state import chacha20

OK, BADF, EXIST, INVAL, ISDIR, LOOP, NOENT, NOSPC, NOTDIR, NOTSOCK, PERM, NOTCAPABLE = (
    0,
    8,
    20,
    28,
    31,
    32,
    44,
    51,
    54,
    57,
    63,
    76,
)
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
ALL = (1 << 30) - 1
ROOT = 3
RESULT, VECTOR, PATH, BUFFER = 8, 64, 1024, 65536  # where in the program's memory


class Program:
    """Calls of preview 1 as a program makes them, arguments laid out in its memory."""

    def __init__(
        self,
        tree: boot.Directory | None = None,
        files: dict[int, bytes] | None = None,
        stdin: Sequence[bytes | None] = (),
        stdin_is: boot.Stdin | None = None,
        **task: object,
    ) -> None:
        task["stdin"] = stdin_is or (boot.Stdin(boot.StdinKind.STREAM) if stdin else boot.Stdin())
        self.wasi = Native(boot.encode(boot.Boot(tree=tree or boot.Directory(), **task)), files, chunks(stdin), 4)  # pyright: ignore
        assert self.wasi.booted == 0
        self.memory = self.wasi.memory

    def text(self, address: int, text: str) -> tuple[int, int]:
        encoded = text.encode()
        self.memory[address : address + len(encoded)] = encoded
        return address, len(encoded)

    def result(self, format_: str = "I", address: int = RESULT) -> int:
        return struct.unpack_from("<" + format_, self.memory, address)[0]

    def ok(self, name: str, *arguments: int) -> None:
        assert self.wasi(name, *arguments) == OK

    def open(
        self, path: str, how: int = 0, rights: int = ALL & ~(1 << 6), fd: int = ROOT, flags: int = 0, follow: int = 1
    ) -> int:
        """The descriptor, or minus the error."""
        error = self.wasi("path_open", fd, follow, *self.text(PATH, path), how, rights, ALL, flags, RESULT)
        assert error is not None
        return -error if error else self.result()

    def create(self, path: str, content: bytes = b"") -> int:
        fd = self.open(path, CREATE, ALL)
        assert self.write(fd, content) == len(content)
        return fd

    def write(self, fd: int, content: bytes, offset: int | None = None) -> int | None:
        self.memory[BUFFER : BUFFER + len(content)] = content
        struct.pack_into("<II", self.memory, VECTOR, BUFFER, len(content))
        at = () if offset is None else (offset,)
        error = self.wasi("fd_write" if offset is None else "fd_pwrite", fd, VECTOR, 1, *at, RESULT)
        return None if error is None else -error if error else self.result()

    def read(self, fd: int, length: int, offset: int | None = None) -> bytes | int | None:
        """The bytes, minus the error, or None where the call waits."""
        struct.pack_into("<II", self.memory, VECTOR, BUFFER, length)
        at = () if offset is None else (offset,)
        error = self.wasi("fd_read" if offset is None else "fd_pread", fd, VECTOR, 1, *at, RESULT)
        return None if error is None else -error if error else bytes(self.memory[BUFFER : BUFFER + self.result()])

    def path(self, name: str, path: str, fd: int = ROOT) -> int | None:
        return self.wasi(name, fd, *self.text(PATH, path))

    def rename(self, old: str, new: str) -> int | None:
        return self.wasi("path_rename", ROOT, *self.text(PATH, old), ROOT, *self.text(PATH + 4096, new))

    def symlink(self, target: str, path: str) -> int | None:
        return self.wasi("path_symlink", *self.text(PATH, target), ROOT, *self.text(PATH + 4096, path))

    def names(self, fd: int = ROOT, room: int = 4096, cookie: int = 0) -> list[tuple[str, int]]:
        """Names that one fd_readdir gives whole, each with the cookie behind it."""
        self.ok("fd_readdir", fd, BUFFER, room, cookie, RESULT)
        at, names = BUFFER, []
        while at + 24 <= BUFFER + self.result():
            next_, _, length, _ = struct.unpack_from("<QQII", self.memory, at)
            if at + 24 + length > BUFFER + self.result():
                break
            names.append((bytes(self.memory[at + 24 : at + 24 + length]).decode(), next_))
            at += 24 + length
        return names

    def size(self, fd: int) -> int:
        self.ok("fd_filestat_get", fd, RESULT)
        return self.result("Q", RESULT + 32)

    def clock(self, which: int = 0) -> int:
        self.ok("clock_time_get", which, 0, RESULT)
        return self.result("Q")

    def metric(self, which: output.Metric) -> int:
        return self.wasi.call("wasi_metric", which)


INPUT = bytes(range(251)) * 1000  # four blocks, the last one short


@pytest.fixture
def program() -> Program:
    tree = boot.Directory({"in": boot.Directory({"big": boot.File(1, len(INPUT)), "small": boot.File(2, 5)})})
    return Program(tree, {1: INPUT, 2: b"small"})


def test_input_is_read_and_stays_as_it_was_under_what_is_written(program: Program) -> None:
    fd = program.open("in/big", rights=ALL)
    assert program.read(fd, 100, 65_500) == INPUT[65_500:65_600]
    assert program.write(fd, b"over", 65_534) == 4
    assert program.read(fd, 10, 65_530) == INPUT[65_530:65_534] + b"over" + INPUT[65_538:65_540]
    in_, file = next(iter(output.root(program.wasi).entries()))[1], None
    assert isinstance(in_, output.OutputDirectory)
    file = dict(in_.entries())["big"]
    assert isinstance(file, output.OutputFile)
    assert file.changed
    assert not file.untouched
    assert [type(piece).__name__ for piece in file.pieces()] == ["Written", "Written", "Shown", "Shown"]
    small = dict(in_.entries())["small"]
    assert isinstance(small, output.OutputFile)
    assert small.untouched == 2


def test_an_open_file_outlives_its_name_and_follows_a_rename(program: Program) -> None:
    fd = program.create("a", b"first")
    assert program.rename("a", "b") == OK
    other = program.create("c", b"second")
    assert program.rename("c", "b") == OK  # over a file that is open
    assert program.read(fd, 9, 0) == b"first"
    assert program.path("path_unlink_file", "b") == OK
    assert program.read(other, 9, 0) == b"second"
    before = program.metric(output.Metric.NODES)
    program.ok("fd_close", other)
    program.ok("fd_close", fd)
    assert program.metric(output.Metric.NODES) == before - 2


def test_a_removed_directory_that_is_open_is_empty_and_takes_nothing(program: Program) -> None:
    program.ok("path_create_directory", ROOT, *program.text(PATH, "d"))
    program.ok("path_create_directory", ROOT, *program.text(PATH, "d/e"))
    fd = program.open("d/e", DIRECTORY)
    assert program.path("path_remove_directory", "d/e") == OK
    assert program.path("path_remove_directory", "d") == OK
    assert [name for name, _ in program.names(fd)] == [".", ".."]
    assert program.open("x", CREATE, fd=fd) == -NOENT
    assert program.open("..", fd=fd) == -PERM


def test_append_goes_to_the_end_wherever_the_offset_is(program: Program) -> None:
    fd = program.create("log", b"one")
    again = program.open("log", 0, ALL, flags=1)
    assert program.write(fd, b" two") == 4
    assert program.write(again, b" three") == 6
    assert program.read(fd, 99, 0) == b"one two three"


def test_sparse_files_cost_only_what_is_written(program: Program) -> None:
    fd = program.create("sparse")
    used = program.metric(output.Metric.PAGES)
    assert program.write(fd, b"end", (1 << 40) - 3) == 3
    assert program.write(fd, b"x", 1 << 40) == -22
    assert program.size(fd) == 1 << 40
    assert program.read(fd, 5, (1 << 39)) == bytes(5)
    assert program.metric(output.Metric.PAGES) - used <= 3
    program.ok("fd_filestat_set_size", fd, 10)
    program.ok("fd_filestat_set_size", fd, 1 << 40)
    assert program.read(fd, 3, (1 << 40) - 3) == bytes(3)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/in/small", PERM),
        ("../x", PERM),
        ("in/../../in", PERM),
        ("out", PERM),
        ("deep/up", OK),
        ("deep/root", OK),
        ("loop", LOOP),
        ("in/\0", 25),
    ],
)
def test_no_path_leads_out_of_the_root(program: Program, path: str, error: int) -> None:
    program.ok("path_create_directory", ROOT, *program.text(PATH, "deep"))
    for target, name in (("../etc", "out"), ("../in/small", "deep/up"), ("/in/small", "deep/root"), ("loop", "loop")):
        assert program.symlink(target, name) == OK
    fd = program.open(path)
    assert fd == -error if error else program.read(fd, 9) == b"small"


def test_no_path_leads_out_of_the_directory_it_starts_at(program: Program) -> None:
    program.ok("path_create_directory", ROOT, *program.text(PATH, "deep"))
    assert program.symlink("../in/small", "deep/up") == OK
    assert program.symlink("/in/small", "deep/root") == OK
    fd = program.open("deep", DIRECTORY)
    assert program.open("up", fd=fd) == -PERM
    assert program.open("root", fd=fd) == -PERM
    assert program.open("../in/small", fd=fd) == -PERM


def test_rights_only_shrink(program: Program) -> None:
    directory = program.open("in", DIRECTORY, rights=1 << 13 | 1 << 14)
    program.ok("fd_fdstat_set_rights", directory, 1 << 13, 1 << 1)
    assert program.wasi("fd_fdstat_set_rights", directory, 1 << 13, ALL) == NOTCAPABLE
    assert program.wasi("fd_readdir", directory, BUFFER, 99, 0, RESULT) == NOTCAPABLE
    assert program.path("path_create_directory", "x", directory) == NOTCAPABLE
    error = program.wasi("path_open", directory, 0, *program.text(PATH, "small"), 0, 1 << 6, 0, 0, RESULT)
    assert error == NOTCAPABLE
    program.ok("path_open", directory, 0, *program.text(PATH, "small"), 0, 1 << 1, 0, 0, RESULT)
    fd = program.result()
    assert program.read(fd, 9) == b"small"
    assert program.write(fd, b"x") == -BADF
    assert program.read(fd, 9, 0) == -NOTCAPABLE  # no right to seek
    assert program.wasi("sock_shutdown", fd, 0) == NOTSOCK


def test_a_full_overlay_makes_writes_short_and_then_fails_and_is_used_again(program: Program) -> None:
    program = Program(limits=boot.Limits(overlay_bytes=8 * PAGE_BYTES, files=4))
    fd = program.create("f")
    written = [program.write(fd, bytes(100_000)) for _ in range(8)]
    assert written[0] == 100_000
    assert 0 < min(size for size in written if size and size > 0) < 100_000  # short
    assert written[-1] == -NOSPC
    assert program.size(fd) == sum(size for size in written if size and size > 0)
    program.ok("fd_filestat_set_size", fd, 0)
    assert program.write(fd, bytes(100_000)) == 100_000
    assert [program.open(str(i), CREATE) for i in range(5)][-1] == -NOSPC  # four nodes at most
    assert program.path("path_create_directory", "d") == NOSPC
    assert program.path("path_unlink_file", "1") == OK
    assert program.open("again", CREATE) == -NOSPC  # it is still open
    assert program.path("path_unlink_file", "f") == OK


def test_output_keeps_the_order_of_both_streams_and_has_a_limit() -> None:
    program = Program(limits=boot.Limits(output_bytes=12))
    assert [
        program.write(1, b"abc"),
        program.write(2, b"de"),
        program.write(1, b"f"),
        program.write(2, b"0123456789"),
    ] == [3, 2, 1, 6]
    assert program.write(1, b"x") == -NOSPC
    assert list(output.output_records(program.wasi.drain())) == [(0, b"abc"), (1, b"de"), (0, b"f"), (1, b"012345")]
    assert program.wasi.drain() == b""


def test_output_larger_than_the_log_is_flushed_on_the_way() -> None:
    program = Program()
    expected = b""
    for i in range(60):
        part = bytes([i]) * (i * 97)
        assert program.write(1, part) == len(part)
        assert program.write(2, b"!") == 1
        expected += part
    records = list(output.output_records(program.wasi.drain()))
    assert b"".join(content for stream, content in records if stream == 0) == expected
    assert b"".join(content for stream, content in records if stream == 1) == b"!" * 60


def test_directories_are_sorted_and_read_on_behind_the_last_name(program: Program) -> None:
    for name in ("zeta", "alpha", "m" * 200, "Beta", "é"):
        program.create(name)
    everything = program.names()
    assert [name for name, _ in everything] == [".", "..", "Beta", "alpha", "in", "m" * 200, "zeta", "é"]
    first = program.names(room=120)
    assert [name for name, _ in first] == [".", "..", "Beta", "alpha"]
    program.create("aaa")  # before where we are: must not make us see alpha again
    program.path("path_unlink_file", "alpha")
    assert [name for name, _ in program.names(cookie=first[-1][1])] == ["in", "m" * 200, "zeta", "é"]


def test_renumber_moves_a_descriptor_and_closes_what_was_there(program: Program) -> None:
    a, b = program.create("a", b"a"), program.create("b", b"b")
    program.ok("fd_renumber", a, b)
    assert program.read(b, 1, 0) == b"a"
    assert program.wasi("fd_close", a) == BADF
    assert program.wasi("fd_renumber", b, a) == BADF
    assert program.open("b") == a  # the lowest free number


def test_time_is_work_and_calls_and_jumps_over_sleep(program: Program) -> None:
    start = program.clock()
    assert start == boot.EPOCH_NS + 1000
    program.wasi.work.value += 5_000_000
    assert program.clock() == start + 5_000_000 + 1000
    struct.pack_into("<QQIIQQQ", program.memory, BUFFER, 7, 0, 1, 0, 3_000_000_000, 0, 0)
    program.ok("poll_oneoff", BUFFER, BUFFER + 96, 1, RESULT)
    assert program.result() == 1
    assert program.clock() == start + 3_005_000_000 + 3000
    assert program.clock(1) == 3_005_000_000 + 5000  # monotonic
    assert program.clock(2) == 5_000_000 + 6000  # of the process: it did not sleep


def test_poll_returns_what_is_ready_without_sleeping(program: Program) -> None:
    before = program.clock()
    struct.pack_into("<QQIIQQQ", program.memory, BUFFER, 7, 0, 1, 0, 3_000_000_000, 0, 0)
    struct.pack_into("<QQIIQQQ", program.memory, BUFFER + 48, 8, 2, 1, 0, 0, 0, 0)
    program.ok("poll_oneoff", BUFFER, BUFFER + 96, 2, RESULT)
    assert program.result() == 1
    assert program.result("Q", BUFFER + 96) == 8
    assert program.clock() == before + 2000


def test_random_bytes_follow_from_the_seed() -> None:
    key = bytes(range(32))
    program = Program(seed=key)
    program.ok("random_get", BUFFER, 100)
    assert bytes(program.memory[BUFFER : BUFFER + 100]) == (chacha20(key, 0) + chacha20(key, 1))[:100]
    # Bernstein's test vector: key and nonce zero
    assert chacha20(bytes(32), 0).hex().startswith("76b8e0ada0f13d90405d6ae55386bd28")


def test_stdin_waits_without_a_trace_and_ends() -> None:
    program = Program(stdin=[None, b"hello", None, b"x" * 10])
    before = bytes(program.memory), program.metric(output.Metric.CALLS)
    assert program.read(0, 9) is None
    struct.pack_into("<II", program.memory, VECTOR, 0, 0)
    after = bytearray(before[0])
    struct.pack_into("<II", after, VECTOR, 0, 0)
    assert (bytes(program.memory), program.metric(output.Metric.CALLS)) == (bytes(after), before[1])
    assert program.read(0, 9) == b"hello"
    assert [program.read(0, 7), program.read(0, 7), program.read(0, 7), program.read(0, 7)] == [
        None,
        b"x" * 7,
        b"x" * 3,
        b"",
    ]
    assert program.wasi.call("wasi_stdin_read") == 15


def test_stdin_may_be_a_file() -> None:
    program = Program(files={5: INPUT}, stdin_is=boot.Stdin(boot.StdinKind.FILE, boot.File(5, len(INPUT))))
    assert program.read(0, 4) == INPUT[:4]
    program.ok("fd_seek", 0, 70_000, 0, RESULT)
    assert program.read(0, 4) == INPUT[70_000:70_004]
    assert program.write(0, b"x") == -BADF


def test_a_missing_block_is_asked_for_with_its_whole_range_and_the_call_waits(program: Program) -> None:
    program.wasi.at_hand = set()
    fd = program.open("in/big", rights=ALL)
    assert program.read(fd, 100_000, 60_000) is None
    assert program.wasi.needed == (1, 0, 3 * PAGE_BYTES)
    program.wasi.at_hand = {(1, 0), (1, 1), (1, 2)}
    assert program.read(fd, 100_000, 60_000) == INPUT[60_000:160_000]
    assert program.read(fd, 100, 200_000) is None
    assert program.write(fd, b"x", 200_000) is None
    assert program.size(fd) == len(INPUT)


def test_data_read_over_the_list_of_vectors_does_not_lead_the_rest_astray(program: Program) -> None:
    fd = program.create("evil", b"\xff" * 64)
    struct.pack_into("<IIIIII", program.memory, VECTOR, VECTOR, 16, BUFFER, 16, BUFFER + 99, 16)
    program.ok("fd_pread", fd, VECTOR, 3, 0, RESULT)
    assert program.result() == 48
    assert bytes(program.memory[BUFFER : BUFFER + 16]) == b"\xff" * 16


def test_cutting_a_large_file_frees_it_by_and_by() -> None:
    program = Program(limits=boot.Limits(overlay_bytes=120 << 20))
    fd = program.create("f")
    for _ in range(1000):
        assert program.write(fd, b"z" * 65_536) == 65_536
    used = program.metric(output.Metric.PAGES)
    program.ok("fd_filestat_set_size", fd, 100_000)
    assert program.metric(output.Metric.PAGES) > used - 40
    for _ in range(100):
        program.ok("sched_yield")
    assert program.metric(output.Metric.PAGES) <= used - 998
    assert program.read(fd, 99_999 + 65_536, 99_999) == b"z"


def test_exit_and_raise_end_the_program(program: Program) -> None:
    assert output.exit_status(program.wasi) is None
    assert program.wasi("proc_exit", 3) is None
    assert output.exit_status(program.wasi) == 3
    assert Program().wasi("proc_raise", 0) == OK


def test_arguments_and_environment() -> None:
    program = Program(args=["prog", "", "é"], env={"A": "1"})
    program.ok("args_sizes_get", RESULT, RESULT + 4)
    assert (program.result(), program.result("I", RESULT + 4)) == (3, 9)
    program.ok("args_get", VECTOR, BUFFER)
    assert struct.unpack_from("<3I", program.memory, VECTOR) == (BUFFER, BUFFER + 5, BUFFER + 6)
    program.ok("environ_get", VECTOR, BUFFER)
    assert bytes(program.memory[BUFFER : BUFFER + 4]) == b"A=1\0"


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"seed": b"short"}, "32 bytes"),
        ({"args": ["a\0b"]}, "NUL"),
        ({"env": {"A=B": "x"}}, "cannot be the name"),
        ({"args": ["x" * 70_000]}, "70001 bytes"),
        ({"tree": boot.Directory({"..": boot.Directory()})}, "which no program could open"),
        ({"tree": boot.Directory({"d": boot.Directory({"é" * 128: boot.File(1, 1)})})}, "256 bytes"),
        ({"tree": boot.Directory({"f": boot.File(0, 1)})}, "not the number"),
        ({"tree": boot.Directory({"l": boot.Symlink("")})}, "no program could make"),
        ({"limits": boot.Limits(overlay_bytes=4 << 30)}, "at most"),
    ],
)
def test_what_cannot_boot_is_refused_in_a_sentence(task: dict[str, object], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        boot.encode(boot.Boot(**task))  # pyright: ignore


def test_a_damaged_blob_is_refused_not_obeyed() -> None:
    tree = boot.Directory({"d": boot.Directory({"f": boot.File(1, 1)}), "l": boot.Symlink("d/f")})
    blob = boot.encode(boot.Boot(args=["a"], env={"B": "c"}, tree=tree))
    for length in range(0, len(blob), 5):
        assert Native(blob[:length]).booted == 1
    for at in (0, 36, 84, 88, 93, 94):
        assert Native(blob[:at] + b"\xff" + blob[at + 1 :]).booted == 1
    dice = random.Random(1)
    for _ in range(30):  # whatever it says, it must not crash
        at = dice.randrange(len(blob))
        assert Native(blob[:at] + dice.randbytes(1) + blob[at + 1 :]).booted in {0, 1, 2}


def test_a_log_that_is_none_is_refused() -> None:
    for log in (b"\1", b"\5\0\0\0abc", b"\xff\xff\xff\xff"):
        with pytest.raises(BadRecord):
            list(output.output_records(log))
