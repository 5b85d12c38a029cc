"""imager: makes images (`image`): runs a program to its marker, where it waits for what never comes."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import wasmtime
from blake3 import blake3

from ipos.vm import code, engine, pack, root
from ipos.vm.host import Fault
from ipos.vm.image import keep, kept, name_of
from ipos.vm.runner import Runner, Spec
from ipos.vm.save import Head, Saves, View
from ipos.vm.version import image_runner, version
from ipos.vm.wasi.boot import Boot, File, Stdin, StdinKind
from ipos.vm.wasi.output import Metric
from ipos.wire.errors import Refused

PYTHON: Final = "python-3.12.wasm"
HASH_SEED: Final = {"PYTHONHASHSEED": "0"}
MEMORY_BYTES: Final = 1 << 30
WORK: Final = 100_000_000_000  # an image that is not at its marker after so much never gets there
PRINTED_BYTES: Final = 1 << 16
METER_BYTES: Final = (
    24  # the end of the area of globals: what making it cost is no task's (`instrument/pass/runtime.c`, meter_out)
)
NO_MARKS: Final = 1 << 62


class _Making:
    """`host.FileHost` of a program that is to stop at its marker: the block of its standard input never comes."""

    def __init__(self) -> None:
        self.printed = bytearray()

    def ready(self, file: int, first: int, last: int) -> bool:
        return False

    def block(self, file: int, n: int) -> bytes:
        raise Fault("an image has no input")

    def stdin(self, count: int) -> bytes | None:
        return None

    def output(self, stream: int, content: bytes) -> None:
        self.printed += content[: PRINTED_BYTES - len(self.printed)]


def make(module: wasmtime.Module, program: str, args: Sequence[str], env: Mapping[str, str], directory: Path) -> Head:
    """Run the program to its marker; the image is then a save in `directory`. `Refused` says why it never gets there."""
    host = _Making()
    boot = Boot(args=args, env=env, stdin=Stdin(StdinKind.FILE, File(1, 1)))
    runner = Runner.start(module, Spec(name_of(program), boot, MEMORY_BYTES, mark_every=NO_MARKS), host)
    try:
        while runner.ended is None and not runner.waiting and runner.work < WORK:
            runner.step()
        said = host.printed.decode(errors="replace").strip()
        if not runner.waiting or said:
            how = f"it ended with status {runner.ended.exit}" if runner.ended is not None else "it does not wait"
            raise Refused(f"the program does not get to the image's marker: {said.splitlines()[-1] if said else how}")
        still_open, nodes = (runner.state.call("wasi_metric", which) for which in (Metric.OPEN, Metric.NODES))
        if (still_open, nodes) != (
            4,
            2,
        ):  # the root, its descriptor, the standard ones, and the file that is standard input
            raise Refused("the program has files open, or made some, at the image's marker: a task would not have them")
        parts = runner.state.parts()
        parts = parts._replace(globals=parts.globals[:-METER_BYTES] + bytes(METER_BYTES), wasi=b"")
        work, export = runner.work, runner.export
    finally:
        runner.close()
    hashes = [root.leaf_hash(leaf) for leaf in root.leaves(parts)]
    nothing = blake3().digest()
    lengths = (len(parts.globals), len(parts.frames), len(parts.memory), 0)
    head = Head(
        engine=version(), task=name_of(program), export=export, work=work, lengths=lengths, stdout=nothing, stderr=nothing,
        written=(0, 0), marks=[], leaves=b"".join(hashes), root=root.root(root.Header(work, lengths, nothing, nothing), hashes),
    )  # fmt: skip
    saves = Saves(directory)
    try:
        saves.put(head, hashes, parts)
        for which in pack.STREAMS:
            (directory / which).touch()
    finally:
        saves.close()
    return head


def python(program: Path, cid: str, cache: Path, modules: Sequence[str], packed: Path) -> None:
    """Write the packed Python image to `packed`. What this user's other homes have made already is taken from the cache."""
    args = (PYTHON, "-c", image_runner(), *modules)
    own = code.key(cache)
    made_of = "\0".join((version(), cid, metadata.version("zstandard"), *args))
    path = cache / f"packed-{blake3(made_of.encode()).hexdigest()}"
    body = kept(path, own)
    if not body:
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            make(engine.compiled(program.read_bytes(), cache), cid, args, HASH_SEED, Path(scratch))
            with View(Path(scratch)) as view:
                body = b"".join(frame.make() for frame in pack.frames(view))
        keep(path, own, body)
    packed.write_bytes(body)


def main() -> int:
    """`python -I -m ipos.vm.imager PROGRAM CID CACHE PACKED [MODULE ...]`: `python`, in a process of its own."""
    program, cid, cache, packed = sys.argv[1:5]
    failed: list[Exception] = []

    def build() -> None:
        try:
            python(Path(program), cid, Path(cache), sys.argv[5:], Path(packed))
        except (Refused, Fault, OSError, MemoryError) as error:
            failed.append(error)

    threading.stack_size(engine.THREAD_STACK_BYTES)
    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    for error in failed:
        print(str(error) or type(error).__name__, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
