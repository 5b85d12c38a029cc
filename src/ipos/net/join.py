"""join: two machines that share a spoken code become machines of one account, or their accounts friends. Protocol /ipos/join/1; docs/protocols/join.md.

Pure machines: messages and decisions in, instructions out. SPAKE2 (https://www.rfc-editor.org/rfc/rfc9382) turns the code into a key without
letting either side, or anybody between, try a second one; both peer ids go into it, so whoever relays it under a key of his own fails.
The inviter's invite is burnt by the first attempt, right or wrong.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec

from ipos.identity.friends import Introduction, check_introduction
from ipos.identity.machines import Machine, MachineList, check
from ipos.net.codes import Code, spoken
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import Record, decode, encode

PROTOCOL = "/ipos/join/1"


class Hello(Record, frozen=True, kw_only=True):
    """Joiner -> inviter. `number` says which invite; `spake` is hex."""

    v: int = 1
    number: int
    spake: str


class Answer(Record, frozen=True, kw_only=True):
    """Inviter -> joiner. `proof`: that it knows the code."""

    v: int = 1
    spake: str
    proof: str


class Request(Record, frozen=True, kw_only=True):
    """Joiner -> inviter. `others`: how many machines its own account has besides it."""

    v: int = 1
    proof: str
    machine: Machine
    account: str
    others: int


class Welcome(Record, frozen=True, kw_only=True):
    """Inviter -> joiner. The list is signed by the account that the joiner now belongs to."""

    v: int = 1
    proof: str
    machines: MachineList


class Meet(Record, frozen=True, kw_only=True):
    """Either way, joiner first, where the invite makes friends: in the place of `Request` and `Welcome`."""

    v: int = 1
    proof: str
    introduction: Introduction


class Sorry(Record, frozen=True, kw_only=True):
    """Either way, instead of the next message."""

    v: int = 1
    sorry: str


class Send(NamedTuple):
    body: bytes


class Ask(NamedTuple):
    """Show these words; go on with `confirmed`. `friend`: another account, not another machine of this one."""

    words: str
    machine: str
    friend: bool = False


class Show(NamedTuple):
    """Show these words: the other machine's owner compares them now, and answers first."""

    words: str


class Admit(NamedTuple):
    """Sign a list with this machine in it, keep it, then call `admitted`."""

    machine: Machine


class Burn(NamedTuple):
    """The invite is used up."""

    number: int


class Adopt(NamedTuple):
    """The joiner belongs to this account now."""

    machines: MachineList


class Introduce(NamedTuple):
    """Sign an introduction to the node `to`, then call `introduced`."""

    to: str


class Befriend(NamedTuple):
    """The other account is a friend now."""

    introduction: Introduction


class Fail(NamedTuple):
    sentence: str


Instruction = Send | Show | Ask | Admit | Burn | Adopt | Introduce | Befriend | Fail


def _proof(key: bytes, who: str, body: bytes = b"") -> str:
    return hmac.digest(key, who.encode() + b"\0" + body, "sha256").hex()


FRIENDLY = "inviter friend"


def _meeting(key: bytes, who: str, said: Introduction) -> str:
    return _proof(key, f"{who} meet", encode(said))


def _name(said: Introduction, peer: str) -> str:
    return next(machine.name for machine in said.machines.machines if machine.peer == peer)


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())


Dice = Callable[[int], bytes]
"""So many random bytes: `os.urandom` but for vectors."""


def _spake(kind: str, code: Code, joiner: str, inviter: str, dice: Dice) -> Any:
    import spake2  # slow to import, rarely needed

    make = spake2.SPAKE2_A if kind == "joiner" else spake2.SPAKE2_B
    return make("-".join(code.words).encode(), idA=joiner.encode(), idB=inviter.encode(), entropy_f=dice)


def _read(kind: type[Record], body: bytes) -> Any:
    """The message, or `Refused` with what the other side says instead."""
    try:
        return decode(kind, body)
    except BadRecord:
        try:
            sorry = decode(Sorry, body)
        except BadRecord:
            raise Refused("the other machine does not speak /ipos/join/1") from None
        raise Refused(sorry.sorry) from None


def _over(sentence: str) -> list[Instruction]:
    return [Send(encode(Sorry(sorry=sentence))), Fail(sentence)]


class Inviter:
    """One attempt, from the inviter's side. `invites`: number -> code, those that are open now; `friendly`: those of them that make friends
    of `account`."""

    def __init__(
        self,
        me: str,
        peer: str,
        invites: dict[int, Code],
        dice: Dice = os.urandom,
        friendly: Collection[int] = (),
        account: str = "",
    ) -> None:
        self._me, self._peer, self._invites, self._dice = me, peer, invites, dice
        self._friendly, self._account = friendly, account
        self._friend = False
        self._theirs: Introduction | None = None
        self._state = "hello"
        self._key = b""
        self._request: Request | None = None

    def received(self, body: bytes) -> list[Instruction]:
        try:
            if self._state == "hello":
                return self._hello(_read(Hello, body))
            if self._state == "request" and self._friend:
                return self._met(_read(Meet, body))
            if self._state == "request":
                return self._requested(_read(Request, body))
        except Refused as refused:
            self._state = "over"
            return _over(str(refused))
        return []

    def _hello(self, hello: Hello) -> list[Instruction]:
        code = self._invites.get(hello.number)
        if code is None:
            self._state = "over"
            return _over(
                f"there is no open invite {hello.number} here: it was used, has expired, or is another machine's"
            )
        spake = _spake("inviter", code, self._peer, self._me, self._dice)
        out: bytes = spake.start()
        try:
            self._key = spake.finish(bytes.fromhex(hello.spake))
        except Exception:
            self._state = "over"
            return [Burn(code.number), *_over("a join message that is not SPAKE2; the invite is used up")]
        self._state = "request"
        self._friend = code.number in self._friendly
        answer = Answer(spake=out.hex(), proof=_proof(self._key, FRIENDLY if self._friend else "inviter"))
        return [Burn(code.number), Send(encode(answer)), Show(spoken(self._key))]

    def _requested(self, request: Request) -> list[Instruction]:
        bare = encode(msgspec.structs.replace(request, proof=""))
        if not _same(request.proof, _proof(self._key, "joiner", bare)) or request.machine.peer != self._peer:
            self._state = "over"
            return _over("wrong code; the invite is used up: make a new one with ipos invite")
        if request.others:
            self._state = "over"
            return _over(
                f"that machine belongs to an account with {request.others + 1} machines: it cannot join another"
            )
        self._request, self._state = request, "ask"
        return [Ask(spoken(self._key), request.machine.name)]

    def _met(self, meet: Meet) -> list[Instruction]:
        said = meet.introduction
        if not _same(meet.proof, _meeting(self._key, "joiner", said)):
            self._state = "over"
            return _over("wrong code; the invite is used up: make a new one with ipos invite --as friend")
        check_introduction(said, self._me, self._peer)
        if said.account == self._account:
            raise Refused("that is a machine of this very account: there is nobody to make friends with")
        self._theirs, self._state = said, "ask"
        return [Ask(spoken(self._key), _name(said, self._peer), True)]

    def confirmed(self, yes: bool) -> list[Instruction]:
        if self._state != "ask":
            return []
        if not yes:
            self._state = "over"
            return _over("the owner of the inviting machine said no")
        if self._request is None:
            self._state = "introduce"
            return [Introduce(self._peer)]
        self._state = "admit"
        return [Admit(self._request.machine)]

    def introduced(self, mine: Introduction) -> list[Instruction]:
        if self._state != "introduce" or self._theirs is None:
            return []
        self._state = "over"
        meet = Meet(proof=_meeting(self._key, "inviter", mine), introduction=mine)
        return [Send(encode(meet)), Befriend(self._theirs)]

    def admitted(self, machines: MachineList) -> list[Instruction]:
        self._state = "over"
        return [Send(encode(Welcome(proof=_proof(self._key, "welcome", encode(machines)), machines=machines)))]


class Joiner:
    """One attempt, from the side of the machine that has the code. `wanted`: "own" or "friend", if its user has said which invite it is."""

    def __init__(
        self,
        code: Code,
        inviter: str,
        machine: Machine,
        account: str,
        others: int,
        dice: Dice = os.urandom,
        wanted: str = "",
    ) -> None:
        self._wanted = wanted
        self._friend = False
        self._code, self._inviter, self._machine = code, inviter, machine
        self._account, self._others = account, others
        self._spake = _spake("joiner", code, machine.peer, inviter, dice)
        self._key = b""
        self._state = "start"

    def start(self) -> list[Instruction]:
        self._state = "answer"
        return [Send(encode(Hello(number=self._code.number, spake=self._spake.start().hex())))]

    def received(self, body: bytes) -> list[Instruction]:
        try:
            if self._state == "answer":
                return self._answered(_read(Answer, body))
            if self._state == "welcome" and self._friend:
                return self._met(_read(Meet, body))
            if self._state == "welcome":
                return self._welcomed(_read(Welcome, body))
        except Refused as refused:
            self._state = "over"
            return [Fail(str(refused))]
        return []

    def _answered(self, answer: Answer) -> list[Instruction]:
        try:
            self._key = self._spake.finish(bytes.fromhex(answer.spake))
        except Exception:
            raise Refused("the other machine's answer is not SPAKE2") from None
        own = _same(answer.proof, _proof(self._key, "inviter"))
        self._friend = not own and _same(answer.proof, _proof(self._key, FRIENDLY))
        if not (own or self._friend):
            self._state = "over"
            sentence = "wrong code; the invite is used up: make a new one with ipos invite"
            return _over(sentence)
        if (objection := self._objection()) is not None:
            self._state = "over"
            return _over(objection)
        self._state = "ask"
        return [Ask(spoken(self._key), "", self._friend)]

    def _objection(self) -> str | None:
        kind = "friend" if self._friend else "own"
        if self._wanted and self._wanted != kind:
            return (
                f"the invite is one of ipos invite --as {kind}, ipos join was told --as {self._wanted}: it is used up"
            )
        if not self._friend and self._others:
            return (
                f"this machine belongs to an account with {self._others + 1} machines already: "
                "it can make friends (ipos invite --as friend), not join another"
            )
        return None

    def confirmed(self, yes: bool) -> list[Instruction]:
        if self._state != "ask":
            return []
        if not yes:
            self._state = "over"
            return _over("the owner of the joining machine said no")
        if self._friend:
            self._state = "introduce"
            return [Introduce(self._inviter)]
        self._state = "welcome"
        bare = Request(proof="", machine=self._machine, account=self._account, others=self._others)
        return [Send(encode(msgspec.structs.replace(bare, proof=_proof(self._key, "joiner", encode(bare)))))]

    def introduced(self, mine: Introduction) -> list[Instruction]:
        if self._state != "introduce":
            return []
        self._state = "welcome"
        return [Send(encode(Meet(proof=_meeting(self._key, "joiner", mine), introduction=mine)))]

    def _met(self, meet: Meet) -> list[Instruction]:
        self._state = "over"
        said = meet.introduction
        if not _same(meet.proof, _meeting(self._key, "inviter", said)):
            raise Refused("the introduction does not come from who knows the code")
        check_introduction(said, self._machine.peer, self._inviter)
        if said.account == self._account:
            raise Refused("that is a machine of this very account: there is nobody to make friends with")
        return [Befriend(said)]

    def _welcomed(self, welcome: Welcome) -> list[Instruction]:
        self._state = "over"
        if not _same(welcome.proof, _proof(self._key, "welcome", encode(welcome.machines))):
            raise Refused("the list of machines does not come from who knows the code")
        check(welcome.machines)
        if self._machine.peer not in {m.peer for m in welcome.machines.machines}:
            raise Refused("the list of machines that came back does not name this one")
        return [Adopt(welcome.machines)]
