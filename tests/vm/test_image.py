"""Images: a start state is a function of program and engine, a start of the descriptor; nothing else of the making gets in, and only what is
whole and of this engine is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import msgspec
import pytest
import wasmtime

from ipos.vm import engine, image, imager, pack, save
from ipos.vm.image import Image
from ipos.vm.runner import Runner, Spec
from ipos.vm.save import Saves, View
from ipos.vm.version import cache_root
from ipos.vm.wasi.boot import Boot, Directory, File, Stdin, StdinKind
from ipos.wire.errors import BadRecord, Refused

from .programs import SMALL, c, on_large_stack
from .programs_host import Host, Outcome, outcome

PROGRAM = "bafy-program"
INPUT = b"one\ntwo\nthree\n"


@cache
def module() -> wasmtime.Module:
    return engine.compiled(c("image", SMALL), cache_root())


def made(directory: Path, *args: str) -> Path:
    """A packed image of the program."""

    def make() -> None:
        imager.make(module(), PROGRAM, ("image", *args), {}, directory / "save")

    on_large_stack(make)
    with View(directory / "save") as view:
        (directory / "packed").write_bytes(b"".join(frame.make() for frame in pack.frames(view)))
    return directory / "packed"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return made(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def state(packed: Path) -> Image:
    return image.unpacked(packed, PROGRAM)


@dataclass(frozen=True)
class Descriptor:
    args: tuple[str, ...] = ("image", "a")
    env: tuple[tuple[str, str], ...] = (("A", "1"),)
    stdin: bytes = INPUT
    seed: bytes = b"seed".ljust(32)
    extra: bytes = b""

    @property
    def start(self) -> bytes:
        return image.start_file(self.args, dict(self.env))

    def content(self, file: int) -> bytes:
        return self.start if file == 1 else self.extra

    def spec(self) -> Spec:
        tree = Directory({"extra": File(2, len(self.extra))} if self.extra else {})
        boot = Boot(
            self.args, dict(self.env), seed=self.seed, stdin=Stdin(StdinKind.STREAM),
            tree=image.with_start(tree, 1, self.start),
        )  # fmt: skip
        return Spec("task", boot, mark_every=50_000)


def begun(descriptor: Descriptor, state: Image) -> bytes:
    """The root of what a task starts from."""

    def root() -> bytes:
        runner = Runner.start(module(), descriptor.spec(), Host(descriptor), state)
        found = runner.root()
        runner.close()
        return found

    return on_large_stack(root)


def straight(descriptor: Descriptor, state: Image) -> Outcome:
    def run() -> Outcome:
        host = Host(descriptor)
        runner = Runner.start(module(), descriptor.spec(), host, state)
        while runner.ended is None:
            runner.step()
        return outcome(runner, host)

    return on_large_stack(run)


def test_made_twice_it_is_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    assert made(tmp_path).read_bytes() == packed.read_bytes()


def test_the_task_is_what_its_descriptor_says(state: Image) -> None:
    ended = straight(Descriptor(), state)
    first, *rest = ended.out.splitlines()
    assert (ended.exit, ended.err, len(ended.marks) > 1) == (7, "", True)
    told, seed, now = first.rsplit(" ", 2)
    assert (told, now) == ('{"args":["image","a"],"env":{"A":"1"}}', "1")
    assert [line.split()[1] for line in rest] == ["one", "two", "three"]
    other = straight(replace(Descriptor(), seed=b"other".ljust(32)), state)
    assert other.out.split()[1] != seed
    assert other.out.splitlines()[1:] == rest


def test_the_start_is_a_function_of_the_descriptor(packed: Path, state: Image) -> None:
    one = Descriptor()
    root = begun(one, state)
    assert begun(one, image.unpacked(packed, PROGRAM)) == root
    changes = {"args": ("image", "b"), "env": (), "seed": bytes(32), "extra": b"x"}
    assert len({root, *(begun(replace(one, **{key: value}), state) for key, value in changes.items())}) == 5
    assert straight(one, state) == straight(one, state)


def test_stopped_everywhere_also_in_the_runner_it_ends_the_same(state: Image, tmp_path: Path) -> None:
    """Every stop is a move: another instance goes on from the save. The first are before the task has read what it is."""
    descriptor = Descriptor()
    wanted = straight(descriptor, state)
    early: list[int] = []

    def moved() -> Outcome:
        host = Host(descriptor)
        runner = Runner.start(module(), descriptor.spec(), host, state)
        step = 307
        while True:
            runner.step(step)
            step = min(step * 2, 100_000)
            if runner.ended is not None:
                return outcome(runner, host)
            if not host.out[0]:
                early.append(runner.work)
            saves = Saves(tmp_path / "moved", sync=False)
            runner.save(saves)
            runner.close()
            host = Host(descriptor, out=(bytes(host.out[0]), bytes(host.out[1])))
            runner = Runner.resume(module(), descriptor.spec(), host, saves, (bytes(host.out[0]), bytes(host.out[1])))
            host.read = runner.state.call("wasi_stdin_read")
            saves.close()

    assert on_large_stack(moved) == wanted
    assert len(early) > 2


def test_only_a_program_that_waits_with_nothing_of_its_own_becomes_an_image(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="it ended with status 3"):
        made(tmp_path / "a", "ends")
    with pytest.raises(Refused, match="early"):
        made(tmp_path / "b", "prints")
    with pytest.raises(Refused, match="files open, or made some"):
        made(tmp_path / "c", "holds")


def test_of_another_engine_or_program_or_a_save_it_is_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="of another program"):
        image.unpacked(packed, "bafy-other")
    head = pack.first([packed.read_bytes()])
    with pytest.raises(BadRecord, match="a save of a task"):
        image.check(msgspec.structs.replace(head, written=(1, 0)), PROGRAM)
    monkeypatch.setattr(image, "version", lambda: "fedcba9876543210")
    with pytest.raises(Refused, match=r"this is engine fedcba9876543210: ipos image build makes it anew"):
        image.unpacked(packed, PROGRAM)


def flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def test_a_damaged_one_is_never_believed(packed: Path, tmp_path: Path) -> None:
    """One bit anywhere: refused, whichever frame it is in."""
    body = packed.read_bytes()
    for at in range(0, len(body), max(1, len(body) // 60)):
        bad = tmp_path / "bad"
        bad.write_bytes(flipped(body, at))
        with pytest.raises(BadRecord):
            image.unpacked(bad, PROGRAM)
    bad.write_bytes(body[:-1])
    with pytest.raises(BadRecord):
        image.unpacked(bad, PROGRAM)


def test_the_check_can_fail(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: where every leaf passes for every other, damage gets in."""
    frames = list(pack.cut([packed.read_bytes()]))
    head = pack.first([packed.read_bytes()])
    assert len(frames) > 4
    name, other = frames[-1][:32], frames[-2]
    swapped = tmp_path / "swapped"
    swapped.write_bytes(b"".join([*frames[:-1], name + other[32:]]))
    with pytest.raises(BadRecord, match="hashes to something else"):
        image.unpacked(swapped, PROGRAM)
    monkeypatch.setattr(save, "leaf_hash", lambda leaf: name if leaf != save.ZEROS else b"")
    monkeypatch.setattr(save, "root", lambda header, hashes: head.root)
    monkeypatch.setattr(save.Leaves, "leaf", lambda self, wanted: save.ZEROS)
    assert image.unpacked(swapped, PROGRAM).parts.memory.strip(b"\0") == b""


def test_kept_for_this_user_it_is_believed_only_with_its_mac(packed: Path, state: Image, tmp_path: Path) -> None:
    calls: list[Path] = []

    def counted(of: Callable[[Path, str], Image]) -> Callable[[Path, str], Image]:
        def count(path: Path, program: str) -> Image:
            calls.append(path)
            return of(path, program)

        return count

    original = image.unpacked
    image.unpacked = counted(original)
    try:
        assert image.decoded(image.loaded(packed, PROGRAM, tmp_path)) == state
        assert image.decoded(image.loaded(packed, PROGRAM, tmp_path)) == state
        assert len(calls) == 1
        (kept,) = tmp_path.glob("image-*")
        kept.write_bytes(flipped(kept.read_bytes(), 5000))
        assert image.decoded(image.loaded(packed, PROGRAM, tmp_path)) == state
        assert len(calls) == 2
        with pytest.raises(Refused):
            image.loaded(packed, "bafy-other", tmp_path)
    finally:
        image.unpacked = original


def test_too_little_memory_is_a_sentence(state: Image) -> None:
    spec = replace(Descriptor().spec(), memory_bytes=1 << 16)
    with pytest.raises(Refused, match=r"the image needs .* \(allow more with --memory\)"):
        on_large_stack(lambda: Runner.start(module(), spec, Host(Descriptor()), state))


def test_a_root_with_the_start_files_name_is_refused() -> None:
    with pytest.raises(Refused, match="rename it"):
        image.with_start(Directory({image.START: File(1, 1)}), 2, b"{}")
