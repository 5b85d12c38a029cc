"""`ipos run --wasm --verify N`: replicas on this machine, the two numbers, the verdict in the tree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Machine

from ipos.testing import spin

pytestmark = pytest.mark.real


def test_replicas_agree_and_say_what_that_is_worth(machines: Callable[..., Machine], tmp_path: Path) -> None:
    desk = machines("desk")
    program = tmp_path / "spin.wasm"
    program.write_bytes(spin.program(3_000_000))
    asked = ("--mark-every", "0.01", str(program))
    once = json.loads(desk.ok("run", "--wasm", "--json", *asked))
    assert once["verdict"] is None
    found = json.loads(desk.ok("run", "--wasm", "--verify", "3", "--json", *asked))
    assert not found["cached"], "a result that nobody compared answered"
    assert (found["root"], found["work"], found["stdout"]) == (once["root"], once["work"], once["stdout"])
    assert found["verified"] == "quorum 3"
    assert (found["verdict"]["agreed"], found["verdict"]["seats"], found["verdict"]["extra_work"]) == (3, 3, 2.0)
    assert (found["verdict"]["left_wrong"], found["verdict"]["left_wrong_before"]) == (0.000146, 0.00725)
    assert json.loads(desk.ok("cat", f"/job/{found['job']}/0/verdict")) == found["verdict"]
    assert found["page_work"] == once["page_work"] > 0
    packed = tmp_path / "receipt.car"
    desk.ok("receipt", str(found["job"]), "-o", str(packed))
    assert "true: " in desk.ok("verify", "--full", str(packed))
    again = desk.run("run", "--wasm", "--verify", "2", *asked)
    said = (
        "3 of 3 replicas agree on root",
        "200% extra work",
        "guard against faults and bugs only",
        "the same task ran before",
    )
    assert [words for words in said if words not in again.stderr] == []


def test_replicas_are_for_the_engine(machines: Callable[..., Machine]) -> None:
    desk = machines("desk")
    refused = desk.refused("run", "--verify", "3", "/bin/true", status=125)
    assert "--verify" in refused
    assert "are for programs in the engine: add --wasm" in refused
