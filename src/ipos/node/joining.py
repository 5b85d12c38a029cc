"""Invites and joins of one node: drives the machines of `net.join` over streams, asks the people, keeps the signed list."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from ipos.identity.friends import Introduction
from ipos.identity.machines import Machine, MachineList, on
from ipos.net import codes, join
from ipos.net.engine import NetEngine
from ipos.node.messages import Messages
from ipos.tree.file import Caller
from ipos.tree.synthetic import Events
from ipos.wire import limits
from ipos.wire.clock import Clock
from ipos.wire.errors import Refused
from ipos.wire.record import encode

log = logging.getLogger("ipos.join")

LOOK_S = 0.1  # how often a join looks whether mDNS has found somebody else


class Invite:
    def __init__(self, code: codes.Code, yes: bool, expires: float, friend: bool) -> None:
        self.friend = friend
        self.code = code
        self.yes = yes
        self.expires = expires
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.joined: str = ""


class Met(Protocol):
    """Who was met."""

    @property
    def name(self) -> str: ...
    @property
    def account(self) -> str: ...
    @property
    def machines(self) -> MachineList: ...


class Meeting(Protocol):
    """`node.friends`, as invites need it."""

    def may_meet(self) -> None: ...
    def introduce(self, to: str) -> Introduction: ...
    async def befriend(self, said: Introduction, peer: str) -> Met: ...


class Joining:
    """`admit(machine)` signs and keeps the next list; `adopt(list)` makes this node one of that account."""

    def __init__(
        self,
        *,
        net: NetEngine,
        clock: Clock,
        admit: Callable[[Machine], Awaitable[MachineList]],
        adopt: Callable[[MachineList], Awaitable[None]],
        me: Callable[[], Machine],
        mine: Callable[[], MachineList],
        may_invite: Callable[[], None],
        nearby: Callable[[], list[tuple[str, tuple[str, ...]]]],
        friends: Meeting,
    ) -> None:
        self.net = net
        self.clock = clock
        self.invites: dict[int, Invite] = {}
        self.events = Events(self._open_invites)
        self._admit = admit
        self._adopt = adopt
        self._me = me
        self._mine = mine
        self._may_invite = may_invite
        self._nearby = nearby
        self._friends = friends
        self._asked: list[Invite] = []
        self._failures: dict[str, list[float]] = {}
        self._joins: dict[str, tuple[Messages, join.Joiner, str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- inviting

    async def invite(self, caller: Caller, question: bytes) -> str:
        """/pool/invite: write `yes` (whoever knows the code is let in) or `ask`, and `friend` for another account; read {code, qr, expires_s}."""
        words = question.decode(errors="replace").split()
        if words not in (["yes"], ["ask"], ["yes", "friend"], ["ask", "friend"]) or not caller.local:
            raise Refused("write 'ask' or 'yes', and perhaps 'friend', to /pool/invite, on this machine")
        friend = len(words) == 2
        if friend:
            self._friends.may_meet()
        else:
            self._may_invite()
        if len(self._fresh()) >= limits.invites_open:
            raise Refused(
                f"{limits.invites_open} invites are open, the most there may be: the oldest ends within {limits.invite_s:g} s"
            )
        code = codes.make(os.urandom(4))
        while code.number in self.invites:
            code = codes.make(os.urandom(4))
        self.invites[code.number] = Invite(code, words[0] == "yes", self.clock.now() + limits.invite_s, friend)
        qr = codes.qr_text(code, self.net.peer, self.net.addresses())
        return json.dumps({"code": code.text, "qr": qr, "expires_s": limits.invite_s})

    def _open_invites(self) -> list[str]:
        return []

    def _fresh(self) -> dict[int, codes.Code]:
        now = self.clock.now()
        for number in [n for n, invite in self.invites.items() if invite.expires < now]:
            del self.invites[number]
        return {number: invite.code for number, invite in self.invites.items()}

    def confirm(self, number: int, yes: bool) -> None:
        """`confirm N` or `deny N` in /pool/ctl."""
        for invite in self._asked:
            if invite.code.number == number and not invite.answer.done():
                invite.answer.set_result(yes)
                return
        raise Refused(f"nobody waits for an answer about invite {number} any more")

    def accept(self, peer: str) -> asyncio.BaseProtocol | None:
        """A stream of /ipos/join/1 came in. Who failed often is not listened to for a while."""
        if self._tired_of(peer):
            log.warning(
                "%s failed to join %d times within %g s: not now", peer, limits.join_failures, limits.join_failures_s
            )
            return None
        messages = Messages()
        task = asyncio.create_task(self._serve(peer, messages))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return messages

    def _tired_of(self, peer: str) -> bool:
        since = self.clock.now() - limits.join_failures_s
        self._failures = {p: left for p, times in self._failures.items() if (left := [t for t in times if t > since])}
        return len(self._failures.get(peer, ())) >= limits.join_failures

    def _failed(self, peer: str, sentence: str, burnt: Invite | None) -> None:
        """Whoever looks for the inviter asks all who are near; it is a guess only where it used an invite up."""
        if burnt is not None:
            self._failures.setdefault(peer, []).append(self.clock.now())
        log.warning("%s did not join: %s", peer, sentence)

    async def _serve(self, peer: str, messages: Messages) -> None:
        open_ = self._fresh()
        friendly = {number for number in open_ if self.invites[number].friend}
        machine = join.Inviter(self.net.peer, peer, open_, friendly=friendly, account=self._mine().account)
        current: Invite | None = None
        try:
            while True:
                todo = machine.received(await messages.next())
                while todo:
                    step, todo = todo[0], todo[1:]
                    match step:
                        case join.Send(body):
                            messages.send(body)
                        case join.Burn(number):
                            current = self.invites.pop(number)
                            self._asked = [*self._asked[-8:], current]
                        case join.Show(words):
                            self._emit(current, {"event": "words", "words": words})
                        case join.Ask(words, name, _):
                            assert current is not None
                            todo += machine.confirmed(await self._ask(current, words, name, messages))
                        case join.Admit(admitted):
                            try:
                                lst = await self._admit(admitted)
                            except Refused as refused:  # the account key was locked meanwhile
                                messages.send(encode(join.Sorry(sorry=str(refused))))
                                raise
                            todo += machine.admitted(lst)
                            self._emit(current, {"event": "joined", "machine": lst.machines[-1].name})
                        case join.Introduce(to):
                            todo += machine.introduced(self._friends.introduce(to))
                        case join.Befriend(introduction):
                            friend = await self._friends.befriend(introduction, peer)
                            self._emit(current, {"event": "joined", "machine": friend.name})
                            return
                        case join.Fail(sentence):
                            self._failed(peer, sentence, current)
                            self._emit(current, {"event": "failed", "reason": sentence})
                            return
                        case join.Adopt():
                            return
        except (OSError, TimeoutError) as error:
            self._failed(peer, str(error) or "it did not answer in time", current)
            if current is not None:
                self._emit(
                    current, {"event": "failed", "reason": str(error) or "the other machine did not answer in time"}
                )
        finally:
            await asyncio.sleep(0.2)
            messages.close()

    async def _ask(self, invite: Invite, words: str, name: str, messages: Messages) -> bool:
        """What this machine's owner says; `Gone` if the other machine goes away before, TimeoutError if nobody says anything."""
        asked = {"event": "ask", "words": words, "machine": name, "yes": invite.yes, "friend": invite.friend}
        self._emit(invite, asked)
        if invite.yes:
            return True
        more = asyncio.create_task(
            messages.next()
        )  # there is nothing more to come: it ends when the stream or the time does
        try:
            await asyncio.wait((invite.answer, more), return_when=asyncio.FIRST_COMPLETED)
            if invite.answer.done():
                return invite.answer.result()
            more.result()
            raise Refused("the other machine did not wait for the answer")
        finally:
            invite.answer.cancel()
            more.cancel()

    def _emit(self, invite: Invite | None, event: dict[str, Any]) -> None:
        number = invite.code.number if invite is not None else None
        self.events.emit(json.dumps({**event, "number": number}))

    # ---- joining

    async def join(self, caller: Caller, question: bytes) -> str:
        """/pool/join: write `CODE` or the QR's text, behind `as own` or `as friend` if only that will do; read {id, words, as}; write `yes ID` or
        `no ID`, read {account, machines, friend}."""
        if not caller.local:
            raise Refused("a machine is joined from its own socket only")
        match question.decode(errors="replace").split():
            case ["yes" | "no" as word, id] if id in self._joins:
                return await self._finish(id, word == "yes")
            case ["as", "own" | "friend" as wanted, *words]:
                return await self._begin(" ".join(words), wanted)
            case words:
                return await self._begin(" ".join(words), "")

    async def _begin(self, text: str, wanted: str) -> str:
        parsed = codes.parse_qr(text)
        code = parsed[0] if parsed is not None else codes.parse(text)
        mine = self._mine()
        if wanted == "friend":
            self._friends.may_meet()
        elif wanted == "own" and self._others(mine):
            raise Refused(f"this machine belongs to an account with {len(mine.machines)} machines already")
        now = asyncio.get_running_loop().time
        until = now() + (limits.nearby_s if parsed is None else 0)
        asked: set[str] = set()
        attempts: set[asyncio.Task[tuple[str | None, str]]] = set()
        reasons: list[str] = []
        try:
            while not any("wrong code" in reason for reason in reasons):
                for peer, addresses in self._nearby() if parsed is None else [(parsed[1], parsed[2])]:
                    if peer not in asked:
                        asked.add(peer)
                        attempts.add(asyncio.create_task(self._attempt(code, peer, addresses, mine, wanted)))
                if not attempts:
                    if now() > until:
                        break
                    await asyncio.sleep(LOOK_S)
                    continue
                done, attempts = await asyncio.wait(attempts, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    answer, reason = attempt.result()
                    if answer is not None:
                        return answer
                    reasons.append(reason)
        finally:
            for attempt in attempts:
                attempt.cancel()
        if not reasons:
            raise Refused(
                "no machine that invites was found nearby: join with the text of the QR instead of the spoken code"
            )
        raise Refused(next((r for r in reasons if "wrong code" in r), reasons[-1]))

    def _others(self, mine: MachineList) -> int:
        """How many other machines its account has; a machine that was removed is none of them."""
        return len(mine.machines) - 1 if on(mine, self.net.peer) else 0

    async def _attempt(
        self, code: codes.Code, peer: str, addresses: tuple[str, ...], mine: MachineList, wanted: str
    ) -> tuple[str | None, str]:
        """(the answer to read, "") from the machine that has this invite, (None, the reason) from any other."""
        machine = join.Joiner(code, peer, self._me(), mine.account, self._others(mine), wanted=wanted)
        messages = Messages()
        reason = "it did not go on"
        try:
            await self.net.dial(peer, join.PROTOCOL, lambda: messages, addresses)
            for step in machine.start():
                assert isinstance(step, join.Send)
                messages.send(step.body)
            for step in machine.received(await messages.next()):
                match step:
                    case join.Ask(words, _, friend):
                        id = os.urandom(4).hex()
                        self._joins[id] = messages, machine, peer
                        return json.dumps({"id": id, "words": words, "as": "friend" if friend else "own"}), ""
                    case join.Send(body):
                        messages.send(body)
                    case join.Fail(sentence):
                        reason = sentence
                    case _:
                        pass
        except (OSError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
        await asyncio.sleep(0.05)
        messages.close()
        return None, reason

    async def _finish(self, id: str, yes: bool) -> str:
        messages, machine, peer = self._joins.pop(id)
        try:
            steps = machine.confirmed(yes)
            if steps and isinstance(steps[0], join.Introduce):
                steps = machine.introduced(self._friends.introduce(steps[0].to))
            for step in steps:
                if isinstance(step, join.Send):
                    messages.send(step.body)
                elif isinstance(step, join.Fail):
                    raise Refused(step.sentence)
            for step in machine.received(await messages.next()):
                match step:
                    case join.Adopt(machines):
                        await self._adopt(machines)
                        return json.dumps(
                            {
                                "account": machines.account,
                                "machines": [m.name for m in machines.machines],
                                "friend": None,
                            }
                        )
                    case join.Befriend(said):
                        friend = await self._friends.befriend(said, peer)
                        names = [m.name for m in friend.machines.machines]
                        return json.dumps({"account": friend.account, "machines": names, "friend": friend.name})
                    case join.Fail(sentence):
                        raise Refused(sentence)
                    case _:
                        pass
            raise Refused("the other machine sent something else than a list of machines")
        except TimeoutError:
            raise Refused("the owner of the other machine did not answer in time") from None
        finally:
            messages.close()


def describe(lst: MachineList) -> str:
    """The text of /pool/list."""
    return msgspec.json.encode(lst).decode() + "\n"
