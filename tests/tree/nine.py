"""What the 9P tests share: a session fed by hand, and a small tree."""

from __future__ import annotations

import asyncio
from typing import Any

from ipos.tree.file import Caller, File
from ipos.tree.ninep.codec import ALL, HEAD, Message
from ipos.tree.ninep.messages import DIALECTS, NOFID
from ipos.tree.ninep.session import Session

ME = Caller("0x1", "me", own=True, local=True)


class Talk:
    """A session without a connection: messages by name in, answers by tag out, in the order in which they left."""

    def __init__(self, root: File, dialect: str = "9P2000.L.ipos") -> None:
        async def attach(caller: Caller, aname: str) -> File:
            return root

        self.answers: list[tuple[str, int, tuple[Any, ...]]] = []
        self.session = Session(attach, ME, self._answered)
        self.dialect = ALL[dialect]
        self._part = b""

    def _answered(self, piece: bytes) -> None:
        self._part += piece
        while len(self._part) >= 7 and len(self._part) >= (size := HEAD.unpack_from(self._part)[0]):
            body, self._part = self._part[:size], self._part[size:]
            row = self.dialect.by_code[body[4]]
            self.answers.append((row.name, HEAD.unpack_from(body)[2], row.decode(memoryview(body))))

    def send(self, tag: int, name: str, *values: Any) -> None:
        self.session.message(memoryview(self.dialect.by_name[name].encode(tag, *values)))

    def answer(self, tag: int) -> tuple[str, tuple[Any, ...]] | None:
        return next(((name, values) for name, t, values in self.answers if t == tag), None)

    async def ask(self, name: str, *values: Any) -> tuple[Any, ...]:
        """One request and its answer; an error is given as ("Rerror" or "Rlerror", its fields)."""
        self.answers.clear()
        self.send(1, name, *values)
        for _ in range(2000):
            if (got := self.answer(1)) is not None:
                return got[1] if not got[0].endswith("error") else (got[0], *got[1])
            await asyncio.sleep(0.001 if _ > 50 else 0)
        raise AssertionError(f"{name} is not answered")

    async def start(self, fid: int = 0, msize: int = 65536) -> Talk:
        await self.ask("Tversion", msize, self.dialect.version)
        extra = () if self.dialect.version == "9P2000" else (0,)
        await self.ask("Tattach", fid, NOFID, "me", "", *extra)
        return self


async def settle(turns: int = 20) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def kinds(row: Message) -> list[str]:
    """The types of a row's fields, as the table has them."""
    for tables in DIALECTS.values():
        for table in tables:
            for line in table.strip().splitlines():
                code, _, *fields = line.split()
                if int(code) == row.code and tuple(f.split(":")[0] for f in fields) == row.fields:
                    return [f.split(":")[1] for f in fields]
    raise AssertionError(row.name)
