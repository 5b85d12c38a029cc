"""`ipos doctor` on this machine says of a worker what a worker says of itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from conftest import Machine

from ipos.node.doctor import WORKER
from ipos.vm.client import Workers

pytestmark = pytest.mark.real


async def layers() -> dict[str, str]:
    async with Workers() as workers:
        return await workers.probe()


def test_it_says_what_is_in_force(machines: Callable[..., Machine]) -> None:
    one = machines("one")
    words = one.ok("doctor")
    rows = {row["what"]: row for row in map(json.loads, one.ok("doctor", "--json").splitlines())}
    for layer, why_not in asyncio.run(layers()).items():
        what, means, _ = WORKER[layer]
        assert rows[what]["ok"] == (not why_not)
        assert rows[what]["says"] == (why_not or means)
        assert f"{what}: {why_not or means}" in words
    assert rows["netd"]["ok"]
    assert rows["worker can start"]["ok"]
    assert len(words.splitlines()) == len(rows) == len(one.ok("cat", "/doctor").splitlines())
