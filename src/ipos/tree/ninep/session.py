"""A 9P session, the server's side, without I/O: messages in, messages out through `send`. What the messages mean is in `linux` and `plain`.

Order: a message that names a fid waits for those before it that name the fid, so a client may send walk, open, read and clunk in one packet;
everything else runs at once. An operation begins inside `message`; most are done there, and only one that has to wait becomes a task. Tflush
cancels, and is answered when the operation is gone. A flushed operation that was still waiting for its turn keeps its place in the order:
what comes after it must not overtake what came before.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import struct
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, NamedTuple

from ipos.tree.file import DIRECTORY, Caller, Directory, File, Handle
from ipos.tree.ninep.codec import ALL, HEAD, Dialect, Message, ProtocolError
from ipos.tree.ninep.fids import Fid, Step, refuse
from ipos.tree.ninep.locks import SHARED, Locks
from ipos.wire import limits
from ipos.wire.errors import Refused

log = logging.getLogger("ipos.ninep")

Attach = Callable[[Caller, str], Awaitable[File]]
Operation = Callable[..., Coroutine[Any, Any, tuple[Any, ...]]]
LONG = (
    256 << 10
)  # an answer from here on is sent by itself; copying a shorter one behind others is cheaper than a call for it
COPIED = 16 << 10  # a shorter one is copied without a thought
IO_HEAD = 24  # bytes of a Twrite that are not data
_RREAD_CODE, _TWALK_CODE = 117, 110
RREAD = struct.Struct("<IBHI")
_FIDS = {"fid", "newfid", "dfid", "dirfd", "olddirfid", "newdirfid"}
_TO_THE_END = {"Tclunk", "Tremove"}  # begun, they are not cancelled: half a clunk is no fid and no clunk
_numbers = itertools.count(1)


class _Op:
    """One request under way."""

    __slots__ = ("before", "begun", "fids", "flushes", "name", "passed", "size", "stepped", "tag", "task", "walked")

    def __init__(self, tag: int, name: str, fids: list[int], walked: int | None, size: int) -> None:
        self.tag, self.name, self.fids, self.walked, self.size = tag, name, fids, walked, size
        self.task: asyncio.Task[None] | None = None
        self.begun = self.stepped = False
        self.before: set[asyncio.Future[None]] = set()
        self.passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.flushes: list[int] = []


class _Entry(NamedTuple):
    """What is to be done with a message of one number."""

    row: Message
    operation: Operation
    reply: Message
    fids: tuple[int, ...]
    counted: int | None  # which field says how long the answer may be


_OWN_TASK = object()


@types.coroutine
def own_task() -> Generator[Any, None, None]:
    """Await it before a method of a file that is not `prompt`: what follows runs in a task."""
    yield _OWN_TASK


@types.coroutine
def _continued(work: Coroutine[Any, Any, Any], waits: Any) -> Generator[Any, Any, Any]:
    """Goes on, in a task, with a coroutine that waits for `waits`: a future, or just a task to run in."""
    while True:
        try:
            sent = (yield waits) if waits is not _OWN_TASK else None
        except BaseException as error:
            try:
                waits = work.throw(error)
            except StopIteration as done:
                return done.value
        else:
            try:
                waits = work.send(sent)
            except StopIteration as done:
                return done.value


class Session:
    """`attach(caller, aname)` gives the root that this caller sees; `send` takes bytes of whole messages, in order, and must not fail."""

    def __init__(self, attach: Attach, caller: Caller, send: Callable[[bytes], None], locks: Locks = SHARED) -> None:
        self.caller = caller
        self.fids: dict[int, Fid] = {}
        self.dialect = ALL["9P2000.L"]
        self.msize = 8192
        self.attach = attach
        self.locks = locks
        self.number = next(_numbers)
        self.idle: Callable[[], None] | None = None  # called when an operation has ended
        self._send = send
        self._table = _tables()["9P2000.L"]
        self._ops: dict[int, _Op] = {}
        self._last: dict[int, asyncio.Future[None]] = {}  # fid -> the last operation that names it
        self._walks: dict[int, set[asyncio.Future[None]]] = {}  # fid -> walks that start from it
        self._flushing: dict[int, _Op] = {}
        self._bytes = 0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> int:
        """Operations under way."""
        return len(self._ops)

    @property
    def full(self) -> bool:
        """So much is under way that the next message (but a Tflush) should wait."""
        return len(self._ops) >= limits.requests_in_flight or self._bytes >= limits.bytes_in_flight

    # ---- messages

    def message(self, b: memoryview) -> None:
        """One whole message. `ProtocolError` if it cannot even be answered."""
        _, code, tag = HEAD.unpack_from(b)
        entry = self._table.get(code)
        if entry is None:
            self._other(code, tag, b)
            return
        if tag in self._ops:
            raise ProtocolError(f"tag {tag} is in use")
        try:
            values = entry.row.decode(b)
        except ProtocolError as error:
            self._send(self._error(tag, Refused(str(error), errno.EPROTO)))
            return
        before = self._before(entry, values) if self._last or self._walks else None
        if before:
            op = self._queued(entry, tag, values, len(b))
            op.before = before
            op.task = asyncio.get_running_loop().create_task(self._later(op, entry, values))
            op.task.add_done_callback(lambda _: self._ended(op))
            return
        work = entry.operation(self, *values)
        try:
            waits = work.send(None)
        except StopIteration as done:
            self._reply(entry.reply, tag, done.value)
        except (Exception, asyncio.CancelledError) as error:
            self._send(self._error(tag, error))
        else:
            op = self._queued(entry, tag, values, len(b))
            op.begun = True
            op.task = asyncio.get_running_loop().create_task(self._rest(op, entry, work, waits))
            op.task.add_done_callback(lambda _: self._ended(op))

    def _other(self, code: int, tag: int, b: memoryview) -> None:
        """Tversion, Tflush, and what is no request."""
        row = self.dialect.by_code.get(code)
        if row is None or row.name.startswith("R"):
            self._send(self._error(tag, refuse(errno.EOPNOTSUPP, f"9P message {code}")))
            return
        try:
            values = row.decode(b)
        except ProtocolError as error:
            self._send(self._error(tag, Refused(str(error), errno.EPROTO)))
            return
        if row.name == "Tversion":
            self.reset()
            self._send(self.dialect.by_name["Rversion"].encode(tag, *self._version(*values)))
        else:
            self._flush(tag, values[0])

    def _version(self, msize: int, version: str) -> tuple[int, str]:
        """version(5): of the versions we know the highest that is not above what was asked; a suffix we do not know is cut off."""
        self.msize = min(msize, limits.msize_bytes)
        known = version if version in ALL else version.split(".", maxsplit=1)[0]
        if known not in ALL or self.msize < limits.msize_least_bytes:
            return self.msize, "unknown"
        self.dialect, self._table = ALL[known], _tables()[known]
        return self.msize, known

    # ---- order

    @staticmethod
    def _named(entry: _Entry, values: tuple[Any, ...]) -> tuple[list[int], int | None]:
        """The fids that an operation takes, and the one that it only looks at: many walks may start from one fid at once."""
        fids = [values[i] for i in entry.fids]
        looked = fids[0] if entry.row.code == _TWALK_CODE and fids[0] != fids[1] else None
        return (fids, None) if looked is None else (fids[1:], looked)

    def _before(self, entry: _Entry, values: tuple[Any, ...]) -> set[asyncio.Future[None]]:
        """What has to pass first."""
        fids, looked = self._named(entry, values)
        out = {turn for fid in (*fids, looked) if fid is not None and (turn := self._last.get(fid)) is not None}
        for fid in fids:
            out |= self._walks.get(fid, set())
        return out

    def _queued(self, entry: _Entry, tag: int, values: tuple[Any, ...], length: int) -> _Op:
        size = length + (min(values[entry.counted], self.msize) if entry.counted is not None else 0)
        fids, looked = self._named(entry, values)
        op = self._ops[tag] = _Op(tag, entry.row.name, fids, looked, size)
        self._bytes += size
        for fid in op.fids:
            self._last[fid] = op.passed
        if looked is not None:
            self._walks.setdefault(looked, set()).add(op.passed)
        return op

    async def _later(self, op: _Op, entry: _Entry, values: tuple[Any, ...]) -> None:
        await asyncio.wait(op.before)
        op.begun = True
        await self._rest(op, entry, entry.operation(self, *values), _OWN_TASK)

    async def _rest(self, op: _Op, entry: _Entry, work: Coroutine[Any, Any, tuple[Any, ...]], waits: Any) -> None:
        op.stepped = True
        if self._ops.get(op.tag) is not op:
            work.close()
            return
        values, failed = (), b""
        try:
            values = await _continued(work, waits)
        except (
            Exception
        ) as error:  # kept in a variable it would keep this frame, and so the file, until the next collection
            failed = self._error(op.tag, error)
        if self._ops.get(op.tag) is not op:
            return  # the session was begun anew
        self._gone(op)  # first: the client may use the tag again as soon as it has the reply
        if failed:
            self._send(failed)
        else:
            self._reply(entry.reply, op.tag, values)

    def _gone(self, op: _Op) -> None:
        del self._ops[op.tag]
        self._bytes -= op.size

    def _ended(self, op: _Op) -> None:
        """The task of an operation is over: done, failed or flushed."""
        if self._ops.get(op.tag) is op:
            self._gone(op)
            if not op.flushes:  # nobody asked for its end
                self._send(self._error(op.tag, asyncio.CancelledError()))
        for tag in op.flushes:
            if self._flushing.pop(tag, None) is op:
                self._send(self.dialect.by_name["Rflush"].encode(tag))
        waiting = [turn for turn in op.before if not turn.done()]
        for turn in waiting:
            turn.add_done_callback(lambda _: self._pass(op))
        if not waiting:
            self._pass(op)
        if self.idle is not None:
            self.idle()

    def _pass(self, op: _Op) -> None:
        if op.passed.done() or any(not turn.done() for turn in op.before):
            return
        op.passed.set_result(None)
        for fid in op.fids:
            if self._last.get(fid) is op.passed:
                del self._last[fid]
        if op.walked is not None and (walks := self._walks.get(op.walked)) is not None:
            walks.discard(op.passed)
            if not walks:
                del self._walks[op.walked]

    def _flush(self, tag: int, old: int) -> None:
        """Cancel `old`; the answer leaves when it is gone, so its tag may be used again. Flushes are answered in order."""
        op = self._ops.get(old) or self._flushing.get(old)
        if op is None or op.task is None:
            self._send(self.dialect.by_name["Rflush"].encode(tag))
            return
        op.flushes.append(tag)
        self._flushing[tag] = op
        self._cancel(op)

    @staticmethod
    def _cancel(op: _Op) -> None:
        """A task that has not taken its first step yet takes it before: what it goes on with has been begun."""
        if op.task is None or (op.begun and op.name in _TO_THE_END):
            return
        if op.stepped:
            op.task.cancel()
        else:
            asyncio.get_running_loop().call_soon(op.task.cancel)

    def reset(self) -> None:
        """Forget every fid and cancel what is under way (Tversion, or the connection's end)."""
        for op in self._ops.values():
            self._cancel(op)
        self._ops, self._last, self._walks, self._flushing, self._bytes = {}, {}, {}, {}, 0
        fids, self.fids = self.fids, {}
        self.locks.drop(self.number)
        for fid in fids.values():
            if fid.handle is not None:
                task = asyncio.get_running_loop().create_task(fid.handle.lost())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    # ---- answers

    def _reply(self, row: Message, tag: int, values: tuple[Any, ...]) -> None:
        if row.code == _RREAD_CODE:
            if len(values) == 2:  # there is room for the head before it
                RREAD.pack_into(values[0], 0, len(values[0]), row.code, tag, len(values[0]) - RREAD.size)
                self._send(values[0])
                return
            if len(values[0]) >= LONG:
                self._send(RREAD.pack(RREAD.size + len(values[0]), row.code, tag, len(values[0])))
                self._send(values[0])
                return
        try:
            body = row.encode(tag, *values)
        except (struct.error, UnicodeEncodeError) as error:
            body = self._error(tag, Refused(f"an answer that 9P cannot carry: {error}", errno.EIO))
        self._send(body)

    def _error(self, tag: int, error: BaseException) -> bytes:
        if isinstance(error, asyncio.CancelledError):
            error = Refused("the file server gave the operation up", errno.EINTR)
        if not isinstance(error, OSError):
            log.error("a file server failed", exc_info=error)
            error = Refused(f"a mistake in IPOS: {type(error).__name__}: {error}", errno.EIO)
        number = error.errno or errno.EIO
        said = str(error) if isinstance(error, Refused) else f"{error.strerror or error}"
        sentence = said[:2000].encode(errors="replace").decode()
        if not self.dialect.linux:
            if self.dialect.version == "9P2000.u":
                return self.dialect.by_name["Rerror"].encode(tag, sentence, number)
            # Linux finds the errno by the text, and only by its own: without the one of ENOENT it creates nothing
            plain = os.strerror(number)
            known = number == errno.ENOENT or sentence.endswith(f": {plain}")
            return self.dialect.by_name["Rerror"].encode(tag, plain if known else sentence)
        row = self.dialect.by_name["Rlerror"]
        return row.encode(tag, number, sentence) if len(row.fields) == 2 else row.encode(tag, number)

    # ---- fids

    def fid(self, number: int) -> Fid:
        try:
            return self.fids[number]
        except KeyError:
            raise refuse(errno.EBADF, f"fid {number}") from None

    def opened(self, number: int) -> Handle:
        handle = self.fid(number).handle
        if handle is None:
            raise refuse(errno.EBADF, f"fid {number} is not open")
        return handle

    def new(self, number: int, fid: Fid) -> None:
        if number not in self.fids and len(self.fids) >= limits.fids_per_session:
            raise refuse(errno.EMFILE, f"more than {limits.fids_per_session} fids")
        self.fids[number] = fid

    def directory(self, number: int) -> Directory:
        file = self.fid(number).file
        if not isinstance(file, Directory) or not file.qid.type & DIRECTORY:
            raise refuse(errno.EROFS if file.qid.type & DIRECTORY else errno.ENOTDIR)
        return file

    def moved(self, source: File, name: str, to: tuple[Step, ...], new: str) -> None:
        """Fids at and below an entry that was renamed keep their files, under the new name."""
        for fid in self.fids.values():
            for i in range(1, len(fid.path)):
                step = fid.path[i]
                if step.name == name and fid.path[i - 1].file.qid.path == source.qid.path:
                    fid.path = (*to, Step(new, step.file), *fid.path[i + 1 :])
                    break


def _made(dialect: Dialect, operations: dict[str, Operation]) -> dict[int, _Entry]:
    table: dict[int, _Entry] = {}
    for code, row in dialect.by_code.items():
        if (operation := operations.get(row.name)) is not None:
            fids = tuple(i for i, field in enumerate(row.fields) if field in _FIDS)
            counted = row.fields.index("count") if "count" in row.fields else None
            table[code] = _Entry(row, operation, dialect.by_code[code + 1], fids, counted)
    return table


_TABLES: dict[str, dict[int, _Entry]] = {}


def _tables() -> dict[str, dict[int, _Entry]]:
    if not _TABLES:
        from ipos.tree.ninep import linux, plain  # they are written in terms of Session

        for version, dialect in ALL.items():
            _TABLES[version] = _made(dialect, linux.OPERATIONS if dialect.linux else plain.OPERATIONS)
    return _TABLES
