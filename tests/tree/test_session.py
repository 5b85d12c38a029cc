"""What a session promises whoever talks to it: order per fid, flushes, limits, and no way to break it with bytes."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nine import ME, Talk, kinds, settle

from ipos.tree.file import Attr, Caller, File, Handle, Qid
from ipos.tree.ninep.codec import ALL, HEAD, ProtocolError
from ipos.tree.ninep.messages import NOFID
from ipos.tree.ninep.session import Session
from ipos.tree.ninep.transport import ServerProtocol
from ipos.tree.synthetic import Dir, Events, Text
from ipos.wire import limits


class Slow(File):
    """Writes take as many turns of the loop as their first byte says; what begins and ends is written down."""

    def __init__(self) -> None:
        self.qid = Qid(0, 0, 77)
        self.log: list[tuple[str, int, int]] = []

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o666)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return SlowHandle(self, len(self.log))


class SlowHandle(Handle):
    def __init__(self, file: Slow, number: int) -> None:
        self.file = file

    async def write(self, offset: int, data: bytes) -> int:
        self.file.log.append(("begin", data[1], offset))
        try:
            for _ in range(data[0]):
                await asyncio.sleep(0)
        finally:
            self.file.log.append(("end", data[1], offset))
        return len(data)


Step = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 3), st.integers(0, 4)),
        st.tuples(st.just("flush"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("turn"), st.integers(0, 3), st.just(0)),
    ),
    min_size=1,
    max_size=14,
)


async def bursts(steps: list[Step]) -> None:
    """Writes on three fids at once, some flushed: on each fid they run in order and one at a time, and every request is answered once."""
    file = Slow()
    talk = await Talk(Dir({"f": file})).start()
    for fid in (1, 2, 3):
        await talk.ask("Twalk", 0, fid, ("f",))
        await talk.ask("Tlopen", fid, os.O_WRONLY)
    talk.answers.clear()
    sent: dict[int, int] = {}
    flushes: dict[int, int] = {}
    for i, (what, number, turns) in enumerate(steps):
        tag = 100 + i
        if what == "write":
            sent[tag] = number
            talk.send(tag, "Twrite", number, tag, bytes([turns, number]))
        elif what == "flush":
            flushes[tag] = 100 + number
            talk.send(tag, "Tflush", 100 + number)
        else:
            await settle(number)
    await settle(300)
    for fid in (1, 2, 3):
        log = [(what, tag) for what, one, tag in file.log if one == fid]
        assert [what for what, _ in log] == ["begin", "end"] * (len(log) // 2), "two operations of one fid ran at once"
        begun = [tag for what, tag in log if what == "begin"]
        assert begun == sorted(begun), "the order of one fid was not kept"
    names = {tag: [name for name, t, _ in talk.answers if t == tag] for tag in (*sent, *flushes)}
    flushed = set(flushes.values())
    for tag in sent:
        assert names[tag] == ["Rwrite"] or (names[tag] == [] and tag in flushed), f"{tag}: {names[tag]}"
    order = [tag for _, tag, _ in talk.answers]
    for tag, old in flushes.items():
        assert names[tag] == ["Rflush"]
        if old in order and old in sent and old < tag:
            assert order.index(old) < order.index(tag), "an answer came after the Rflush of its request"
    assert talk.session.busy == 0
    assert not talk.session._last
    assert not talk.session._walks
    assert not talk.session._flushing
    talk.session.reset()
    await settle()


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_order_and_flush(steps: list[Step]) -> None:
    asyncio.run(bursts(steps))


OVERTAKES: list[Step] = [("write", 1, 4), ("write", 1, 1), ("flush", 1, 0), ("turn", 3, 0), ("write", 1, 1)]


@pytest.mark.parametrize("bug", ["a flushed one lets others overtake", "no order at all"])
def test_the_order_checker_can_fail(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug == "no order at all":
        monkeypatch.setattr(Session, "_before", lambda *_: set())
    else:

        def early(self: Session, op: Any) -> None:
            op.before = set()
            right(self, op)

        right = Session._ended
        monkeypatch.setattr(Session, "_ended", early)
    with pytest.raises(AssertionError, match=r"at once|was not kept"):
        asyncio.run(bursts(OVERTAKES))
    monkeypatch.undo()
    asyncio.run(bursts(OVERTAKES))


def test_walks_from_one_fid_and_its_clunk() -> None:
    """A clunk waits for walks that start from its fid."""

    class Late(Dir):
        async def walk(self, name: str) -> File:
            await settle(3)
            return await super().walk(name)

    async def main() -> None:
        talk = await Talk(Late({"f": Text(lambda: "x")})).start()
        await talk.ask("Twalk", 0, 9, ())
        talk.answers.clear()
        for tag, fid in ((5, 1), (6, 2)):
            talk.send(tag, "Twalk", 9, fid, ("f",))
        talk.send(7, "Tclunk", 9)
        talk.send(8, "Tlopen", 1, os.O_RDONLY)
        await settle()
        assert {tag: name for name, tag, _ in talk.answers} == {5: "Rwalk", 6: "Rwalk", 7: "Rclunk", 8: "Rlopen"}
        assert [tag for _, tag, _ in talk.answers].index(7) == 2 or talk.answers[-1][1] in (7, 8)
        talk.session.reset()

    asyncio.run(main())


def test_errors_of_each_dialect() -> None:
    async def main() -> None:
        for dialect, want in (
            ("9P2000", ("Rerror", "No such file or directory")),  # the text by which Linux knows ENOENT
            ("9P2000.u", ("Rerror", "nope: no such file", errno.ENOENT)),
            ("9P2000.L", ("Rlerror", errno.ENOENT)),
            ("9P2000.L.ipos", ("Rlerror", errno.ENOENT, "nope: no such file")),
        ):
            talk = await Talk(Dir(), dialect).start()
            assert await talk.ask("Twalk", 0, 1, ("nope",)) == want
            fields = (NOFID, "me", "") + (() if dialect == "9P2000" else (0,))
            refused = await talk.ask("Tauth", *fields)
            assert refused[0] in ("Rerror", "Rlerror")
            assert errno.ENOENT in refused or "authentication not required" in str(refused[1])

    asyncio.run(main())


def test_versions() -> None:
    async def main() -> None:
        talk = Talk(Dir())
        assert await talk.ask("Tversion", 1 << 30, "9P2000.L.ipos") == (limits.msize_bytes, "9P2000.L.ipos")
        assert await talk.ask("Tversion", 8192, "9P2000.x") == (8192, "9P2000")
        assert await talk.ask("Tversion", 8192, "8P") == (8192, "unknown")
        least = limits.msize_least_bytes
        assert await talk.ask("Tversion", least - 1, "9P2000.L") == (least - 1, "unknown")
        assert await talk.ask("Tversion", least, "9P2000.L") == (least, "9P2000.L")

    asyncio.run(main())


def test_a_mistake_in_a_file_server_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Text):
        prompt = True

        async def attr(self) -> Attr:
            raise ZeroDivisionError("planted")

        async def open(self, caller: Caller, flags: int) -> Handle:
            raise asyncio.CancelledError

        async def readlink(self) -> str:
            return "\ud800"

    async def main() -> None:
        talk = await Talk(Dir({"f": Broken()})).start()
        await talk.ask("Twalk", 0, 1, ("f",))
        assert await talk.ask("Tgetattr", 1, 0) == (
            "Rlerror",
            errno.EIO,
            "a mistake in IPOS: ZeroDivisionError: planted",
        )
        assert (await talk.ask("Tlopen", 1, 0))[:2] == ("Rlerror", errno.EINTR)
        assert (await talk.ask("Treadlink", 1))[:2] == ("Rlerror", errno.EIO)

    asyncio.run(main())


def test_locks() -> None:
    async def main() -> None:
        root = Dir({"f": Text(lambda: "x")})
        one, two = await Talk(root).start(), await Talk(root).start()
        for talk in (one, two):
            await talk.ask("Twalk", 0, 1, ("f",))
            await talk.ask("Tlopen", 1, 0)
        assert await one.ask("Tlock", 1, 1, 0, 10, 10, 7, "one") == (0,)
        assert await two.ask("Tlock", 1, 0, 0, 15, 10, 7, "two") == (1,)
        assert await two.ask("Tgetlock", 1, 0, 0, 0, 7, "two") == (1, 10, 10, 7, "one")
        assert await two.ask("Tlock", 1, 1, 0, 20, 0, 7, "two") == (0,)
        assert await one.ask("Tlock", 1, 2, 0, 12, 3, 7, "one") == (0,)
        assert await two.ask("Tlock", 1, 1, 0, 12, 3, 7, "two") == (0,)
        assert await two.ask("Tlock", 1, 1, 0, 15, 1, 7, "two") == (1,)
        assert await one.ask("Tlock", 1, 9, 0, 0, 1, 7, "one") == (2,)
        one.session.reset()
        assert await two.ask("Tlock", 1, 1, 0, 0, 0, 7, "two") == (0,)
        await two.ask("Tclunk", 1)
        assert two.session.locks.held == {}

    asyncio.run(main())


class Sink(asyncio.Transport):
    """A transport that remembers, and that takes nothing while `stuck`."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()
        self.reading, self.closed = True, False

    def write(self, data: Any) -> None:
        self.out += data

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high


def connection(root: File) -> tuple[ServerProtocol, Sink]:
    async def attach(caller: Caller, aname: str) -> File:
        return root

    protocol, sink = ServerProtocol(attach, ME), Sink()
    protocol.connection_made(sink)
    return protocol, sink


def encoded(tag: int, name: str, *values: Any, dialect: str = "9P2000.L") -> bytes:
    return ALL[dialect].by_name[name].encode(tag, *values)


def test_a_fast_client_is_slowed_down_and_its_flush_is_heard() -> None:
    async def main() -> None:
        protocol, sink = connection(Dir({"events": Events()}))
        protocol.data_received(encoded(1, "Tversion", 1 << 20, "9P2000.L") + encoded(1, "Tattach", 0, NOFID, "", "", 0))
        await settle()
        many = limits.requests_in_flight + limits.requests_waiting
        fids = range(1, limits.requests_in_flight + 1)
        protocol.data_received(b"".join(encoded(fid, "Twalk", 0, fid, ("events",)) for fid in fids))
        await settle(60)
        protocol.data_received(b"".join(encoded(fid, "Tlopen", fid, 0) for fid in fids))
        await settle(60)
        assert sink.reading
        protocol.data_received(b"".join(encoded(1000 + i, "Tread", 1 + i % len(fids), 0, 100) for i in range(many)))
        await settle(200)
        assert protocol.session.busy == limits.requests_in_flight
        assert not sink.reading
        sink.out.clear()
        await settle()
        assert sink.out == b""
        protocol.connection_lost(None)
        await settle(60)
        assert protocol.session.busy == 0
        assert protocol.session.fids == {}

        protocol, sink = connection(Dir({"events": Events()}))
        protocol.data_received(encoded(1, "Tversion", 1 << 20, "9P2000.L") + encoded(1, "Tattach", 0, NOFID, "", "", 0))
        await settle()
        protocol.data_received(b"".join(encoded(fid, "Twalk", 0, fid, ("events",)) for fid in fids))
        protocol.data_received(b"".join(encoded(fid, "Tlopen", fid, 0) for fid in fids))
        await settle(100)
        protocol.data_received(b"".join(encoded(1000 + fid, "Tread", fid, 0, 100) for fid in fids))
        protocol.data_received(encoded(5000, "Tread", 1, 0, 100))
        await settle(100)
        sink.out.clear()
        protocol.data_received(encoded(5001, "Tflush", 5000) + encoded(5002, "Tflush", 1001))
        await settle()
        assert bytes(sink.out) == encoded(5001, "Rflush") + encoded(5002, "Rflush")
        protocol.connection_lost(None)
        await settle(60)

    asyncio.run(main())


class Big(Text):
    """A file of a MiB of zeros wherever it is read; how many bytes were asked for is counted."""

    prompt = True

    def __init__(self) -> None:
        super().__init__(lambda: "")
        self.given = 0

    async def open(self, caller: Caller, flags: int) -> Handle:
        file = self

        class Opened(Handle):
            prompt = True

            async def read(self, offset: int, count: int) -> bytes:
                file.given += count
                return bytes(count)

        return Opened()


def test_a_client_that_takes_no_answers_holds_little() -> None:
    async def main() -> None:
        big = Big()
        protocol, sink = connection(Dir({"big": big}))
        protocol.data_received(encoded(1, "Tversion", limits.msize_bytes, "9P2000.L"))
        protocol.data_received(encoded(1, "Tattach", 0, NOFID, "", "", 0))
        await settle()
        protocol.data_received(encoded(1, "Twalk", 0, 1, ("big",)))
        await settle()
        protocol.data_received(encoded(1, "Tlopen", 1, 0))
        await settle()
        wrote = sink.write

        def write(data: Any) -> None:
            wrote(data)
            if len(sink.out) > limits.write_buffer_bytes:
                protocol.pause_writing()

        sink.write = write  # type: ignore[method-assign]
        for tag in range(2, 200):
            protocol.data_received(encoded(tag, "Tread", 1, 0, limits.MiB))
        await settle(300)
        assert big.given <= 4 * limits.MiB
        assert not sink.reading
        sink.out.clear()
        sink.write = wrote  # type: ignore[method-assign]
        protocol.resume_writing()
        await settle(300)
        assert big.given == 198 * limits.MiB
        assert sink.reading
        protocol.connection_lost(None)

    asyncio.run(main())


def test_ten_thousand_fids() -> None:
    async def main() -> None:
        talk = await Talk(Dir({"f": Text(lambda: "x")})).start()
        refused = 0
        for fid in range(1, 10_001):
            refused += (await talk.ask("Twalk", 0, fid, ()))[:2] == ("Rlerror", errno.EMFILE)
        assert len(talk.session.fids) == limits.fids_per_session
        assert refused == 10_001 - limits.fids_per_session
        assert await talk.ask("Tclunk", 1) == ()
        assert await talk.ask("Twalk", 0, 10_000, ("f",)) != ()

    asyncio.run(main())


NOISE = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.tuples(st.integers(0, 130), st.integers(0, 65535), st.binary(max_size=40)).map(
            lambda m: HEAD.pack(7 + len(m[2]), m[0], m[1]) + m[2]
        ),
        st.tuples(
            st.sampled_from([row for d in ALL.values() for row in d.by_code.values() if row.name[0] == "T"]),
            st.integers(0, 3),
            st.lists(st.integers(0, 4), min_size=12, max_size=12),
            st.sampled_from(["f", "d", "..", "", "a/b", "\0", "x" * 300]),
        ).map(lambda m: shaped(*m)),
    ),
    max_size=25,
)


def shaped(row: Any, tag: int, numbers: Sequence[int], name: str) -> bytes:
    """A well-formed message of small numbers."""
    simple = {"s": name, "d": b"data", "b": b"stat", "q": Qid(0, 0, 0), "s*": (name,), "q*": ()}
    return row.encode(tag, *(simple.get(kind, n) for kind, n in zip(kinds(row), numbers, strict=False)))


async def noise(pieces: list[bytes], version: str) -> ServerProtocol:
    """Whatever comes: nothing is raised, nothing stays, and what is kept is bounded."""
    root = Dir({"f": Text(lambda: "text", lambda *_: None), "d": Dir({"f": Events()})})
    protocol, sink = connection(root)
    protocol.data_received(encoded(9, "Tversion", 8192, version) + encoded(9, "Tattach", 0, NOFID, "", "", 0))
    for piece in pieces:
        if sink.closed:
            break
        protocol.data_received(piece)
        await settle(2)
    at = 0
    while at < len(sink.out):  # what left is whole messages, each an answer
        size, code, _ = HEAD.unpack_from(sink.out, at)
        assert 7 <= size <= limits.msize_bytes
        assert code % 2 == 1
        at += size
    assert at == len(sink.out)
    protocol.connection_lost(None)
    await settle(10)
    assert protocol.session.busy == 0
    assert protocol.session.fids == {}
    return protocol


@settings(max_examples=120, deadline=None)
@given(NOISE, st.sampled_from(list(ALL)))
def test_noise(pieces: list[bytes], version: str) -> None:
    asyncio.run(noise(pieces, version))


@pytest.mark.slow
@settings(max_examples=6000, deadline=None)
@given(NOISE, st.sampled_from(list(ALL)))
def test_noise_for_long(pieces: list[bytes], version: str) -> None:
    asyncio.run(noise(pieces, version))


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(STEPS)
def test_order_and_flush_for_long(steps: list[Step]) -> None:
    asyncio.run(bursts(steps))


def test_the_noise_checker_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Session.message

    def wrong(self: Session, b: memoryview) -> None:
        if len(b) > 7 and b[4] == 110:
            raise KeyError("planted")
        right(self, b)

    monkeypatch.setattr(Session, "message", wrong)
    with pytest.raises(KeyError):
        asyncio.run(noise([encoded(1, "Twalk", 0, 1, ("f",))], "9P2000.L"))


def test_half_messages() -> None:
    """Cut at every byte, a conversation has the same answers."""

    root = Dir({"f": Text(lambda: "text")})

    async def main(cut: int) -> bytes:
        protocol, sink = connection(root)
        whole = b"".join(
            (
                encoded(1, "Tversion", 8192, "9P2000.L"), encoded(1, "Tattach", 0, NOFID, "", "", 0),
                encoded(2, "Twalk", 0, 1, ("f",)), encoded(3, "Tlopen", 1, 0), encoded(4, "Tread", 1, 0, 100), encoded(5, "Tclunk", 1),
            )
        )  # fmt: skip
        protocol.data_received(whole[:cut])
        await settle(5)
        protocol.data_received(whole[cut:])
        await settle(20)
        protocol.connection_lost(None)
        return bytes(sink.out) if cut < len(whole) else b""

    answers = {asyncio.run(main(cut)) for cut in range(0, 130, 3)} - {b""}
    assert len(answers) == 1
    assert b"text" in answers.pop()


def test_a_tag_used_twice_ends_the_connection() -> None:
    async def main() -> None:
        talk = await Talk(Dir({"e": Events()})).start()
        await talk.ask("Twalk", 0, 1, ("e",))
        await talk.ask("Tlopen", 1, 0)
        talk.send(9, "Tread", 1, 0, 10)
        with pytest.raises(ProtocolError, match="tag 9 is in use"):
            talk.send(9, "Tread", 1, 0, 10)
        talk.session.reset()
        await settle()

    asyncio.run(main())
