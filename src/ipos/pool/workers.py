"""workers: the coordinator's end of the pipe to a seat's process."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ipos.pool import pipe
from ipos.store import cid as c
from ipos.store.blocks import Block, BlockStore
from ipos.wire.errors import BadRecord, Gone, Refused

READY_S: Final = 60.0
ENVIRONMENT: Final = ("PATH", "HOME", "XDG_CACHE_HOME", "TMPDIR", "LANG", "PYTHONPATH")

Command = Callable[[int, Path], Sequence[str]]
"""How the n-th worker of a task is started in its home."""
Event = Callable[["Worker", pipe.Message], None]


def seat(number: int, home: Path) -> Sequence[str]:
    """An honest worker."""
    return (sys.executable, "-m", "ipos.pool.seat", str(home))


class Worker:
    """One process. `node`: its run address, known when `start` returned. `say` is called with what it tells, and with {"event": "gone"}
    when it is no more."""

    def __init__(self, number: int, home: Path, command: Command, say: Event) -> None:
        self.number = number
        self.home = home
        self.node = ""
        self.pid = 0
        self._handle = -1
        self._why = ""
        self._command = command
        self._say = say
        self._questions = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[pipe.Message, list[Block]]]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._reading is not None and not self._reading.done()

    async def start(self) -> None:
        """`Refused` if it does not come up."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = os.open(self.home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(self.number, self.home),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,
                limit=pipe.LINE_BYTES, env={key: os.environ[key] for key in ENVIRONMENT if key in os.environ},
            )  # fmt: skip
        finally:
            os.close(log)
        self.pid = self._process.pid
        self._handle = os.pidfd_open(self.pid)
        self._reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.shield(self._hello)
        except TimeoutError:
            await self.kill()
            raise Refused(f"the worker in {self.home} did not come up within {READY_S:g} s") from None

    async def _read(self) -> None:
        assert self._process is not None
        stream = self._process.stdout
        assert stream is not None
        try:
            while (line := await stream.readline()).endswith(b"\n"):
                message = pipe.parse(line)
                bodies = [await stream.readexactly(size) for size in pipe.sizes(message)]
                self._heard(message, pipe.named(message, bodies) if bodies else [])
        except (OSError, ValueError, EOFError, KeyError) as error:  # it does not keep to the protocol: it is no use
            self._end(str(error))
        else:
            self._end("")
        self.signal(signal.SIGKILL)
        code = await self._process.wait()
        os.close(self._handle)
        self._handle = -1
        how = f"its process was ended by signal {-code}" if code < 0 else f"its process ended with status {code}"
        self._say(self, {"event": "gone", "reason": self._why or how})

    def _end(self, why: str) -> None:
        self._why = why
        if not self._hello.done():
            self._hello.set_exception(Refused(f"the worker in {self.home} did not start: {self._last_words()}"))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Gone(f"the worker in {self.home} is gone"))
        self._waiting.clear()

    def _last_words(self) -> str:
        lines = (self.home / "log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _heard(self, message: pipe.Message, blocks: list[Block]) -> None:
        if "re" in message:
            future = self._waiting.pop(message["re"], None)
            if future is not None and not future.done():
                future.set_result((message, blocks))
            return
        if message.get("event") == "hello" and not self._hello.done():
            self.node = str(message["node"])
            self._hello.set_result(None)
        self._say(self, message)

    async def ask(self, op: str, blocks: Sequence[Block] = (), **words: Any) -> tuple[pipe.Message, list[Block]]:
        """The answer. `Gone`: the process is no more; `Refused`, `BadRecord`: its own sentence."""
        if self._process is None or self._process.stdin is None or self._process.returncode is not None:
            raise Gone(f"the worker in {self.home} is gone")
        number = next(self._questions)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._process.stdin.write(pipe.pack({"op": op, "ask": number, **words}, blocks))
            await self._process.stdin.drain()
            answer, bodies = await future
        except (ConnectionError, BrokenPipeError):
            raise Gone(f"the worker in {self.home} is gone") from None
        finally:
            self._waiting.pop(number, None)
        if "refused" in answer:
            raise BadRecord("", answer["refused"]) if answer.get("bad") else Refused(str(answer["refused"]))
        return answer, bodies

    async def missing(self, root: str) -> list[bytes]:
        answer, _ = await self.ask("missing", roots=[root])
        return [c.parse(text) for text in answer["missing"]]

    async def get(self, cids: Sequence[bytes]) -> list[Block]:
        """Verified blocks."""
        _, blocks = await self.ask("get", wanted=[c.text(cid) for cid in cids])
        if [cid for cid, _ in blocks] != list(cids):
            raise BadRecord("blocks", "other blocks than were asked for")
        return blocks

    async def give(self, root: str, source: Worker | BlockStore) -> None:
        """Everything under `root` that it has not got, from another worker or from a store."""
        while gone := await self.missing(root):
            for batch in pipe.batches(gone):
                await self.ask("put", await (source.get(batch) if isinstance(source, Worker) else _read(source, batch)))

    async def bring(self, root: bytes, to: BlockStore, missing: Callable[[BlockStore, bytes], list[bytes]]) -> None:
        """Everything under `root` into a store."""
        while gone := await asyncio.to_thread(missing, to, root):
            for batch in pipe.batches(gone):
                blocks = await self.get(batch)
                await asyncio.to_thread(to.put, blocks)

    async def kill(self) -> None:
        """Returns when nothing of it runs any more."""
        if self._process is None:
            return
        self.signal(signal.SIGKILL)
        if self._reading is not None:
            await asyncio.wait((self._reading,))

    def signal(self, number: int) -> None:
        """By its descriptor: a number may be somebody else's by now."""
        if self._handle >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)


async def _read(store: BlockStore, cids: Sequence[bytes]) -> list[Block]:
    return await asyncio.to_thread(lambda: [(cid, store.get(cid)) for cid in cids])
