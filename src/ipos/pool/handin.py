"""handin: how a job is handed in through files: /job/clone, and a directory of its own for who has only `cat` and `echo`.

echo '{"program": "/home/me/p.py"}' > job/clone      the job begins; a mistake in it is the write's error
n=$(cat job/clone)                                   a number, and a directory job/$n of a job that does not exist yet
echo '{"program": "/home/me/p.py"}' > job/$n/spec
echo start > job/$n/ctl                              returns when its tasks are there, or says what stands in the way
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

import msgspec

from ipos.pool import job as j
from ipos.pool.jobs import Job
from ipos.pool.spec import parse
from ipos.tree.file import Attr, Caller, File, Handle, readable, writable
from ipos.tree.synthetic import Dir, Text, new_qid
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.text import lines

log = logging.getLogger("ipos.job")

DRAFTS: Final = 64  # numbers that were taken and not used; the oldest is forgotten


class Submit(Protocol):
    def __call__(self, spec: bytes, number: int = 0) -> Awaitable[Job]: ...


class Whole:
    """A JSON object that comes in pieces. No beginning of one is one, so there is no doubt where it ends."""

    def __init__(self) -> None:
        self._body = bytearray()

    def add(self, piece: bytes) -> bytes | None:
        """All of it, when its last piece has come. `Refused` if it can be none any more."""
        if len(self._body) + len(piece) > limits.job_spec_bytes:
            raise Refused(f"a job of more than {limits.job_spec_bytes >> 20} MiB: split it", errno.EMSGSIZE)
        self._body += piece
        if not self._body.rstrip().endswith(b"}"):
            return None
        try:
            msgspec.json.decode(self._body, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError as error:
            if "truncated" in str(error):
                return None
            self._body.clear()
            raise Refused(f"not a job: {error}") from None
        body = bytes(self._body)
        self._body.clear()
        return body

    @property
    def begun(self) -> bool:
        return bool(self._body)


class JobClone(File):
    """/job/clone. What is written is a job, and what is then read its number; who reads alone takes a number."""

    def __init__(self, submit: Submit, take: Callable[[], int]) -> None:
        self.qid = new_qid()
        self.submit = submit
        self.take = take

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o666)

    async def open(self, caller: Caller, flags: int) -> Handle:
        if not caller.local:
            raise Refused(
                "a job names files of this host: only its owner, on its own socket, may hand one in", errno.EPERM
            )
        return _JobCloneHandle(self)


class _JobCloneHandle(Handle):
    whole = True

    def __init__(self, clone: JobClone) -> None:
        self._clone = clone
        self._text = Whole()
        self._number: int | None = None

    async def write(self, offset: int, data: bytes) -> int:
        try:
            if (body := self._text.add(data)) is not None:
                self._number = (await self._clone.submit(body)).id
        except Refused as refused:
            log.info("refused: %s", refused)  # as a ctl file does
            raise
        return len(data)

    async def read(self, offset: int, count: int) -> bytes:
        if self._text.begun:
            raise Refused("not a job: its JSON object is not closed")
        if self._number is None:
            self._number = self._clone.take()
        return f"{self._number}\n".encode()[offset : offset + count]


class _SpecText(File):
    """/job/<n>/spec of a draft: read and written, checked when it is whole."""

    def __init__(self, draft: Draft) -> None:
        self.qid = new_qid()
        self._draft = draft

    async def attr(self) -> Attr:
        return Attr(stat.S_IFREG | 0o666, len(self._draft.spec))

    async def open(self, caller: Caller, flags: int) -> Handle:
        if writable(flags) and not caller.local:
            raise Refused("a job names files of this host: only its owner may write one", errno.EPERM)
        return _SpecHandle(self._draft, readable(flags))


class _SpecHandle(Handle):
    def __init__(self, draft: Draft, reads: bool) -> None:
        self._draft = draft
        self._reads = reads
        self._text = Whole()

    async def read(self, offset: int, count: int) -> bytes:
        return self._draft.spec[offset : offset + count] if self._reads else b""

    async def write(self, offset: int, data: bytes) -> int:
        if (body := self._text.add(data)) is not None:
            parse(body)
            self._draft.spec = body
        return len(data)


class Draft:
    """A number, and what is written for it so far."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.spec = b""


class Drafts:
    """The jobs that somebody has a number for and has not started. They are not kept over a restart."""

    def __init__(self, submit: Submit, number: Callable[[], int]) -> None:
        self._submit = submit
        self._number = number
        self._drafts: dict[int, tuple[Draft, Dir]] = {}
        self.clone = JobClone(submit, self._take)

    def _take(self) -> int:
        draft = Draft(self._number())
        while len(self._drafts) >= DRAFTS:
            del self._drafts[next(iter(self._drafts))]
        self._drafts[draft.number] = draft, self._dir(draft)
        return draft.number

    @property
    def numbers(self) -> Iterable[int]:
        return self._drafts

    def find(self, number: int) -> Dir | None:
        found = self._drafts.get(number)
        return found[1] if found is not None else None

    def _dir(self, draft: Draft) -> Dir:
        async def ctl(caller: Caller, line: str) -> None:
            match line.split():
                case ["start"]:
                    await self._start(caller, draft)
                case ["cancel"]:
                    self._drafts.pop(draft.number, None)
                case []:
                    return
                case words:
                    raise Refused(f"{' '.join(words)!r} is not a command of a job that is not begun: start, cancel")

        status = {"job": draft.number, "state": "new"}
        return Dir({"ctl": Text(None, ctl), "spec": _SpecText(draft), "status": Text(lambda: lines(status))})

    async def _start(self, caller: Caller, draft: Draft) -> None:
        if not caller.local:
            raise Refused("a job is handed in by its owner, on the node's own socket", errno.EPERM)
        if not draft.spec:
            raise Refused(f"write the job to /job/{draft.number}/spec first")
        if self._drafts.pop(draft.number, None) is None:
            raise Refused(f"job {draft.number} was started or forgotten: take another number from /job/clone")
        job = await self._submit(draft.spec, draft.number)
        await prepared(job)


async def prepared(job: Job) -> None:
    """Returns when its tasks are there. `Refused`: what stands in the way."""
    await job.until(lambda: not isinstance(job.state, j.Preparing))
    if isinstance(job.state, j.Refused):
        raise Refused(job.state.sentence)
