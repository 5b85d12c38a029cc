"""A served host directory against a model of a file system: random requests in bursts, every answer and the disk compared."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from nine import Talk, settle

from ipos.tree.local import LocalDir, LocalHandle, local
from ipos.tree.ninep.fids import Fid
from ipos.tree.ninep.session import Session


@dataclass(eq=False)
class Node:
    """A file or directory of the model; who holds one holds it after its name is gone."""

    directory: bool
    body: bytearray = field(default_factory=bytearray)
    entries: dict[str, Node] = field(default_factory=dict)
    gone: bool = False

    def below(self) -> list[Node]:
        return [self, *(node for entry in self.entries.values() for node in entry.below())]


@dataclass
class Held:
    """A fid: its node, and where the session believes it to be."""

    node: Node
    open: bool = False


Answer = tuple[Any, ...] | int  # what an answer begins with, or an errno
NAMES = st.sampled_from(["a", "b", "c"])
FIDS = st.integers(0, 9)  # of those there are; 9 is one that there is not
ORDERED = {"Tlopen", "Tread", "Twrite", "Tclunk", "Tlcreate"}


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp(prefix="t9m"))
        self.loop = asyncio.new_event_loop()
        self.root = Node(True)
        self.fids: dict[int, Held] = {0: Held(self.root)}
        self.talk = Talk(local(self.scratch))
        self.loop.run_until_complete(self.talk.start())
        self.burst: list[tuple[str, tuple[Any, ...], Answer]] = []

    def teardown(self) -> None:
        self.go()
        self.loop.run_until_complete(self.end())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.scratch)

    def later(self, name: str, *values: Any, want: Answer) -> None:
        self.burst.append((name, values, want))

    async def end(self) -> None:
        self.talk.session.reset()
        await settle()

    @rule()
    def go(self) -> None:
        """Send what has been collected: what follows each other on one fid travels at once, for the session promises its order."""
        burst, self.burst = self.burst, []
        while burst:
            together = 1
            while together < len(burst) and all(
                name in ORDERED and values[0] == burst[0][1][0] for name, values, _ in burst[: together + 1]
            ):
                together += 1
            self.loop.run_until_complete(self.at_once(burst[:together]))
            del burst[:together]

    async def at_once(self, burst: list[tuple[str, tuple[Any, ...], Answer]]) -> None:
        self.talk.answers.clear()
        for tag, (name, values, _) in enumerate(burst):
            self.talk.send(tag, name, *values)
        for turn in range(5000):
            if len(self.talk.answers) == len(burst):
                break
            await asyncio.sleep(0.001 if turn > 50 else 0)
        for tag, (name, values, want) in enumerate(burst):
            kind, got = self.talk.answer(tag) or ("", ())
            if isinstance(want, int):
                assert (kind, got[:1]) == ("Rlerror", (want,)), f"{name}{values}: {got}, not {errno.errorcode[want]}"
            else:
                assert kind == "R" + name[1:], f"{name}{values}: {kind} {got}"
                assert got[: len(want)] == want, f"{name}{values}: {got}, not {want}"

    def pick(self, fid: int) -> int:
        return 9 if fid == 9 else sorted(self.fids)[fid % len(self.fids)]

    def held(self, fid: int) -> Held | None:
        return self.fids.get(fid)

    @rule(fid=FIDS, new=st.integers(1, 4), name=NAMES)
    def walk(self, fid: int, new: int, name: str) -> None:
        fid = self.pick(fid)
        held = self.held(fid)
        if held is None or (new != fid and new in self.fids):
            return self.later("Twalk", fid, new, (name,), want=errno.EBADF)
        if new == fid and held.open:
            return self.later("Twalk", fid, new, (name,), want=errno.EBUSY)
        if not held.node.directory:
            return self.later("Twalk", fid, new, (name,), want=errno.ENOTDIR)
        node = held.node.entries.get(name)
        if node is None:
            return self.later("Twalk", fid, new, (name,), want=errno.ENOENT)
        self.fids[new] = Held(node)
        return self.later("Twalk", fid, new, (name,), want=())

    @rule(fid=FIDS, name=NAMES)
    def create(self, fid: int, name: str) -> None:
        fid = self.pick(fid)
        if fid == 0:
            return None
        held = self.held(fid)
        values = (fid, name, os.O_RDWR | os.O_EXCL, 0o644, 0)
        if held is None:
            return self.later("Tlcreate", *values, want=errno.EBADF)
        if not held.node.directory:
            return self.later("Tlcreate", *values, want=errno.ENOTDIR)
        if held.open:
            return self.later("Tlcreate", *values, want=errno.EBUSY)
        if held.node.gone:
            return self.later("Tlcreate", *values, want=errno.ENOENT)
        if name in held.node.entries:
            return self.later("Tlcreate", *values, want=errno.EEXIST)
        node = held.node.entries[name] = Node(False)
        self.fids[fid] = Held(node, open=True)
        return self.later("Tlcreate", *values, want=())

    @rule(fid=FIDS, name=NAMES)
    def mkdir(self, fid: int, name: str) -> None:
        fid = self.pick(fid)
        held = self.held(fid)
        want: Answer = ()
        if held is None:
            want = errno.EBADF
        elif not held.node.directory:
            want = errno.ENOTDIR
        elif held.node.gone:
            want = errno.ENOENT
        elif name in held.node.entries:
            want = errno.EEXIST
        else:
            held.node.entries[name] = Node(True)
        self.later("Tmkdir", fid, name, 0o755, 0, want=want)

    @rule(fid=FIDS)
    def open(self, fid: int) -> None:
        fid = self.pick(fid)
        if fid == 0:
            return
        held = self.held(fid)
        flags = os.O_RDONLY if held is None or held.node.directory else os.O_RDWR
        want: Answer = errno.EBADF if held is None else errno.EBUSY if held.open else ()
        if held is not None:
            held.open = True
        self.later("Tlopen", fid, flags, want=want)

    @rule(fid=FIDS, offset=st.integers(0, 6), data=st.binary(max_size=5))
    def write(self, fid: int, offset: int, data: bytes) -> None:
        fid = self.pick(fid)
        held = self.held(fid)
        if held is None or not held.open:
            return self.later("Twrite", fid, offset, data, want=errno.EBADF)
        if held.node.directory:
            return self.later("Twrite", fid, offset, data, want=errno.EACCES)
        body = held.node.body
        if data:
            body.extend(bytes(max(0, offset - len(body))))
            body[offset : offset + len(data)] = data
        return self.later("Twrite", fid, offset, data, want=(len(data),))

    @rule(fid=FIDS, offset=st.integers(0, 6), count=st.integers(0, 8))
    def read(self, fid: int, offset: int, count: int) -> None:
        fid = self.pick(fid)
        held = self.held(fid)
        if held is None or not held.open:
            return self.later("Tread", fid, offset, count, want=errno.EBADF)
        if held.node.directory:
            return self.later("Tread", fid, offset, count, want=errno.EACCES)
        return self.later("Tread", fid, offset, count, want=(bytes(held.node.body[offset : offset + count]),))

    @rule(fid=FIDS)
    def clunk(self, fid: int) -> None:
        fid = self.pick(fid)
        if fid == 0:
            return
        self.later("Tclunk", fid, want=() if fid in self.fids else errno.EBADF)
        self.fids.pop(fid, None)

    @rule(fid=FIDS, name=NAMES, directory=st.booleans())
    def unlink(self, fid: int, name: str, directory: bool) -> None:
        fid = self.pick(fid)
        held, flags = self.held(fid), 0x200 if directory else 0
        if held is None or not held.node.directory:
            return self.later("Tunlinkat", fid, name, flags, want=errno.EBADF if held is None else errno.ENOTDIR)
        node = held.node.entries.get(name)
        want: Answer = ()
        if node is None:
            want = errno.ENOENT
        elif node.directory != directory:
            want = errno.EISDIR if node.directory else errno.ENOTDIR
        elif node.entries:
            want = errno.ENOTEMPTY
        else:
            held.node.entries.pop(name).gone = True
        return self.later("Tunlinkat", fid, name, flags, want=want)

    @rule(fid=FIDS, name=NAMES, to=FIDS, new=NAMES)
    def rename(self, fid: int, name: str, to: int, new: str) -> None:
        fid = self.pick(fid)
        to = self.pick(to)
        source, target = self.held(fid), self.held(to)
        if source is None or target is None or not source.node.directory or not target.node.directory:
            return
        node, there = source.node.entries.get(name), target.node.entries.get(new)
        want: Answer = ()
        if node is None or target.node.gone:
            want = errno.ENOENT
        elif node is there:
            pass
        elif target.node in node.below():
            want = errno.EINVAL
        elif there is not None and source.node in there.below():
            want = errno.ENOTEMPTY
        elif there is not None and node.directory != there.directory:
            want = errno.ENOTDIR if node.directory else errno.EISDIR
        elif there is not None and there.entries:
            want = errno.ENOTEMPTY
        else:
            if there is not None:
                there.gone = True
            del source.node.entries[name]
            target.node.entries[new] = node
        self.later("Trenameat", fid, name, to, new, want=want)

    @invariant()
    def the_disk_is_as_the_model(self) -> None:
        if self.burst:
            return

        def shown(node: Node) -> Any:
            return {n: shown(e) for n, e in node.entries.items()} if node.directory else bytes(node.body)

        def found(path: Path) -> Any:
            return {p.name: found(p) for p in path.iterdir()} if path.is_dir() else path.read_bytes()

        assert found(self.scratch) == shown(self.root)


FAST = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_the_model() -> None:
    run_state_machine_as_test(Model, settings=FAST)


@pytest.mark.slow
def test_the_model_for_long() -> None:
    run_state_machine_as_test(Model, settings=settings(max_examples=1500, stateful_step_count=60, deadline=None))


@pytest.mark.parametrize(
    "bug", ["a rename that loses what is open", "a write one byte off", "a fid that forgets that it is open"]
)
def test_the_model_can_fail(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug == "a write one byte off":
        right = LocalHandle.write

        async def write(self: LocalHandle, offset: int, data: bytes) -> int:
            return await right(self, offset + 1, data)

        monkeypatch.setattr(LocalHandle, "write", write)
    elif bug == "a fid that forgets that it is open":
        right_fid = Session.fid

        def fid(self: Session, number: int) -> Fid:
            return Fid(right_fid(self, number).path)

        monkeypatch.setattr(Session, "fid", fid)
    else:

        async def rename(self: LocalDir, caller: Any, name: str, to: Any, new: str) -> None:
            shutil.copytree(f"{self._magic}/{name}", f"{to._magic}/{new}", dirs_exist_ok=True)
            shutil.rmtree(f"{self._magic}/{name}")

        monkeypatch.setattr(LocalDir, "rename", rename)
    model = Model()
    with pytest.raises(AssertionError):
        for step in (
            lambda: model.mkdir(0, "a"), lambda: model.walk(0, 1, "a"), lambda: model.walk(0, 2, "a"), lambda: model.create(2, "b"),
            lambda: model.write(2, 0, b"x"), model.go, lambda: model.rename(0, "a", 0, "c"), lambda: model.write(2, 1, b"y"),
            model.go, model.the_disk_is_as_the_model,
        ):  # fmt: skip
            step()
    model.burst.clear()
    model.teardown()
