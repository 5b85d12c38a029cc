"""A program's files from the text of a namespace: one CID, made of what cannot change."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.pool import rootfs
from ipos.pool.records import Task
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.tree.file import Caller, File
from ipos.tree.synthetic import Text
from ipos.wire.errors import Refused

ME = Caller("0x1", "me", own=True, local=True)


def added(store: MemoryStore, tree: dict[str, object]) -> bytes:
    """{"d": {"f": "content"}} as a directory of the store."""
    links = list[unixfs.Link]()
    for name, value in tree.items():
        cid = added(store, value) if isinstance(value, dict) else unixfs.add_bytes(store, str(value).encode())  # pyright: ignore[reportUnknownArgumentType]
        links.append(unixfs.Link(cid, name, unixfs.total(store, cid)))
    return unixfs.add_links(store, links)


def listed(store: MemoryStore, cid: bytes) -> dict[str, object]:
    return {
        link.name: listed(store, link.cid) if unixfs.is_dir(store, link.cid) else unixfs.read(store, link.cid).decode()
        for link in unixfs.entries(store, cid)
    }


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def put(store: MemoryStore, tree: dict[str, object]) -> str:
    return "/ipfs/" + c.text(added(store, tree))


def test_what_is_bound_is_seen_and_nothing_else(store: MemoryStore) -> None:
    x = put(store, {"in": {"f": "1"}, "g": "2"})
    made = rootfs.compose(store, f"# mine\nbind {x}/in /data/deep\nbind {x}/g /g\n")
    assert listed(store, made) == {"data": {"deep": {"f": "1"}}, "g": "2"}
    assert listed(store, rootfs.compose(store, "")) == {}


def test_unions_are_merged_in_order(store: MemoryStore) -> None:
    x, y = put(store, {"a": "x", "d": {"x": "1"}}), put(store, {"a": "y", "b": "y", "d": {"y": "1"}})
    after = rootfs.compose(store, f"bind {x} /data\nbind -a {y} /data")
    assert listed(store, after) == {"data": {"a": "x", "b": "y", "d": {"x": "1"}}}
    before = rootfs.compose(store, f"bind {x} /data\nbind -b {y} /data")
    assert listed(store, before) == {"data": {"a": "y", "b": "y", "d": {"y": "1"}}}
    assert listed(store, rootfs.compose(store, f"bind {x} /\nbind -a {y} /")) == {"a": "x", "b": "y", "d": {"x": "1"}}


def test_below_what_is_bound_and_by_every_way(store: MemoryStore) -> None:
    x, y = put(store, {"d": {"f": "x"}, "e": "x"}), put(store, {"g": "y"})
    made = rootfs.compose(store, f"bind {x} /p\nbind {y} /p/d\nbind {x} /q\nbind {y}/g /p/new/g")
    assert listed(store, made) == {
        "p": {"d": {"g": "y"}, "e": "x", "new": {"g": "y"}},
        "q": {"d": {"g": "y"}, "e": "x", "new": {"g": "y"}},
    }


def test_what_was_bound_can_be_bound_and_unmounted(store: MemoryStore) -> None:
    x, y = put(store, {"f": "x"}), put(store, {"g": "y"})
    made = rootfs.compose(store, f"bind {x} /a\nbind /a /b\nbind -a {y} /b\nunmount {x} /b\nbind {y} /c\nunmount /c")
    assert listed(store, made) == {"a": {"f": "x"}, "b": {"g": "y"}}


@given(st.permutations(["bind {x} /a", "bind -a {y} /b", "bind {x}/d /c/d", "bind {y} /e"]), st.booleans())
def test_equal_namespaces_are_one_directory(lines: list[str], spaced: bool) -> None:
    store = MemoryStore()
    x, y = put(store, {"f": "x", "d": {"k": "1"}}), put(store, {"g": "y"})
    text = ("\n# and\n\n" if spaced else "\n").join(lines).format(x=x, y=y)
    same = f"bind {y} /e\nbind {x}/d /c/d\nbind {y} /b\nbind {x} /a"
    assert rootfs.compose(store, text) == rootfs.compose(store, same)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bind {x} /a\nbind /home/x /data", "line 2: /home/x can change, .* ipos add it first"),
        ("bind /n/attic/home /data", "line 1: /n/attic/home can change"),
        ("mount /srv/clock /data", "line 1: /srv/clock: what a file server gives can change"),
        ("bind /data /b", "line 1: /data can change"),
        ("bind /ipfs /b", "line 1: /ipfs: bind one thing of it"),
        ("bind {x} /ipfs", "line 1: /ipfs: nothing is mounted there"),
        ("bind {x}/nothing /b", "line 1: .* has no entry 'nothing'"),
        ("bind /ipfs/notacid /b", "line 1: "),
        ("bind {x} /b\n\nbong", "line 3: 'bong' is not a command"),
        ("bind {x}/f /", "a file is bound to /"),
        ("bind {x} /a\nbind / /a/b", "is bound into itself"),
        ("bind {x} /a\nbind {x} /a/f/g", "is not a directory"),
        ("unmount /a", "line 1: /a: nothing is mounted there"),
    ],
)
def test_refusals(store: MemoryStore, text: str, words: str) -> None:
    x = put(store, {"f": "x", "d": {"k": "1"}})
    with pytest.raises(Refused, match=words):
        rootfs.compose(store, text.format(x=x))


def test_content_that_is_not_all_here(store: MemoryStore) -> None:
    x = put(store, {"d": {"f": "content"}})
    half = MemoryStore()
    for name in ((), ("d",)):
        cid = unixfs.resolve(store, c.parse(x.removeprefix("/ipfs/")), name)
        half.put([(cid, store.get(cid))])
    with pytest.raises(Refused, match=r"1 of its blocks are not on this machine: ipos get"):
        rootfs.compose(half, f"bind {x} /a")


def test_a_tasks_namespace_makes_its_root_again(store: MemoryStore) -> None:
    x = put(store, {"f": "x", "a b": {"it's": "1"}})
    files = {link.name: link.cid for link in unixfs.entries(store, rootfs.compose(store, f"bind {x} /"))}
    task = Task(program=c.parse(x.removeprefix("/ipfs/")), name="p", files=files, platform="wasm:1")
    assert rootfs.compose(store, rootfs.text(task)) == rootfs.compose(store, f"bind {x} /")
    native = rootfs.text(Task(program=task.program, name="p", files={"a\nb": task.program}))
    assert native.startswith("# a native program sees the files of its machine")
    assert "such a name cannot be written here" in native


def test_the_root_of_a_task_is_a_directory() -> None:
    cids = {"f": b"1", "g": b"2"}

    async def content(cid: bytes) -> File:
        return Text(lambda: cid)

    async def main() -> None:
        root = rootfs.Root(cids, content)
        listed = await (await root.open(ME, 0)).entries()
        assert [name for name, _ in listed] == ["f", "g"]
        assert await (await (await root.walk("g")).open(ME, 0)).read(0, 9) == b"2"
        with pytest.raises(Refused, match="no such file"):
            await root.walk("h")
        with pytest.raises(Refused):
            await root.open(ME, 1)

    asyncio.run(main())
