"""Receipts by command, with real nodes: a task is run, its receipt packed, and judged in an empty home with every node down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from conftest import Machine
from test_engine import BURN
from test_handover import begun

pytestmark = pytest.mark.real

Make = Callable[..., Machine]
QUICK = BURN.replace("150000000", "5000000")


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.wasm"
    path.write_bytes(bytes(wasmtime.wat2wasm(QUICK)))
    return path


def test_a_stranger_judges_it_with_nothing_but_the_file(machines: Make, quick: Path, tmp_path: Path) -> None:
    one, stranger = machines("one"), machines("stranger", up=False)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data").write_text("x")
    command = ("run", "--wasm", "--json", "--mark-every", "5M", "--root", str(tmp_path / "in"), str(quick), "a", "b")
    done = one.run(*command, stdin="hello", timeout=120)
    ran = json.loads(done.stdout)
    assert (done.returncode, ran["verified"], ran["cached"]) == (7, "receipt", False), done.stderr
    whole, saved, native = (str(tmp_path / name) for name in ("whole.car", "saved.car", "native.car"))
    packed = one.json("receipt", str(ran["job"]), "-o", whole)
    assert (packed["receipt"], packed["task"], packed["work"]) == (ran["receipt"], ran["task"], ran["work"])
    assert packed["bytes"] == Path(whole).stat().st_size
    assert one.json("receipt", str(ran["job"]), "-o", saved, "--saves", "3", timeout=120)["saves"] == 3
    text = one.ok("cat", f"/job/{ran['job']}/0/receipt")
    assert f"receipt {ran['receipt']}\n" in text
    assert f"account {packed['account']}\n" in text
    plain = json.loads(one.ok("run", "--json", "/bin/echo", "hi"))
    one.ok("receipt", str(plain["job"]), "-o", native)
    again = one.run("run", "/bin/echo", "hi")
    assert "ran before on one (its receipt is signed)" in again.stderr
    slow = json.loads(one.ok("run", "--detach", "--json", "/bin/sleep", "60"))["job"]
    assert "has no receipt: it is" in one.refused("receipt", str(slow))
    one.ok("down")

    verdict = stranger.json("verify", whole, "--full", timeout=120)
    assert (verdict["verdict"], verdict["account"], verdict["work"]) == ("true", packed["account"], ran["work"])
    assert verdict["reexecuted"]["share"] == 1.0
    assert verdict["marks"] == ran["work"] // 5_000_000
    third = stranger.json("verify", saved, "--mark", str(verdict["marks"]), timeout=120)
    assert third["reexecuted"]["intervals"] < verdict["marks"] // 2
    assert third["reexecuted"]["work"] < ran["work"] // 2
    drawn = stranger.json("verify", whole, timeout=120)
    assert drawn == stranger.json("verify", whole, "--seed", str(drawn["seed"]), timeout=120)
    assert "would not be seen, chance" in stranger.ok("verify", whole, "--mark", "2", timeout=120)
    assert "proves who claims this result" in stranger.ok("verify", native)
    assert not stranger.home.exists()

    body = Path(whole).read_bytes()
    Path(whole).write_bytes(body[:-3])
    assert "NOT TRUE" in stranger.refused("verify", whole, "--full")
    assert "no verdict" in stranger.refused("verify", str(tmp_path / "none.car"), status=125)


def test_each_who_computed_a_part_has_signed_for_it(machines: Make, tmp_path: Path) -> None:
    """Handed over from one account to another: two receipts, one after the other, of two accounts."""
    one, two, stranger = machines("one"), machines("two"), machines("stranger", up=False)
    burn = tmp_path / "burn.wasm"
    burn.write_bytes(bytes(wasmtime.wat2wasm(BURN.replace("150000000", "60000000"))))
    job = begun(one, burn, "--mark-every", "100M")
    handed, car = tmp_path / "h.car", tmp_path / "f.car"
    answer = json.loads(one.ok("handover", str(job), "-o", str(handed), "--json"))
    one.ok("down")
    done = two.run("resume", str(handed), "--json", timeout=120)
    assert done.returncode == 7, done.stderr
    ran = json.loads(done.stdout)
    packed = two.json("receipt", str(ran["job"]), "-o", str(car))
    assert (packed["since"], packed["work"]) == (answer["work"], ran["work"])
    assert packed["before"]
    two.ok("down")
    said = stranger.json("verify", str(car), "--full", timeout=120)
    assert (said["verdict"], said["segments"]) == ("true", 2), said
    assert "and 1 before it" in said["sentence"]
