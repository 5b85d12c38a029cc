"""The client's end of a connection: requests by tag, answers, flushes. What the requests are for is in `client`."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

from ipos.tree.ninep.codec import ALL, HEAD, Dialect, Framer, ProtocolError
from ipos.tree.ninep.messages import NOTAG
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

O_TRUNC_2000 = 0x10
_MUTATIONS = {
    "Twrite", "Tcreate", "Tremove", "Twstat", "Tlcreate", "Tsymlink", "Tmknod", "Trename", "Tsetattr", "Txattrcreate", "Tlink",
    "Tmkdir", "Trenameat", "Tunlinkat",
}  # fmt: skip

Sent = tuple[asyncio.Future[tuple[Any, ...]], int]


class Unsure(Gone):
    """The connection ended before the reply to a mutation: it may have happened, and it may not. It is not sent again."""


def _changes(name: str, values: tuple[Any, ...]) -> bool:
    """Whether a request changes something on the server."""
    truncates = (name == "Tlopen" and values[1] & os.O_TRUNC) or (name == "Topen" and values[1] & O_TRUNC_2000)
    return name in _MUTATIONS or bool(truncates)


_COUNTED = {
    "Rread",
    "Rreaddir",
    "Rwrite",
    "Rwalk",
}  # their first field is, or has, as much as the last of the request allows


def _count(value: Any) -> int:
    return value if isinstance(value, int) else len(value)


def _errno(number: int) -> int:
    """What a server says, as far as it can be one."""
    return number if 0 < number < 4096 else errno.EIO


def _failed(future: asyncio.Future[Any], error: OSError) -> None:
    future.set_exception(error)
    future.exception()  # who asked may have given up when he asked for something else: no cause for a word in the log


def first_error(answers: Sequence[Any]) -> None:
    """Raise what went wrong: what is unsure before what is not."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if errors:
        raise next((error for error in errors if isinstance(error, Unsure)), errors[0])


class Connection(asyncio.Protocol):
    """Make it the protocol of a transport; `on_lost` is called when that ends."""

    def __init__(self, version: str = "9P2000.L.ipos", on_lost: Callable[[], None] | None = None) -> None:
        self.dialect: Dialect = ALL[version]
        self.msize = limits.msize_bytes
        self.lost: Exception | None = None
        self._on_lost = on_lost
        self._framer = Framer(limits.msize_bytes)
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, tuple[asyncio.Future[tuple[Any, ...]], str, bool, int]] = {}
        self._tags = list(range(1024, 0, -1))
        self._fids = list(range(limits.fids_per_session - 1, 0, -1))
        self._writable = asyncio.Event()
        self._writable.set()
        self._out: list[bytes] = []

    # ---- connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._framer.feed(data):
                self._received(message)
        except ProtocolError as error:
            self.broken(error)

    def broken(self, error: ProtocolError) -> Gone:
        """End a connection whose server does not keep the rules; what to raise."""
        if self.lost is None:
            self.lost = Gone(f"the server does not speak 9P: {error}")
        if self._transport is not None:
            self._transport.abort()
        return Gone(str(self.lost))

    def _received(self, message: memoryview) -> None:
        """One answer. `ProtocolError`: it is none, and who waits for it is told with the others, when the connection is cut."""
        _, code, tag = HEAD.unpack_from(message)
        row = self.dialect.by_code.get(code)
        waiting = self._waiting.get(tag)
        if row is None or waiting is None:
            raise ProtocolError(f"an answer (message {code}, tag {tag}) to nothing")
        future, name, _, most = waiting
        if row.name not in ("R" + name[1:], "Rlerror", "Rerror"):
            raise ProtocolError(f"{row.name} answers {name}")
        values: tuple[Any, ...] = row.decode(message)
        if row.name in _COUNTED and (count := _count(values[0])) > most:
            raise ProtocolError(f"{row.name} with {count} where {most} was asked for")
        self._answered(tag)
        if future.done():
            return
        if row.name == "Rlerror":
            sentence: str = values[-1] if len(row.fields) > 1 else os.strerror(_errno(values[0]))
            _failed(future, Refused(sentence, _errno(values[0])))
        elif row.name == "Rerror":
            known = errno.ENOENT if "no such" in str(values[0]).lower() else errno.EIO
            _failed(future, Refused(values[0], known))
        else:
            future.set_result(values)

    def _answered(self, tag: int) -> None:
        """The tag may be used again, but for that of Tversion, which is no other request's."""
        del self._waiting[tag]
        if tag != NOTAG:
            self._tags.append(tag)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.lost is None:
            self.lost = Gone("the connection ended" + (f": {exc}" if exc else ""))
        waiting, self._waiting = self._waiting, {}
        for future, name, changes, _ in waiting.values():
            if future.done():
                continue
            unsure = Unsure(f"{self.lost}; what was asked ({name[1:]}) may have happened, and is not asked again")
            _failed(future, unsure if changes else Gone(str(self.lost)))
        self._writable.set()
        if self._on_lost is not None:
            self._on_lost()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def close(self) -> None:
        self._flush_out()
        if self._transport is not None:
            self._transport.close()

    def cut(self, why: str) -> None:
        """End the connection at once; `why` is what everybody who waits is told."""
        if self.lost is None:
            self.lost = Gone(why)
        if self._transport is not None:
            self._transport.abort()

    # ---- one message

    async def rpc(self, name: str, *values: Any) -> tuple[Any, ...]:
        """Send a message, wait for its answer. `Refused` if it is an error, `Gone` if none can come any more."""
        return await self.wait(self.send(name, *values))

    def send(self, name: str, *values: Any) -> Sent:
        """Send a message; give what comes of it to `wait`."""
        if self._transport is None:
            raise Gone(str(self.lost) if self.lost else "there is no connection")
        if not self._tags:
            raise Refused("more requests at once than there are tags", errno.EAGAIN)
        row = self.dialect.by_name.get(name)
        if row is None:
            raise Refused(f"{self.dialect.version} has no {name}", errno.EOPNOTSUPP)
        tag = NOTAG if name == "Tversion" else self._tags[-1]
        try:
            body = row.encode(tag, *values)
        except (struct.error, UnicodeEncodeError) as error:
            raise Refused(f"what 9P cannot carry: {error}", errno.EINVAL) from None
        if tag != NOTAG:
            self._tags.pop()
        future: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        self._waiting[tag] = future, name, _changes(name, values), _count(values[-1]) if values else 0
        self._out.append(body)
        if len(self._out) == 1:
            asyncio.get_running_loop().call_soon(self._flush_out)
        return future, tag

    def _flush_out(self) -> None:
        """What was sent in one turn of the loop travels together."""
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    async def wait(self, sent: Sent) -> tuple[Any, ...]:
        """The answer. Cancelled, the request is flushed."""
        future, _ = sent
        try:
            if not self._writable.is_set():
                await self._writable.wait()
            return await future
        except asyncio.CancelledError:
            self.forget(sent)
            raise

    def forget(self, sent: Sent) -> None:
        """Nobody waits for this answer any more: flush it if it is still to come."""
        future, tag = sent
        if future.done() and not future.cancelled():
            future.exception()
        if tag in self._waiting and self._transport is not None and self._waiting[tag][0] is future:
            future.cancel()
            try:
                flushed, _ = self.send("Tflush", tag)
            except Refused:
                return  # out of tags: the answer comes, and is thrown away
            flushed.add_done_callback(lambda f: self._flushed(f, tag, future))

    def _flushed(self, flushed: asyncio.Future[Any], tag: int, future: asyncio.Future[Any]) -> None:
        if not flushed.cancelled():
            flushed.exception()
        if tag in self._waiting and self._waiting[tag][0] is future:
            self._answered(tag)

    async def all(self, *sent: Sent) -> list[tuple[Any, ...]]:
        """Wait for several answers, all of them, then raise the first error if there is one."""
        answers = await asyncio.gather(*(self.wait(one) for one in sent), return_exceptions=True)
        first_error(answers)
        return [answer for answer in answers if not isinstance(answer, BaseException)]
