"""A task of the engine on its node: it outlives its workers, and nobody waits for its compilation who does not want it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from ipos.pool.execute import Ran
from ipos.pool.native.engine import DEATHS, Engine, EngineRun
from ipos.pool.records import EngineRun as Environment
from ipos.pool.records import Task
from ipos.pool.saves import Holds
from ipos.store.blocks import MemoryStore
from ipos.store.pins import Pins
from ipos.vm import plan
from ipos.vm.plan import Report
from ipos.vm.process import Ended, Worker
from ipos.vm.version import platform, version
from ipos.wire.clock import SystemClock
from ipos.wire.errors import Refused
from ipos.wire.record import cid_of, encode

Start = Callable[[int, "Scripted"], Awaitable[None]]


class Scripted(Worker):
    """A worker without a process: `die` and `finish` are what would have happened to it."""

    def die(self, saved: int = 0) -> None:
        if saved:
            self._took(plan.Saved(saved, "0" * 64, 1, 0.001, 5.0))
        if not self.ended.done():
            self.ended.set_result(Ended(Report(fault="the engine's worker ended with signal 9"), [], -9, silent=True))

    def finish(self) -> None:
        self.ended.set_result(Ended(Report(exit=3, work=9, root="0" * 64), [], 0))


def ran(
    home: Path,
    script: Callable[[int, Scripted], None],
    then: Callable[[EngineRun], None] | None = None,
    hangs: bool = False,
) -> tuple[Ran, int]:
    """What a run came to, and how many workers it took. `hangs`: none ever starts; `then` is done meanwhile."""
    count = 0

    async def run() -> Ran:
        store = MemoryStore()
        environment = Environment(engine=version())
        store.put([(cid_of(environment), encode(environment))])
        task = Task(program=cid_of(environment), name="t", environment=cid_of(environment), platform=platform())
        engine = Engine(home, (), store, Holds(Pins(":memory:", store)), SystemClock())
        (home / "work/k/cwd").mkdir(parents=True)
        (home / "env").mkdir()

        async def start(*arguments: object, **_: object) -> Scripted:
            nonlocal count
            if hangs:
                await asyncio.sleep(3600)
            what, places = arguments[:2]
            assert isinstance(what, plan.Plan)
            worker = Scripted("k", what, places, lambda key: worker.die(), lambda event: None, 1)  # pyright: ignore
            count += 1
            asyncio.get_running_loop().call_soon(script, count, worker)
            return worker

        engine.workers.start = start  # pyright: ignore
        engine.prepare("k", task, 5.0)
        one = await engine.start("k", task, home / "none.wasm", None)
        if then is not None:
            await asyncio.sleep(0)
            then(one)
        async with asyncio.timeout(10):
            await one.exited()
            return await one.wait()

    return asyncio.run(run()), count


def test_a_silent_death_is_followed_by_another_worker(tmp_path: Path) -> None:
    done, workers = ran(tmp_path, lambda n, worker: worker.finish() if n == 20 else worker.die(saved=n))
    assert (done.exit, done.fault, workers) == (3, "", 20)
    assert ("note", "its worker was killed 19 times and went on from its save") in done.ext


def test_deaths_without_a_newer_save_are_a_fault(tmp_path: Path) -> None:
    done, workers = ran(tmp_path, lambda n, worker: worker.die())
    assert "signal 9" in done.fault
    assert workers == DEATHS


def test_a_stop_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    done, workers = ran(tmp_path, lambda n, worker: None, EngineRun.stop, hangs=True)
    assert (done.stopped, done.save, workers) == (True, None, 0)


def test_a_time_limit_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    done, workers = ran(tmp_path, lambda n, worker: None, lambda run: run._end("ran longer than 5 s"), hangs=True)
    assert (done.killed, done.fault, workers) == ("ran longer than 5 s", "", 0)


def test_a_refused_program_is_the_task_s_end(tmp_path: Path) -> None:
    def refuse(n: int, worker: Scripted) -> None:
        worker.ended.set_result(Ended(Report(exit=125, killed=str(Refused("needs 3 GiB"))), [], 0))

    done, _ = ran(tmp_path, refuse)
    assert (done.exit, done.killed, done.fault) == (125, "needs 3 GiB", "")
