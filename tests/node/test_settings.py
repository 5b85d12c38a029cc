"""ipos.toml: every key, every mistake, and changes that keep what else is in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.node import settings
from ipos.node.machine import MachineLoad, resident
from ipos.node.settings import Disk, change, document, read
from ipos.wire.errors import Refused

OTHER = {
    "name": "attic", "cores": 3, "share": 50, "memory": "8G", "native": False, "listen": "local", "tcp": "127.0.0.1:5640",
    "store_bytes": 1 << 30, "log_bytes": 1 << 20, "bootstrap": ["/ip4/1.2.3.4/tcp/1/p2p/12D3KooWQ"], "relay": "on limit 10M for pool",
}  # fmt: skip
WRONG = {
    "name": ["Attic PC", "x" * 33, 3], "cores": [-1, 2.5, "two", True, 5000], "share": [101, -1, "50"], "memory": ["8 X", 8, "lots", "0"],
    "native": ["yes", 1], "listen": ["wan", 1], "tcp": ["0.0.0.0:1", 5640], "store_bytes": [-1, "1G"], "log_bytes": [1, "4M"],
    "bootstrap": ["/ip4/1.2.3.4/tcp/1", ["1.2.3.4:1"], [3]], "relay": ["yes", "on limit", True],
}  # fmt: skip


def test_without_a_file_everything_has_a_value(tmp_path: Path) -> None:
    found = read(tmp_path / "ipos.toml")
    assert (found.cores, found.share, found.memory_bytes, found.listen, found.disk) == (0, 100, None, "lan", {})
    assert found.name


def test_the_first_file_says_every_key_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ipos.toml"
    path.write_text(document())
    assert tomllib.loads(path.read_text()) == {}
    assert all(f"\n# {name} = " in path.read_text() for name in settings.KEYS)
    assert read(path) == read(tmp_path / "none")


def test_what_is_in_force_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    made = change(tmp_path / "a.toml", OTHER, {"music": Disk("/srv/music", ro=True), "work": Disk("/srv/work")})
    (tmp_path / "b.toml").write_text(document(made))
    assert read(tmp_path / "b.toml") == made == read(tmp_path / "a.toml")


@pytest.mark.parametrize("name", settings.KEYS)
def test_each_key_has_a_right_and_wrong_values(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ipos.toml"
    change(path, {name: OTHER[name]})
    assert getattr(read(path), name) == OTHER[name]
    before = path.read_bytes()
    for wrong in WRONG[name]:
        with pytest.raises(Refused, match=rf"{name} = .*(is not possible; it may be|is not|loopback)"):
            change(path, {name: wrong})
        (tmp_path / "by-hand").write_text(f"{name} = {settings._toml(wrong)}\n")  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(Refused, match=rf"by-hand: {name} = "):
            read(tmp_path / "by-hand")
    assert path.read_bytes() == before


def test_mistakes_have_their_line_and_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "ipos.toml"
    for text, words in (
        ('name = "a"\ncoers = 2\n', "unknown key 'coers'; did you mean 'cores'"),
        ("zebra = 2\n", "unknown key 'zebra'; known are name, cores"),
        ('name = "a"\ncores = = 2\n', "line 2: invalid value"),
        ('name = "a"\ncores', "line 2: "),
        ("disk = 3\n", "[disk] is a table"),
        ('[disk]\nctl = "/srv"\n', "'ctl' cannot be a name"),
        ('[disk]\nmusic = "srv"\n', "does not begin with /"),
        ("[disk]\nmusic = { ro = true }\n", "disk.music"),
    ):
        path.write_text(text)
        with pytest.raises(Refused) as refused:
            read(path)
        assert words in str(refused.value)
        with pytest.raises(Refused):
            change(path, {"cores": 2})
        assert path.read_text() == text, "a damaged file is left as it is"
    path.write_bytes(b'name = "a"\n# \xff\n')
    with pytest.raises(Refused, match="line 2 is not UTF-8"):
        read(path)


def test_a_change_keeps_comments_order_and_links(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text('# mine\nname = "a" # the old one\n\n# share = 100\n[disk] # what I show\nmusic = "/srv/music"\n')
    path = tmp_path / "ipos.toml"
    path.symlink_to(real)
    change(path, {"share": 50, "cores": 2}, {"films": Disk("/srv/films")})
    assert path.is_symlink()
    assert real.read_text() == (
        '# mine\nname = "a" # the old one\n\nshare = 50\ncores = 2\n[disk] # what I show\nmusic = "/srv/music"\nfilms = "/srv/films"\n'
    )
    change(path, {}, {"music": None})
    assert "music" not in real.read_text()


def test_a_file_that_lines_do_not_show_keeps_its_values(tmp_path: Path) -> None:
    path = tmp_path / "ipos.toml"
    path.write_text('memory = """\\\n  8G"""\ndisk.music = "/srv/music"\n')
    change(path, {"share": 50}, {"films": Disk("/srv/films")})
    found = read(path)
    assert (found.memory, found.share, {name: disk.path for name, disk in found.disk.items()}) == (
        "8G", 50, {"music": "/srv/music", "films": "/srv/films"},
    )  # fmt: skip


@given(
    st.lists(st.sampled_from(list(OTHER)), max_size=6),
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([None, Disk("/x"), Disk('/y"\\z', ro=True)])), max_size=6
    ),
)
def test_any_changes_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], disks: list[tuple[str, Disk | None]]
) -> None:
    path = tmp_path_factory.mktemp("toml") / "ipos.toml"
    shown: dict[str, Disk] = {}
    for name in names:
        change(path, {name: OTHER[name]})
    for name, disk in disks:
        change(path, {}, {name: disk})
        if disk is None:
            shown.pop(name, None)
        else:
            shown[name] = disk
    found = read(path)
    assert all(getattr(found, name) == OTHER[name] for name in names)
    assert dict(found.disk) == shown


def test_a_full_disk_and_a_read_only_home_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ipos.toml"
    change(path, {"share": 50})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match="No space left on device; what it held is unchanged"):
        change(path, {"share": 20})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["ipos.toml"]


def test_every_key_is_documented() -> None:
    """docs/config.md has a row for each, in the words that ipos.toml has."""
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    for name, key in settings.KEYS.items():
        assert f"| `{name}` | {key.words} | {key.allowed} |" in page
    assert set(re.findall(r"^\| `(\w+)` ", page, re.M)) == set(settings.KEYS)


def test_what_an_owner_gives_is_what_is_offered(tmp_path: Path) -> None:
    path = tmp_path / "ipos.toml"
    now = change(path, {"cores": 8})
    load = MachineLoad(lambda: now, "desk")
    assert (load.slots, load.declined) == (8, "")
    for share, slots in ((100, 8), (50, 4), (13, 1), (1, 1), (0, 0)):
        now = change(path, {"share": share})
        assert load.slots == slots
    now = change(path, {"native": False, "share": 100})
    assert load.slots == 8, "the engine's tasks may run all the same"
    assert "no native work" in load.declined
    assert load.offered(16 << 30, 4 << 30) == (16 << 30, 4 << 30)
    now = change(path, {"memory": "3G"})
    assert load.offered(16 << 30, 4 << 30) == (3 << 30, 3 << 30)
    assert load.offered(16 << 30, 1 << 30) == (3 << 30, 1 << 30)


def test_memory_of_what_a_process_has_started_counts_without_itself() -> None:
    own = resident([os.getpid()])
    child = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(64 << 20); print(flush=True); input()"], stdin=-1, stdout=-1
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert resident([os.getpid()]) - own >= 64 << 20
        assert resident([child.pid]) == 0
        assert resident([1 << 22]) == 0, "one that has ended"
    finally:
        child.communicate(b"\n")
