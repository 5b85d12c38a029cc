"""taskfiles: the files of a task by which it is steered and watched: ctl, stdin, mem, wait of /job/<n>/<i>."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import IO

import msgspec

from ipos.pool import task as t
from ipos.pool.jobs import Job, Row
from ipos.pool.journal import Offload
from ipos.pool.records import Result
from ipos.pool.saves import engine_run
from ipos.pool.steering import Steering
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.tree.file import Attr, Caller, File, Handle, writable
from ipos.tree.synthetic import Blob, Text, new_qid
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.record import decode
from ipos.wire.text import lines

log = logging.getLogger("ipos.job")


def waited(name: str, cpu_s: float, wall_s: float, how: str) -> str:
    """The line of a wait file, as Plan 9's wait(2) has it: who, ms of processor in the program and in the system, ms in all, and in
    quotes how it ended, nothing if well. How the processor's time divides is not known: all of it is the program's."""
    quoted = how.replace("'", "''")
    return f"{name} {round(cpu_s * 1000)} 0 {round(wall_s * 1000)} '{quoted}'\n"


def how(result: Result) -> str:
    """How a run ended, "" if well."""
    if result.killed:
        return result.killed
    return f"signal {-result.exit}" if result.exit < 0 else f"status {result.exit}" if result.exit else ""


def task_files(steering: Steering, offload: Offload, scratch: Path, job: Job, row: Row) -> dict[str, File]:
    """`scratch`: where what is written to an open standard input is collected."""
    store = steering.store
    name = f"{job.id}.{row.i}"

    def result() -> Result | None:
        return decode(Result, store.get(c.parse(row.state.result))) if isinstance(row.state, t.Done) else None

    async def wait(offset: int, count: int) -> bytes:
        await job.until(lambda: row.ended)
        if (ended := result()) is not None:
            line = waited(name, ended.cpu_ms / 1000, ended.wall_ms / 1000, how(ended))
        else:
            reason = f"given up: {row.state.reason}" if isinstance(row.state, t.GivenUp) else "cancelled"
            line = waited(name, 0.0, 0.0, reason)
        return line.encode()[offset : offset + count]

    async def mem() -> str:
        if (ended := result()) is not None:
            return lines({"now": 0, "peak": ended.rss_bytes, "limit": most()})
        if row.word in ("running", "paused", "pausing"):
            return await steering.memory(job, row)
        return lines({"now": 0, "peak": 0, "limit": most()})

    def most() -> int:
        return engine_run(store, row.task).memory_bytes if row.task.in_engine else row.task.limits.memory_bytes

    return {
        "ctl": Text(None, lambda caller, line: steering.task(job, row, line, caller.local)),
        "stdin": _Stdin(steering, offload, scratch, job, row),
        "mem": Text(mem),
        "wait": Blob(wait, lambda: 0),
    }


class _Stdin(File):
    """/job/<n>/<i>/stdin. Read: the standard input, of an open one what is written so far. Written, where the job was handed in with
    `open_stdin`: appended, and closing ends it: then the task begins."""

    def __init__(self, steering: Steering, offload: Offload, scratch: Path, job: Job, row: Row) -> None:
        self.qid = new_qid()
        self.job, self.row = job, row
        self.offload = offload
        self._steering, self._scratch = steering, scratch
        self._writer: _Writer | None = None

    async def attr(self) -> Attr:
        cid = self.row.task.stdin
        store = self._steering.store
        return Attr(stat.S_IFREG | 0o666, unixfs.size(store, cid) if cid is not None and store.has(cid) else 0)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if not writable(flags):
            return _Reader(self)
        name = f"{self.job.id}.{self.row.i}"
        if self.row.task.stdin is not None or not self.job.open_stdin:
            raise Refused(
                f"the standard input of task {name} is closed (a job is handed in with open_stdin)", errno.EACCES
            )
        if not isinstance(self.row.state, t.Held):
            raise Refused(f"task {name} waits for no input any more: it is {self.row.word}", errno.EACCES)
        if self._writer is not None:
            raise Refused(f"somebody else is writing the standard input of task {name}", errno.EBUSY)
        spool = await self.offload(lambda: tempfile.NamedTemporaryFile(dir=self._scratch, prefix="stdin-"))  # noqa: SIM115
        self._writer = _Writer(self, spool)
        return self._writer

    def written(self, offset: int, count: int) -> bytes:
        cid = self.row.task.stdin
        if cid is not None:
            return unixfs.read(self._steering.store, cid, offset, count)
        return self._writer.written(offset, count) if self._writer is not None else b""

    async def close(self, spool: IO[bytes]) -> None:
        """It is all there: the task becomes the one with this input, and begins, unless it was to be held."""
        self._writer = None
        try:
            cid, size = await self.offload(lambda: unixfs.add_file(self._steering.store, spool.name))
        except OSError as error:
            self.job.say(self.row, f"its standard input could not be kept: {error}")
            return
        finally:
            await self.offload(spool.close)
        if not isinstance(self.row.state, t.Held):
            return
        self.job.info.sizes[cid.hex()] = size
        self._steering.coordinator.become(self.job, self.row, msgspec.structs.replace(self.row.task, stdin=cid))
        try:
            if not self.job.spec.hold:
                await self._steering.resume(self.job, [self.row])
            await self._steering.coordinator.journal.commit()
        except OSError as error:
            self.job.say(self.row, str(error))

    def forget(self) -> None:
        self._writer = None


class _Reader(Handle):
    def __init__(self, file: _Stdin) -> None:
        self._file = file

    async def read(self, offset: int, count: int) -> bytes:
        return self._file.written(offset, count)


class _Writer(Handle):
    """The one who writes an open standard input."""

    def __init__(self, file: _Stdin, spool: IO[bytes]) -> None:
        self._file = file
        self._spool = spool
        self._size = 0

    async def read(self, offset: int, count: int) -> bytes:
        return self.written(offset, count)

    async def write(self, offset: int, data: bytes) -> int:
        if self._size + len(data) > limits.stdin_bytes:
            raise Refused(f"more than {limits.stdin_bytes >> 30} GiB of standard input: hand it in as a file")
        body = bytes(data)
        await self._file.offload(lambda: _append(self._spool, body))
        self._size += len(body)
        return len(body)

    def written(self, offset: int, count: int) -> bytes:
        return os.pread(self._spool.fileno(), count, offset)

    async def close(self) -> None:
        await self._file.close(self._spool)

    async def lost(self) -> None:
        """Its writer went away before it closed it: nobody knows whether that was all, so it is written anew."""
        self._file.forget()
        self._spool.close()
        self._file.job.say(self._file.row, "who wrote its standard input went away before closing it: write it again")


def _append(spool: IO[bytes], body: bytes) -> None:
    spool.write(body)
    spool.flush()
