"""Coverage-guided fuzzing of both ends of 9P with atheris (libFuzzer): whatever bytes come, no exception escapes, nothing stays, memory is bounded.

    .venv/bin/python tests/tree/fuzz.py server|client --seconds 600 [--corpus DIR] [--finds DIR]

The fuzzer's bytes are a script: which dialect, then message after message, each well formed, half right or noise. `server` is a
`ServerProtocol` before a tree with every kind of file; `client` is a `Client` with every call under way, whose server is the script.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ipos.tree.file import Caller, Change, File, Qid
from ipos.tree.local import local
from ipos.tree.ninep import client as clients
from ipos.tree.ninep.client import Client
from ipos.tree.ninep.codec import ALL, HEAD, Dialect, Message
from ipos.tree.ninep.messages import NOFID
from ipos.tree.ninep.transport import ServerProtocol
from ipos.tree.remote import remote
from ipos.tree.synthetic import Blob, Clone, Dir, Events, Text
from ipos.tree.work import Work
from ipos.wire import limits
from ipos.wire.errors import Gone

ME = Caller("0x1", "me", own=True, local=True)
VERSIONS = ("9P2000.L.ipos", "9P2000.L", "9P2000", "9P2000.u")
NAMES = ("f", "d", "disk", "x", "..", ".", "", "a/b", "\0", "n" * 256, "events", "clone", "work", "blob", "ü", "l")
NUMBERS = (0, 1, 2, 3, 4, 7, 255, 4096, 0xFFFF, 1 << 31, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)
HELD_BYTES = 4 * limits.MiB  # what one end may hold back when all has been said
ENDS_S = 20.0


class Script:
    """The fuzzer's bytes, read from the front; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def over(self) -> bool:
        return self.at >= len(self.data)

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return int.from_bytes(self.bytes(1), "little")

    def number(self) -> int:
        kind = self.byte()
        return NUMBERS[kind] if kind < len(NUMBERS) else kind if kind < 200 else int.from_bytes(self.bytes(8), "little")

    def name(self) -> str:
        kind = self.byte()
        return NAMES[kind % len(NAMES)] if kind < 240 else self.bytes(kind - 240).decode(errors="replace")

    def value(self, kind: str) -> Any:
        match kind:
            case "1" | "2" | "4" | "8":
                return self.number() & (1 << 8 * int(kind)) - 1
            case "s":
                return self.name()
            case "q":
                return Qid(self.byte() & 0xC2, 0, self.byte())
            case "s*":
                return tuple(self.name() for _ in range(self.byte() % 18))
            case "q*":
                return tuple(Qid(self.byte() & 0xC2, 0, self.byte()) for _ in range(self.byte() % 18))
            case _:
                return self.bytes(self.byte())

    def message(self, rows: list[Message], kinds: dict[tuple[int, tuple[str, ...]], list[str]], tag: int) -> bytes:
        """A message of one of these rows, as it should be."""
        row = rows[self.byte() % len(rows)]
        return row.encode(tag, *(self.value(kind) for kind in kinds[row.code, row.fields]))


def field_kinds(dialect: Dialect) -> dict[tuple[int, tuple[str, ...]], list[str]]:
    from nine import kinds

    return {(row.code, row.fields): kinds(row) for row in dialect.by_code.values()}


KINDS = {version: field_kinds(ALL[version]) for version in VERSIONS}
REQUESTS = {version: [r for r in ALL[version].by_code.values() if r.name[0] == "T"] for version in VERSIONS}


class Wire(asyncio.Transport):
    """A transport that remembers what leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.out += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Escaped(AssertionError):
    """Something that should not have happened."""


class _Mistakes(logging.Handler):
    """What a session says about a file server that failed is a find: the file servers here are ours."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(
            f"{record.getMessage()} {logging.Formatter().formatException(record.exc_info) if record.exc_info else ''}"
        )


class Fuzz:
    """One loop and one scratch directory for all runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.mistakes.seen.append(repr(context)))
        self.scratch = Path(tempfile.mkdtemp(prefix="t9f"))
        self.mistakes = _Mistakes()
        self.runs = 0
        logging.getLogger("ipos.ninep").addHandler(self.mistakes)
        logging.getLogger("ipos.ninep").propagate = False

    def close(self) -> None:
        logging.getLogger("ipos.ninep").removeHandler(self.mistakes)
        logging.getLogger("ipos.ninep").propagate = True
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, work: Callable[[bytes], Awaitable[None]], data: bytes) -> None:
        self.runs += 1
        if self.runs % 500 == 1:
            shutil.rmtree(self.scratch, ignore_errors=True)
            (self.scratch / "d").mkdir(parents=True)
            (self.scratch / "f").write_bytes(b"text" * 10)
            (self.scratch / "l").symlink_to("/etc")
        self.loop.run_until_complete(work(data))
        if self.mistakes.seen:
            said, self.mistakes.seen = self.mistakes.seen, []
            raise Escaped("\n".join(said))

    def tree(self) -> Dir:
        async def echo(caller: Caller, question: bytes) -> bytes:
            return question

        async def work(caller: Caller, question: bytes, say: Callable[[dict[str, object]], None]) -> None:
            say({"heard": len(question)})

        events = Events(lambda: ["one", "two"])
        return Dir(
            {
                "f": Text(lambda: "text", lambda caller, line: None), "disk": local(self.scratch), "d": Dir({"f": Events()}),
                "events": events, "clone": Clone(echo, 1000), "work": Work(work, 1000),
                "blob": Blob(lambda offset, count: bytes(min(count, max(0, 5000 - offset))), lambda: 5000),
            }
        )  # fmt: skip

    # ---- the server

    async def server(self, data: bytes) -> None:
        script, root, wire = Script(data), self.tree(), Wire()
        version = VERSIONS[script.byte() % len(VERSIONS)]

        async def attach(caller: Caller, aname: str) -> File:
            return root

        protocol = ServerProtocol(attach, ME)
        protocol.connection_made(wire)
        extra = () if version == "9P2000" else (0,)
        protocol.data_received(ALL["9P2000.L"].by_name["Tversion"].encode(0xFFFF, 1 << 16, version))
        protocol.data_received(ALL[version].by_name["Tattach"].encode(1, 0, NOFID, "me", "", *extra))
        while not script.over and not wire.closed:
            kind = script.byte()
            if kind < 200:
                protocol.data_received(script.message(REQUESTS[version], KINDS[version], kind % 5))
            elif kind < 230:
                code, tag, body = script.byte(), script.byte() % 5, script.bytes(script.byte())
                protocol.data_received(HEAD.pack(HEAD.size + len(body), code, tag) + body)
            elif kind < 245:
                protocol.data_received(script.bytes(script.byte()))
            else:
                for _ in range(kind - 244):
                    await asyncio.sleep(0)
            held = protocol._kept_bytes + protocol._out_bytes + protocol.session._bytes + sum(map(len, protocol._spare))
            if held > HELD_BYTES or len(protocol.session.fids) > limits.fids_per_session:
                raise Escaped(f"{held} bytes and {len(protocol.session.fids)} fids are held")
        for _ in range(3):
            await asyncio.sleep(0)
        self._whole(bytes(wire.out))
        protocol.connection_lost(None)
        await self._nothing_left()
        if protocol.session.busy or protocol.session.fids:
            raise Escaped("the session has not let go of everything")

    def _whole(self, out: bytes) -> None:
        """What left is whole messages, each an answer."""
        at = 0
        while at < len(out):
            size, code, _ = HEAD.unpack_from(out, at)
            if not HEAD.size <= size <= limits.msize_bytes or not code % 2 or at + size > len(out):
                raise Escaped(f"an answer of {size} bytes, number {code}, of {len(out) - at} that left")
            at += size

    async def _nothing_left(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others and (await asyncio.wait(others, timeout=ENDS_S))[1]:
            raise Escaped(f"still under way: {[task for task in others if not task.done()]}")

    # ---- the client

    async def client(self, data: bytes) -> None:
        script, wire = Script(data), Wire()
        version = VERSIONS[script.byte() % len(VERSIONS)]
        client = Client(version)
        client.connection_made(wire)
        tasks = [asyncio.ensure_future(client.attach())]
        await asyncio.sleep(0)
        while not script.over and not wire.closed:
            kind = script.byte()
            waiting = list(client._waiting.items())
            tag, name = (
                (waiting[kind % len(waiting)][0], waiting[kind % len(waiting)][1][1]) if waiting else (kind, "Tread")
            )
            if kind < 120:  # the right kind of answer
                rows = [client.dialect.by_name["R" + name[1:]]]
                client.data_received(script.message(rows, KINDS[version], tag))
            elif kind < 140:
                row = client.dialect.by_name["Rlerror" if client.dialect.linux else "Rerror"]
                client.data_received(script.message([row], KINDS[version], tag))
            elif kind < 190:
                code, body = script.byte(), script.bytes(script.byte())
                client.data_received(HEAD.pack(HEAD.size + len(body), code, tag) + body)
            elif kind < 200:
                client.data_received(script.bytes(script.byte()))
            elif kind < 250:
                tasks.append(asyncio.ensure_future(self._call(client, script.byte())))
            elif tasks:
                tasks[script.byte() % len(tasks)].cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            held = sum(len(out) for out in client._out) + len(client._waiting) * 100
            if held > HELD_BYTES:
                raise Escaped(f"{held} bytes are held")
        client.connection_lost(None)
        _, late = await asyncio.wait(tasks, timeout=ENDS_S)
        if late:
            raise Escaped(f"a call whose connection has ended waits: {late}")
        for task in tasks:
            if not task.cancelled() and not isinstance(task.exception(), OSError | None):
                raise Escaped("".join(traceback.format_exception(task.exception())))
        await self._nothing_left()

    async def _call(self, client: Client, what: int) -> None:
        async def connect() -> Client:
            if client.lost is not None:
                raise Gone(str(client.lost))
            return client

        root = remote(connect)

        async def file() -> None:
            handle = await root.open(ME, os.O_RDWR)
            await handle.read(0, 100)
            await handle.write(0, b"text")
            await handle.sync()
            await handle.entries()
            await handle.close()

        async def opened() -> None:
            async with client.open("/f") as file:
                async for _ in file.lines():
                    pass

        async def created() -> None:
            entry, handle = await root.create(ME, "x", os.O_RDWR, 0o644)
            await handle.write(0, b"text" * 100)
            await handle.close()
            await entry.attr()

        async def changed() -> None:
            await root.change(ME, Change(size=1, mtime_ns=-1))
            await root.mkdir(ME, "d", 0o755)
            await root.symlink(ME, "l", "x")
            await root.readlink()
            await root.statfs()
            await root.rename(ME, "d", root, "e")
            await root.link(ME, "d", root)

        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: client.read("/f"), lambda: client.read_once("/f"), lambda: client.write("/f", b"text" * 100), lambda: client.ls("/d"),
            lambda: client.stat("/" + "d/" * 40), lambda: client.create("/x", b"text"), lambda: client.mkdir("/m"), lambda: client.remove("/x"),
            lambda: client.rename("/a", "/b"), opened, file, created, changed,
        ]  # fmt: skip
        await calls[what % len(calls)]()


def main() -> None:
    import atheris

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("server", "client"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=None)
    parser.add_argument("--finds", type=Path, default=Path())
    parser.add_argument("--plant", action="store_true", help="with a mistake, which has to be found")
    arguments = parser.parse_args()
    for module in [m for name, m in sys.modules.items() if name.startswith("ipos.tree")]:
        for value in list(vars(module).values()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, type):
                for name, member in vars(value).items():
                    if type(member) is type(main):
                        setattr(value, name, atheris.instrument_func(member))
            elif type(value) is type(main):
                atheris.instrument_func(value)
    for dialect in ALL.values():
        for row in dialect.by_code.values():
            atheris.instrument_func(row.decode)
    if arguments.plant:
        plant()
    fuzz = Fuzz()
    work = fuzz.server if arguments.which == "server" else fuzz.client
    corpus = [str(arguments.corpus)] if arguments.corpus is not None else []
    flags = [
        f"-max_total_time={arguments.seconds}", "-max_len=2048", "-len_control=20", "-rss_limit_mb=600", "-timeout=30", "-print_final_stats=1", "-verbosity=1",
        f"-artifact_prefix={arguments.finds}/find-",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, *corpus], lambda data: fuzz.run(work, data))
    atheris.Fuzz()


def plant() -> None:
    """A client that stumbles over an empty stat, and a server over its third fid."""
    right = clients.Client._attr

    def wrong(self: Client, answer: tuple[Any, ...]) -> Any:
        if answer[0] == b"":
            raise KeyError("planted")
        return right(self, answer)

    clients.Client._attr = wrong  # type: ignore[method-assign]
    pump = ServerProtocol._pump

    def bad(self: ServerProtocol) -> None:
        pump(self)
        if len(self.session.fids) > 2:
            raise KeyError("planted")

    ServerProtocol._pump = bad  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
