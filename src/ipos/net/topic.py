"""A topic of gossipsub, joined through netd: a conversation of its own, made again after a restart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from ipos.net.engine import Message
from ipos.tree.ninep.client import Client, OpenFile
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

AGAIN_S = 0.2


class _Line(msgspec.Struct, rename={"author": "from"}):
    author: str
    data: bytes  # base64 in JSON


class NetdTopic:
    """See `engine.Topic`."""

    def __init__(self, name: str, client: Callable[[], Awaitable[Client]]) -> None:
        self._name = name
        self._client = client
        self._messages: asyncio.Queue[Message] = asyncio.Queue(limits.events_waiting)
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._data: OpenFile | None = None
        self._task = asyncio.create_task(self._stay())

    async def joined(self) -> None:
        """The first time; `Refused` with netd's sentence."""
        try:
            await asyncio.shield(self._joined)
        except BaseException:
            await self.close()
            raise

    async def _stay(self) -> None:
        while True:
            try:
                await self._listen(await self._client())
            except Gone:
                await asyncio.sleep(AGAIN_S)  # netd ended: its next life joins anew
            except Refused as refused:
                if not self._joined.done():
                    self._joined.set_exception(refused)
                    return
                raise
            finally:
                self._data = None

    async def _listen(self, client: Client) -> None:
        async with client.open("/clone", os.O_RDWR) as ctl:
            number = (await ctl.read_at(0, 32)).decode().strip()
            await ctl.write_at(0, f"join {self._name}".encode())
            async with client.open(f"/{number}/data", os.O_RDWR) as data, client.open(f"/{number}/data") as lines:
                self._data = data
                if not self._joined.done():
                    self._joined.set_result(None)
                async for line in lines.lines():
                    message = msgspec.json.decode(line, type=_Line)
                    if self._messages.full():
                        self._messages.get_nowait()
                    self._messages.put_nowait(Message(message.author, message.data))

    async def publish(self, body: bytes) -> None:
        if len(body) > limits.topic_message_bytes:
            raise Refused(f"a message of {len(body)} bytes; a topic takes {limits.topic_message_bytes}")
        await self._client()
        if self._data is None:
            raise Gone(f"the topic {self._name} is being joined again: the network process has just been restarted")
        await self._data.write_at(0, body)

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            yield await self._messages.get()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
