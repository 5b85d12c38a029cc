"""A connection inside one process: the same session, the same client, no socket."""

from __future__ import annotations

import asyncio
import errno

import pytest

from ipos.tree.file import Caller
from ipos.tree.ninep.inside import connect_inside
from ipos.tree.ninep.transport import ServerProtocol
from ipos.tree.synthetic import Blob, Dir, Text
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

ME = Caller("0xme", "here", own=True, local=True)


def served(**files: object) -> ServerProtocol:
    async def attach(caller: Caller, aname: str) -> Dir:
        return Dir(dict(files))  # pyright: ignore[reportArgumentType]

    return ServerProtocol(attach, ME)


def test_files_are_read_and_written() -> None:
    async def story() -> None:
        said: list[str] = []
        client = await connect_inside(
            served(status=Text(lambda: "up\n"), ctl=Text(None, lambda _, line: said.append(line)))
        )
        assert await client.read("/status") == b"up\n"
        await client.write("/ctl", b"one\ntwo\n")
        assert said == ["one", "two"]
        with pytest.raises(Refused) as refused:
            await client.read("/nothing")
        assert refused.value.errno == errno.ENOENT
        client.close()

    asyncio.run(story())


def test_a_long_file_arrives_whole_though_its_reader_is_slow() -> None:
    async def story() -> None:
        body = bytes(range(256)) * (limits.write_buffer_bytes // 64)
        client = await connect_inside(served(long=Blob(lambda at, count: body[at : at + count], lambda: len(body))))
        assert await client.read("/long") == body
        client.close()

    asyncio.run(story())


def test_when_one_end_goes_the_other_hears_it() -> None:
    async def story() -> None:
        never = asyncio.Event()

        async def waits(at: int, count: int) -> bytes:
            await never.wait()
            return b""

        served_end = served(slow=Blob(waits, lambda: 0))
        client = await connect_inside(served_end)
        waiting = asyncio.ensure_future(client.read("/slow"))
        await asyncio.sleep(0)
        served_end.abort()
        with pytest.raises(Gone):
            await waiting
        with pytest.raises(Gone):
            await client.read("/slow")

    asyncio.run(story())
