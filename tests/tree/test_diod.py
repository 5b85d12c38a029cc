"""Against the reference: diod's clients on our server, our client on diod's server."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from diod import diod, program, run
from nine import ME

from ipos.tree.file import Caller, File
from ipos.tree.local import local
from ipos.tree.ninep.client import Client
from ipos.tree.ninep.transport import ServerProtocol, loopback, serve_tcp
from ipos.wire.errors import Refused

pytestmark = pytest.mark.real


def served(directory: Path, story: Callable[[str], Awaitable[None]]) -> None:
    """Our server of a host directory on loopback TCP while the story runs; it is told HOST:PORT."""

    async def main() -> None:
        root = local(directory)

        async def attach(caller: Caller, aname: str) -> File:
            return root

        server = await serve_tcp("127.0.0.1:0", lambda: ServerProtocol(attach, ME))
        host, port = server.sockets[0].getsockname()[:2]
        try:
            await story(f"{host}:{port}")
        finally:
            server.close()

    asyncio.run(main())


def test_diods_clients_on_our_server(tmp_path: Path) -> None:
    body = os.urandom(3 << 20)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "big").write_bytes(body)
    for i in range(500):
        (tmp_path / "sub" / f"many{i:03}").touch()

    async def story(where: str) -> None:
        to = ("-s", where, "-a", str(tmp_path))
        listed = await asyncio.to_thread(run, program("diodls"), *to, "-l", "sub")
        assert len(listed.splitlines()) >= 501
        assert f"{len(body)}" in next(line for line in listed.splitlines() if line.endswith("big"))
        child = await asyncio.create_subprocess_exec(program("diodcat"), *to, "sub/big", stdout=asyncio.subprocess.PIPE)
        assert (await asyncio.wait_for(child.communicate(), 30))[0] == body
        with pytest.raises(AssertionError, match="No such file"):
            await asyncio.to_thread(run, program("diodcat"), *to, "nothing")

    served(tmp_path, story)


def test_diodload_on_our_server(tmp_path: Path) -> None:
    """Its threads copy from /zero to /null of the export, and ask for attributes."""
    (tmp_path / "zero").write_bytes(bytes(1 << 20))
    (tmp_path / "null").touch()

    async def story(where: str) -> None:
        for mode in ((), ("-g",)):
            said = await asyncio.to_thread(run, program("diodload"), "-s", where, "-r", "1", "-n", "4", *mode)
            assert "0 " not in said[:2], said

    served(tmp_path, story)


def test_our_client_on_diod(tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    body = os.urandom(1 << 20)

    async def story(port: int) -> None:
        _, client = await asyncio.get_running_loop().create_connection(lambda: Client("9P2000.L"), "127.0.0.1", port)
        await client.attach(str(export), "root", os.getuid())
        await client.mkdir("/a")
        await client.create("/a/big", body)
        assert (export / "a" / "big").read_bytes() == body
        assert await client.read("/a/big") == body
        assert (await client.stat("/a/big")).size == len(body)
        await client.write("/a/big", b"new")
        assert (export / "a" / "big").read_bytes() == b"new" + body[3:]
        assert [entry.name for entry in await client.ls("/a")] == ["big"]
        await client.rename("/a/big", "/moved")
        assert sorted(p.name for p in export.iterdir()) == ["a", "moved"]
        with pytest.raises(Refused, match="there is no big"):
            await client.read("/a/big/deeper")
        for i in range(300):
            (export / "a" / f"many{i}").touch()
        assert len(await client.ls("/a")) == 300
        deep = "/".join(f"d{i}" for i in range(20))
        (export / deep).mkdir(parents=True)
        (export / deep / "x").write_text("deep")
        assert await client.read(f"/{deep}/x") == b"deep"
        await client.remove("/moved")
        assert not (export / "moved").exists()
        client.close()

    with diod(export) as port:
        asyncio.run(story(port))


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "10.0.0.1:5640", "[::]:5640", "localhost:1", "127.0.0.1", "127.0.0.1:x"]
)
def test_only_loopback(address: str) -> None:
    with pytest.raises(Refused):
        loopback(address)


def test_a_stranger_on_loopback_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipos.tree.ninep.transport.tcp_uid", lambda transport: 12345)

    async def story(where: str) -> None:
        host, port = where.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

    served(tmp_path, story)


def test_diods_clients_on_a_node(tmp_path: Path) -> None:
    """A whole node whose `ipos.toml` names a loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "ipos.toml").write_text(f'tcp = "{where}"\nlisten = "local"\n')
    environment = {**os.environ, "IPOS_HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}

    def ipos(word: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "ipos.cli.main", word], env=environment, check=True, timeout=60, capture_output=True
        )

    ipos("up")
    try:
        to = ("-s", where, "-a", "/")
        assert {"status", "ctl", "home", "job"} <= set(run(program("diodls"), *to).split())
        assert "state up" in run(program("diodcat"), *to, "status")
    finally:
        ipos("down")
