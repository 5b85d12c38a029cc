"""Invites and joins of one node: drives the machines of `net.join` over streams, asks the people, keeps the signed list."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ipos.identity.machines import Machine, MachineList
from ipos.net import codes, join
from ipos.net.engine import NetEngine
from ipos.tree.file import Caller
from ipos.tree.synthetic import Events
from ipos.wire import limits
from ipos.wire.clock import Clock
from ipos.wire.errors import Gone, Refused
from ipos.wire.record import encode

log = logging.getLogger("ipos.join")

LOOK_S = 0.1  # how often a join looks whether mDNS has found somebody else


class Messages(asyncio.Protocol):
    """Length-prefixed messages (u32, little endian) on a stream. `None` in the queue: the stream ended."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:
            (length,) = struct.unpack_from("<I", self._buffer)
            if length > limits.join_message_bytes:
                if self.transport is not None:
                    self.transport.abort()
                return
            if len(self._buffer) < 4 + length:
                return
            self.inbox.put_nowait(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]

    def connection_lost(self, exc: Exception | None) -> None:
        self.inbox.put_nowait(None)

    def send(self, body: bytes) -> None:
        if self.transport is not None:
            self.transport.write(struct.pack("<I", len(body)) + body)

    async def next(self) -> bytes:
        async with asyncio.timeout(limits.join_timeout_s):
            body = await self.inbox.get()
        if body is None:
            raise Gone("the other machine ended the conversation")
        return body

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class Invite:
    def __init__(self, code: codes.Code, yes: bool, expires: float) -> None:
        self.code = code
        self.yes = yes
        self.expires = expires
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.joined: str = ""


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
        self._joins: dict[str, tuple[Messages, join.Joiner]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- inviting

    async def invite(self, caller: Caller, question: bytes) -> str:
        """/pool/invite: write `yes` (whoever knows the code is let in) or `ask`; read {code, qr, expires_s}."""
        word = question.decode(errors="replace").strip()
        if word not in ("yes", "ask") or not caller.local:
            raise Refused("write 'ask' or 'yes' to /pool/invite, on this machine")
        self._may_invite()
        code = codes.make(os.urandom(4))
        while code.number in self.invites:
            code = codes.make(os.urandom(4))
        self.invites[code.number] = Invite(code, word == "yes", self.clock.now() + limits.invite_s)
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

    _asked: list[Invite] = []  # noqa: RUF012  (set per instance in accept)

    def accept(self, peer: str) -> asyncio.BaseProtocol:
        """A stream of /ipos/join/1 came in."""
        messages = Messages()
        task = asyncio.create_task(self._serve(peer, messages))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return messages

    async def _serve(self, peer: str, messages: Messages) -> None:
        machine = join.Inviter(self.net.peer, peer, self._fresh())
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
                        case join.Ask(words, name):
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
                        case join.Fail(sentence):
                            self._emit(current, {"event": "failed", "reason": sentence})
                            return
                        case join.Adopt():
                            return
        except (OSError, TimeoutError) as error:
            if current is not None:
                self._emit(
                    current, {"event": "failed", "reason": str(error) or "the other machine did not answer in time"}
                )
        finally:
            await asyncio.sleep(0.2)
            messages.close()

    async def _ask(self, invite: Invite, words: str, name: str, messages: Messages) -> bool:
        """What this machine's owner says; `Gone` if the other machine goes away before, TimeoutError if nobody says anything."""
        self._emit(invite, {"event": "ask", "words": words, "machine": name, "yes": invite.yes})
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
        """/pool/join: write `CODE` or the QR's text, read {id, words}; write `yes ID` or `no ID`, read {account, machines}."""
        if not caller.local:
            raise Refused("a machine is joined from its own socket only")
        match question.decode(errors="replace").split():
            case ["yes" | "no" as word, id] if id in self._joins:
                return await self._finish(id, word == "yes")
            case words:
                return await self._begin(" ".join(words))

    async def _begin(self, text: str) -> str:
        parsed = codes.parse_qr(text)
        code = parsed[0] if parsed is not None else codes.parse(text)
        mine = self._mine()
        if len(mine.machines) > 1:
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
                        attempts.add(asyncio.create_task(self._attempt(code, peer, addresses, mine)))
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

    async def _attempt(
        self, code: codes.Code, peer: str, addresses: tuple[str, ...], mine: MachineList
    ) -> tuple[str | None, str]:
        """(the answer to read, "") from the machine that has this invite, (None, the reason) from any other."""
        machine = join.Joiner(code, peer, self._me(), mine.account, len(mine.machines) - 1)
        messages = Messages()
        reason = "it did not go on"
        try:
            await self.net.dial(peer, join.PROTOCOL, lambda: messages, addresses)
            for step in machine.start():
                assert isinstance(step, join.Send)
                messages.send(step.body)
            for step in machine.received(await messages.next()):
                match step:
                    case join.Ask(words, _):
                        id = os.urandom(4).hex()
                        self._joins[id] = messages, machine
                        return json.dumps({"id": id, "words": words}), ""
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
        messages, machine = self._joins.pop(id)
        try:
            for step in machine.confirmed(yes):
                if isinstance(step, join.Send):
                    messages.send(step.body)
                elif isinstance(step, join.Fail):
                    raise Refused(step.sentence)
            for step in machine.received(await messages.next()):
                match step:
                    case join.Adopt(machines):
                        await self._adopt(machines)
                        return json.dumps(
                            {"account": machines.account, "machines": [m.name for m in machines.machines]}
                        )
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
