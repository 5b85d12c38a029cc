"""Random calls with half-valid arguments, to both WASIs."""

from __future__ import annotations

import random
import struct

from ipos.vm.wasi import boot

from .wasi_native import PAGE_BYTES
from .wasi_pair import Pair

NAMES = [
    b"a",
    b"b",
    b"cc",
    b"d",
    b"..",
    b".",
    b"in",
    b"big",
    b"dir",
    b"w",
    b"f",
    b"g",
    b"\xc3\xa9",
    b"e0",
    b"e1",
    b"e2",
    b"longer-name-than-eight",
    b"longer-name-too",
]


WEIGHTS = {
    "path_open": 5,
    "fd_write": 3,
    "fd_read": 3,
    "fd_pwrite": 2,
    "fd_readdir": 3,
    "fd_close": 2,
    "path_create_directory": 2,
    "path_rename": 3,
    "path_unlink_file": 2,
}


class Fuzzer:
    """Calls with half-valid arguments. Buffers lie anywhere in the two pages of the program, so they overlap often."""

    def __init__(self, pair: Pair, seed: int, most_bytes: int = 1 << 41) -> None:
        self.pair, self.dice, self.most_bytes = pair, random.Random(seed), most_bytes
        self.calls = [name[3:] for name in sorted(dir(type(self))) if name.startswith("do_")]
        self.weights = [WEIGHTS.get(name, 1) for name in self.calls]

    def run(self, count: int) -> None:
        for _ in range(count):
            if self.dice.randrange(4) == 0:
                self.pair.work(self.dice.randrange(10**6))
            (name,) = self.dice.choices(self.calls, self.weights)
            self.pair(name, *getattr(self, f"do_{name}")())

    # ---- arguments

    def one_in(self, n: int) -> bool:
        return self.dice.randrange(n) == 0

    def pointer(self) -> int:
        if not self.one_in(60):
            return self.dice.randrange(1 << 17)
        return self.dice.choice(
            [0xFFFFFFF0 + self.dice.randrange(16), (1 << 17) - self.dice.randrange(80), self.dice.randrange(1 << 32)]
        )

    def fd(self) -> int:
        fds = self.pair.reference.fds
        if self.one_in(2) and (files := [number for number, open_ in fds.items() if open_.kind == "file"]):
            return self.dice.choice(files)
        if not self.one_in(30):
            return self.dice.choice([3, *fds])
        return self.dice.choice([self.dice.randrange(30), 16383, 16384, 0xFFFFFFFF])

    def directory(self) -> int:
        directories = [number for number, open_ in self.pair.reference.fds.items() if open_.kind == "dir"]
        return self.dice.choice(directories) if directories and not self.one_in(15) else self.fd()

    def size(self) -> int:
        match self.dice.randrange(9):
            case 0:
                return (1 << 64) - 1 - self.dice.randrange(99)
            case 1:
                return min(self.dice.randrange(1 << 20) << self.dice.randrange(40), (1 << 64) - 1)
            case 2:
                return self.dice.randrange(1 << 9) * PAGE_BYTES
            case 3:
                return self.dice.randrange(self.most_bytes)
            case _:
                return self.dice.randrange(300_000)

    def path(self) -> tuple[int, int]:
        parts = [self.dice.choice(NAMES) for _ in range(self.dice.choice([1, 1, 1, 2, 2, 3, 4]))]
        if self.one_in(2):
            # a path that leads somewhere
            parts, node = [], self.pair.reference.root
            while node.entries and not (parts and self.one_in(2)):
                parts.append(self.dice.choice(list(node.entries)))
                node = node.entries[parts[-1]]
            if not parts or self.one_in(4):
                parts.append(self.dice.choice(NAMES))
        text = (b"//" if self.one_in(12) else b"/").join(parts)
        text = b"/" * self.one_in(25) + text + b"/" * self.one_in(12) + b"\0" * self.one_in(200)
        if self.one_in(80):
            text = self.dice.choice(
                [
                    b"\xff\xfe",
                    b"a\xed\xa0\x80",
                    b"\xf0\x9f\x8d\x8e",
                    b"a" * 255,
                    b"a" * 256,
                    b"\xc0\x80",
                    b"\xf4\x90\x80\x80",
                ]
            )
        if self.one_in(300):
            text = text * 3000
        address = self.dice.randrange(1 << 16)
        self.pair.poke(address, text)
        return address, len(text) if not self.one_in(200) else 0

    def paths(self) -> tuple[tuple[int, int], tuple[int, int]]:
        first, second = self.path(), self.path()
        return first, second  # the second may lie over the first: both sides see the same

    def vectors(self) -> tuple[int, int]:
        count = self.dice.choice([0, 1, 1, 1, 2, 3, 5]) if not self.one_in(100) else self.dice.randrange(1100)
        address = self.dice.randrange(1 << 17)
        listed = b""
        for _ in range(min(count, 40)):
            length = (
                self.dice.randrange(self.dice.choice([1, 50, 500, 70_000]))
                if not self.one_in(90)
                else self.dice.randrange(1 << 32)
            )
            listed += struct.pack("<II", self.pointer() if self.one_in(50) else self.dice.randrange(1 << 16), length)
        self.pair.poke(address, listed)
        return address, count

    def rights(self) -> int:
        most = [(1 << 64) - 1] * 7
        return self.dice.choice(
            [*most, (1 << 30) - 1, self.dice.randrange(1 << 30), 0, 1 << 1, 1 << 6 | 1 << 2 | 1 << 1]
        )

    # ---- calls

    def do_args_get(self) -> tuple[int, ...]:
        return self.pointer(), self.pointer()

    do_args_sizes_get = do_environ_get = do_environ_sizes_get = do_args_get

    def do_clock_res_get(self) -> tuple[int, ...]:
        return self.dice.randrange(6), self.pointer()

    def do_clock_time_get(self) -> tuple[int, ...]:
        return self.dice.randrange(6), 0, self.pointer()

    def do_fd_advise(self) -> tuple[int, ...]:
        return self.fd(), self.size(), self.size(), self.dice.randrange(8)

    def do_fd_allocate(self) -> tuple[int, ...]:
        return self.fd(), self.size(), self.size()

    def do_fd_close(self) -> tuple[int, ...]:
        fd = self.fd()
        return (fd if (fd > 3 and self.one_in(2)) or self.one_in(300) else 99,)

    def do_fd_sync(self) -> tuple[int, ...]:
        return (self.fd(),)

    do_fd_datasync = do_fd_sync

    def do_fd_tell(self) -> tuple[int, ...]:
        return self.fd(), self.pointer()

    do_fd_fdstat_get = do_fd_filestat_get = do_fd_prestat_get = do_fd_tell

    def do_fd_fdstat_set_flags(self) -> tuple[int, ...]:
        return self.fd(), self.dice.randrange(40)

    def do_fd_fdstat_set_rights(self) -> tuple[int, ...]:
        fd = self.fd()
        if fd <= 3 or not self.one_in(5) or fd not in self.pair.reference.fds:
            return 99, 0, 0
        keep = ~(1 << self.dice.randrange(30))
        open_ = self.pair.reference.fds[fd]
        return fd, open_.rights & keep, self.rights() if self.one_in(9) else open_.inheriting & keep

    def do_fd_filestat_set_size(self) -> tuple[int, ...]:
        return self.fd(), self.size()

    def do_fd_filestat_set_times(self) -> tuple[int, ...]:
        return self.fd(), self.size(), self.size(), self.dice.randrange(18)

    def do_fd_pread(self) -> tuple[int, ...]:
        return self.fd(), *self.vectors(), self.size(), self.pointer()

    do_fd_pwrite = do_fd_pread

    def do_fd_read(self) -> tuple[int, ...]:
        return self.fd(), *self.vectors(), self.pointer()

    do_fd_write = do_fd_read

    def do_fd_prestat_dir_name(self) -> tuple[int, ...]:
        return self.fd(), self.pointer(), self.dice.randrange(4)

    def do_fd_readdir(self) -> tuple[int, ...]:
        open_ = self.pair.reference.fds.get(fd := self.directory())
        cookie = (
            open_.cursor[0]
            if open_ and open_.cursor and self.one_in(2)
            else self.dice.randrange(12)
            if not self.one_in(9)
            else self.size()
        )
        return fd, self.pointer(), self.dice.randrange(self.dice.choice([60, 200, 5000])), cookie, self.pointer()

    def do_fd_renumber(self) -> tuple[int, ...]:
        low = 0 if self.one_in(200) else 4
        return self.dice.randrange(low, 40), self.dice.randrange(low, 40)

    def do_fd_seek(self) -> tuple[int, ...]:
        return self.fd(), self.size(), self.dice.randrange(4), self.pointer()

    def do_path_create_directory(self) -> tuple[int, ...]:
        return self.directory(), *self.path()

    do_path_remove_directory = do_path_unlink_file = do_path_create_directory

    def do_path_filestat_get(self) -> tuple[int, ...]:
        return self.directory(), self.dice.randrange(2), *self.path(), self.pointer()

    def do_path_filestat_set_times(self) -> tuple[int, ...]:
        return self.directory(), self.dice.randrange(2), *self.path(), self.size(), self.size(), self.dice.randrange(18)

    def do_path_link(self) -> tuple[int, ...]:
        first, second = self.paths()
        return self.directory(), self.dice.randrange(2), *first, self.directory(), *second

    def do_path_rename(self) -> tuple[int, ...]:
        first, second = self.paths()
        return self.directory(), *first, self.directory(), *second

    def do_path_symlink(self) -> tuple[int, ...]:
        first, second = self.paths()
        return *first, self.directory(), *second

    def do_path_readlink(self) -> tuple[int, ...]:
        return self.directory(), *self.path(), self.pointer(), self.dice.randrange(30), self.pointer()

    def do_path_open(self) -> tuple[int, ...]:
        how = self.dice.choice([0, 0, 1, 1, 2, 8, 9, 5, self.dice.randrange(17)])
        flags = self.dice.randrange(33) if self.one_in(4) else 0
        return (
            self.directory(),
            self.dice.randrange(2),
            *self.path(),
            how,
            self.rights(),
            self.rights(),
            flags,
            self.pointer(),
        )

    def do_poll_oneoff(self) -> tuple[int, ...]:
        count = self.dice.randrange(5) if not self.one_in(50) else self.dice.randrange(2000)
        at = self.dice.randrange(1 << 16)
        for i in range(min(count, 5)):
            fields = (
                self.dice.randrange(99),
                self.dice.choice([0, 0, 1, 2, 3]),
                self.dice.choice([self.fd(), self.dice.randrange(5)]),
            )
            self.pair.poke(
                at + 48 * i, struct.pack("<QQIIQQQ", *fields, 0, self.size() >> 20, 0, self.dice.randrange(2))
            )
        return at, self.pointer(), count, self.pointer()

    def do_random_get(self) -> tuple[int, ...]:
        return self.pointer(), self.dice.randrange(300) if not self.one_in(20) else self.dice.randrange(1 << 21)

    def do_sched_yield(self) -> tuple[int, ...]:
        return ()

    def do_sock_accept(self) -> tuple[int, ...]:
        return self.fd(), 0, self.pointer()

    def do_sock_shutdown(self) -> tuple[int, ...]:
        return self.fd(), 0


def fuzz_task(limits: boot.Limits) -> tuple[boot.Boot, dict[int, bytes]]:
    dice = random.Random(3)
    files = {1: dice.randbytes(300_000), 2: b"abc", 3: dice.randbytes(65_536), 4: dice.randbytes(70_000)}
    tree = boot.Directory({
        "big": boot.File(1, 300_000),
        "w": boot.Directory(),
        "in": boot.Directory({"a": boot.File(3, 65_536), "big": boot.File(4, 70_000), "up": boot.Symlink("../big"), "cc": boot.File(9, 0)}),
        "dir": boot.Directory({"e0": boot.File(2, 3), "e1": boot.Symlink("e0"), "e2": boot.Symlink("/in/"), "b": boot.Symlink("b")}),
    })  # fmt: skip
    return boot.Boot(
        args=["fuzz", "x y", ""], env={"A": "1", "É": "2"}, seed=bytes(range(32)), limits=limits, tree=tree
    ), files


def fuzz(seed: int, count: int) -> Pair:
    """One run of `count` calls; what the task is like depends on the seed."""
    dice = random.Random(seed)
    small = dice.randrange(3) == 0
    limits = boot.Limits(
        overlay_bytes=(20 << 16) if small else 100 << 20, files=60 if small else 100_000, output_bytes=10**6
    )
    task, files = fuzz_task(limits)
    kind = boot.StdinKind(dice.randrange(4))
    task = boot.Boot(
        task.args, task.env, task.epoch_ns, task.seed, boot.Stdin(kind, boot.File(1, 300_000)), limits, task.tree
    )
    stdin: list[bytes | None] = [dice.choice([None, dice.randbytes(dice.randrange(1, 100_000))]) for _ in range(30)]
    pair = Pair(task, files, stdin, lacks_blocks=dice.randrange(2) == 0)
    Fuzzer(pair, seed, 1 << 24).run(count)
    pair.check_end()
    return pair
