"""A judge who has a task as content begins it as its worker did, and meets the same marks, from the start or from a save."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pytest

from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.vm import engine
from ipos.vm.content import Content
from ipos.vm.host import Fault
from ipos.vm.plan import mark_index
from ipos.vm.replay import Beyond, Met, reexecute
from ipos.vm.runner import Ended, Runner, Spec
from ipos.vm.save import Saves
from ipos.vm.version import cache_root
from ipos.vm.wasi.boot import Boot, Stdin, StdinKind
from ipos.vm.worker import Files

from .programs import on_large_stack
from .wasi_plain import compiled

READS = r"""
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
    static char line[4096];
    unsigned long sum = 7;
    FILE *given = fopen("/data/given.txt", "r");
    while (fgets(line, sizeof line, stdin)) {
        for (int i = 0; i < 40000; i++) sum = sum * 6364136223846793005ul + line[i % 7];
        if (!fgets(line, sizeof line, given)) rewind(given);
        printf("%lx %s", sum, line);
        fflush(stdout);
    }
    FILE *made = fopen("/made.txt", "w");
    fprintf(made, "%lx\n", sum);
    fclose(made);
    return 3;
}
"""
EVERY = 1_000_000


class Given:
    """A program with a file and a standard input, in a store."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        given = unixfs.add_bytes(self.store, b"".join(b"line %d\n" % i for i in range(50)))
        self.files = {"data": self._directory(given)}
        self.stdin = unixfs.add_bytes(self.store, b"".join(b"in %d\n" % i for i in range(40)))
        self.module = engine.compiled(compiled(READS), cache_root())

    def _directory(self, given: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as scratch:
            unixfs.export(self.store, given, Path(scratch, "given.txt"))
            return unixfs.add_dir(self.store, Path(scratch))

    def host(self) -> Content:
        return Content(self.store, self.files, self.stdin, (io.BytesIO(), io.BytesIO()))

    def spec(self, host: Content, work: int = 0) -> Spec:
        boot = Boot(("reads",), stdin=Stdin(StdinKind.STREAM), tree=host.tree)
        return Spec("judged", boot, 128 << 20, work=work, mark_every=EVERY)


@pytest.fixture(scope="module")
def given() -> Given:
    return Given()


def test_input_files_are_numbered_as_a_worker_numbers_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for path, text in {
        "b": "2", "a": "", "Grüße": "x", "sub/x": "x", "sub/deeper/y": "y" * 70000, "B": "3", "sub.x": "1", "sub-y": "2", "z/": "",
        "tmp/left": "l",
    }.items():  # fmt: skip
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    os.symlink("sub/x", root / "link")
    for with_scratch in (True, False):
        if not with_scratch:
            (root / "tmp" / "left").unlink()
            (root / "tmp").rmdir()
        store = MemoryStore()
        names = {link.name: link.cid for link in unixfs.entries(store, unixfs.add_dir(store, root, links=True))}
        (root / "tmp").mkdir(exist_ok=True)
        content = Content(store, names, None, (io.BytesIO(), io.BytesIO()))
        worker = object.__new__(Files)  # without the descriptors that only a worker has
        worker.paths = []
        below = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        assert content.tree == worker._directory(below, "")
        os.close(below)
        for n, path in enumerate(worker.paths, 1):
            assert content.read(n, 0, 1 << 20) == (root / path).read_bytes()


def test_from_the_start_and_from_each_mark(given: Given, tmp_path: Path) -> None:
    def check() -> None:
        whole = reexecute(given.module, given.spec(given.host()), given.host())
        *met, end = whole
        assert isinstance(end, Ended)
        assert (end.exit, len(met)) == (3, end.work // EVERY)
        assert [m.index for m in met if isinstance(m, Met)] == list(range(1, len(met) + 1))
        assert reexecute(given.module, given.spec(given.host()), given.host(), upto=2) == met[:2]
        for at in (0, 2, len(met) - 1):
            host = given.host()
            runner = Runner.start(given.module, given.spec(host), host)
            while len(runner.marks) <= at:
                runner.step()
            directory = tmp_path / f"save{at}"
            saves = Saves(directory, sync=False)
            runner.save(saves)
            saves.close()
            runner.close()
            for stream, name in enumerate(("stdout", "stderr")):
                out = host.out[stream]
                assert isinstance(out, io.BytesIO)
                (directory / name).write_bytes(out.getvalue())
            after = reexecute(given.module, given.spec(given.host()), given.host(), directory)
            assert after[:-1] == met[at + 1 :]
            last = after[-1]
            assert isinstance(last, Ended)
            assert (last.work, last.root, last.exit) == (end.work, end.root, end.exit)

    on_large_stack(check)


def test_a_program_that_goes_on_beyond_its_work(given: Given) -> None:
    def check() -> None:
        end = reexecute(given.module, given.spec(given.host()), given.host())[-1]
        assert isinstance(end, Ended)
        short = reexecute(given.module, given.spec(given.host(), end.work - 1_000_000), given.host())[-1]
        assert isinstance(short, Beyond)
        exact = reexecute(given.module, given.spec(given.host(), end.work), given.host())[-1]
        assert exact == end

    on_large_stack(check)


def test_a_missing_block_is_a_fault_and_no_verdict(given: Given) -> None:
    def check() -> None:
        store = MemoryStore()
        store.put([(cid, given.store.get(cid)) for cid in given.store])
        host = Content(store, given.files, given.stdin, (io.BytesIO(), io.BytesIO()))
        for cid in list(store):
            if b"line 7" in store.get(cid):
                store.delete([cid])
        with pytest.raises(Fault, match="cannot be read"):
            reexecute(given.module, given.spec(host), host)

    on_large_stack(check)


def test_marks_are_numbered_by_the_grid() -> None:
    assert [mark_index(work, 10) for work in (0, 1, 10, 11, 20, 21, 30)] == [0, 0, 0, 1, 1, 2, 2]
