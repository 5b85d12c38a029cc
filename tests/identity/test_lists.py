"""Machine lists: every change is a higher version, and whoever has seen one goes by no lower one, in whatever order lists come."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.identity import friends, keys, machines
from ipos.identity.keys import Key
from ipos.identity.machine_id import machine_id
from ipos.identity.machines import Machine, MachineList
from ipos.wire.errors import Refused

KEY = Key(keys.fresh())


def machine(n: int) -> Machine:
    return Machine(name=f"m{n}", peer=f"P{n}", run=f"0x{n}", machine="00")


FIRST = machines.sign(KEY, 1, (machine(0),))
CHANGES = st.lists(
    st.tuples(st.sampled_from(("add", "remove", "name")), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=10
)


def story(changes: list[tuple[str, int, int]]) -> list[MachineList]:
    """Every list that its owner signed; what is refused changes nothing."""
    lists = [FIRST]
    for what, one, other in changes:
        try:
            match what:
                case "add":
                    lists.append(machines.with_machine(KEY, lists[-1], machine(one)))
                case "remove":
                    lists.append(machines.without_machine(KEY, lists[-1], f"P{one}"))
                case _:
                    lists.append(machines.renamed(KEY, lists[-1], f"P{one}", f"m{other}"))
        except Refused:
            continue
    return lists


@settings(max_examples=60)
@given(CHANGES, st.data())
def test_versions_never_go_back(changes: list[tuple[str, int, int]], data: st.DataObject) -> None:
    lists = story(changes)
    for before, after in pairwise(lists):
        assert after.version == before.version + 1
        machines.check(after)
    shown = data.draw(st.lists(st.sampled_from(lists), max_size=20))
    mine = data.draw(st.sampled_from(lists))
    highest = mine.version
    for theirs in shown:
        mine = machines.newer(mine, theirs) or mine
        highest = max(highest, theirs.version)
        assert mine.version == highest
    assert mine == lists[highest - 1]


@settings(max_examples=40)
@given(CHANGES, st.integers(0, 5), st.integers(0, 8))
def test_a_list_that_was_changed_on_its_way_is_refused(
    changes: list[tuple[str, int, int]], field: int, bit: int
) -> None:
    last = story(changes)[-1]
    digit = "0123456789abcdef".index(last.signature[bit])
    forged = [
        msgspec.structs.replace(last, version=last.version + 1),
        msgspec.structs.replace(last, machines=(*last.machines, machine(9))),
        msgspec.structs.replace(last, machines=last.machines[1:]),
        msgspec.structs.replace(
            last, signature=last.signature[:bit] + "0123456789abcdef"[digit ^ 1] + last.signature[bit + 1 :]
        ),
        msgspec.structs.replace(last, signature=""),
        machines.sign(Key(keys.fresh()), last.version + 1, last.machines),
    ][field]
    with pytest.raises(Refused):
        machines.newer(FIRST, forged)


def test_two_lists_of_one_version_are_refused_until_there_is_a_higher_one() -> None:
    one, other = (machines.with_machine(KEY, FIRST, machine(n)) for n in (1, 2))
    with pytest.raises(Refused, match="two different machine lists of version 2"):
        machines.newer(one, other)
    assert machines.newer(one, machines.renamed(KEY, other, "m2", "loft")) is not None


def test_the_last_machine_stays() -> None:
    with pytest.raises(Refused, match="m0 is the only machine of this account"):
        machines.without_machine(KEY, FIRST, "m0")


def test_a_restored_list_and_the_one_of_before_become_one() -> None:
    theirs = machines.with_machine(KEY, machines.with_machine(KEY, FIRST, machine(1)), machine(2))
    mine = machines.sign(KEY, 1, (msgspec.structs.replace(machine(7), name="m1"),))
    both = machines.merged(KEY, mine, theirs)
    machines.check(both)
    assert both.version == theirs.version + 1
    assert [(m.peer, m.name) for m in both.machines] == [("P0", "m0"), ("P1", "m1"), ("P2", "m2"), ("P7", "m1-2")]
    assert machines.newer(theirs, both) is both
    assert machines.newer(mine, both) is both


def test_two_homes_are_one_machine(tmp_path: Path) -> None:
    if not any(Path(path).exists() for path in ("/etc/machine-id", "/var/lib/dbus/machine-id")):
        assert machine_id(tmp_path / "a") != machine_id(tmp_path / "b"), "nothing says that they are one"
    else:
        assert machine_id(tmp_path / "a") == machine_id(tmp_path / "b")


@settings(max_examples=40)
@given(
    st.integers(1, 1024), st.integers(0, 1 << 40), st.sampled_from(("cores", "expires", "to", "node", "run", "number"))
)
def test_a_grant_says_what_was_signed(cores: int, expires: int, field: str) -> None:
    given_ = friends.grant(KEY, "P0", "0x" + "11" * 20, cores, expires, 3)
    friends.check_grant(given_, KEY.address)
    value = getattr(given_, field)
    forged = msgspec.structs.replace(given_, **{field: value + 1 if isinstance(value, int) else value + "x"})
    with pytest.raises(Refused):
        friends.check_grant(forged, KEY.address)
    with pytest.raises(Refused, match="this machine belongs to"):
        friends.check_grant(given_, "0x" + "22" * 20)
