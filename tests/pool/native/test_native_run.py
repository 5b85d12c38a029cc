"""A native task runs like a program at a prompt, in a directory of its own, and nothing of it is left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from native_kit import SHELL, HandClock, alive, finish, run_script, run_shell, runner_on, script, state, until

from ipos.pool.native import workdir
from ipos.pool.native.process import Limits, Program
from ipos.pool.native.runner import NativeRunner
from ipos.wire import limits
from ipos.wire.errors import Refused

pytestmark = pytest.mark.real

LOOP = "import os, sys\nprint('up', flush=True)\nwhile True: pass"


def test_script_with_arguments_stdin_and_files(tmp_path: Path) -> None:
    text = (
        "import sys, os\n"
        "print(sys.argv[1:], sys.stdin.read(), open('data.txt').read(), sorted(os.listdir('.')))\n"
        "print('oops', file=sys.stderr)\n"
        "open('out.txt', 'w').write('made')\n"
        "sys.exit(3)\n"
    )
    (tmp_path / "in").write_text("from stdin")
    (tmp_path / "data").write_text("from file")

    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_script(
                runner, text, ["-n", "3"], stdin=tmp_path / "in", files={"data.txt": tmp_path / "data"}
            )
            assert ran.outcome.exit == 3
            assert ran.outcome.signal is None
            assert ran.outcome.fault is None
            assert ran.outcome.killed is None
            assert ran.out == "['-n', '3'] from stdin from file ['data.txt']\n"
            assert ran.err == "oops\n"
            assert (ran.outcome.dir / "out.txt").read_text() == "made"
            assert ran.outcome.cpu_s > 0
            assert ran.outcome.wall_s > 0
            assert ran.outcome.max_rss_bytes > limits.MiB
            await runner.discard("task")
            assert not ran.outcome.stdout.parent.exists()

    asyncio.run(main())


def test_executable(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_shell(runner, "echo $1 here; exit 7", key="a.b-c_1")
            assert (ran.outcome.exit, ran.out) == (7, "here\n")

    asyncio.run(main())


def test_program_is_placed_once_and_read_only(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("#!/bin/sh\necho hello\n")

    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            paths = await asyncio.gather(*(runner.program("k", "greet", make) for _ in range(5)))
            assert len(made) == 1
            assert len(set(paths)) == 1
            assert paths[0].stat().st_mode & 0o777 == 0o555
            ran = await finish(await runner.start("t", Program("greet", paths[0], python=False)))
            assert ran.out == "hello\n"
            with pytest.raises(Refused, match="cannot be the name of a program"):
                await runner.program("k", "../x", make)

    asyncio.run(main())


def test_environment_is_small_and_has_nothing_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_NODE", "x")

    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_script(
                runner, "import os, json, sys; print(json.dumps([dict(os.environ), os.getcwd(), sys.path]))"
            )
            seen, cwd, path = json.loads(ran.out)
            assert set(seen) - {"LC_CTYPE"} == {
                "PATH", "HOME", "TMPDIR", "LANG", "IPOS_TASK", "IPOS_WORK", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS",
                "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS",
            }  # fmt: skip
            assert seen["OMP_NUM_THREADS"] == "1"
            assert seen["IPOS_TASK"] == "task"
            assert cwd == str(tmp_path / "home" / "here" / "cwd")
            assert str(Path(__file__).parents[3] / "src") not in path
            assert not any(".venv" in entry for entry in path)

    asyncio.run(main())


def test_inputs_are_read_only_and_the_original_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("original")
    text = "try: open('data','w')\nexcept OSError as e: print(e.errno)\nimport os; os.chmod('data', 0o644); open('data','w').write('changed')"

    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_script(runner, text, files={"data": tmp_path / "data"})
            assert ran.out == "13\n"
            assert (tmp_path / "data").read_text() == "original"
            assert (ran.outcome.dir / "data").read_text() == "changed"

    asyncio.run(main())


def test_what_is_left_is_what_the_task_made(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("1")

    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            files = {"same": tmp_path / "data", "edited": tmp_path / "data"}
            process = await runner.start(
                "t",
                SHELL,
                ["-c", "echo 2 > x; mv x edited; ln -s /etc s; mkdir d; echo 3 > d/f; chmod 0 d/f d"],
                files=files,
            )
            ran = await finish(process)
            assert ran.outcome.exit == 0, ran.err
            assert workdir.left(ran.outcome.dir, process.given)
            assert sorted(os.listdir(ran.outcome.dir)) == ["d", "edited", "s"]
            assert (ran.outcome.dir / "d" / "f").read_text() == "3\n"
            await runner.discard("t")
            process = await runner.start("u", SHELL, ["-c", "cat same"], files=files)
            ran = await finish(process)
            assert not workdir.left(ran.outcome.dir, process.given)

    asyncio.run(main())


def test_temporary_files_go_with_the_task(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            first = await run_shell(
                runner, "mkdir -p $TMPDIR/a/b ~/c; echo x > $TMPDIR/a/b/f; chmod 0 $TMPDIR/a; pwd", key="a"
            )
            second = await run_shell(runner, "ls -A $TMPDIR ~ | grep -v :; pwd", key="b")
            assert first.outcome.exit == 0, first.err
            assert second.out.split() == [first.out.strip()]

    asyncio.run(main())


@pytest.mark.parametrize(("text", "signal"), [("kill -SEGV $$", 11), ("kill -TERM $$", 15)])
def test_signal(tmp_path: Path, text: str, signal: int) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_shell(runner, text)
            assert (ran.outcome.exit, ran.outcome.signal, ran.outcome.fault) == (None, signal, None)

    asyncio.run(main())


def test_sigkill_from_elsewhere_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_shell(runner, "kill -KILL $$")
            assert ran.outcome.fault == "something on this machine that is not the node ended the task (SIGKILL)"
            assert (ran.outcome.exit, ran.outcome.signal) == (None, None)

    asyncio.run(main())


@pytest.mark.parametrize("isolate", [True, False])
def test_pause_stops_all_of_it_and_kill_ends_it(tmp_path: Path, isolate: bool) -> None:
    async def main() -> None:
        async with runner_on(tmp_path, isolate=isolate) as runner:
            process = await runner.start("t", SHELL, ["-c", "setsid sh -c 'while :; do :; done' & while :; do :; done"])
            await until(lambda: len(alive("t")) == 2)
            assert process.pid in alive("t")
            process.pause()
            await until(lambda: all(state(pid) == "T" for pid in alive("t")))
            process.resume()
            await until(lambda: all(state(pid) == "R" for pid in alive("t")))
            process.pause()
            await process.kill()
            assert alive("t") == []
            outcome = await process.wait()
            assert outcome.killed == "was cancelled"
            assert process.pid is None

    asyncio.run(main())


@pytest.mark.parametrize("isolate", [True, False])
def test_daemon_is_gone_when_the_task_is(tmp_path: Path, isolate: bool) -> None:
    async def main() -> None:
        async with runner_on(tmp_path, isolate=isolate) as runner:
            text = "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; read line; echo done"
            os.mkfifo(tmp_path / "fifo")
            process = await runner.start("t", SHELL, ["-c", f"exec < {tmp_path}/fifo; {text}"])
            with open(await asyncio.to_thread(os.open, tmp_path / "fifo", os.O_WRONLY), "w") as fifo:
                await until(lambda: len(alive("t")) == 4)
                fifo.write("go\n")
            ran = await finish(process)
            assert (ran.outcome.exit, ran.out) == (0, "done\n")
            assert alive("t") == []

    asyncio.run(main())


def test_fork_bomb_is_bounded_and_leaves_nothing(tmp_path: Path) -> None:
    text = (
        "import os, time\n"
        "n = 0\n"
        "try:\n"
        "    while n < 2000:\n"
        "        if os.fork() == 0:\n"
        "            os.setsid(); time.sleep(1000)\n"
        "        n += 1\n"
        "except OSError: pass\n"
        "print(n)"
    )

    async def main() -> None:
        async with runner_on(tmp_path, processes=320) as runner:
            assert runner.isolation == "namespaces"
            ran = await run_script(runner, text)
            assert 100 < int(ran.out) < 320
            assert alive("task") == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("while True: print('x' * 1000)", "stdout"),
        ("import sys\nwhile True: print('x' * 1000, file=sys.stderr)", "stderr"),
        ("f = open('big', 'w')\nwhile True: f.write('x' * 1000)", "the file big"),
        ("import os\nos.execvp('sh', ['sh', '-c', 'yes > big'])", "the file big"),
    ],
)
def test_output_limit(tmp_path: Path, text: str, where: str) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_script(runner, text, limits=Limits(output_bytes=limits.MiB))
            assert ran.outcome.killed == f"wrote more than 1 MiB to {where}: raise it with --max-output"
            assert max(path.stat().st_size for path in (*ran.outcome.dir.iterdir(), ran.outcome.stdout)) <= limits.MiB

    asyncio.run(main())


def test_the_limits_that_a_task_has_by_default_are_hard(tmp_path: Path) -> None:
    text = "from resource import *\nfor r in (RLIMIT_FSIZE, RLIMIT_CORE, RLIMIT_NOFILE): print(*getrlimit(r))"

    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_script(runner, "import time; time.sleep(0.01)\n" + text)
            assert limits.output_bytes == 256 * limits.MiB
            sizes, cores, files = (line.split() for line in ran.out.splitlines())
            assert sizes == [str(256 * limits.MiB)] * 2
            assert cores == ["0", "0"]
            assert files[0] == "1024"

    asyncio.run(main())


def test_memory_limit(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            asked = Limits(memory_bytes=64 * limits.MiB)
            ran = await run_script(runner, "x = bytearray(10 << 20); print(len(x))", key="fits", limits=asked)
            assert ran.out == "10485760\n"
            ran = await run_script(runner, "x = bytearray(100 << 20)", key="grows", limits=asked)
            assert ran.outcome.killed == "needed more than 64 MiB of memory: raise it with --memory"
            ran = await run_script(runner, "raise ValueError", key="other", limits=asked)
            assert (ran.outcome.exit, ran.outcome.killed) == (1, None)
            with pytest.raises(Refused, match="a memory limit of 1 MiB is too small, the least is 32 MiB"):
                await run_script(runner, "", limits=Limits(memory_bytes=limits.MiB))

    asyncio.run(main())


def test_processor_time_limit(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            ran = await run_script(runner, LOOP, limits=Limits(cpu_s=1))
            assert ran.outcome.killed == "used more than 1 s of processor time"

    asyncio.run(main())


def test_wall_limit_does_not_count_pauses(tmp_path: Path) -> None:
    async def main() -> None:
        clock = HandClock()
        async with runner_on(tmp_path, clock=clock) as runner:
            process = await runner.start("t", await script(runner, LOOP), limits=Limits(wall_s=60))
            await clock.pass_by(50)
            process.pause()
            await clock.pass_by(1000)
            process.resume()
            await clock.pass_by(5)
            assert len(alive("t")) == 1
            await clock.pass_by(10)
            outcome = await process.wait()
            assert outcome.killed == "ran longer than 60 s: raise it with --timeout"
            assert outcome.wall_s == 1065
            assert alive("t") == []

    asyncio.run(main())


def test_output_can_be_read_while_it_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            process = await runner.start("t", await script(runner, LOOP))
            await until(lambda: process.stdout.read_text() == "up\n")
            await process.kill()

    asyncio.run(main())


def test_many_at_once_share_seats(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:

            async def one(i: int) -> str:
                ran = await run_shell(runner, f"echo {i}", key=f"t{i}")
                await runner.discard(f"t{i}")
                return ran.out

            for _ in range(2):
                assert await asyncio.gather(*(one(i) for i in range(12))) == [f"{i}\n" for i in range(12)]
            await until(lambda: len(os.listdir(tmp_path / "home" / "work" / ".seats")) <= (os.cpu_count() or 1))

    asyncio.run(main())


def test_a_key_runs_once_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            await runner.start("t", SHELL, ["-c", "sleep 1000"])
            with pytest.raises(Refused, match="task t is running already"):
                await runner.start("t", SHELL, ["-c", "echo"])
            await runner.discard("t")
            assert alive("t") == []
            assert (await run_shell(runner, "echo again", key="t")).out == "again\n"

    asyncio.run(main())


def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            for turns in range(12):
                task = asyncio.create_task(runner.start("t", SHELL, ["-c", "sleep 1000"]))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            task = asyncio.create_task(runner.start("t", SHELL, ["-c", "sleep 1000"]))
            await until(lambda: alive("t"))
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                await task.result().kill()
            assert alive("t") == []
            await runner.discard("t")
            assert (await run_shell(runner, "echo fine")).out == "fine\n"

    asyncio.run(main())


def test_a_program_that_is_still_open_for_writing_is_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            path = tmp_path / "copy"
            shutil.copy("/bin/true", path)
            held = open(path, "r+b")  # noqa: SIM115  (closed while the start waits)
            asyncio.get_running_loop().call_later(0.03, held.close)
            ran = await finish(await runner.start("t", Program("copy", path, python=False)))
            assert ran.outcome.exit == 0
            assert held.closed

    asyncio.run(main())


def elf(machine: int) -> bytes:
    head = bytearray(Path("/bin/true").read_bytes()[:4096])
    head[18:20] = machine.to_bytes(2, "little")
    return bytes(head)


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (None, 0o755, "{path} does not exist"),
        (b"#!/bin/sh\n", 0o644, "prog cannot be started: it is not an executable file"),
        (b"echo hello\n", 0o755, "it is no program: a script must begin with '#!' and its interpreter"),
        (b"#!/no/such/thing -x\n", 0o755, "this machine has no /no/such/thing"),
        (elf(183), 0o755, "it is built for aarch64, this machine runs Linux on x86_64"),
        (elf(9999), 0o755, "it is built for ELF machine 9999"),
        (b"MZ" + bytes(100), 0o755, "it is built for Windows"),
    ],
)
def test_a_program_that_cannot_run_is_refused_with_the_reason(
    tmp_path: Path, content: bytes | None, mode: int, sentence: str
) -> None:
    path = tmp_path / "prog"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)

    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            with pytest.raises(Refused) as refused:
                await runner.start("t", Program("prog", path, python=False))
            assert sentence.format(path=path) in str(refused.value)
            assert not (tmp_path / "home" / "work" / "t").exists()
            assert (await run_shell(runner, "echo the seat is free again")).outcome.exit == 0

    asyncio.run(main())


def test_an_interpreter_that_is_missing_inside_an_elf_file(tmp_path: Path) -> None:
    body = Path("/bin/true").read_bytes()
    at = (
        body.index(b"/lib64/ld-linux-x86-64.so.2")
        if os.uname().machine == "x86_64"
        else body.index(b"/lib/ld-linux-aarch64")
    )
    path = tmp_path / "prog"
    path.write_bytes(body[:at] + b"/liX" + body[at + 4 :])
    path.chmod(0o755)

    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            with pytest.raises(Refused, match="this machine has no /liX"):
                await runner.start("t", Program("prog", path, python=False))

    asyncio.run(main())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x\0", "n" * 256])
def test_names_that_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="cannot be the name of a file"):
        workdir.lay(tmp_path / "t", None, {name: Path("/etc/hostname")})
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("key", ["", "..", ".seats", "a/b", "k" * 129])
def test_keys_are_checked(tmp_path: Path, key: str) -> None:
    with pytest.raises(Refused, match="cannot be the key of a task"):
        asyncio.run(NativeRunner(tmp_path).start(key, SHELL))


def test_arguments_that_are_too_long(tmp_path: Path) -> None:
    async def main() -> None:
        async with runner_on(tmp_path) as runner:
            with pytest.raises(Refused, match="its arguments are longer than this machine takes"):
                await runner.start("t", SHELL, ["x" * 200_000])

    asyncio.run(main())
