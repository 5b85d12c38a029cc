"""member: one node of the pool, as a coordinator reaches it: a 9P client of that node's /proc, kept connected.

Down: `deal` and `tell` queue messages that a sender writes in order. Up: the lines of /proc/events. When the connection ends, what was
queued is dropped, because nothing in it matters any more: on the next connection the node first says what it holds (`here`), and the
coordinator brings that and its own view together. This node itself is a member too, reached the same way.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from ipos.pool.placement import DEFAULT_TRANSFER_MB_S, Offer
from ipos.pool.records import Deal
from ipos.tree.ninep.client import Client
from ipos.wire import limits
from ipos.wire.clock import Clock
from ipos.wire.errors import Gone, Refused
from ipos.wire.record import encode

log = logging.getLogger("ipos.member")

QUIET_S = 2.5 * limits.beat_s  # a node that was not heard for so long is dealt nothing, though its connection stands
RETRY_S = (0.1, 0.3, 1.0, 3.0)
FRIENDS_RETRY_S = (0.3, 1.0, 3.0, 10.0, 30.0)  # a friend's machine may be off for long, and nobody waits for it


class Listener(Protocol):
    """The coordinator."""

    def heard(self, member: Member, event: dict[str, Any]) -> None: ...

    def hushed(self, member: Member) -> None: ...


class Beat(NamedTuple):
    """A node's last word about itself."""

    cores: int = 0
    slots: int = 0
    said: bool = False
    speed: float = 1.0
    memory_free: int = 0
    memory_total: int = 0
    foreign: float = 0.0
    platform: str = ""
    engine: str = ""
    machine: str = ""
    declined: str = ""


def _event(line: str) -> dict[str, Any]:
    """`Gone` if it is none: who says such things is not listened to."""
    try:
        event = msgspec.json.decode(line)
    except msgspec.MsgspecError as error:
        raise Gone(f"what it says is no event: {error}") from None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):  # pyright: ignore[reportUnknownMemberType]
        raise Gone("what it says is no event")
    return event  # pyright: ignore[reportUnknownVariableType]


def _beat(event: dict[str, Any]) -> Beat:
    """Its figures are added up and divided by: they are what they should be, or `Gone`."""
    said = {key: event[key] for key in Beat._fields if key in event}
    for key, value in said.items():
        kind = type(Beat._field_defaults[key])
        fits = type(value) in (int, float) if kind is float else type(value) is kind
        if not fits or (kind is int and not 0 <= value < 1 << 60) or (kind is float and not abs(value) < 1e9):
            raise Gone(f"its beat says {key} {value!r}")
    return Beat(**said)


class Member:
    """`connect` gives a client attached to the node's tree, or raises `Gone`; so does `bulk`, another one, for what may be large."""

    def __init__(
        self,
        *,
        node: str,
        name: str,
        machine: str,
        local: bool,
        connect: Callable[[], Awaitable[Client]],
        bulk: Callable[[], Awaitable[Client]],
        listener: Listener,
        clock: Clock,
        account: str = "",
    ) -> None:
        self.node = node
        self.name = name
        self.machine = machine
        self.local = local
        self.beat = Beat(machine=machine)
        self.known: set[bytes] = set()
        self.ours = 0
        self.hear_s = limits.beat_s  # how often it is to hear of us
        self.connected = False
        self.client: Client | None = None  # control's, while connected
        self.bulk = bulk
        self.answer_s: float | None = None  # how long the last line to its /proc/ctl took to be answered
        self.last_heard: float | None = None
        self.why_not = "not reached yet"
        self.account = account  # of a friend's machine; "": my own
        self.objection: Callable[[], str] = lambda: ""
        """Why nothing is to be dealt to it now, whatever it offers."""
        self._connect = connect
        self._listener = listener
        self._clock = clock
        self._outbox: list[Deal | str] = []
        self._wake = asyncio.Event()
        self._retry = asyncio.Event()
        self._retime = asyncio.Event()

    def deal(self, deal: Deal) -> None:
        needed = deal.grace_ms / 1000 / limits.beats_per_grace
        sooner = needed < self.hear_s
        self.hear_s = min(needed, self.hear_s if self.ours > 1 else limits.beat_s)
        self._send(deal)
        if sooner:
            self._retime.set()

    def tell(self, line: str) -> None:
        self._send(line)

    def _send(self, message: Deal | str) -> None:
        if self.connected:
            self._outbox.append(message)
            self._wake.set()

    def nudge(self) -> None:
        """The node was seen on the network: try now."""
        self._retry.set()

    def offer(self, ahead: int) -> Offer:
        beat = self.beat
        return Offer(
            node=self.node,
            name=self.name,
            machine=beat.machine or self.machine,
            cores=beat.cores,
            slots=beat.slots,
            said=beat.said,
            ours=self.ours,
            foreign=beat.foreign,
            speed=beat.speed,
            memory_free=beat.memory_free,
            silent_s=self._silent_s(),
            platform=beat.platform,
            local=self.local,
            declined=beat.declined,
            objection=self.objection(),
            mb_per_s=DEFAULT_TRANSFER_MB_S,
            ahead=ahead,
            engine=beat.engine,
        )

    def _silent_s(self) -> float | None:
        """How long it has not been heard, if that is longer than it should be, inf: never; None: it is there."""
        silence = self._clock.now() - self.last_heard if self.last_heard is not None else math.inf
        return None if self.connected and silence < QUIET_S else silence

    # ---- life

    async def run(self) -> None:
        """Stay connected until cancelled."""
        failures = 0
        while True:
            try:
                client = await self._connect()
            except (OSError, TimeoutError) as error:
                self.why_not = str(error)
            else:
                self.client = client
                try:
                    async with asyncio.TaskGroup() as group:
                        reader = group.create_task(self._read(client))
                        group.create_task(self._write(client))
                        group.create_task(self._hear())
                        reader.add_done_callback(lambda _: self._wake.set())
                except* (OSError, TimeoutError) as errors:
                    self.why_not = str(errors.exceptions[0])
                    log.info("%s: %s", self.name, self.why_not)
                finally:
                    self.client = None
                    client.close()
                    failures = 0 if self.connected else failures
                    self._end()
            self._retry.clear()
            waits = FRIENDS_RETRY_S if self.account else RETRY_S
            delay = waits[min(failures, len(waits) - 1)]
            failures += 1
            await self._sleep(delay, self._retry)

    async def _sleep(self, seconds: float, woken: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(woken.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((waiting, sleeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            sleeping.cancel()

    def _end(self) -> None:
        self._outbox.clear()
        if self.connected:
            self.connected = False
            self._listener.hushed(self)

    async def _read(self, client: Client) -> None:
        async with client.open("/proc/events") as events:
            async for line in events.lines():
                event = _event(line)
                self.last_heard = self._clock.now()
                if event["event"] == "beat":
                    self.beat = _beat(event)
                if event["event"] == "here":
                    self.connected = True
                self._listener.heard(self, event)
        raise Gone(f"{self.name} ended its event stream")

    async def _write(self, client: Client) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._outbox = self._outbox, []
            lines = [m for m in batch if isinstance(m, str)]
            if lines:
                began = self._clock.now()
                await client.write("/proc/ctl", ("\n".join(lines) + "\n").encode())
                self.answer_s = self._clock.now() - began
            deals = [m for m in batch if isinstance(m, Deal)]
            await asyncio.gather(*(self._write_deal(client, deal) for deal in deals))

    async def _write_deal(self, client: Client, deal: Deal) -> None:
        try:
            await client.write("/proc/clone", encode(deal))
        except Gone:
            raise
        except Refused as refused:
            event = {"event": "declined", "lease": deal.id, "reason": str(refused)}
            self._listener.heard(self, event)

    async def _hear(self) -> None:
        """Both ends of a lease speak every `beat_s`, and four times in its grace; a connection on which nothing came for the whole grace
        is no connection."""
        while True:
            self._retime.clear()
            await self._sleep(self.hear_s, self._retime)
            self.tell("hear")
            if self.last_heard is not None and self._clock.now() - self.last_heard > limits.grace_s:
                raise Gone(f"{self.name} was silent for {limits.grace_s:g} s")
