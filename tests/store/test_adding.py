"""ipos add's process: Kubo's CIDs, its order of things, files in place, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ipos.store import adding, unixfs
from ipos.store import cid as c
from ipos.store.adding import Question
from ipos.store.blocks import MemoryStore
from ipos.store.dagpb import block_of
from ipos.store.pack import PackStore
from ipos.store.reading import Reader
from ipos.wire.errors import BadRecord, Refused

# as Kubo 0.39.0 answers `ipfs add -r -H --cid-version=1 --raw-leaves` with --chunker and --max-file-links of the profile
KUBO: dict[str, str] = json.loads((Path(__file__).parent / "kubo.json").read_text())


def tree(directory: Path) -> Path:
    """What the CIDs of kubo.json are of."""
    dice = random.Random(5)
    root = directory / "tree"
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "none").write_bytes(b"")
    (root / ".hidden").write_text("hidden\n")
    (root / "Grüße.txt").write_text("Grüße\n")
    (root / "sub" / "tool").write_text("#!/bin/sh\n")
    (root / "sub" / "tool").chmod(0o755)
    (root / "sub" / "deeper" / "large").write_bytes(dice.randbytes(2_700_000))
    (root / "link").symlink_to("sub/tool")
    (root / "sub" / "dangling").symlink_to("/nowhere")
    for i in range(40):
        (root / "sub" / f"{i}").write_bytes(dice.randbytes(i * 37))
    return root


def add(store: Path, *paths: Path, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, object]]]:
    said: list[dict[str, object]] = []
    adding.add(Question(str(store), tuple(map(str, paths)), **options), said.append)
    return [line for line in said if "cid" in line], said


@pytest.mark.parametrize("profile", unixfs.PROFILES)
@pytest.mark.parametrize("nocopy", [False, True])
def test_the_cids_are_kubos(profile: str, nocopy: bool, tmp_path: Path) -> None:
    root = tree(tmp_path)
    (whole, large, link), _ = add(
        tmp_path / "store", root, root / "sub" / "deeper" / "large", root / "link", profile=profile, nocopy=nocopy
    )
    assert whole["cid"] == KUBO[f"{profile} tree"]
    assert large["cid"] == KUBO[f"{profile} large"]
    assert link["cid"] == KUBO[f"{profile} link"]
    store = PackStore(tmp_path / "store")
    unixfs.export(store, c.parse(whole["cid"]), tmp_path / "back")
    assert subprocess.run(["diff", "-r", "--no-dereference", root, tmp_path / "back"], check=False).returncode == 0
    assert whole["size"] == unixfs.total(store, c.parse(whole["cid"]))
    if nocopy:
        assert store.used() < 100_000


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    (root / "a").write_text("a")
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(root)
        one.bind("socket")
        os.mkfifo("pipe")
        _, said = add(tmp_path / "store", root)
    assert {Path(str(line["left_out"])).name for line in said if "left_out" in line} == {"socket", "pipe"}


def test_refusals(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(Refused, match="none cannot be read: No such file or directory"):
        add(store, tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="pipe is no file, directory or symbolic link"):
        add(store, tmp_path / "pipe")
    with pytest.raises(Refused, match="'best' is no profile: there are unixfs-v1-2025, legacy-cid-v1"):
        add(store, tmp_path, profile="best")
    deep = tmp_path / "deep"
    deep.joinpath(*["d"] * 70).mkdir(parents=True)
    with pytest.raises(Refused, match="directories nested deeper than 64"):
        add(store, deep)
    many = tmp_path / "many"
    many.mkdir()
    for i in range(4000):
        (many / f"a file with a rather long name {i}").touch()
    with pytest.raises(Refused, match="4000 entries are more than one directory block holds"):
        add(store, many)


def test_a_file_that_changes_after_it_was_added_in_place(tmp_path: Path) -> None:
    photo = tmp_path / "photo"
    photo.write_bytes(random.Random(1).randbytes(3_000_000))
    ((line,), _) = add(tmp_path / "store", photo, nocopy=True)
    store = PackStore(tmp_path / "store")
    cid = c.parse(line["cid"])
    assert unixfs.read(store, cid) == photo.read_bytes()
    with open(photo, "r+b") as file:
        file.seek(2_500_000)
        file.write(b"changed")
    assert len(unixfs.read(store, cid, 0, 2_000_000)) == 2_000_000
    with pytest.raises(Refused, match=r"photo has changed since it was added without copying: .* add it again"):
        unixfs.read(store, cid)
    ((again,), _) = add(tmp_path / "store", photo, nocopy=True)
    assert again["cid"] != line["cid"]
    store.take_in()
    assert unixfs.read(store, c.parse(again["cid"])) == photo.read_bytes()


@pytest.mark.real
def test_its_process_answers_and_may_be_killed(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(random.Random(1).randbytes(1 << 20) * 60)
    question = {"store": str(tmp_path / "store"), "paths": [str(tmp_path / "large")]}
    command = [sys.executable, "-I", "-m", "ipos.store.adding"]
    node = PackStore(tmp_path / "store")
    for wait in (0.1, 0.3, 0.4):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(json.dumps(question).encode())
        process.stdin.close()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        node.take_in()
        for cid in node:
            node.get(cid)
    done = subprocess.run(command, input=json.dumps(question).encode(), capture_output=True, check=True)
    *_, line, last = [json.loads(each) for each in done.stdout.splitlines()]
    assert last == {"done": True}
    node.take_in()
    assert unixfs.size(node, c.parse(line["cid"])) == 60 << 20
    question["paths"] = [str(tmp_path / "none")]
    done = subprocess.run(command, input=json.dumps(question).encode(), capture_output=True, check=True)
    assert "none cannot be read" in json.loads(done.stdout)["refused"]


def test_a_writer_that_fails_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that writes ahead cannot swallow a full disk."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    (tmp_path / "f").write_bytes(bytes(100))
    monkeypatch.setattr("ipos.store.packfile._write", full)
    with pytest.raises(Refused, match="cannot be written: No space left on device"):
        add(tmp_path / "store", tmp_path / "f")


def test_ranges_by_the_reader_are_those_of_the_file() -> None:
    store = MemoryStore()
    body = random.Random(1).randbytes(5000)
    cid = unixfs.add_stream(store, io.BytesIO(body), chunk=10, width=4)[0]
    reader, dice = Reader(store, cid), random.Random(2)
    for _ in range(300):
        at, count = dice.randint(0, 5100), dice.choice((0, 1, 9, 10, 11, 40, 1000, 6000))
        assert reader.read(at, count) == body[at : at + count]
    raw = unixfs.add_bytes(store, b"short")
    assert Reader(store, raw).read(2, 100) == b"ort"
    assert Reader(store, raw).read(9, 100) == b""
    leaf = unixfs.add_bytes(store, b"0123456789")
    block = block_of([unixfs.Link(leaf, "", 10)], b"\x08\x02\x18\x14\x20\x14")  # it says 20
    store.put([(c.of_dag_pb(block), block)])
    with pytest.raises(BadRecord, match="another number of bytes"):
        Reader(store, c.of_dag_pb(block)).read(0, 15)


def test_a_quota(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(random.Random(1).randbytes(3_000_000))
    with pytest.raises(Refused, match=r"over the .*5000000 bytes\) of this store: buy a disk"):
        add(tmp_path / "store", tmp_path / "f", most=5_000_000, used=2_500_000, remedy="buy a disk")
    add(tmp_path / "store", tmp_path / "f", most=5_000_000, used=1_900_000)
    add(tmp_path / "store", tmp_path / "f", most=5_000_000, used=4_990_000, nocopy=True)
