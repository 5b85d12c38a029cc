"""Every bad input gets one clear sentence and an exit status, and loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Machine, join, wait_for

pytestmark = pytest.mark.real
Make = Callable[..., Machine]


def script(machine: Machine, name: str, body: str) -> str:
    path = machine.home.parent / name
    path.write_text(body)
    return str(path)


def inputs(machine: Machine, count: int) -> str:
    directory = machine.home.parent / "data"
    directory.mkdir(exist_ok=True)
    for i in range(count):
        (directory / f"f{i:03}").write_text(f"line {i}\n")
    return str(directory / "*")


UPPER = "import sys\nprint(sys.stdin.read().strip().upper())\n"


def test_programs(machines: Make) -> None:
    desk = machines("desk")
    over = inputs(desk, 2)
    assert "there is no program" in desk.refused("run", "./nope.py", status=125)
    assert "no files match" in desk.refused("map", script(desk, "a.py", UPPER), "--over", "nothing/*")
    plain = script(desk, "plain", "#!/bin/sh\n")
    assert "chmod +x" in desk.refused("run", plain, status=125)
    done = desk.run("run", script(desk, "crash.py", "import sys\nsys.exit('it broke')\n"))
    assert (done.returncode, "exit status 1: it broke" in done.stderr) == (1, True)
    assert "it broke" in desk.refused(
        "map", script(desk, "crash.py", "import sys\nsys.exit('it broke')\n"), "--over", over
    )
    needy = script(desk, "needy.py", "import nosuchthing\n")
    assert "--with nosuchthing" in desk.run("run", needy).stderr
    assert "cannot be resolved" in desk.refused(
        "run", "--with", "nosuchpackage-of-ipos", needy, status=125, timeout=120
    )
    broken = script(desk, "broken.py", "# /// script\n# dependencies = [\n# ///\n")
    assert "'# /// script' block cannot be read" in desk.refused("run", broken, status=125)
    assert "no machine of this pool is called attic" in desk.refused("map", needy, "--over", over, "--nodes", "attic")


def test_outputs(machines: Make) -> None:
    desk = machines("desk")
    over = inputs(desk, 2)
    program = script(desk, "a.py", UPPER)
    sentence = desk.refused("map", program, "--over", over, "--out", "/proc/nowhere")
    assert "/proc/nowhere cannot be written" in sentence
    endless = script(desk, "much.py", "while True: print('x' * 65536)\n")
    done = desk.run("run", "--max-output", "1", endless)
    assert done.returncode != 0
    assert "wrote more than 1 MiB" in done.stderr
    never = script(desk, "never.py", "import time\ntime.sleep(1000)\n")
    done = desk.run("run", "--timeout", "0.5", never)
    assert done.returncode == 128 + 9
    assert "ran longer than 0.5 s" in done.stderr


def test_a_gigabyte_printed(machines: Make) -> None:
    """The default limit ends it; the node goes on."""
    desk = machines("desk")
    done = desk.run("run", script(desk, "gig.py", "for _ in range(1024): print('x' * (1 << 20))\n"), timeout=120)
    assert done.returncode != 0
    assert "wrote more than 256 MiB" in done.stderr
    assert desk.ok("run", script(desk, "hello.py", "print('hello')\n")) == "hello\n"


def test_one_node_per_home(machines: Make) -> None:
    desk = machines("desk")
    assert f"already (pid {desk.pid()})" in desk.refused("up")
    environment = {**os.environ, "IPOS_HOME": str(desk.home), "XDG_RUNTIME_DIR": str(desk.home.parent / "run")}
    second = subprocess.run(
        [sys.executable, "-m", "ipos.node"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert "a node is up on" in second.stderr
    assert desk.json("status")["name"] == "desk"


def test_codes(machines: Make) -> None:
    desk, attic = machines("desk"), machines("attic")
    code = desk.json("invite")["code"]
    number, one, two = code.split("-")
    wrong = f"{number}-{two if two != one else 'acorn'}-{one}"
    assert "wrong code" in attic.refused("join", wrong, "--yes")
    assert "no open invite" in attic.refused("join", code, "--yes"), "one guess burns the invite"
    assert "not a word of invite codes: perhaps guitar?" in attic.refused("join", "7-gitar-upset", "--yes")
    join(desk, attic)
    assert "belongs to an account with 2 machines" in attic.refused("join", desk.json("invite")["code"], "--yes")
    assert "account's key is on desk" in attic.refused("invite", "--yes")
    assert attic.json("status")["account_key"] == "on another machine"


def test_a_stranger_sees_nothing(machines: Make) -> None:
    """A peer of another account gets a sentence, and not the tree."""
    import asyncio
    import tempfile

    from ipos.net.netd import Netd
    from ipos.store.blocks import MemoryStore
    from ipos.tree.ninep.client import Client
    from ipos.wire.errors import Gone, Refused

    desk = machines("desk")
    status = desk.json("status")

    async def knock() -> str:
        with tempfile.TemporaryDirectory(prefix="n") as scratch:
            net = Netd(
                key=Path(scratch) / "key",
                run_dir=Path(scratch),
                listen=(),
                mdns=False,
                store=MemoryStore(),
                may=lambda p, c: False,
            )
            await net.start()
            try:
                _, client = await net.dial(status["peer"], "/ipos/9p/1", Client, status["addresses"].split())
                assert isinstance(client, Client)
                async with asyncio.timeout(10):
                    await client.attach()
            except Gone:
                return "the connection was cut without a word"
            except Refused as refused:
                return str(refused)
            finally:
                await net.close()
        return "it was let in"

    assert "is not on the machine list (version 1)" in asyncio.run(knock())


def test_an_old_list_is_replaced(machines: Make) -> None:
    """A third machine that slept through a change of the list has the new one when it is seen again."""
    desk, attic, loft = machines("desk"), machines("attic"), machines("loft")
    join(desk, attic)
    attic.ok("down")
    code = desk.json("invite")["code"]
    loft.ok("join", code, "--yes")
    attic.ok("up")
    wait_for("the new list on attic", lambda: attic.json("status")["list_version"] == 3)
    wait_for("all three see each other", lambda: attic.json("pool")["nodes"] == 3)


def test_killed_parts(machines: Make) -> None:
    """netd, the worker's parent, and the node, each killed with kill -9 in the middle of a batch."""
    desk, attic = machines("desk"), machines("attic")
    join(desk, attic)
    program = script(desk, "slow.py", "import time\ntime.sleep(0.2)\n" + UPPER)
    out = desk.home.parent / "out"
    job = desk.ok("map", program, "--over", inputs(desk, 30), "--out", str(out), "--grace", "3", "--detach").strip()

    def written(count: int) -> Callable[[], bool]:
        return lambda: out.exists() and len(list(out.iterdir())) >= count

    for count, machine, part in (
        (3, attic, "netd_pid"),
        (7, attic, "worker_pid"),
        (11, desk, "netd_pid"),
        (15, desk, "worker_pid"),
    ):
        wait_for(f"{count} outputs", written(count))
        os.kill(machine.pid(part), signal.SIGKILL)
    wait_for("20 outputs", written(20))
    os.kill(desk.pid(), signal.SIGKILL)
    wait_for("the end of the node", lambda: desk.run("status").returncode == 1)
    desk.ok("up")
    end = json.loads(desk.ok("wait", job, "--json").splitlines()[-1])
    assert (end["done"], end["failed"]) == (30, 0)
    assert {path.name: path.read_text() for path in out.iterdir()} == {f"f{i:03}": f"LINE {i}\n" for i in range(30)}


def test_settings(machines: Make) -> None:
    desk = machines("desk", up=False)
    desk.home.mkdir()
    (desk.home / "ipos.toml").write_text('nmae = "x"\n')
    assert "unknown key 'nmae'; did you mean 'name'?" in desk.refused("up")


def test_the_same_task_twice(machines: Make) -> None:
    desk = machines("desk")
    program = script(desk, "random.py", "import random\nprint(random.random())\n")
    first = desk.ok("run", program)
    again = desk.run("run", program)
    assert again.stdout == first
    assert "the same task ran before" in again.stderr
    assert desk.ok("run", "--fresh", program) != first
    assert json.loads(desk.ok("run", "--json", program))["cached"] is True


def test_secrets_are_out_of_reach(machines: Make) -> None:
    desk = machines("desk")
    home, run = desk.home, desk.home.parent / "run"
    spy = script(
        desk, "spy.py", f"import os\nprint(sorted(os.listdir({str(home)!r})), os.listdir({str(run / 'ipos')!r}))\n"
    )
    assert desk.ok("run", spy) == "['env', 'work'] []\n"


def test_full_disk(machines: Make) -> None:
    """A home on a disk of 24 MiB: the input does not fit, one sentence, the node goes on."""
    desk = machines("desk", up=False)
    desk.home.mkdir()
    big = desk.home.parent / "big"
    big.write_bytes(os.urandom(40 << 20))
    (desk.home.parent / "small").write_text("small\n")
    program = script(desk, "a.py", UPPER)
    ipos = Path(sys.executable).with_name("ipos")
    commands = f"""
        mount -t tmpfs -o size=24m none {desk.home} &&
        {ipos} up --listen local --cores 1 >/dev/null &&
        {{ {ipos} run {program} < {big}; echo first=$?; {ipos} run {program} < {desk.home.parent}/small; echo second=$?; {ipos} down; }}
    """
    environment = {**os.environ, "IPOS_HOME": str(desk.home), "XDG_RUNTIME_DIR": str(desk.home.parent / "run")}
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", commands],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "No space left on device" in done.stderr, done.stderr
    assert "first=125" in done.stdout, (done.stdout, done.stderr)
    assert "SMALL" in done.stdout, (done.stdout, done.stderr)
    assert "second=0" in done.stdout
