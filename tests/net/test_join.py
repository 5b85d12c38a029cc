"""The join protocol's two machines against each other, against a man in the middle, and against garbage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.identity import friends, keys, machines
from ipos.identity.machines import Machine
from ipos.net import codes, join
from ipos.wire.errors import Refused

CODE = codes.parse("7-guitar-upset")


def machine(peer: str) -> Machine:
    return Machine(name="attic", peer=peer, run="0x0", machine="00")


class Meeting:
    """An inviter `PA` and a joiner `PB`; what each is told to do besides sending."""

    def __init__(
        self, tmp_path: Path, said: codes.Code = CODE, seen_as: str = "PB", others: int = 0, yes: bool = True
    ) -> None:
        self.key = keys.create(tmp_path / "k")
        self.list = machines.sign(self.key, 1, (Machine(name="desk", peer="PA", run="0x0", machine="00"),))
        self.invites = {CODE.number: CODE}
        self.inviter = join.Inviter("PA", seen_as, self.invites)
        self.joiner = join.Joiner(said, "PA", machine("PB"), "0x1", others)
        self.yes = yes
        self.told: list[tuple[str, Any]] = []
        self.wire: list[bytes] = []

    def run(self) -> Meeting:
        todo = [("inviter", step) for step in self.joiner.start()]
        while todo:
            to, step = todo.pop(0)
            me, other = (self.inviter, "joiner") if to == "inviter" else (self.joiner, "inviter")
            steps: list[Any] = []
            match step:
                case join.Send(body):
                    self.wire.append(body)
                    steps = me.received(body)
                case join.Ask():
                    self.told.append((to, step))
                    steps = me.confirmed(self.yes or to == "joiner")
                case join.Burn(number):
                    self.invites.pop(number)
                case join.Admit(admitted):
                    steps = self.inviter.admitted(machines.with_machine(self.key, self.list, admitted))
                case _:
                    self.told.append((to, step))
            todo += [(other if isinstance(one, join.Send) else to, one) for one in steps]
        return self

    def failures(self) -> list[str]:
        return [step.sentence for _, step in self.told if isinstance(step, join.Fail)]

    def adopted(self) -> bool:
        return any(isinstance(step, join.Adopt) for _, step in self.told)


def test_they_join_and_show_the_same_words(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path).run()
    assert meeting.adopted()
    words = [(to, step.words) for to, step in meeting.told if isinstance(step, join.Ask | join.Show)]
    assert [to for to, _ in words] == ["inviter", "joiner", "inviter"]
    assert len({shown for _, shown in words}) == 1
    assert meeting.invites == {}


def test_a_wrong_code_burns_the_invite(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, codes.parse("7-guitar-tulip")).run()
    assert not meeting.adopted()
    assert meeting.invites == {}
    assert all("wrong code" in sentence for sentence in meeting.failures())


def test_a_number_that_is_not_there_burns_nothing(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, codes.parse("8-guitar-upset")).run()
    assert not meeting.adopted()
    assert meeting.invites == {7: CODE}


def test_a_man_in_the_middle_fails(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, seen_as="MITM").run()
    assert not meeting.adopted()
    assert meeting.failures()


def test_no_means_no(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, yes=False).run()
    assert not meeting.adopted()
    assert "the owner of the inviting machine said no" in meeting.failures()


def test_a_member_of_a_pool_cannot_join(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, others=2).run()
    assert not meeting.adopted()
    assert any("3 machines" in sentence for sentence in meeting.failures())


def test_replay_and_garbage(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path).run()
    fresh = join.Inviter("PA", "PB", {7: CODE})
    fresh.received(meeting.wire[0])
    assert any(isinstance(step, join.Fail) for step in fresh.received(meeting.wire[2])), (
        "an old request under a new key"
    )


class Friends:
    """An inviter `PA` and a joiner `PB` of two accounts; `twist` changes what the joiner says of itself."""

    def __init__(self, tmp_path: Path, twist: Any = None, wanted: str = "", own: bool = False) -> None:
        self.keys = {"inviter": keys.create(tmp_path / "a"), "joiner": keys.create(tmp_path / "b")}
        if own:
            self.keys["joiner"] = self.keys["inviter"]
        peers = {"inviter": "PA", "joiner": "PB"}
        self.lists = {who: machines.sign(self.keys[who], 1, (machine(peer),)) for who, peer in peers.items()}
        self.inviter = join.Inviter("PA", "PB", {7: CODE}, friendly={7}, account=self.keys["inviter"].address)
        self.joiner = join.Joiner(CODE, "PA", machine("PB"), self.keys["joiner"].address, 4, wanted=wanted)
        self.twist = twist or (lambda said: said)
        self.met: dict[str, str] = {}
        self.failures: list[str] = []

    def run(self) -> Friends:
        todo: list[tuple[str, Any]] = [("inviter", step) for step in self.joiner.start()]
        while todo:
            to, step = todo.pop(0)
            me, other = (self.inviter, "joiner") if to == "inviter" else (self.joiner, "inviter")
            steps: list[Any] = []
            match step:
                case join.Send(body):
                    steps = me.received(body)
                case join.Ask(_, _, friend):
                    assert friend
                    steps = me.confirmed(True)
                case join.Introduce(peer):
                    said = friends.introduce(self.keys[to], self.lists[to], {}, peer)
                    steps = me.introduced(self.twist(said) if to == "joiner" else said)
                case join.Befriend(introduction):
                    self.met[to] = introduction.account
                case join.Fail(sentence):
                    self.failures.append(sentence)
                case _:
                    pass
            todo += [(other if isinstance(one, join.Send) else to, one) for one in steps]
        return self


def test_accounts_become_friends(tmp_path: Path) -> None:
    """Also of a machine whose account has others: it joins nothing."""
    meeting = Friends(tmp_path).run()
    assert meeting.failures == []
    assert meeting.met == {"inviter": meeting.keys["joiner"].address, "joiner": meeting.keys["inviter"].address}


def another(said: friends.Introduction) -> friends.Introduction:
    return msgspec.structs.replace(said, to="PC")


def unsigned(said: friends.Introduction) -> friends.Introduction:
    return msgspec.structs.replace(said, addresses={"PB": ("/ip4/10.0.0.1/tcp/1",)})


def not_hex(said: friends.Introduction) -> friends.Introduction:
    return msgspec.structs.replace(said, signature="?")


@pytest.mark.parametrize(
    ("twist", "words"),
    [(another, "not signed|to node PC"), (unsigned, "has not signed"), (not_hex, "not hex")],
)
def test_an_introduction_that_is_forged_is_refused(tmp_path: Path, twist: Any, words: str) -> None:
    meeting = Friends(tmp_path, twist).run()
    assert meeting.met == {}
    assert meeting.failures
    assert all(re.search(words, sentence) for sentence in meeting.failures)


def test_an_introduction_to_another_is_no_introduction(tmp_path: Path) -> None:
    """What one was shown cannot be shown to a third."""
    key = keys.create(tmp_path / "k")
    lst = machines.sign(key, 1, (machine("PB"),))
    said = friends.introduce(key, lst, {}, "PA")
    friends.check_introduction(said, "PA", "PB")
    with pytest.raises(Refused, match="to node PA: this is PC"):
        friends.check_introduction(said, "PC", "PB")
    with pytest.raises(Refused, match="node PX is no machine of account"):
        friends.check_introduction(said, "PA", "PX")


def test_friends_are_two_accounts(tmp_path: Path) -> None:
    meeting = Friends(tmp_path, own=True).run()
    assert meeting.met == {}
    assert "a machine of this very account" in meeting.failures[0]


def test_who_wants_a_pool_gets_no_friend(tmp_path: Path) -> None:
    meeting = Friends(tmp_path, wanted="own").run()
    assert meeting.met == {}
    assert "ipos join was told --as own" in meeting.failures[0]


@given(st.lists(st.binary(max_size=60), max_size=4))
@settings(max_examples=30)
def test_garbage(bodies: list[bytes]) -> None:
    inviter = join.Inviter("PA", "PB", {7: CODE})
    steps = [step for body in bodies for step in inviter.received(body)]
    assert not any(isinstance(step, (join.Ask, join.Admit, join.Burn)) for step in steps)


def test_a_joiner_that_skips_the_proof_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: proofs are not compared; then a wrong code is let in, and this suite would see it."""
    monkeypatch.setattr(join, "_same", lambda a, b: True)
    assert Meeting(tmp_path, codes.parse("7-guitar-tulip")).run().adopted()


def test_codes() -> None:
    assert len(set(codes.WORDS)) == 256
    assert codes.parse(" 7 Guitar_upset") == CODE
    with pytest.raises(Refused, match="perhaps guitar"):
        codes.parse("7-gitar-upset")
    with pytest.raises(Refused, match="looks like 7-guitar-upset"):
        codes.parse("guitar-upset")
    text = codes.qr_text(CODE, "PA", ("/ip4/1.2.3.4/tcp/5",))
    assert codes.parse_qr(text) == (CODE, "PA", ("/ip4/1.2.3.4/tcp/5",))
    assert codes.parse_qr("7-guitar-upset") is None
