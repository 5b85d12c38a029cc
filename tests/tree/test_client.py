"""The 9P client over links that are slow, cut, or lead to another server than before."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nine import ME

from ipos.tree.file import Caller, File, Qid
from ipos.tree.local import local
from ipos.tree.ninep.client import Client, OpenFile, Unsure, connect_unix
from ipos.tree.ninep.codec import ALL, DIRENT, HEAD, Framer
from ipos.tree.ninep.stat import Stat
from ipos.tree.ninep.transport import ServerProtocol, serve_unix
from ipos.tree.remote import RemoteHandle, remote
from ipos.tree.synthetic import Dir, Events, Text
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused


class Link:
    """A relay to a server that counts turns: a packet of requests, then the answers, is one round trip. `deaf` swallows answers."""

    def __init__(self, to: Path) -> None:
        self.to = to
        self.trips = 0
        self.requests: list[str] = []
        self.deaf = False
        self._writers: list[asyncio.StreamWriter] = []
        self._asked = False

    async def served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upper, up = await asyncio.open_unix_connection(self.to)
        self._writers += [writer, up]

        async def forward() -> None:
            framer = Framer(limits.msize_bytes)
            while data := await reader.read(1 << 20):
                names = [ALL["9P2000.L"].by_code[m[4]].name for m in framer.feed(data)]
                self.requests += names
                if not self._asked and any(name not in ("Tclunk", "Tflush") for name in names):
                    self.trips += 1
                    self._asked = True
                up.write(data)
            up.close()

        task = asyncio.create_task(forward())
        while data := await upper.read(1 << 20):
            self._asked = False
            if not self.deaf:
                writer.write(data)
        writer.close()
        await task

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def linked(root: File) -> AsyncGenerator[tuple[Path, Link]]:
    with tempfile.TemporaryDirectory(prefix="t9c") as scratch:

        async def attach(caller: Caller, aname: str) -> File:
            return root

        server = await serve_unix(Path(scratch) / "s", lambda: ServerProtocol(attach, ME))
        link = Link(Path(scratch) / "s")
        relay = await asyncio.start_unix_server(link.served, Path(scratch) / "l")
        try:
            yield Path(scratch) / "l", link
        finally:
            link.cut()
            relay.close()
            server.close()
            await asyncio.sleep(0.02)


def told(root: Callable[[Path], File], story: Callable[[Path, Link, Path], Awaitable[None]]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="t9d") as disk:
            async with linked(root(Path(disk))) as (path, link):
                await story(path, link, Path(disk))

    asyncio.run(main())


def test_one_round_trip_each() -> None:
    async def story(path: Path, link: Link, disk: Path) -> None:
        (disk / "d").mkdir()
        (disk / "d" / "f").write_bytes(b"x" * 60_000)
        for i in range(100):
            (disk / "d" / f"n{i}").touch()
        client = await connect_unix(path)

        async def trips(work: Awaitable[Any]) -> int:
            before = link.trips
            await work
            return link.trips - before

        assert await trips(client.read("/disk/d/f")) == 1
        assert await trips(client.read("/text")) == 1
        assert await trips(client.ls("/disk/d")) == 1
        assert await trips(client.ls("/")) == 1
        assert await trips(client.write("/disk/d/f", b"y" * 1000)) == 1
        assert await trips(client.stat("/disk/d/f")) == 1
        assert await trips(client.mkdir("/disk/d/new")) == 1
        assert await trips(client.remove("/disk/d/new", directory=True)) == 1
        assert await client.read("/text") == b"text"
        assert len(await client.ls("/disk/d")) == 101
        client.close()

    told(lambda disk: Dir({"disk": local(disk), "text": Text(lambda: "text")}), story)


def test_a_long_file_is_read_ahead_and_right() -> None:
    async def story(path: Path, link: Link, disk: Path) -> None:
        body = os.urandom(9 << 20) + b"end"
        (disk / "f").write_bytes(body)
        client = await connect_unix(path)
        assert await client.read("/f") == body
        async with client.open("/f") as file:
            pieces = [await file.read(100_000) for _ in range(10)]
            assert len(file._ahead) > 1
            file.offset = 5
            assert await file.read(10) == body[5:15]
            assert b"".join(pieces) == body[:1_000_000]
        await asyncio.sleep(0.05)
        assert client._waiting == {}
        client.close()

    told(local, story)


def test_a_stream_is_not_read_ahead() -> None:
    """Two reads of events that were sent at once could be answered in one order and flushed in another."""

    async def story(path: Path, link: Link, disk: Path) -> None:
        client = await connect_unix(path)
        async with client.open("/events") as file:
            assert await file.read() == b"line\n"
            waiting = asyncio.ensure_future(file.read())
            await asyncio.sleep(0.02)
            assert len(client._waiting) == 1
            waiting.cancel()
            await asyncio.wait((waiting,))
        client.close()

    told(lambda disk: Dir({"events": Events(lambda: ["line"])}), story)


def test_a_lost_reply_is_unsure_and_nothing_is_sent_twice() -> None:
    async def story(path: Path, link: Link, disk: Path) -> None:
        (disk / "f").write_text("old")
        client = await connect_unix(path)
        link.deaf = True
        writing, reading = asyncio.ensure_future(client.write("/f", b"new")), asyncio.ensure_future(client.read("/f"))
        while "Twrite" not in link.requests or (disk / "f").read_text() != "new":
            await asyncio.sleep(0.01)
        link.cut()
        with pytest.raises(Unsure, match="may have happened, and is not asked again"):
            await writing
        with pytest.raises(Gone) as caught:
            await reading
        assert not isinstance(caught.value, Unsure)
        assert link.requests.count("Twrite") == 1

    told(local, story)


def lasting(path: Path) -> Callable[[], Awaitable[Client]]:
    """A connection that is made anew when it is lost."""
    held: list[Client] = []

    async def connect() -> Client:
        if not held or held[-1].lost is not None:
            held.append(await connect_unix(path))
        return held[-1]

    return connect


@pytest.mark.parametrize("what", ["the same file", "another file", "a stream"])
def test_an_open_file_outlives_its_connection(what: str) -> None:
    async def story(path: Path, link: Link, disk: Path) -> None:
        (disk / "f").write_bytes(b"0123456789")
        top = await remote(lasting(path)).walk("events" if what == "a stream" else "disk")
        file = top if what == "a stream" else await top.walk("f")
        handle = await file.open(ME, os.O_RDONLY if what == "a stream" else os.O_RDWR)
        assert isinstance(handle, RemoteHandle)
        assert await handle.read(0, 4) == (b"line" if what == "a stream" else b"0123")
        link.cut()
        await asyncio.sleep(0.02)
        if what == "another file":
            (disk / "new").write_bytes(b"other bytes")
            (disk / "new").rename(disk / "f")
            with pytest.raises(Refused, match="is another file than the one that was open"):
                await handle.read(4, 4)
        elif what == "a stream":
            with pytest.raises(Gone, match="a stream is not resumed"):
                await handle.read(4, 4)
        else:
            assert await handle.read(4, 4) == b"4567"
            assert await handle.write(0, b"abc") == 3
            await handle.sync()
            link.cut()
            await asyncio.sleep(0.02)
            assert await handle.read(0, 4) == b"abc3"
            assert await handle.write(3, b"d") == 1
            link.cut()
            await asyncio.sleep(0.02)
            with pytest.raises(Unsure):
                await handle.sync()
        await handle.close()

    told(lambda disk: Dir({"disk": local(disk), "events": Events(lambda: ["line"])}), story)


def test_a_write_in_flight_when_the_link_is_cut() -> None:
    async def story(path: Path, link: Link, disk: Path) -> None:
        (disk / "f").touch()
        file = await remote(lasting(path)).walk("f")
        handle = await file.open(ME, os.O_RDWR)
        link.deaf = True
        writing = asyncio.ensure_future(handle.write(0, b"once"))
        while (disk / "f").read_bytes() != b"once":
            await asyncio.sleep(0.01)
        link.cut()
        with pytest.raises(Unsure):
            await writing
        link.deaf = False
        assert link.requests.count("Twrite") == 1
        assert await handle.read(0, 10) == b"once"
        await handle.close()

    told(local, story)


def test_a_walk_that_falls_short_hits_nothing_else() -> None:
    """More names than one walk takes: what follows must not be done half way there."""

    async def story(path: Path, link: Link, disk: Path) -> None:
        deep = disk.joinpath(*["d"] * 16)
        deep.mkdir(parents=True)
        (deep / "x").write_text("half way")
        client = await connect_unix(path)
        with pytest.raises(Refused, match="there is no missing"):
            await client.remove("/".join(["d"] * 16 + ["missing", "x"]))
        assert (deep / "x").exists()
        assert await client.read("/".join(["d"] * 16 + ["x"])) == b"half way"
        client.close()
        await asyncio.sleep(0.02)

    told(local, story)


class Wire(asyncio.Transport):
    cut = False

    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        self.cut = True


def test_answers_that_are_none() -> None:
    """A server that answers what was not asked ends the connection, not the program."""

    async def main() -> None:
        for answer in (
            HEAD.pack(7, 121, 9), HEAD.pack(7, 119, 1), HEAD.pack(6, 121, 1), b"\xff\xff\xff\xff" + b"x" * 9, HEAD.pack(9, 7, 1) + b"xx",
        ):  # fmt: skip
            client = Client()
            wire = Wire()
            client.connection_made(wire)
            waiting = asyncio.ensure_future(client.rpc("Tclunk", 1))
            await asyncio.sleep(0)
            client._waiting = {1: client._waiting.popitem()[1]}
            client.data_received(answer)
            assert wire.cut
            client.connection_lost(None)
            with pytest.raises(Gone):
                await waiting

    asyncio.run(main())


def test_whole_is_only_believed_of_our_own_dialect() -> None:
    assert Client("9P2000.L.ipos").is_whole((None, 8192))
    assert not Client("9P2000.L.ipos").is_whole((None, 0))
    assert not Client("9P2000.L").is_whole((None, 8192))
    assert not OpenFile(Client("9P2000.L"), 1).whole


def hostile(answer: Callable[[str, tuple[Any, ...]], tuple[str, tuple[Any, ...]]], version: str) -> Client:
    """A client whose server is a function."""
    client, dialect = Client(version), ALL[version]

    class Server(asyncio.Transport):
        def write(self, data: Any) -> None:
            for message in Framer(limits.msize_bytes).feed(data):
                _, code, tag = HEAD.unpack_from(message)
                row = dialect.by_code[code]
                name, values = answer(row.name, row.decode(message))
                body = dialect.by_name[name].encode(tag, *values)
                asyncio.get_running_loop().call_soon(client.data_received, body)

        def is_closing(self) -> bool:
            return False

        def abort(self) -> None:
            asyncio.get_running_loop().call_soon(client.connection_lost, None)

    client.connection_made(Server())
    return client


@pytest.mark.parametrize("version", ["9P2000.L.ipos", "9P2000"])
def test_a_server_without_end(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it answers makes a call go on for ever or keep without bound."""
    monkeypatch.setattr(Client, "entries_most", 1000)
    monkeypatch.setattr(limits, "line_bytes", 100_000)
    qid = Qid(0, 0, 1)
    said = {
        "Tversion": ("Rversion", (8192, version)), "Tattach": ("Rattach", (qid,)), "Topen": ("Ropen", (qid, 0)), "Tlopen": ("Rlopen", (qid, 0)),
        "Tcreate": ("Rcreate", (qid, 0)), "Tlcreate": ("Rlcreate", (qid, 0)), "Tclunk": ("Rclunk", ()), "Twrite": ("Rwrite", (0,)),
    }  # fmt: skip
    entry = DIRENT.pack(0, 0, 1, 1, 0, 1) + b"x"
    block = b"".join([entry] * 30) if version != "9P2000" else b"".join([Stat(qid, 0, 0, 0, 0, "x").pack()] * 30)
    data = {"now": block}

    def answer(name: str, values: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        if name == "Twalk":
            return "Rwalk", ((qid,) * len(values[2]),)
        if name in ("Tread", "Treaddir"):
            return "R" + name[1:], (data["now"][: values[2]],)
        return said[name]

    async def main() -> None:
        client = await hostile(answer, version).attach()
        with pytest.raises(Refused, match="more than 1000 entries"):
            await client.ls("/d")
        data["now"] = b"x" * 8000
        async with client.open("/f") as file:
            with pytest.raises(Refused, match="a line of more than 100000 bytes"):
                await anext(file.lines())
        with pytest.raises(Refused, match="takes no more"):
            await client.write("/f", b"text")
        with pytest.raises(Refused, match="takes no more"):
            await client.create("/f", b"text")
        data["now"] = b"y" * 7
        with pytest.raises(Gone, match="does not speak 9P"):
            await client.ls("/d")  # what is read is no entry

    async def claims(name: str, reply: tuple[Any, ...], call: Callable[[Client], Awaitable[Any]]) -> None:
        client = await hostile(lambda n, v: ("R" + n[1:], reply) if n == name else answer(n, v), version).attach()
        with pytest.raises(Gone, match="does not speak 9P"):
            await call(client)

    asyncio.run(main())
    asyncio.run(claims("Twrite", (5,), lambda client: client.write("/f", b"text")))
    asyncio.run(claims("Tread", (bytes(8000),), lambda client: client.read_once("/f", 100)))
    asyncio.run(claims("Twalk", ((qid,) * 3,), lambda client: client.read("/a/b")))
    for msize in (0, 24, limits.msize_bytes + 1):
        with pytest.raises(Gone, match=f"an msize of {msize}"):
            asyncio.run(hostile(lambda n, v: ("Rversion", (msize, version)), version).attach())  # noqa: B023
