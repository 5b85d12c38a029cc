"""The node's end of the block link: netd asks for blocks and for permission, the node asks netd to fetch. Frames: docs/protocols/netd.md.

Plain threads with a blocking socket, off the event loop: one reads and answers from the store, one stores what came, in batches, so that a disk that
syncs does not hold up questions. A block that does not hash to its CID never gets in: `BlockStore.put` refuses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence

from ipos.net.engine import PeerId
from ipos.store import cid as c
from ipos.store.blocks import BlockStore
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

log = logging.getLogger("ipos.blocks")

HEAD = struct.Struct("<IIB")  # bytes that follow the first field, id, op
YES, NO, ERROR = 0, 1, 2  # these answer the request of that id
HAS, SIZE, GET, PUT, MAY = 3, 4, 5, 6, 7  # netd asks
FETCH, CANCEL = 16, 17  # the node asks
BUFFER_BYTES = 4 * limits.MiB
BATCH = 64  # blocks stored at once
LATE_S = 5.0  # netd keeps the deadline of a fetch; so long after it the node stops waiting for netd itself

May = Callable[[PeerId, bytes], bool]
"""Whether a peer may have a block, by CID. Called in the link's thread, only for blocks that the node holds."""


def _sized(body: bytes) -> bytes:
    return struct.pack("<H", len(body)) + body


def _fetch_body(cids: Sequence[bytes], peers: Sequence[PeerId], timeout_s: float) -> bytes:
    parts = [
        struct.pack("<IH", max(0, round(timeout_s * 1000)), len(peers)),
        *(_sized(peer.encode()) for peer in peers),
    ]
    return b"".join([*parts, struct.pack("<I", len(cids)), *(_sized(cid) for cid in cids)])


class BlockLink:
    """One connection to one netd. It ends with the socket; every fetch under way then raises `Gone`."""

    def __init__(self, sock: socket.socket, store: BlockStore, may: May, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._store = store
        self._may = may
        self._loop = loop
        self._sending = threading.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._puts: queue.SimpleQueue[tuple[int, bytes, bytes] | None] = queue.SimpleQueue()
        self._over = False
        self._threads = [threading.Thread(target=run, daemon=True, name="blocks") for run in (self._read, self._put)]
        sock.setblocking(True)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """End the link; the store is not used any more when this returns."""
        with contextlib.suppress(OSError):  # netd was faster
            self._sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join)
        self._sock.close()

    @property
    def over(self) -> bool:
        """Whether netd has ended, or is about to."""
        return self._over

    # ---- what the node asks

    async def fetch(self, cids: Sequence[bytes], peers: Sequence[PeerId], timeout_s: float) -> None:
        """See `NetEngine.fetch`. What the store has already is not asked for."""
        until = self._loop.time() + timeout_s
        unique = list(dict.fromkeys(cids))
        wanted = await asyncio.to_thread(lambda: [cid for cid in unique if not self._store.has(cid)])
        for at in range(0, len(wanted), limits.fetch_cids):
            part = wanted[at : at + limits.fetch_cids]
            op, answer = await self._ask(FETCH, _fetch_body(part, peers, until - self._loop.time()), timeout_s + LATE_S)
            if op == ERROR:
                raise Refused(f"{len(part)} blocks were not fetched: {answer.decode(errors='replace')}")
            if op == NO:
                count = len(answer) // (2 + c.LENGTH)
                more = f" and {count - 1} more" if count > 1 else ""
                asked = f"{len(peers)} named peer{'' if len(peers) == 1 else 's'}" if peers else "any connected peer"
                raise Refused(
                    f"block {c.text(answer[2 : 2 + c.LENGTH])}{more} did not come from {asked} within {timeout_s:.3g} s: "
                    "nobody who was asked has it and may give it"
                )

    async def _ask(self, op: int, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        if self._over:
            raise Gone("the network process is not running")
        id = next(self._ids)
        future: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._waiting[id] = future
        try:
            await asyncio.to_thread(self._send, id, op, body)
            async with asyncio.timeout(timeout_s):
                return await future
        except asyncio.CancelledError:
            self._loop.run_in_executor(None, self._cancel, id)
            raise
        except TimeoutError:
            raise Gone(f"the network process did not answer a fetch within {timeout_s:g} s") from None
        except ConnectionError:
            raise Gone("the network process ended before a fetch") from None
        finally:
            self._waiting.pop(id, None)

    def _cancel(self, id: int) -> None:
        try:
            self._send(next(self._ids), CANCEL, struct.pack("<I", id))
        except OSError:
            log.debug("a fetch was cancelled after netd had ended")

    def _answered(self, id: int, op: int, body: bytes) -> None:
        future = self._waiting.get(id)
        if future is not None and not future.done():
            future.set_result((op, body))

    def _lost(self) -> None:
        self._over = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Gone("the network process ended during a fetch"))

    # ---- what netd asks

    def _read(self) -> None:
        try:
            while True:
                length, id, op = HEAD.unpack(self._exactly(HEAD.size))
                if not 5 <= length <= limits.link_frame_bytes:
                    log.error("netd sent a frame of %d bytes; the block link is cut", length)
                    break
                body = self._exactly(length - 5)
                if op <= ERROR:
                    self._loop.call_soon_threadsafe(self._answered, id, op, bytes(body))
                elif op == PUT:
                    size = 2 + int.from_bytes(body[:2], "little")
                    self._puts.put((id, bytes(body[2:size]), bytes(memoryview(body)[size:])))
                else:
                    self._send(id, *self._answer(op, bytes(body)))
        except (EOFError, OSError):
            pass  # netd ended, or this end was closed
        except RuntimeError:
            log.debug("the loop was closed before the block link")
        self._puts.put(None)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lost)

    def _answer(self, op: int, body: bytes) -> tuple[int, bytes]:
        try:
            match op:
                case 7:  # MAY: bitswap asks once, when a want arrives; a yes for a block that is yet to come would be a yes for ever
                    size = 2 + int.from_bytes(body[:2], "little")
                    peer, cid = body[2:size].decode(), body[size:]
                    return (YES if self._store.has(cid) and self._may(peer, cid) else NO), b""
                case 3:  # HAS
                    return (YES if self._store.has(body) else NO), b""
                case 5 if self._store.has(body):
                    return YES, self._store.get(body)
                case 4 if self._store.has(body):
                    return YES, self._store.size(body).to_bytes(4, "little")
                case 4 | 5:
                    return NO, b""
                case _:
                    return ERROR, f"op {op} is not served here".encode()
        except Refused as refused:
            return ERROR, str(refused).encode()
        except Exception as error:  # one answer is missing then, not all that come after it
            log.exception("a question of netd (op %d) was not answered", op)
            return ERROR, f"{type(error).__name__} in the node".encode()

    def _put(self) -> None:
        """Store what came; whatever waits already is stored with it, in one batch."""
        over = False
        while not over:
            batch: list[tuple[int, bytes, bytes]] = []
            item = self._puts.get()
            while item is not None:
                batch.append(item)
                if len(batch) == BATCH or self._puts.empty():
                    break
                item = self._puts.get()
            over = item is None
            try:
                for id, answer in self._store_all(batch):
                    self._send(id, ERROR if answer else YES, answer)
            except OSError:
                log.debug("netd ended before it was told of %d blocks", len(batch))

    def _store_all(self, batch: list[tuple[int, bytes, bytes]]) -> list[tuple[int, bytes]]:
        """For each block its id and why it was refused ("" = it is stored). One bad block does not spoil the others."""
        try:
            self._store.put([(cid, block) for _, cid, block in batch])
        except Refused as refused:
            if len(batch) == 1:
                return [(batch[0][0], str(refused).encode())]
            return [answer for one in batch for answer in self._store_all([one])]
        except Exception as error:
            log.exception("%d blocks were not stored", len(batch))
            return [(id, f"{type(error).__name__} in the node".encode()) for id, _, _ in batch]
        return [(id, b"") for id, _, _ in batch]

    # ---- bytes

    def _exactly(self, n: int) -> bytearray:
        buffer = bytearray(n)
        view = memoryview(buffer)
        while view:
            got = self._sock.recv_into(view, 0, socket.MSG_WAITALL)
            if not got:
                raise EOFError
            view = view[got:]
        return buffer

    def _send(self, id: int, op: int, body: bytes) -> None:
        head = HEAD.pack(5 + len(body), id, op)
        with self._sending:
            sent = self._sock.sendmsg([head, body])
            if sent < len(head):
                self._sock.sendall(head[sent:])
                sent = len(head)
            self._sock.sendall(memoryview(body)[sent - len(head) :])
