"""/srv: servers that any program posts, in every dialect, dying, silent and hostile."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import posts
import pytest
from diod import diod, program, run
from hypothesis import given
from hypothesis import strategies as st
from nine import ME

from ipos.tree import srv
from ipos.tree.file import Caller, Directory, File
from ipos.tree.local import local
from ipos.tree.ninep.client import Client, connect_unix
from ipos.tree.ninep.transport import ServerProtocol, serve_tcp, serve_unix
from ipos.tree.srv import Post, Srv, parse
from ipos.tree.synthetic import Dir
from ipos.tree.union import Namespace
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ips") as directory:
        yield Path(directory)


@asynccontextmanager
async def node(directory: Path) -> AsyncGenerator[Client]:
    """A client of a tree with /srv and /home, through a namespace of its own."""
    (directory / "home").mkdir()
    served = Srv()
    tree = Dir({"srv": served, "home": local(directory / "home")})

    async def attach(caller: Caller, aname: str) -> File:
        return Namespace(tree).root

    server = await serve_unix(directory / "n", lambda: ServerProtocol(attach, ME))
    client = await connect_unix(directory / "n")
    try:
        yield client
    finally:
        client.close()
        server.close()
        served.close()


async def post(client: Client, name: str, path: Path, *options: str) -> None:
    await client.create(f"/srv/{name}", " ".join([f"unix {path}", *options]).encode())


def story(short: Path, told: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        async with node(short) as client:
            await told(client)

    asyncio.run(asyncio.wait_for(main(), 60))


# ---- posting


@given(st.text(max_size=60))
def test_a_line_is_a_post_or_refused(line: str) -> None:
    with suppress(Refused):
        assert parse(str(parse(line))) == parse(line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tcp 10.0.0.1:564", "does not say where"),
        ("unix", "does not say where"),
        ("unix here", "'here' is not the path of a socket"),
        ("unix /" + "x" * 107, "at most 107 bytes"),
        ("unix /s msize=1", "'msize=1' is not an option"),
        ("unix /s version=9P", "'9P' is not a version"),
    ],
)
def test_a_wrong_line_names_its_word(line: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        parse(line)


def test_options_are_kept() -> None:
    assert str(parse("unix /s  uname=glenda aname=/x version=9P2000")) == "unix /s version=9P2000 aname=/x uname=glenda"
    assert parse("unix /s") == Post("/s")


def test_post_use_and_remove(short: Path) -> None:
    async def told(client: Client) -> None:
        server = await posts.serve(short / "s", posts.good())
        await client.create("/srv/hi")
        assert await client.read("/srv/hi") == b""
        with pytest.raises(Refused, match="is not the path of a socket"):
            await client.write("/srv/hi", b"unix nowhere")
        await client.write("/srv/hi", f"unix {short / 's'}\n".encode())
        line = json.loads(await client.read("/srv/status"))
        assert (line["name"], line["connected"], line["why"]) == ("hi", False, "nobody has walked there yet")
        assert await client.read("/srv/hi/sub/deep") == b"deep\n"
        assert [entry.name for entry in await client.ls("/srv/hi")] == ["hello", "sub"]
        assert json.loads(await client.read("/srv/status"))["version"] == "9P2000.L.ipos"
        with pytest.raises(Refused, match="is there already"):
            await post(client, "hi", short / "other")
        await client.remove("/srv/hi")
        with pytest.raises(Refused, match="there is no hi"):
            await client.read("/srv/hi/hello")
        with pytest.raises(Refused, match="stays"):
            await client.remove("/srv/status")
        server.close()

    story(short, told)


def test_only_the_owner_posts(short: Path) -> None:
    served = Srv()
    other = ME._replace(local=False)

    async def main() -> None:
        with pytest.raises(Refused, match="on the node's own socket"):
            await served.create(other, "x", os.O_WRONLY, 0o600)
        file, _ = await served.create(ME, "x", os.O_WRONLY, 0o600)
        with pytest.raises(Refused, match="on the node's own socket"):
            await file.open(other, os.O_WRONLY)
        with pytest.raises(Refused, match="on the node's own socket"):
            await served.remove(other, "x", False)
        for i in range(limits.posted_servers - 1):
            await served.create(ME, f"n{i}", os.O_WRONLY, 0o600)
        with pytest.raises(Refused, match=f"more than {limits.posted_servers} names"):
            await served.create(ME, "more", os.O_WRONLY, 0o600)

    asyncio.run(main())


@pytest.mark.parametrize("version", srv.VERSIONS)
def test_every_dialect(short: Path, version: str) -> None:
    """One that knows a single version, found by asking and by being told."""
    (short / "out").mkdir()
    (short / "out" / "f").write_text("there")

    async def told(client: Client) -> None:
        server = await posts.serve(short / "s", local(short / "out"), version)
        await post(client, "one", short / "s")
        await post(client, "two", short / "s", f"version={version}")
        for name in ("one", "two"):
            assert await client.read(f"/srv/{name}/f") == b"there"
            assert [entry.name for entry in await client.ls(f"/srv/{name}")] == ["f"]
            await client.create(f"/srv/{name}/new", b"new")
            assert (short / "out" / "new").read_bytes() == b"new"
            await client.remove(f"/srv/{name}/new")
        assert {json.loads(line)["version"] for line in (await client.read("/srv/status")).splitlines()} == {version}
        server.close()

    story(short, told)


def test_in_a_union_with_local_files(short: Path) -> None:
    (short / "home").mkdir()
    (short / "home" / "mine").write_text("mine")

    async def main() -> None:
        served = Srv()
        server = await posts.serve(short / "s", posts.good())
        _, handle = await served.create(ME, "hi", os.O_WRONLY, 0o600)
        await handle.write(0, f"unix {short / 's'}".encode())
        tree = Namespace(Dir({"srv": served, "home": local(short / "home")}))
        await tree.change("mount -b /srv/hi /home\nbind -bc '#/home' /home")
        home = await tree.root.walk("home")
        assert isinstance(home, Directory)
        _, made = await home.create(ME, "new", os.O_WRONLY, 0o644)
        await made.close()
        assert (short / "home" / "new").exists(), "files are made where -c says, not in the posted server"
        listed = await (await home.open(ME, os.O_RDONLY)).entries()
        assert [name for name, _ in listed] == ["mine", "new", "hello", "sub"]
        deep = await (await home.walk("sub")).walk("deep")
        assert await (await deep.open(ME, os.O_RDONLY)).read(0, 10) == b"deep\n"
        served.close()
        server.close()

    asyncio.run(main())


# ---- dying


def test_it_dies_with_its_process_and_comes_back(short: Path) -> None:
    def begin() -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, posts.__file__, "good", str(short / "s")], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child

    async def told(client: Client) -> None:
        child = await asyncio.to_thread(begin)
        try:
            await post(client, "hi", short / "s")
            async with client.open("/srv/hi/hello") as file:
                assert await file.read_at(0, 5) == b"hello"
                child.kill()
                await asyncio.to_thread(child.wait)
                with pytest.raises(
                    Refused, match=r"/srv/hi: no file server at .*: Connection refused \(start its program"
                ):
                    await client.read("/srv/hi/hello")
                with pytest.raises(Refused):
                    await file.read_at(0, 5)
            assert json.loads(await client.read("/srv/status"))["connected"] is False
            await client.create("/home/alive", b"the node lives")
            child = await asyncio.to_thread(begin)
            assert await client.read("/srv/hi/hello") == b"hello\n"
        finally:
            child.kill()
            await asyncio.to_thread(child.wait)
            assert child.stdout is not None
            child.stdout.close()

    story(short, told)


# ---- hostile


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "posted_connect_s", 0.2)
    monkeypatch.setattr(limits, "posted_answer_s", 0.2)
    monkeypatch.setattr(limits, "posted_entries", 5000)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", posts.KINDS)
def test_hostile_servers(short: Path, kind: str) -> None:
    """A refusal in a sentence, in time, and the node answers everybody else meanwhile and afterwards."""

    async def told(client: Client) -> None:
        server = await posts.hostile(short / "s", posts.KINDS[kind])
        await post(client, "evil", short / "s")
        asked = asyncio.create_task(client.ls("/srv/evil/x"))
        await client.create("/home/mine", b"mine")
        with pytest.raises(Refused) as refused:
            await asked
        assert refused.value.errno not in (errno.ENOENT, None), str(refused.value)
        assert len(str(refused.value)) > 20
        assert "mistake in IPOS" not in str(refused.value)
        assert await client.read("/home/mine") == b"mine"
        server.close()

    story(short, told)


@pytest.mark.usefixtures("impatient")
def test_names_that_lead_out_are_not_shown(short: Path) -> None:
    async def told(client: Client) -> None:
        server = await posts.hostile(short / "s", {"Treaddir": posts.evil})
        await post(client, "evil", short / "s")
        assert [entry.name for entry in await client.ls("/srv/evil/x")] == ["good"]
        server.close()

    story(short, told)


def test_a_server_that_takes_nothing(short: Path) -> None:
    async def told(client: Client) -> None:
        answers = {"Twrite": posts.reply("Rwrite", 0), "Twalk": posts.reply("Rwalk", [(0, 0, 2)])}
        server = await posts.hostile(short / "s", answers)
        await post(client, "evil", short / "s")
        with pytest.raises(Refused, match="took 0 of 3 bytes"):
            await client.write("/srv/evil/x", b"abc")
        server.close()

    story(short, told)


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_for_an_answer(pieces: list[bytes]) -> None:
    """Nothing but a refusal comes of what is no 9P."""

    class Noise(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport, self.left = transport, list(pieces)

        def data_received(self, data: bytes) -> None:
            if self.left:
                self.transport.write(self.left.pop(0))
            else:
                self.transport.close()

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="ips") as directory:
            path = Path(directory, "s")
            server = await asyncio.get_running_loop().create_unix_server(Noise, path)
            served = Srv()
            served._empty["x"] = served  # pyright: ignore[reportPrivateUsage]
            served.post("x", Post(str(path)))
            file = await served.walk("x")
            with pytest.raises((Refused, Gone)):
                await file.walk("y")
            server.close()

    real = limits.posted_connect_s
    limits.posted_connect_s = 0.05
    try:
        asyncio.run(main())
    finally:
        limits.posted_connect_s = real


# ---- the real thing


@pytest.mark.real
def test_diods_server_is_posted_and_its_clients_see_the_union(short: Path) -> None:
    """Our namespace between two foreign ends: diod's server below it, diod's clients above."""
    export = short / "export"
    export.mkdir()
    (export / "theirs").write_text("from diod")
    (short / "home").mkdir()
    (short / "home" / "mine").write_text("from here")

    async def main(port: int) -> None:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

        door = await asyncio.start_unix_server(carry, short / "s")  # this diod listens on TCP only
        served = Srv()
        namespace = Namespace(Dir({"srv": served, "home": local(short / "home")}))
        _, handle = await served.create(ME, "diod", os.O_WRONLY, 0o600)
        await handle.write(0, f"unix {short / 's'} aname={export}".encode())
        await namespace.change("mount -ac /srv/diod /home")

        async def attach(caller: Caller, aname: str) -> File:
            return namespace.root

        server = await serve_tcp("127.0.0.1:0", lambda: ServerProtocol(attach, ME))
        host, to = server.sockets[0].getsockname()[:2]
        where = ("-s", f"{host}:{to}", "-a", "/")
        listed = await asyncio.to_thread(run, program("diodls"), *where, "home")
        assert sorted(listed.split()) == ["mine", "theirs"]
        for name, body in (("mine", "from here"), ("theirs", "from diod")):
            assert await asyncio.to_thread(run, program("diodcat"), *where, f"home/{name}") == body
        home = await namespace.root.walk("home")
        assert isinstance(home, Directory)
        _, made = await home.create(ME, "new", os.O_WRONLY, 0o644)
        await made.write(0, b"made")
        await made.close()
        assert (export / "new").read_text() == "made"
        await home.remove(ME, "new", False)
        assert not (export / "new").exists()
        served.close()
        server.close()
        door.close()

    with diod(export) as port:
        asyncio.run(asyncio.wait_for(main(port), 60))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
