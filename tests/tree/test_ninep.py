"""9P: the codec by property, sessions and clients over real sockets."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nine import kinds

from ipos.tree.file import Caller, File, Qid
from ipos.tree.local import local
from ipos.tree.ninep.client import Client, connect_unix
from ipos.tree.ninep.codec import ALL, Framer, Message, ProtocolError
from ipos.tree.ninep.transport import ServerProtocol, serve_unix
from ipos.tree.ninep.websocket import connect_websocket, serve_websocket
from ipos.tree.remote import remote
from ipos.tree.synthetic import Clone, Dir, Events, Text
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

ME = Caller("0x1", "me", own=True, local=True)
ROWS = [row for dialect in ALL.values() for row in dialect.by_code.values()]
KINDS = {
    "1": st.integers(0, 255), "2": st.integers(0, 65535), "4": st.integers(0, (1 << 32) - 1), "8": st.integers(0, (1 << 64) - 1),
    "s": st.text(max_size=20), "d": st.binary(max_size=50), "b": st.binary(max_size=50),
    "q": st.builds(Qid, st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)),
}  # fmt: skip
SECRET = "s" * 43
KINDS["s*"] = st.lists(KINDS["s"], max_size=4).map(tuple)
KINDS["q*"] = st.lists(KINDS["q"], max_size=4).map(tuple)


@given(st.sampled_from(ROWS), st.data())
def test_codec(row: Message, data: st.DataObject) -> None:
    values = tuple(data.draw(KINDS[kind]) for kind in kinds(row))
    body = row.encode(7, *values)
    assert row.decode(memoryview(body)) == values
    cut = data.draw(st.integers(7, len(body)))
    if cut < len(body):
        with pytest.raises(ProtocolError):
            row.decode(memoryview(body[:cut]))
    with pytest.raises(ProtocolError):
        row.decode(memoryview(body + b"x"))


@given(st.lists(st.binary(max_size=20), max_size=6), st.data())
def test_framer(bodies: list[bytes], data: st.DataObject) -> None:
    messages = [(len(b) + 7).to_bytes(4, "little") + b"\x64\x00\x00" + b for b in bodies]
    whole, framer, out = b"".join(messages), Framer(1000), list[bytes]()
    while whole:
        cut = data.draw(st.integers(1, len(whole)))
        out += [bytes(m) for m in framer.feed(whole[:cut])]
        whole = whole[cut:]
    assert out == messages


def world(story: Callable[[Client, dict[str, File], Path], Awaitable[None]]) -> None:
    """Runs a story against a small tree, by a unix socket and by WebSocket; afterwards nothing may be left under way."""

    async def main(websocket: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="t9") as scratch:
            directory = Path(scratch)
            (directory / "disk").mkdir()
            root = Dir({"home": local(directory / "disk")})
            files = root.files
            protocols: list[ServerProtocol] = []

            async def attach(caller: Caller, aname: str) -> File:
                return root

            def make() -> ServerProtocol:
                protocols.append(ServerProtocol(attach, ME))
                return protocols[-1]

            server = await serve_unix(directory / "s", make)
            page = await serve_websocket("127.0.0.1:0", make, SECRET)
            port = page.sockets[0].getsockname()[1]
            client = await (
                connect_websocket(f"ws://127.0.0.1:{port}/9p/{SECRET}") if websocket else connect_unix(directory / "s")
            )
            try:
                await story(client, files, directory)
            finally:
                client.close()
                server.close()
                page.close()
                for _ in range(100):
                    if not any(p.session.busy or p.session.fids for p in protocols):
                        break
                    await asyncio.sleep(0.01)
            assert [(p.session.busy, p.session.fids) for p in protocols if p.session.busy or p.session.fids] == []

    asyncio.run(main(websocket=False))
    asyncio.run(main(websocket=True))


def test_sentences_travel() -> None:
    async def story(client: Client, files: dict[str, File], _: Path) -> None:
        async def refuse(caller: Caller, line: str) -> None:
            raise Refused(f"'{line}' is not a command")

        files["ctl"] = Text(None, refuse)
        with pytest.raises(Refused, match="'bang' is not a command"):
            await client.write("/ctl", b"bang\n")
        with pytest.raises(Refused, match="nope") as caught:
            await client.read("/nope/deeper")
        assert caught.value.errno == 2
        with pytest.raises(Refused, match="the most is 65536"):
            await client.write("/ctl", b"x" * (limits.ctl_line_bytes + 1))

    world(story)


def test_events_and_flush() -> None:
    async def story(client: Client, files: dict[str, File], _: Path) -> None:
        events = Events(lambda: ["first"])
        files["events"] = events
        tags = len(client._tags)
        async with client.open("/events") as file:
            lines = file.lines()
            assert await anext(lines) == "first"
            waiting = asyncio.ensure_future(anext(lines))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            events.emit("second")
            assert await waiting == "second"
            blocked = asyncio.ensure_future(file.read())
            await asyncio.sleep(0.02)
            blocked.cancel()
            await asyncio.wait((blocked,))
            events.end()
            assert await file.read() == b""
        await asyncio.sleep(0.02)
        assert len(client._tags) == tags

    world(story)


def test_clone_asks_once_per_question() -> None:
    async def story(client: Client, files: dict[str, File], _: Path) -> None:
        asked: list[bytes] = []

        async def call(caller: Caller, question: bytes) -> bytes:
            asked.append(question)
            return b"<" + question + b">"

        files["clone"] = Clone(call, most=10)
        async with client.open("/clone", os.O_RDWR) as file:
            await file.write_at(0, b"ab")
            assert await file.read_at(0, 100) == b"<ab>"
            assert await file.read_at(0, 2) == b"<a"
            with pytest.raises(Refused, match="more than 10 bytes"):
                await file.write_at(0, b"x" * 11)
        assert asked == [b"ab"]

    world(story)


def test_order_per_fid_and_many_at_once() -> None:
    async def story(client: Client, files: dict[str, File], _: Path) -> None:
        slow = asyncio.Event()

        async def late() -> str:
            await slow.wait()
            return "late"

        files["slow"], files["fast"] = Text(late), Text(lambda: "fast")
        waiting = asyncio.ensure_future(client.read("/slow"))
        assert await client.read("/fast") == b"fast"
        slow.set()
        assert await waiting == b"late"
        assert await asyncio.gather(*(client.read("/fast") for _ in range(100))) == [b"fast"] * 100

    world(story)


def test_a_host_directory() -> None:
    async def story(client: Client, files: dict[str, File], directory: Path) -> None:
        disk = directory / "disk"
        (disk / "evil").symlink_to("/etc")
        body = os.urandom(3 << 20)
        await client.mkdir("/home/sub")
        await client.create("/home/sub/big", body)
        assert (disk / "sub" / "big").read_bytes() == body
        assert await client.read("/home/sub/big") == body
        assert (await client.stat("/home/sub/big")).size == len(body)
        with pytest.raises(Refused):
            await client.read("/home/evil/passwd")
        with pytest.raises(Refused, match="not followed"):
            await client.read("/home/evil")
        assert [entry.name for entry in await client.ls("/home")] == ["evil", "sub"]
        await client.remove("/home/sub/big")
        await client.remove("/home/sub", directory=True)
        assert not (disk / "sub").exists()
        for i in range(300):
            (disk / f"many{i:04}").touch()
        assert len(await client.ls("/home")) == 301

    world(story)


def test_a_tree_in_a_tree() -> None:
    async def story(client: Client, files: dict[str, File], directory: Path) -> None:
        (directory / "disk" / "x").write_text("far")
        other = await connect_unix(directory / "s")

        async def connect() -> Client:
            return other

        files["n"] = remote(connect)
        assert await client.read("/n/home/x") == b"far"
        await client.create("/n/home/y", b"written")
        assert (directory / "disk" / "y").read_text() == "written"
        assert "x" in [entry.name for entry in await client.ls("/n/home")]
        other.close()
        await asyncio.sleep(0.02)
        with pytest.raises(Refused):
            await client.read("/n/home/x")

    world(story)


def test_too_many_fids() -> None:
    async def story(client: Client, files: dict[str, File], _: Path) -> None:
        client._fids = list(range(2 * limits.fids_per_session, 0, -1))
        with pytest.raises(Refused, match="fids"):
            for _ in range(limits.fids_per_session + 1):
                await client.walk(())

    world(story)


@pytest.mark.parametrize("seed", range(8))
def test_garbage_ends_only_its_own_connection(seed: int) -> None:
    async def story(client: Client, files: dict[str, File], directory: Path) -> None:
        files["fast"] = Text(lambda: "fast")
        dice = random.Random(seed)
        reader, writer = await asyncio.open_unix_connection(directory / "s")
        for _ in range(20):
            body = dice.randbytes(dice.randrange(40))
            size = dice.choice((len(body) + 7, dice.randrange(1 << 16), 3))
            writer.write(size.to_bytes(4, "little") + bytes([dice.randrange(128)]) + dice.randbytes(2) + body)
        writer.write_eof()
        try:
            async with asyncio.timeout(2):
                while await reader.read(1 << 16):
                    pass
        except ConnectionError:
            pass
        writer.close()
        assert await client.read("/fast") == b"fast"

    world(story)


def test_a_lost_connection_is_gone() -> None:
    async def story(client: Client, files: dict[str, File], directory: Path) -> None:
        files["events"] = Events()
        other = await connect_unix(directory / "s")
        async with other.open("/events") as file:
            waiting = asyncio.ensure_future(file.read())
            await asyncio.sleep(0.02)
            other.close()
            with pytest.raises(Gone):
                await waiting
        with pytest.raises(Gone):
            await other.read("/events")

    world(story)


def test_a_long_socket_path_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(Refused, match="longer than 107 bytes"):
            await serve_unix(tmp_path / ("x" * 120), lambda: None)  # type: ignore[arg-type,return-value]

    asyncio.run(main())
