"""Standard input, read so that Ctrl-C ends the command at once: no lock is held and no thread is waited for while a person thinks."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import threading
from collections.abc import Callable

from ipos.identity.secret import Secret
from ipos.wire.errors import Refused


def _line() -> bytes:
    """Up to the end of the line, or of the input."""
    out = b""
    while not out.endswith(b"\n") and (piece := os.read(0, 1)):
        out += piece
    return out


def _all() -> bytes:
    pieces: list[bytes] = []
    while piece := os.read(0, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


async def _apart(read: Callable[[], bytes]) -> bytes:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes | OSError] = loop.create_future()

    def told(value: bytes | OSError) -> None:
        if not answer.done():
            answer.set_result(value)

    def work() -> None:
        try:
            value: bytes | OSError = read()
        except OSError as error:
            value = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(told, value)

    threading.Thread(target=work, daemon=True).start()
    value = await answer
    if isinstance(value, OSError):
        raise value
    return value


async def ask(question: str) -> bool:
    """Whether a person says yes; the end of the input is a no."""
    print(question + " [y/N] ", end="", file=sys.stderr, flush=True)
    answer = b""
    try:
        answer = await _apart(_line)
    finally:
        if not answer.endswith(b"\n"):
            print(file=sys.stderr)
    return answer.strip().lower() in (b"y", b"yes")


async def read() -> bytes:
    """All of it."""
    return await _apart(_all)


async def piece(count: int) -> bytes:
    """What is there, at most `count` bytes; empty at the end."""
    return await _apart(lambda: os.read(0, count))


async def passphrase(question: str) -> Secret:
    """What a person types at the terminal without its being shown. `Refused` where there is no terminal."""
    if not os.isatty(0):
        raise Refused(
            "a passphrase is typed at a terminal: where there is none, --passphrase-file F names a file with it"
        )
    shown = termios.tcgetattr(0)
    hidden = [*shown]
    hidden[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSAFLUSH, hidden)
    try:
        print(question + ": ", end="", file=sys.stderr, flush=True)
        line = await _apart(_line)
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, shown)
        print(file=sys.stderr)
    return Secret(line.rstrip(b"\r\n"))
