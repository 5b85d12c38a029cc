"""A program is stopped, saved, moved and resumed: output, exit, work, marks and root are those of the straight run."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from ipos.vm import engine
from ipos.vm.runner import Runner, Spec
from ipos.vm.save import Saves
from ipos.vm.wasi.boot import Boot, Stdin, StdinKind
from ipos.wire.errors import BadRecord, Refused

from .programs import on_large_stack, wat
from .wasi_plain import compiled

MIXED = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static int deep(int n) { char pad[64]; pad[n & 63] = (char)n; return n ? deep(n - 1) + pad[n & 63] : 0; }
int main(int argc, char **argv) {
    unsigned long sum = 1;
    char *bytes = malloc(1 << 18), line[64];
    while (fgets(line, sizeof line, stdin)) {
        for (int i = 0; i < 1 << 18; i++) { bytes[i] = (char)(i * sum); sum = sum * 6364136223846793005ul + bytes[i]; }
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        printf("%s %lx %ld %d\n", argv[1], sum ^ (unsigned)rand(), now.tv_nsec, deep(200));
        FILE *file = fopen("/kept.txt", "a");
        fprintf(file, "%lx\n", sum);
        fclose(file);
    }
    fprintf(stderr, "end\n");
    return 7;
}
"""
TRAPS = "int main(void) { int *p = (int *)0x7fffffff; return *p; }"
INPUT = b"".join(b"%d\n" % i for i in range(12))


class Host:
    """Standard input comes in pieces, with `waits` refusals in between."""

    def __init__(self, waits: float = 0.0, seed: int = 0) -> None:
        self.out = (bytearray(), bytearray())
        self.read = 0
        self._waits, self._dice = waits, random.Random(seed)

    def ready(self, file: int, first: int, last: int) -> bool:
        return True

    def block(self, file: int, n: int) -> bytes:
        raise AssertionError("there is no input file")

    def stdin(self, count: int) -> bytes | None:
        if self._dice.random() < self._waits:
            return None
        piece = INPUT[self.read : self.read + count]
        self.read += len(piece)
        return piece

    def output(self, stream: int, content: bytes) -> None:
        self.out[stream].extend(content)


SPEC = Spec("test", Boot(args=("p", "word"), stdin=Stdin(StdinKind.STREAM)), mark_every=600_000)


def to_end(runner: Runner, most: int | None = None) -> Runner:
    while runner.ended is None:
        runner.step(most)
    return runner


def outcome(runner: Runner, host: Host) -> tuple[object, ...]:
    ended = runner.ended
    assert ended is not None
    runner.close()
    return (
        *(ended.exit, ended.trap, ended.work, ended.root, ended.marks),
        *(bytes(host.out[0]), bytes(host.out[1]), ended.page_work),
    )


def straight(source: str, cache: Path) -> tuple[object, ...]:
    host = Host()
    return outcome(to_end(Runner.start(engine.compiled(compiled(source), cache), SPEC, host)), host)


def moved(source: str, cache: Path, scratch: Path, seed: int, hops: int) -> tuple[object, ...]:
    """Stopped at random moments, each time saved, thrown away and resumed elsewhere; also while it waits for input."""
    module, dice = engine.compiled(compiled(source), cache), random.Random(seed)
    host = Host(0.2, seed)
    runner = Runner.start(module, SPEC, host)
    for hop in range(hops):
        for _ in range(dice.randrange(1, 4)):
            if runner.ended is None:
                runner.step(dice.randrange(1, 400_000))
        if runner.ended is not None:
            break
        saves = Saves(scratch / "saves", sync=False)
        runner.save(saves)
        runner.close()
        saves.close()
        saves = Saves(scratch / "saves", sync=False)
        head = saves.head()
        assert head is not None
        fresh = Host(0.2, seed + hop + 1)
        fresh.read = host.read
        for stream in (0, 1):
            fresh.out[stream].extend(host.out[stream][: head.written[stream]])
        host = fresh
        runner = Runner.resume(module, SPEC, host, saves, (bytes(host.out[0]), bytes(host.out[1])))
        saves.close()
    return outcome(to_end(runner), host)


@pytest.mark.parametrize("seed", range(3))
def test_moves_change_nothing(seed: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.getbasetemp() / "compiled"

    def both() -> None:
        expected = straight(MIXED, cache)
        assert (expected[0], expected[6]) == (7, b"end\n")
        assert moved(MIXED, cache, tmp_path, seed, 25) == expected

    on_large_stack(both)


def test_a_resume_that_runs_again_is_noticed(tmp_path: Path) -> None:
    """The planted bug: work is counted from zero again, and the marks show it."""

    def run() -> None:
        host = Host()
        runner = Runner.start(engine.compiled(compiled(MIXED), tmp_path), SPEC, host)
        runner.step(1_000_000)
        again = Runner.start(engine.compiled(compiled(MIXED), tmp_path), SPEC, Host())
        assert (again.root(), again.work) != (runner.root(), runner.work)

    on_large_stack(run)


def test_a_trap_is_a_result(tmp_path: Path) -> None:
    def run() -> None:
        first, second = straight(TRAPS, tmp_path), straight(TRAPS, tmp_path)
        assert first == second
        assert first[:2] == (134, "memory out of bounds")

    on_large_stack(run)


@pytest.mark.parametrize("where", ["leaf", "head", "missing"])
def test_a_damaged_save_is_refused(where: str, tmp_path: Path) -> None:
    def run() -> None:
        module = engine.compiled(compiled(MIXED), tmp_path)
        runner, saves = Runner.start(module, SPEC, Host()), Saves(tmp_path / "s", sync=False)
        runner.step(1_000_000)
        runner.save(saves)
        saves.close()
        path = tmp_path / "s" / ("head" if where == "head" else "leaves")
        body = bytearray(path.read_bytes())
        if where == "missing":
            body = body[: len(body) // 2]
        else:
            body[len(body) // 2] ^= 1
        path.write_bytes(body)
        with pytest.raises(BadRecord):
            Runner.resume(module, SPEC, Host(), Saves(tmp_path / "s"), (b"", b""))

    on_large_stack(run)


def test_a_foreign_file_in_the_cache_is_not_run(tmp_path: Path) -> None:
    program = compiled(TRAPS)
    engine.compiled(program, tmp_path)
    (path,) = (one for one in tmp_path.iterdir() if one.name != "key" and one.is_file())
    good = path.read_bytes()
    path.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    engine.compiled(program, tmp_path)
    assert path.read_bytes()[32:64] == good[32:64]


def test_a_program_larger_than_its_task_is_refused(tmp_path: Path) -> None:
    module = engine.compiled(wat('(module (memory (export "memory") 4112) (func (export "_start")))'), tmp_path)
    with pytest.raises(Refused, match="needs 257 MiB of memory to begin; the task has 256 MiB"):
        Runner.start(module, SPEC, Host())
    module = engine.compiled(compiled(MIXED), tmp_path)  # it is recursive: the engine needs 64 MiB for its frames
    with pytest.raises(Refused, match="needs 64 MiB"):
        Runner.start(module, replace(SPEC, memory_bytes=32 << 20), Host())


def test_two_runs_do_not_share_a_save(tmp_path: Path) -> None:
    first = Saves(tmp_path)
    with pytest.raises(Refused, match="another run"):
        Saves(tmp_path)
    first.close()
    Saves(tmp_path).close()


def test_a_torn_tail_is_cut_off(tmp_path: Path) -> None:
    """What a pulled plug leaves of a save that was being written: the one before it is still whole."""

    def run() -> None:
        module = engine.compiled(compiled(MIXED), tmp_path)
        runner, saves = Runner.start(module, SPEC, Host()), Saves(tmp_path / "s", sync=False)
        runner.step(400_000)
        runner.save(saves)
        whole = saves.head()
        saves.close()
        with (tmp_path / "s" / "leaves").open("ab") as stream:
            stream.write(b"torn" * 30)
        saves = Saves(tmp_path / "s", sync=False)
        assert whole is not None
        assert saves.parts(whole).memory
        runner.step(400_000)
        runner.save(saves)
        newer = saves.head()
        assert newer is not None
        assert newer.work > whole.work
        assert saves.parts(newer).memory
        saves.close()
        runner.close()

    on_large_stack(run)
