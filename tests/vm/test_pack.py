"""A save that travels: packed, laid out elsewhere, gone on with; damage is found before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ipos.pool.saves import Holds, Importer, lay_out, verified
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.store.pins import Pins
from ipos.vm import engine, pack
from ipos.vm.runner import Runner
from ipos.vm.save import Saves, View, read_head
from ipos.wire.errors import BadRecord

from .programs import on_large_stack
from .test_runner import MIXED, SPEC, Host, outcome, straight, to_end
from .wasi_plain import compiled


def saved(directory: Path, cache: Path, work: int) -> tuple[Runner, Host, Saves]:
    host = Host()
    runner = Runner.start(engine.compiled(compiled(MIXED), cache), SPEC, host)
    while runner.work < work:
        runner.step(200_000)
    saves = Saves(directory, sync=False)
    save(runner, host, saves)
    return runner, host, saves


def save(runner: Runner, host: Host, saves: Saves) -> None:
    for which, content in zip(pack.STREAMS, host.out, strict=True):
        (saves.path / which).write_bytes(content)
    runner.save(saves)


def packed(directory: Path) -> bytes:
    with View(directory) as view:
        return b"".join(frame.make() for frame in pack.frames(view))


def test_packed_and_unpacked_it_goes_on_the_same(tmp_path: Path) -> None:
    def run() -> None:
        expected = straight(MIXED, tmp_path)
        runner, _, saves = saved(tmp_path / "here", tmp_path, 1_600_000)
        runner.close()
        body = packed(tmp_path / "here")
        saves.close()
        assert pack.first([body]) == read_head(tmp_path / "here")
        for cut in (1, 1000, len(body)):  # however the stream is cut
            pieces = [body[i : i + cut] for i in range(0, min(len(body), 4000), cut)] + [body[max(4000, 0) :]]
            assert pack.unpack(pieces if cut < 4000 else [body], tmp_path / "there") == read_head(tmp_path / "here")
        head = pack.verify(tmp_path / "there")
        fresh = Host()
        fresh.read = 8 * 0 + len(b"".join(b"%d\n" % i for i in range(12)))  # all of the input had been read ahead
        printed = tuple((tmp_path / "there" / which).read_bytes() for which in pack.STREAMS)
        for stream in (0, 1):
            fresh.out[stream].extend(printed[stream])
        there = Saves(tmp_path / "there", sync=False)
        module = engine.compiled(compiled(MIXED), tmp_path)
        resumed = Runner.resume(module, SPEC, fresh, there, (printed[0], printed[1]))
        fresh.read = resumed.state.call("wasi_stdin_read")
        assert resumed.work == head.work
        assert outcome(to_end(resumed), fresh) == expected
        there.close()

    on_large_stack(run)


def test_the_second_save_shares_what_did_not_change(tmp_path: Path) -> None:
    def run() -> None:
        runner, host, saves = saved(tmp_path / "s", tmp_path, 1_600_000)
        store = MemoryStore()
        holds = Holds(Pins(":memory:", store))
        importer = Importer(store, tmp_path / "s", holds, "run")
        first = importer.newest()
        assert first is not None
        assert importer.newest() is None
        before = set(store)
        runner.step(1_000)
        save(runner, host, saves)
        second = importer.newest()
        assert second is not None
        assert second.work > first.work
        kept = before & set(store)
        assert len(kept) > len(before) / 2, "most of it did not change"
        assert unixfs.missing(store, second.cid) == []
        assert unixfs.missing(store, first.cid) != [], "nobody holds the first any more"
        assert verified(store, second.cid, tmp_path).work == second.work
        holds.hold("somebody else", second.cid)
        importer.close()
        assert unixfs.missing(store, second.cid) == []
        lay_out(store, second.cid, tmp_path / "laid")
        assert pack.verify(tmp_path / "laid").work == second.work
        lay_out(store, second.cid, tmp_path / "laid")  # what is there is not older: it stays
        holds.release("somebody else")
        assert set(store) == set()
        runner.close()
        saves.close()

    on_large_stack(run)


Spoil = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-1],
        lambda body: body[: len(body) // 2],
        lambda body: b"",
        lambda body: body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :],
        lambda body: body + b"more",
        lambda body: bytes(36) + body,
        lambda body: b"x" * 32 + b"\xff\xff\xff\xff" + body,
    ],
    ids=["torn", "half", "nothing", "a bit", "more", "a frame", "a long frame"],
)
def test_a_damaged_pack_is_refused(spoil: Spoil, tmp_path: Path) -> None:
    def run() -> None:
        runner, _, saves = saved(tmp_path / "s", tmp_path, 1_600_000)
        runner.close()
        saves.close()
        body = packed(tmp_path / "s")
        pack.unpack([body], tmp_path / "good")
        pack.verify(tmp_path / "good")

        def both() -> None:
            pack.unpack([spoil(body)], tmp_path / "bad")
            pack.verify(tmp_path / "bad")

        if spoil(body) == bytes(36) + body:
            both()  # a leaf that no head names is nothing
        else:
            with pytest.raises(BadRecord):
                both()

    on_large_stack(run)


def test_output_that_is_not_what_was_printed_is_refused(tmp_path: Path) -> None:
    def run() -> None:
        runner, _, saves = saved(tmp_path / "s", tmp_path, 2_400_000)
        runner.close()
        saves.close()
        assert (tmp_path / "s" / "stdout").stat().st_size
        pack.verify(tmp_path / "s")
        (tmp_path / "s" / "stdout").write_bytes(b"x" * (tmp_path / "s" / "stdout").stat().st_size)
        with pytest.raises(BadRecord, match="printed"):
            pack.verify(tmp_path / "s")

    on_large_stack(run)


def test_a_name_among_the_saves_is_no_other_file(tmp_path: Path) -> None:
    """A worker that was taken over where the kernel has no Landlock could make a symlink for the node to read."""
    (tmp_path / "secret").write_bytes(b"secret")
    for name in ("head", "leaves", "stdout"):
        (tmp_path / name).symlink_to("secret")
    with pytest.raises(OSError, match="symbolic links"):
        read_head(tmp_path)
    (tmp_path / "head").unlink()
    with pytest.raises(OSError, match="symbolic links"):
        View(tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        pack._piece(tmp_path / "stdout", 0, 6)
