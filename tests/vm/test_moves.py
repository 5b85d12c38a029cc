"""A program that is stopped, saved, killed and resumed in another process ends as the one that nobody disturbed: the same output, exit,
work, marks and root. At random moments, at every moment, and while it waits for input."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from ipos.vm.host import Fault
from ipos.vm.instance import Instance, Parts
from ipos.vm.runner import Runner
from ipos.vm.save import Saves
from ipos.wire.errors import Refused

from .programs import on_large_stack
from .programs_hop import Journey, hop
from .programs_tasks import LINES, LONG, TASKS, Host, Outcome, outcome, straight

SMALL = [name for name, task in TASKS.items() if task.every]


def dice() -> tuple[int, random.Random]:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return seed, random.Random(seed)


def expected(name: str) -> Outcome:
    return on_large_stack(lambda: straight(name))


def stops(among: random.Random, name: str, count: int) -> list[int]:
    """Moments in order, each one unit of work after the start or later."""
    return sorted(among.randrange(1, expected(name).work) for _ in range(count))


@pytest.mark.parametrize(("name", "hops"), [("lua", 3), ("sqlite", 3), ("python", 1)])
def test_a_few_hops(name: str, hops: int, tmp_path: Path) -> None:
    seed, among = dice()
    journey = Journey(name, tmp_path)
    assert journey.through(stops(among, name, hops)) == expected(name), seed
    assert journey.hops == hops, seed


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_fifty_single_hops(name: str, tmp_path: Path) -> None:
    seed, among = dice()
    work = []
    for i in range(50):
        (until,) = stops(among, name, 1)
        journey = Journey(name, tmp_path / str(i))
        assert journey.through([until]) == expected(name), (seed, i, until)
        assert journey.hops == 1, (seed, i, until)
        work.append(until / expected(name).work)
    print(f"{name}: 50 single hops of 50 equal, at {min(work):.1%} to {max(work):.1%} of {expected(name).work} work")


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_chain_of_fifty(name: str, tmp_path: Path) -> None:
    seed, among = dice()
    journey = Journey(name, tmp_path)
    assert journey.through(stops(among, name, 50)) == expected(name), seed
    assert journey.hops >= 49, (seed, journey.hops)  # two moments may lie between the same two safepoints
    print(f"{name}: a chain of {journey.hops} hops, {len(expected(name).marks)} marks, equal")


# ---- while it waits for input


@pytest.mark.parametrize(("name", "arrivals"), [("hash", 5), ("lua", 3)])
def test_moved_while_blocked_in_a_read(name: str, arrivals: int, tmp_path: Path) -> None:
    """Every process is given a little more input, and is killed when it asks for what has not come."""
    seed, among = dice()
    whole = len(TASKS[name].stdin)
    journey, ended = Journey(name, tmp_path), None
    for given in (0, 0, *sorted(among.randrange(1, whole) for _ in range(arrivals - 2))):
        assert journey.on(-1, given) is None, (seed, given)
    ended = journey.on(-1, whole + 1)
    assert ended == expected(name), seed
    assert journey.hops == arrivals


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hash", "lua", "python"])
def test_moved_fifty_times_while_blocked(name: str, tmp_path: Path) -> None:
    """In this process, so that there can be many: blocked, saved, restored, blocked again at the same byte or a later one."""

    def run() -> None:
        seed, among = dice()
        arrivals = sorted(among.randrange(len(TASKS[name].stdin)) for _ in range(50))
        for given in arrivals:
            assert hop(TASKS[name], tmp_path, -1, given) is None, (seed, given)
        assert hop(TASKS[name], tmp_path, -1) == straight(name), seed
        print(f"{name}: moved 50 times while blocked in a read, equal")

    on_large_stack(run)


# ---- everywhere


def everywhere(name: str, folder: Path, move_every: int) -> tuple[int, int]:
    """Stopped at every safepoint; every `move_every`-th stop is a move. Two runs side by side, of which only one moves, have the same root
    at every stop where it does. Returns the stops and the moves."""
    task = TASKS[name]
    module, spec = task.module(), task.spec(task.every)
    host, other, plain = Host(task), Host(task), Host(task)
    runner, still = Runner.start(module, spec, host), Runner.start(module, spec, other)
    whole = Runner.start(module, spec, plain)
    while whole.ended is None:
        whole.step()
    saves, count, moves = Saves(folder, sync=False), 0, 0
    while runner.ended is None:
        runner.step(0)
        still.step(0)
        count += 1
        assert runner.work == still.work, count
        if runner.ended is None and count % move_every == 0:
            runner.save(saves)
            head = saves.head()
            assert head is not None
            assert (head.work, head.root) == (still.work, still.root()), count
            runner.close()
            host = Host(task, out=(bytes(host.out[0])[: head.written[0]], bytes(host.out[1])[: head.written[1]]))
            runner = Runner.resume(module, spec, host, saves, (bytes(host.out[0]), bytes(host.out[1])))
            host.read = runner.state.call("wasi_stdin_read")
            moves += 1
    saves.close()
    done = outcome(whole, plain)
    assert done.out
    assert outcome(still, other) == done
    assert outcome(runner, host) == done
    return count, moves


def test_moved_at_every_safepoint(tmp_path: Path) -> None:
    count, moves = on_large_stack(lambda: everywhere("fib", tmp_path, 1))
    print(f"fib: {moves} moves at {count} stops")
    assert moves > 400


@pytest.mark.parametrize("name", [name for name in SMALL if name != "core"])
def test_stopped_at_every_safepoint(name: str, tmp_path: Path) -> None:
    count, moves = on_large_stack(lambda: everywhere(name, tmp_path, 100))
    print(f"{name}: {count} stops, {moves} moves")
    assert count > 400


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_small_program_moved_at_every_safepoint(name: str, tmp_path: Path) -> None:
    count, moves = on_large_stack(lambda: everywhere(name, tmp_path, 1))
    assert moves >= count - 1
    print(f"{name}: {moves} moves at {count} stops, equal")


# ---- what a broken move looks like


def _without_globals(instance: Instance, parts: Parts, used: int) -> None:
    kept = instance.call
    instance.call = lambda name, *arguments: 0 if name == "ipos_globals_in" else kept(name, *arguments)  # type: ignore[method-assign]
    restore(instance, parts, used)
    instance.call = kept  # type: ignore[method-assign]


def _with_work_lost(instance: Instance, parts: Parts, used: int) -> None:
    restore(instance, parts, used - 1)


def _with_frames_lost(instance: Instance, parts: Parts, used: int) -> None:
    restore(
        instance, parts._replace(frames=parts.frames[: len(parts.frames) // 2].ljust(len(parts.frames), b"\0")), used
    )


def _with_an_offset_lost(instance: Instance, parts: Parts, used: int) -> None:
    """SQLite's batch is read 300 bytes at a time: whatever in the WASI says so is begun anew."""
    size = len(TASKS["sqlite"].content(1))
    wasi = parts.wasi
    offsets = [at for n in range(1, size // 300 + 1) for at in _places(wasi, (300 * n).to_bytes(8, "little"))]
    assert offsets, "the offset that this bug would lose is nowhere"
    for at in offsets:
        wasi = wasi[:at] + bytes(8) + wasi[at + 8 :]
    restore(instance, parts._replace(wasi=wasi), used)


def _places(where: bytes, what: bytes) -> list[int]:
    found, at = [], where.find(what)
    while at >= 0:
        if at % 8 == 0:
            found.append(at)
        at = where.find(what, at + 1)
    return found


restore = Instance.restore


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("lua", _without_globals),
        ("lua", _with_work_lost),
        ("lua", _with_frames_lost),
        ("sqlite", _with_an_offset_lost),
    ],
)
def test_a_planted_bug_is_found(name: str, planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> object:
        whole = straight(name)
        assert hop(TASKS[name], tmp_path, whole.work // 2) is None
        monkeypatch.setattr(Instance, "restore", planted)
        try:
            return hop(TASKS[name], tmp_path, -1)
        except (Fault, Refused, wasmtime.WasmtimeError) as refused:
            return str(refused)

    assert on_large_stack(run) != expected(name)


def test_input_given_twice_is_found(tmp_path: Path) -> None:
    """The host, too, must go on where the program was."""

    def run() -> None:
        assert hop(TASKS["lua"], tmp_path, -1, len(LINES) // 2) is None
        saves, task = Saves(tmp_path / "saves", sync=False), TASKS["lua"]
        host = Host(task, out=((tmp_path / "stdout").read_bytes(), b""))
        runner = Runner.resume(task.module(), task.spec(), host, saves, (bytes(host.out[0]), b""))
        while runner.ended is None:
            runner.step()
        assert outcome(runner, host) != straight("lua")
        saves.close()

    on_large_stack(run)


def test_the_hash_is_the_hash() -> None:
    """The programs do what they say."""
    import hashlib

    assert expected("hash").out == hashlib.sha256(LONG).hexdigest() + "\n"
