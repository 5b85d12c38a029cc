"""Files seen through a namespace, against a model that is Plan 9's: mounts are known by the files themselves, not by their names."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from nine import ME, Talk, settle

from ipos.tree.file import DIRECTORY, File
from ipos.tree.local import local
from ipos.tree.namespace import Member, Order, Table, parse
from ipos.tree.union import Namespace, Seen
from ipos.wire import limits
from ipos.wire.errors import Gone, Refused

# ---- the model


@dataclass(eq=False)
class Node:
    entries: dict[str, Node] | None = None  # None: a file
    body: bytes = b""


Union = list[tuple[Node, bool]]


@dataclass
class World:
    """What one attach sees."""

    root: Node
    mounts: dict[Node, Union] = field(default_factory=dict[Node, Union])

    def fork(self) -> World:
        return World(self.root, {node: list(union) for node, union in self.mounts.items()})

    def crossed(self, node: Node) -> Union:
        return self.mounts.get(node) or [(node, True)]

    def entry(self, union: Union, name: str) -> Node | None:
        return next(
            (node.entries[name] for node, _ in union if node.entries is not None and name in node.entries), None
        )

    def find(self, names: tuple[str, ...], cross: bool = True) -> Union | None:
        """The original of the last name, without `cross`."""
        if not names:
            return self.crossed(self.root) if cross else [(self.root, True)]
        union = self.crossed(self.root)
        for i, name in enumerate(names):
            node = self.entry(union, name)
            if node is None:
                return None
            if i + 1 == len(names) and not cross:
                return [(node, True)]
            union = self.crossed(node)
        return union

    def bind(self, new: tuple[str, ...], old: tuple[str, ...], order: str, create: bool) -> bool:
        found, on = self.find(new), self.find(old, cross=False)
        if found is None or on is None:
            return False
        node = on[0][0]
        if (found[0][0].entries is None) != (node.entries is None):
            return False
        if node.entries is None and (order or create):
            return False
        if create and (len(found) > 1 or not found[0][1]):
            return False
        added = [(found[0][0], create), *((member, False) for member, _ in found[1:])]
        was = self.mounts.get(node, [(node, False)] if order else [])
        self.mounts[node] = added if not order else added + was if order == "b" else was + added
        return True

    def unmount(self, new: tuple[str, ...] | None, old: tuple[str, ...]) -> bool:
        on = self.find(old, cross=False)
        found = [[]] if new is None else [self.find(new, cross=False), self.find(new)]
        if on is None or (node := on[0][0]) not in self.mounts or None in found:
            return False
        if new is None:
            del self.mounts[node]
            return True
        mounted = [member for member, _ in self.mounts[node]]
        gone = next((member for union in found for member, _ in union or [] if member in mounted), None)
        if gone is None:
            return False
        del self.mounts[node][mounted.index(gone)]
        if self.mounts[node] in ([], [(node, False)]):
            del self.mounts[node]
        return True


# ---- the machine

NAMES = ("a", "b", "f")
PLACES = [("a",), ("b",), ("f",), ("a", "a"), ("a", "b"), ("b", "a"), ("a", "f"), ("b", "f")]
WALKS = st.sampled_from(PLACES) | st.lists(st.sampled_from((*NAMES, "..")), max_size=4).map(tuple)


def clean(names: tuple[str, ...]) -> tuple[str, ...]:
    out = list[str]()
    for name in names:
        if name == "..":
            del out[-1:]
        else:
            out.append(name)
    return tuple(out)


class Machine(RuleBasedStateMachine):
    """Two attaches of one tree: `a/ b/` with directories `a`, `b` and a file `f` in each. What the one mounts the other does not see."""

    fork: Callable[[Namespace], Namespace] = Namespace.fork

    def __init__(self) -> None:
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp(prefix="t9n"))
        self.loop = asyncio.new_event_loop()
        root = self.grown(self.scratch, 2, "")
        self.first = Namespace(local(self.scratch))
        self.seen = [self.first, type(self).fork(self.first)]
        self.worlds = [World(root), World(root)]
        self.talks = [Talk(namespace.root) for namespace in self.seen]
        for talk in self.talks:
            self.loop.run_until_complete(talk.start())
        self.fids = 0

    def grown(self, at: Path, depth: int, where: str) -> Node:
        (at / "f").write_text(f"{where}/f")
        node = Node({"f": Node(None, f"{where}/f".encode())})
        for name in ("a", "b") if depth else ():
            (at / name).mkdir()
            assert node.entries is not None
            node.entries[name] = self.grown(at / name, depth - 1, f"{where}/{name}")
        return node

    def teardown(self) -> None:
        self.loop.run_until_complete(self.end())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.scratch)

    async def end(self) -> None:
        for talk in self.talks:
            talk.session.reset()
        await settle()

    def ask(self, who: int, name: str, *values: Any) -> tuple[Any, ...]:
        return self.loop.run_until_complete(self.talks[who].ask(name, *values))

    def told(self, who: int, text: str) -> bool:
        said = ""
        try:
            self.loop.run_until_complete(self.seen[who].change(text))
        except Refused as refused:
            said = str(refused)
        assert said == "" or said.startswith("line 1: ")
        return said == ""

    @rule(who=st.integers(0, 1), new=WALKS, old=WALKS, order=st.sampled_from(["", "", "b", "a"]), create=st.booleans())
    def bind(self, who: int, new: tuple[str, ...], old: tuple[str, ...], order: str, create: bool) -> None:
        world = self.worlds[who]
        flags = order + ("c" if create else "")
        line = f"bind {'-' + flags if flags else ''} /{'/'.join(new)} /{'/'.join(old)}"
        assert self.told(who, line) == world.bind(clean(new), clean(old), order, create), line
        self.look(who, old)

    @rule(who=st.integers(0, 1), new=st.none() | WALKS, old=WALKS)
    def unmount(self, who: int, new: tuple[str, ...] | None, old: tuple[str, ...]) -> None:
        line = f"unmount {'' if new is None else '/' + '/'.join(new)} /{'/'.join(old)}"
        wanted = self.worlds[who].unmount(None if new is None else clean(new), clean(old))
        assert self.told(who, line) == wanted, line
        self.look(who, old)

    @rule(who=st.integers(0, 1), names=WALKS)
    def look(self, who: int, names: tuple[str, ...]) -> None:
        """A walk goes through what it names, also on its way back up."""
        world = self.worlds[who]
        want: Union | None = None
        for i in range(len(names) + 1):
            want = world.find(clean(names[:i]))
            if want is None or (want[0][0].entries is None and names[i : i + 1] not in ((), ("..",))):
                want = None
                break
        self.fids += 1
        got = self.ask(who, "Twalk", 0, self.fids, names)
        if got[0] == "Rlerror" or len(got[0]) < len(names):
            assert want is None, f"{names}: {got}"
            return
        assert want is not None, f"{names} is there, {got}"
        node = want[0][0]
        assert not got[0] or bool(got[0][-1].type & DIRECTORY) == (node.entries is not None)
        assert self.ask(who, "Tlopen", self.fids, os.O_RDONLY)[0] != "Rlerror"
        if node.entries is None:
            assert self.ask(who, "Tread", self.fids, 0, 100)[0] == node.body
        else:
            listed = self.loop.run_until_complete(self.talks[who].session.opened(self.fids).entries())
            assert len({name for name, _ in listed}) == len(listed), f"{names} lists a name twice"
            wanted = {name for member, _ in want for name in member.entries or ()}
            assert {name for name, _ in listed} == wanted
            kinds = {name: bool(file.qid.type & DIRECTORY) for name, file in listed}
            for name in wanted:
                entry = world.entry(want, name)
                assert entry is not None
                assert kinds[name] == (world.crossed(entry)[0][0].entries is not None)
        self.ask(who, "Tclunk", self.fids)

    @rule(who=st.integers(0, 1), names=WALKS, name=st.sampled_from([*NAMES, "n"]))
    def create(self, who: int, names: tuple[str, ...], name: str) -> None:
        names = clean(names)
        world = self.worlds[who]
        want = world.find(names)
        self.fids += 1
        got = self.ask(who, "Twalk", 0, self.fids, names)
        if want is None or want[0][0].entries is None:
            self.ask(who, "Tclunk", self.fids)
            return
        body = f"{self.fids}".encode()
        got = self.ask(who, "Tlcreate", self.fids, name, os.O_WRONLY | os.O_TRUNC, 0o644, 0)
        there = world.entry(want, name)
        if there is not None:
            there = world.crossed(there)[0][0]
            wanted = errno.EEXIST if there.entries is not None else 0
        else:
            maker = next((member for member, create in want if create), None)
            wanted = errno.EPERM if maker is None else 0
            if maker is not None:
                assert maker.entries is not None
                there = maker.entries[name] = Node()
        failed = got[1] if got[0] == "Rlerror" else 0
        if wanted == errno.EEXIST:  # a host directory says that it is one
            assert failed in (errno.EEXIST, errno.EISDIR), f"{names} {name}: {got}"
        else:
            assert failed == wanted, f"{names} {name}: {got}"
        if there is not None and not failed:
            assert self.ask(who, "Twrite", self.fids, 0, body) == (len(body),)
            there.body = body
        self.ask(who, "Tclunk", self.fids)

    @rule(who=st.integers(0, 1))
    def reread(self, who: int) -> None:
        """Its text is all of a namespace."""
        namespace = self.seen[who]
        fresh = Namespace(namespace.bare)
        self.loop.run_until_complete(fresh.change(str(namespace.table)))
        assert fresh.table == namespace.table


SETTINGS = settings(max_examples=50, stateful_step_count=20, suppress_health_check=list(HealthCheck))
TestMachine = Machine.TestCase
TestMachine.settings = SETTINGS


# ---- it can fail


def appended(self: Table, line: Any, new: tuple[Member, ...], old: tuple[str, ...]) -> Table:
    return _bind(self, line._replace(order=Order.AFTER) if line.order is Order.BEFORE else line, new, old)


def crossing(self: Table, path: Any, cross: bool = True) -> Any:
    return _found(self, path)


async def anywhere(self: Seen) -> Any:
    members = self.namespace.table.heads.get(self.place) or (Member(self.place),)
    return members[0].place, await self.namespace.file(members[0].place)


async def twice(self: Any) -> Any:
    return [entry for member in self._members for entry in await self._list(member.place)]


_bind, _found = Table.bind, Table.found


@pytest.mark.parametrize(
    ("where", "name", "bug"),
    [
        (Table, "bind", appended),
        (Table, "found", crossing),
        (Seen, "_maker", anywhere),
        ("ipos.tree.union._Union", "entries", twice),
        (Machine, "fork", staticmethod(lambda namespace: namespace)),
    ],
    ids=["-b appends", "old is crossed", "made in the first", "a name twice", "fork shares"],
)
def test_the_machine_finds_planted_bugs(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, bug: Any) -> None:
    if isinstance(where, str):
        monkeypatch.setattr(f"{where}.{name}", bug)
    else:
        monkeypatch.setattr(where, name, bug)
    generous = settings(SETTINGS, max_examples=400, phases=[Phase.generate], derandomize=True, print_blob=False)
    with pytest.raises((AssertionError, ValueError, ExceptionGroup)):
        run_state_machine_as_test(Machine, settings=generous)


# ---- what the machine does not do


class Away(File):
    """A directory of a machine that is out of reach."""

    qid = local(Path("/")).qid

    async def walk(self, name: str) -> File:
        raise Gone("attic is out of reach: it sleeps")

    async def open(self, caller: Any, flags: int) -> Any:
        raise Gone("attic is out of reach: it sleeps")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in-{name}").write_text(name)
    return tmp_path


def test_a_member_out_of_reach_is_passed_over_and_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = Namespace(local(tree))
    real = Namespace.file

    async def file(self: Namespace, place: tuple[str, ...]) -> File:
        return Away() if place == ("y",) else await real(self, place)

    async def main() -> None:
        await namespace.change("bind -b /y /x")
        monkeypatch.setattr(Namespace, "file", file)
        union = await namespace.root.walk("x")
        await union.walk("in-x")
        listed = await (await union.open(ME, os.O_RDONLY)).entries()
        assert [name for name, _ in listed] == ["in-x"]
        with pytest.raises(Gone, match="attic is out of reach"):
            await union.walk("in-y")

    asyncio.run(main())


def test_a_file_stands_for_a_file(tree: Path) -> None:
    namespace = Namespace(local(tree))

    async def body(*names: str) -> bytes:
        file: File = namespace.root
        for name in names:
            file = await file.walk(name)
        handle = await file.open(ME, os.O_RDONLY)
        try:
            return await handle.read(0, 100)
        finally:
            await handle.close()

    async def main() -> None:
        await namespace.change("bind /x/in-x /y/in-y")
        assert await body("y", "in-y") == await body("x", "in-x") == b"x"
        with pytest.raises(Refused, match="/y/in-y is a file: -a, -b and -c are for directories"):
            await namespace.change("bind -a /x/in-x /y/in-y")
        with pytest.raises(Refused, match="/y/in-y is a file and /x a directory"):
            await namespace.change("bind /x /y/in-y")
        await namespace.change("unmount /x/in-x /y/in-y")
        assert await body("y", "in-y") == b"y"

    asyncio.run(main())


def test_mount_points_are_not_removed_nor_renamed(tree: Path) -> None:
    namespace = Namespace(local(tree))

    async def main() -> None:
        await namespace.change("bind /x/in-x /y/in-y")
        directory = await namespace.root.walk("y")
        assert isinstance(directory, Seen)
        for refused in (
            directory.remove(ME, "in-y", False),
            namespace.root.rename(ME, "y", namespace.root, "z"),
            namespace.root.rename(ME, "x", directory, "in-y"),
        ):
            with pytest.raises(Refused) as error:
                await refused
            assert error.value.errno == errno.EBUSY
        await namespace.change("unmount /y/in-y")
        await directory.rename(ME, "in-y", namespace.root, "moved")
        await namespace.root.remove(ME, "moved", False)

    asyncio.run(main())
    assert sorted(os.listdir(tree)) == ["x", "y"]


def test_a_text_is_done_as_a_whole_or_not_at_all(tree: Path) -> None:
    namespace = Namespace(local(tree))

    async def main() -> None:
        for text, line in (
            ("bind /x /y\nbind /x /z", 2),
            ("bind -a /x /y\n\nbind /x/in-x /y", 3),
            ("bind /x /y\nbong", 2),
        ):
            with pytest.raises(Refused, match=f"line {line}: "):
                await namespace.change(text)
            assert namespace.table == Table()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\0b", "n" * 256, "ü" * 128])
def test_hostile_names(tree: Path, name: str) -> None:
    """Neither a walk nor a command leaves the tree, in a union either."""

    async def main() -> None:
        namespace = Namespace(local(tree / "x"))
        await namespace.change("bind -ac / /")
        talk = await Talk(namespace.root).start()
        if name not in ("..", "."):
            assert (await talk.ask("Twalk", 0, 1, (name,)))[0] == "Rlerror"
        await talk.ask("Twalk", 0, 2, ())
        assert (await talk.ask("Tlcreate", 2, name, os.O_WRONLY, 0o644, 0))[0] == "Rlerror"
        await talk.ask("Twalk", 0, 3, ("..", "..", ".."))
        assert [entry async for entry in entries(talk, 3)] == ["in-x"]

    asyncio.run(main())


async def entries(talk: Talk, fid: int) -> Any:
    await talk.ask("Tlopen", fid, os.O_RDONLY)
    for name, _ in await talk.session.opened(fid).entries():
        yield name


def test_a_fid_walked_before_a_bind_meets_what_was_bound(tree: Path) -> None:
    namespace = Namespace(local(tree))

    async def main() -> None:
        talk = await Talk(namespace.root).start()
        await talk.ask("Twalk", 0, 1, ("x",))
        await namespace.change("bind -a /y /x")
        assert len((await talk.ask("Twalk", 1, 2, ("in-y",)))[0]) == 1
        await namespace.change("clear")
        assert (await talk.ask("Twalk", 1, 3, ("in-y",)))[0] == "Rlerror"

    asyncio.run(main())


def test_what_is_read_again_needs_nothing_of_the_tree() -> None:
    """The home's table is there before what it names is."""

    async def main() -> None:
        namespace = Namespace(Away())
        table = Table()
        for line in parse("bind -a /srv/x /home\nbind /n/attic/home /home/attic"):
            table = await namespace.apply(table, line, look=False)
        assert len(table.heads) == 2

    with pytest.raises(Gone):  # /home is a union: which of the two has `attic`?
        asyncio.run(main())
    assert limits.union_members > 1
