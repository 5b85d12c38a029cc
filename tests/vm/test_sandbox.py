"""The filter of calls, run as the kernel would for both architectures; the rules of files; how the layers speak."""

from __future__ import annotations

import errno
import os
import re
import sysconfig
from pathlib import Path

import pytest

from ipos.vm import pace
from ipos.vm.sandbox import confine, landlock, seccomp
from ipos.vm.sandbox.seccomp import ALLOW, ALLOWED, ALLOWED_X86, ARCHITECTURES, KILL, PERMISSION, SOME, UNKNOWN, Op

PID = 4321
HEADERS = Path(sysconfig.get_path("purelib"), "ziglang/lib/libc/include")


def run(program: list[Op], arch: int, number: int, *arguments: int) -> int:
    """bpf(4), as far as the filter uses it."""
    words = [number, arch, 0, 0]
    for value in (*arguments, *(0 for _ in range(6 - len(arguments)))):
        words += [value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF]
    at, held = 0, 0
    while True:
        op = program[at]
        at += 1
        match op.code:
            case seccomp.LOAD:
                assert op.k % 4 == 0
                held = words[op.k // 4]
            case seccomp.RETURN:
                return op.k
            case seccomp.EQUAL:
                at += op.yes if held == op.k else op.no
            case seccomp.AT_LEAST:
                at += op.yes if held >= op.k else op.no
            case seccomp.ANY_BIT:
                at += op.yes if held & op.k else op.no
            case other:
                raise AssertionError(other)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_only_what_is_listed_is_allowed(machine: str) -> None:
    column, arch = ARCHITECTURES[machine]
    program = seccomp.program(machine, PID)
    assert all(op.yes < 256 and op.no < 256 for op in program)
    listed = {both[column] for both in ALLOWED.values()} | set(ALLOWED_X86.values() if column == 0 else ())
    some = {both[column] for both in SOME.values()}
    assert not listed & some
    for number in range(600):
        if number not in some:
            assert run(program, arch, number) == (ALLOW if number in listed else PERMISSION), number

    def some_of(name: str, *arguments: int) -> int:
        return run(program, arch, SOME[name][column], *arguments)

    assert some_of("clone3", 1, 2) == UNKNOWN
    assert some_of("clone", 0x3D0F00) == ALLOW  # what glibc makes a thread with
    assert some_of("clone", 0x01200011) == PERMISSION  # what it forks with
    assert some_of("mmap", 0, 4096, 3, 0x22) == some_of("mprotect", 0, 4096, 1) == ALLOW
    assert some_of("mmap", 0, 4096, 7, 0x22) == some_of("mprotect", 0, 4096, 5) == PERMISSION
    assert some_of("tgkill", PID, PID, 6) == ALLOW
    assert some_of("tgkill", PID + 1, PID, 6) == some_of("tgkill", 2**32 - 1, PID, 6) == PERMISSION
    assert some_of("prlimit64", 0, 7, 0, 0x7FFF00000000) == ALLOW
    assert some_of("prlimit64", 1, 7, 0, 1) == some_of("prlimit64", 0, 7, 1, 0) == PERMISSION
    assert some_of("prlimit64", 0, 7, 1 << 40, 0) == PERMISSION
    for foreign in (0x40000003, 0x40000028, 0):  # i386, arm, nothing
        assert run(program, foreign, ALLOWED["read"][column]) == KILL
    if machine == "x86_64":
        assert run(program, arch, seccomp.X32_BIT | 1) == KILL


@pytest.mark.parametrize(("machine", "folder"), [("x86_64", "x86-linux-any"), ("aarch64", "aarch64-linux-any")])
def test_numbers_are_the_kernel_s(machine: str, folder: str) -> None:
    text = (HEADERS / folder / "asm/unistd_64.h").read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}
    column = ARCHITECTURES[machine][0]
    for name, both in {**ALLOWED, **SOME}.items():
        assert numbers[name] == both[column], name
    if column == 0:
        assert {name: numbers[name] for name in ALLOWED_X86} == ALLOWED_X86


def test_the_rights_are_the_kernel_s() -> None:
    text = (HEADERS / "any-linux-any/linux/landlock.h").read_text()
    rights = {name: 1 << int(bit) for name, bit in re.findall(r"LANDLOCK_ACCESS_FS_(\w+)\s+\(1ULL << (\d+)\)", text)}
    for name in (
        "WRITE_FILE",
        "READ_FILE",
        "READ_DIR",
        "REMOVE_DIR",
        "REMOVE_FILE",
        "MAKE_DIR",
        "MAKE_REG",
        "MAKE_SYM",
        "TRUNCATE",
    ):
        assert getattr(landlock, name) == rights[name]
    assert not (landlock.KEEP | landlock.READ | landlock.MAKE) & rights["EXECUTE"]
    assert not landlock.KEEP & rights["MAKE_SYM"], "the node follows no symlink that a worker made among its saves"


def test_a_kernel_without_landlock_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(number: int, *_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("ipos.vm.sandbox.linux.call", missing)
    assert landlock.abi() == 0
    given = confine.Given(0, 0, 0, 1, 1, None, os.getppid())
    assert confine.LAYERS["files"](given) == "this kernel has no Landlock, or it is not in its list of security modules"
    assert "does not filter calls" in confine.LAYERS["calls"](given)
    with pytest.raises(OSError, match="no Landlock"):
        landlock.restrict([])


def test_a_kernel_that_refuses_what_it_offers_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(number: int, *arguments: object) -> int:
        if number == landlock.CREATE_RULESET and arguments[0] is None:
            return 3
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("ipos.vm.sandbox.linux.call", refuses)
    with pytest.raises(PermissionError):
        confine.LAYERS["files"](confine.Given(0, 0, 0, 1, 1, None, os.getppid()))


def test_a_dear_save_stretches_the_wait() -> None:
    assert pace.wait_s(5, 0.001) == pace.wait_s(5, 0.25) == 5
    assert pace.wait_s(5, 1.0) == pytest.approx(20)
    assert pace.wait_s(5, 100.0) == pace.MOST_S
    assert pace.wait_s(300, 100.0) == 300, "never sooner than asked"
    waits = [pace.wait_s(5, took / 10) for took in range(100)]
    assert waits == sorted(waits)
    assert all(took / 10 <= 1.001 * pace.SHARE * waits[took] or waits[took] == pace.MOST_S for took in range(100))
