"""File servers for the tests of /srv: what each does is its name. `python posts.py KIND SOCKET` is one that is a process of its own."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from ipos.tree.file import Caller, File
from ipos.tree.ninep.codec import ALL, DIRENT
from ipos.tree.ninep.transport import ServerProtocol, serve_unix
from ipos.tree.synthetic import Dir, Text

L = ALL["9P2000.L"]
ROOT = (0x80, 0, 1)


def good() -> Dir:
    return Dir({"hello": Text(lambda: "hello\n"), "sub": Dir({"deep": Text(lambda: "deep\n")})})


async def serve(path: Path, root: File, version: str = "") -> asyncio.Server:
    """An honest server; one of `version` answers as if it had never heard of another."""

    async def attach(caller: Caller, aname: str) -> File:
        return root

    def door() -> ServerProtocol:
        protocol = ServerProtocol(attach, Caller("", "posted", own=True, local=True))
        if version:
            agree = protocol.session._version  # pyright: ignore[reportPrivateUsage]
            protocol.session._version = lambda msize, asked: agree(msize, version if asked == version else "9P1")  # type: ignore[method-assign]
        return protocol

    return await serve_unix(path, door)


class Hostile(asyncio.Protocol):
    """Speaks .L well until it comes to what it is for. `answers`: message name -> the bytes of an answer to (tag, its fields)."""

    def __init__(self, answers: dict[str, Callable[..., bytes]]) -> None:
        self.answers = answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        self.rest += data
        while len(self.rest) >= 7 and len(self.rest) >= (size := struct.unpack_from("<I", self.rest)[0]):
            message, self.rest = self.rest[:size], self.rest[size:]
            row, tag = L.by_code[message[4]], struct.unpack_from("<H", message, 5)[0]
            values = row.decode(memoryview(message))
            if (answer := self.answers.get(row.name, usual(row.name))) is not None:
                self.transport.write(answer(tag, *values))


def reply(name: str, *values: object) -> Callable[..., bytes]:
    return lambda tag, *_: L.by_name[name].encode(tag, *values)


def usual(name: str) -> Callable[..., bytes] | None:
    return {
        "Tversion": lambda tag, msize, version: L.by_name["Rversion"].encode(
            tag, msize, version if version == "9P2000.L" else "unknown"
        ),
        "Tattach": reply("Rattach", ROOT),
        "Twalk": lambda tag, fid, newfid, names: L.by_name["Rwalk"].encode(tag, [ROOT] * len(names)),
        "Tlopen": reply("Rlopen", ROOT, 0),
        "Tgetattr": reply("Rgetattr", 0x7FF, ROOT, 0o40755, 0, 0, 1, 0, 0, 4096, 0, *(0,) * 8, 0, 0),
        "Tclunk": reply("Rclunk"),
    }.get(name)  # type: ignore[return-value]


def entry(name: bytes, offset: int) -> bytes:
    return DIRENT.pack(*ROOT, offset, 4, len(name)) + name


def endless(tag: int, fid: int, offset: int, count: int) -> bytes:
    return L.by_name["Rreaddir"].encode(tag, b"".join(entry(b"%d" % i, i + 1) for i in range(offset, offset + 1000)))


SILENT: dict[str, Callable[..., bytes]] = {name: lambda *_: b"" for name in L.by_name}
KINDS: dict[str, dict[str, Callable[..., bytes]]] = {
    "says nothing": SILENT,
    "falls silent": {"Twalk": lambda *_: b"", "Tflush": lambda *_: b""},
    "no 9P": {"Tversion": lambda *_: b"HTTP/1.1 400 Bad Request\r\n\r\n"},
    "huge messages": {"Tversion": lambda tag, msize, version: L.by_name["Rversion"].encode(tag, 1 << 31, version)},
    "tiny messages": {"Tversion": lambda tag, msize, version: L.by_name["Rversion"].encode(tag, 23, version)},
    "other version": {"Tversion": reply("Rversion", 8192, "9P3000")},
    "a length of 4 GiB": {"Tattach": lambda *_: struct.pack("<IBH", 0xFFFFFFFF, 105, 1)},
    "half a message": {"Tattach": lambda tag, *_: reply("Rattach", ROOT)(tag)[:12]},
    "answers nobody asked": {"Tattach": lambda *_: reply("Rattach", ROOT)(999)},
    "another answer": {"Tattach": reply("Rclunk")},
    "a listing without an end": {"Treaddir": endless},
    "a listing of nonsense": {"Treaddir": reply("Rreaddir", b"\xff" * 40)},
}
EVIL_NAMES = (b"..", b".", b"", b"../../etc", b"a/b", b"a\0b", b"good")


def evil(tag: int, fid: int, offset: int, count: int) -> bytes:
    names = b"".join(entry(name, i + 1) for i, name in enumerate(EVIL_NAMES)) if not offset else b""
    return L.by_name["Rreaddir"].encode(tag, names)


async def hostile(path: Path, answers: dict[str, Callable[..., bytes]]) -> asyncio.Server:
    return await asyncio.get_running_loop().create_unix_server(lambda: Hostile(answers), path)


async def main(kind: str, path: Path) -> None:
    server = await (serve(path, good()) if kind == "good" else hostile(path, KINDS[kind]))
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
