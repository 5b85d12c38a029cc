"""The node's end of the block link: netd asks for blocks and for permission, the node asks netd to fetch. Frames as in docs/protocols/netd.md.

One plain thread with a blocking socket answers from the store, off the event loop. A block that does not hash to its CID never gets in.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Sequence

from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.wire.errors import Gone, Refused

HEAD = struct.Struct("<IIB")
YES, NO, ERROR, HAS, SIZE, GET, PUT, MAY, FETCH = 0, 1, 2, 3, 4, 5, 6, 7, 16
FRAME_BYTES = 4 << 20
BUFFER_BYTES = 4 << 20

May = Callable[[str, bytes], bool]
"""Whether a peer (base58 text) may have a block. Called in the link's thread."""

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def base58(data: bytes) -> str:
    """A peer id's bytes as text."""
    n = int.from_bytes(data, "big")
    out = ""
    while n:
        n, rest = divmod(n, 58)
        out = _ALPHABET[rest] + out
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + out


def _sized(body: bytes) -> bytes:
    return struct.pack("<H", len(body)) + body


class BlockLink(threading.Thread):
    """One connection to one netd. It ends with the socket; then every fetch under way raises `Gone`."""

    def __init__(self, sock: socket.socket, store: BlockStore, may: May, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(daemon=True, name="blocks")
        self._sock = sock
        self._store = store
        self._may = may
        self._loop = loop
        self._send_lock = threading.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._over = False
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)

    async def fetch(self, cids: Sequence[bytes], peers: Sequence[str], timeout_s: float) -> None:
        """See `NetEngine.fetch`."""
        if self._over:
            raise Gone("the network process is not running")
        named = b"".join(_sized(peer.encode()) for peer in peers)
        wanted = b"".join(_sized(cid) for cid in cids)
        body = struct.pack("<IH", round(timeout_s * 1000), len(peers)) + named + struct.pack("<I", len(cids)) + wanted
        id = next(self._ids)
        future: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._waiting[id] = future
        try:
            await self._loop.run_in_executor(None, self._send, id, FETCH, body)
            async with asyncio.timeout(timeout_s + 5):
                op, answer = await future
        except (TimeoutError, BrokenPipeError, ConnectionError):
            raise Gone("the network process did not answer a fetch") from None
        finally:
            self._waiting.pop(id, None)
        if op == ERROR:
            raise Refused(f"fetch: {answer.decode(errors='replace')}")
        if op == NO:
            missing = answer[2 : 2 + c.LENGTH]
            count = len(answer) // (2 + c.LENGTH)
            more = f" and {count - 1} more" if count > 1 else ""
            raise Refused(
                f"block {c.text(missing)}{more} did not come from {len(peers)} peer(s) within {timeout_s:.0f} s"
            )

    def run(self) -> None:
        try:
            while True:
                length, id, op = HEAD.unpack(self._exactly(HEAD.size))
                if not 5 <= length <= FRAME_BYTES:
                    break
                body = self._exactly(length - 5)
                if op <= ERROR:
                    self._loop.call_soon_threadsafe(self._answered, id, op, bytes(body))
                else:
                    self._send(id, *self._serve(op, body))
        except (EOFError, OSError, RuntimeError):
            pass  # netd ended, or the loop did
        self._over = True
        self._sock.close()
        if not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._lost)
            except RuntimeError:
                return

    def _serve(self, op: int, body: bytearray) -> tuple[int, bytes]:
        try:
            if op in (PUT, MAY):
                size = int.from_bytes(body[:2], "little")
                first, rest = bytes(body[2 : 2 + size]), bytes(body[2 + size :])
                if op == MAY:
                    return (YES if self._store.has(rest) and self._may(base58(first), rest) else NO), b""
                self._store.put([(first, rest)])
                return YES, b""
            cid = bytes(body)
            if not self._store.has(cid):
                return NO, b""
            if op == GET:
                return YES, self._store.get(cid)
            if op == SIZE:
                return YES, self._store.size(cid).to_bytes(4, "little")
            return (YES, b"") if op == HAS else (ERROR, b"an op that is not served")
        except Refused as refused:
            return ERROR, str(refused).encode()

    def _answered(self, id: int, op: int, body: bytes) -> None:
        future = self._waiting.get(id)
        if future is not None and not future.done():
            future.set_result((op, body))

    def _lost(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Gone("the network process ended during a fetch"))

    def _exactly(self, n: int) -> bytearray:
        buffer = bytearray(n)
        view = memoryview(buffer)
        while view:
            got = self._sock.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return buffer

    def _send(self, id: int, op: int, body: bytes) -> None:
        with self._send_lock:
            self._sock.sendall(HEAD.pack(5 + len(body), id, op) + body)

    def close(self) -> None:
        """End the link; the thread goes with it."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
