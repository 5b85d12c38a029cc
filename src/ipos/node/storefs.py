"""/store: what of this node's store is pinned, how large it is; adding, importing, exporting, garbage collection (docs/tree.md)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ipos.store import adding, car, gc, unixfs
from ipos.store import cid as c
from ipos.store.pack import PackStore
from ipos.store.pins import Pin, Visibility
from ipos.tree.file import Caller
from ipos.tree.synthetic import Dir, Text
from ipos.tree.work import Say, Work
from ipos.wire import limits
from ipos.wire.errors import Refused
from ipos.wire.text import lines

if TYPE_CHECKING:
    from ipos.node.daemon import Node

log = logging.getLogger("ipos.store")
FULL: float = 0.9  # of `store_bytes`: from here on garbage is collected without being asked for
LOOK_S: float = 10.0
REMEDY = "ipos store gc, unpin something (ipos store pins), or raise store_bytes in ipos.toml"
Q = TypeVar("Q", bound=msgspec.Struct)


class Add(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """/store/add. `paths`: absolute; `why`: of the pins."""

    paths: tuple[str, ...]
    profile: str = "unixfs-v1-2025"
    nocopy: bool = False
    visibility: str = "private"
    why: str = ""


class Car(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """/store/import, /store/export: `path` of the file, absolute; `cids`: the roots to export."""

    path: str
    cids: tuple[str, ...] = ()
    visibility: str = "private"


def _question(kind: type[Q], caller: Caller, body: bytes) -> Q:
    if not caller.local:
        raise Refused("the store is changed by its owner, on the node's own socket", 1)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise Refused(f"not a question to the store: {error}") from None


class StoreFiles:
    """Made for one node, over its packs. `most`: the bytes it may have, 0 = as the disk has."""

    def __init__(self, node: Node, packs: PackStore, most: int) -> None:
        self._node = node
        self._packs = packs
        self._most = most
        self._collecting = asyncio.Lock()

    def dir(self) -> Dir:
        return Dir(
            {
                "status": Text(self._status),
                "pins": Text(self._pins),
                "ctl": Text(None, self._ctl),
                "add": Work(self._add, limits.ctl_line_bytes),
                "import": Work(self._import, limits.ctl_line_bytes),
                "export": Work(self._export, limits.ctl_line_bytes),
                "gc": Work(self._gc, limits.ctl_line_bytes),
            }
        )

    async def _status(self) -> str:
        figures = await self._node.offload(self._packs.figures)
        pins = await self._node.offload(self._node.pins.list)
        return lines({**figures, "pins": len(pins), "limit_bytes": self._most or None})

    async def _pins(self) -> str:
        def work() -> str:
            return "".join(msgspec.json.encode(self._pin(pin)).decode() + "\n" for pin in self._node.pins.list())

        return await self._node.offload(work)

    def _pin(self, pin: Pin) -> dict[str, Any]:
        try:
            size = unixfs.total(self._node.store, pin.root)
        except Refused:
            size = None
        shown = {"cid": c.text(pin.root), "why": pin.why, "visibility": pin.visibility.word}
        return {**shown, "since": pin.since, "bytes": size}

    async def _ctl(self, caller: Caller, line: str) -> None:
        if not caller.local:
            raise Refused("the store is changed by its owner, on the node's own socket", 1)
        pins = self._node.pins
        match line.split(maxsplit=3):
            case ["pin", cid, visibility, *why]:
                root, level = c.parse(cid), Visibility.named(visibility)
                await self._node.offload(
                    lambda: pins.pin("".join(why) or "ipos store pin", [root], level, durable=True)
                )
            case ["unpin", cid]:
                root = c.parse(cid)
                if not await self._node.offload(lambda: pins.unpin(None, root)):
                    raise Refused(f"{cid} is not pinned: ipos store pins lists what is")
            case ["unpin", "why", *rest]:
                why = " ".join(rest)
                if not await self._node.offload(lambda: pins.unpin(why)):
                    raise Refused(f"nothing is pinned for {why!r}: ipos store pins lists the reasons")
            case []:
                pass
            case _:
                raise Refused(
                    f"{line!r} is not a command of /store/ctl; it knows pin CID VISIBILITY [WHY], unpin CID, unpin why WHY"
                )

    # ---- add

    async def _add(self, caller: Caller, body: bytes, say: Say) -> None:
        asked = _question(Add, caller, body)
        level = Visibility.named(asked.visibility)
        if not asked.paths or not all(os.path.isabs(path) for path in asked.paths):
            raise Refused("absolute paths of what is to be added were expected")
        used = await self._node.offload(self._packs.used)
        question = adding.Question(
            str(self._packs.directory), asked.paths, asked.profile, asked.nocopy, self._most, used, REMEDY
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", "ipos.store.adding", limit=limits.MiB,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            added = await self._added(process, msgspec.json.encode(question), say)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())

        def pin() -> None:
            self._packs.take_in(synced=True)
            for line in added:
                why = asked.why or f"ipos add {line['path']}"
                self._node.pins.pin(why, [c.parse(line["cid"])], level, durable=True)

        await self._node.offload(pin)
        for line in added:
            say(line)

    @staticmethod
    async def _added(process: asyncio.subprocess.Process, question: bytes, say: Say) -> list[dict[str, Any]]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(question)
        process.stdin.close()
        added: list[dict[str, Any]] = []
        async for line in process.stdout:
            said = msgspec.json.decode(line)
            if "done" in said:
                return added
            if "refused" in said:
                raise Refused(said["refused"])
            if "cid" in said:
                added.append(said)
            else:
                say(said)
        raise Refused("the process that adds was killed: nothing is pinned, add again")

    # ---- CAR files

    async def _import(self, caller: Caller, body: bytes, say: Say) -> None:
        asked = _question(Car, caller, body)
        level = Visibility.named(asked.visibility)

        def work(stop: Callable[[], bool]) -> dict[str, object]:
            took = car.take(Path(asked.path), self._node.store, stop)
            self._node.pins.pin(f"ipos store import {asked.path}", took.tops, level, durable=True)
            return {"roots": [c.text(root) for root in took.roots], "blocks": took.blocks, "bytes": took.bytes}

        say(await self._stoppable(work))

    async def _export(self, caller: Caller, body: bytes, say: Say) -> None:
        asked = _question(Car, caller, body)
        roots = [c.parse(cid) for cid in asked.cids]

        def work(stop: Callable[[], bool]) -> dict[str, object]:
            count = _write_car(Path(asked.path), roots, self._node, stop)
            return {"roots": [c.text(root) for root in roots], "path": asked.path, "bytes": count}

        say(await self._stoppable(work))

    async def _stoppable(self, work: Callable[[Callable[[], bool]], Any]) -> Any:
        """In a thread; when this is cancelled, the work is told to stop, and has stopped."""
        cancelled = False
        task = asyncio.ensure_future(self._node.offload(lambda: work(lambda: cancelled)))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
            await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()
            raise

    # ---- garbage

    async def _gc(self, caller: Caller, body: bytes, say: Say) -> None:
        _question(msgspec.defstruct("Nothing", []), caller, body)
        got = await self.collect()
        for trouble in got.troubles:
            say({"trouble": trouble})
        say({"blocks": got.blocks, "bytes": got.bytes, "packs": got.packs})

    async def collect(self) -> gc.Collected:
        async with self._collecting:
            await self._node.offload(self._packs.take_in)
            got: gc.Collected = await self._stoppable(lambda stop: gc.collect(self._packs, self._node.pins, stop=stop))
        log.info("garbage: %d blocks of %d bytes, %d packs", got.blocks, got.bytes, got.packs)
        for trouble in got.troubles:
            log.warning("%s", trouble)
        return got

    async def watch(self) -> None:
        """Collect garbage when the store is nearly as large as it may be, not again before it has grown; and, always, rewrite packs that
        are mostly blocks of saves that have been replaced."""
        after = 0
        while True:
            await self._node.clock.sleep(LOOK_S)
            try:
                await self._stoppable(self._packs.compact)
                used = await self._node.offload(self._packs.used)
                if self._most and used > max(self._most * FULL, after):
                    await self.collect()
                    after = await self._node.offload(self._packs.used) + self._most // 100
            except Refused as refused:  # a full disk: the next look may find it otherwise
                log.warning("the store was not tidied: %s", refused)


def _write_car(path: Path, roots: Iterable[bytes], node: Node, stop: Callable[[], bool]) -> int:
    """Whole or not at all."""
    if not path.parent.is_dir():
        raise Refused(f"{path}: there is no such directory to write the CAR to")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".ipos-", delete=False) as out:
            try:
                count = car.write_all(out, list(roots), node.store, stop)
                os.fsync(out.fileno())
                os.replace(out.name, path)
            except BaseException:
                os.unlink(out.name)
                raise
    except OSError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path} cannot be written: {os.strerror(error.errno or 0)}") from None
    return count
