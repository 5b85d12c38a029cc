"""Both machines show two words, and both owners say yes: anything else, and nothing is joined."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Machine, Terminal, wait_for

pytestmark = pytest.mark.real
Make = Callable[..., Machine]
Run = Callable[..., Terminal]


def asked(run: Run, desk: Machine, attic: Machine, plain: bool = False) -> tuple[Terminal, Terminal]:
    """`ipos invite` and `ipos join`, up to the joiner's question; both show the same two words by then."""
    inviter = run(desk, "invite", plain=plain)
    joiner = run(attic, "join", inviter.says(r"ipos join (\d+-\w+-\w+)"), plain=plain)
    words = joiner.says(r"Are they '(\w+ \w+)'\? \[y/N\] ")
    assert inviter.says(r"must show the words '(.*?)'") == words
    return inviter, joiner


def asked_both(run: Run, desk: Machine, attic: Machine) -> tuple[Terminal, Terminal]:
    """The joiner has said yes, and the inviter's question is open."""
    inviter, joiner = asked(run, desk, attic)
    joiner.answer("y")
    words = inviter.says(r"attic wants to join\. Does it show '(\w+ \w+)'\? \[y/N\] ")
    assert f"'{words}'" in joiner.text
    return inviter, joiner


def strangers(*machines: Machine) -> bool:
    return all(machine.json("status")["list_version"] == 1 for machine in machines)


def test_yes_and_no(machines: Make, terminal: Run) -> None:
    desk, attic = machines("desk"), machines("attic")

    inviter, joiner = asked(terminal, desk, attic)
    joiner.answer("no")
    assert joiner.ends() == 1
    assert inviter.ends() == 1
    for side in (inviter, joiner):
        assert "ipos: the owner of the joining machine said no" in side.text

    inviter, joiner = asked_both(terminal, desk, attic)
    inviter.answer("n")
    assert inviter.ends() == 1
    assert joiner.ends() == 1
    for side in (inviter, joiner):
        assert "ipos: the owner of the inviting machine said no" in side.text

    assert strangers(desk, attic)

    inviter, joiner = asked(terminal, desk, attic, plain=True)
    joiner.answer("y")
    inviter.says("attic wants to join")
    inviter.answer("yes")
    assert inviter.ends() == 0
    assert joiner.ends() == 0
    assert "attic has joined" in inviter.text
    assert "joined: desk, attic are one computer now" in joiner.text
    wait_for("the pool", lambda: desk.json("pool")["nodes"] == 2)


def test_who_leaves_has_said_no(machines: Make, terminal: Run) -> None:
    """Ctrl-C at a question, before it and after it, and an input that ends."""
    desk, attic = machines("desk"), machines("attic")

    inviter, joiner = asked(terminal, desk, attic)
    joiner.interrupt()
    assert joiner.ends(timeout=10) == 130
    assert inviter.ends(timeout=10) == 1
    assert "the owner of the joining machine said no" in inviter.text

    inviter, joiner = asked_both(terminal, desk, attic)
    inviter.interrupt()
    assert inviter.ends(timeout=10) == 130
    assert joiner.ends(timeout=10) == 1
    assert "the owner of the inviting machine said no" in joiner.text

    inviter, joiner = asked_both(terminal, desk, attic)
    joiner.interrupt()
    assert joiner.ends(timeout=10) == 130
    inviter.answer("y")
    assert inviter.ends(timeout=10) == 1
    assert "nobody waits for an answer" in inviter.text

    inviter = terminal(desk, "invite")
    code = inviter.says(r"ipos join (\d+-\w+-\w+)")
    assert attic.refused("join", code) == "ipos: the owner of the joining machine said no"
    assert inviter.ends() == 1
    assert "Traceback" not in inviter.text + joiner.text
    assert strangers(desk, attic)
