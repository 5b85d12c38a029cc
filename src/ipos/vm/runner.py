"""runner: one program from its start, or from a save, to its end, in slices of about 10 ms.

Every slice ends in a full stop: pause, kill, save and move are one path, used a hundred times a second. A mark is the state at the first
safepoint whose used work exceeds k x `mark_every`, whatever the slices. The pass stops at the first safepoint beyond a grant and asks again
when resumed, so a slice that ended beyond the next mark *is* that mark; a stop because something was missing never is one, for another
node may have had it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import wasmtime
from blake3 import blake3

from ipos.vm import root
from ipos.vm.host import Fault, FileHost
from ipos.vm.image import Image
from ipos.vm.instance import Instance, TooDeep
from ipos.vm.root import Parts
from ipos.vm.save import Head, Saves
from ipos.vm.version import version
from ipos.vm.wasi.boot import Boot
from ipos.wire.errors import BadRecord, Refused

SLICE_S: Final = 0.01
FIRST_SLICE: Final = 5_000_000  # work; about as many ns
GOP: Final = 1_000_000_000
TRAPPED: Final = 134  # as a shell says of a process that aborted


@dataclass(frozen=True)
class Spec:
    """What is run. `task`: its identity, as text. `work`: the most it may use, 0 = no limit."""

    task: str
    boot: Boot
    memory_bytes: int = 256 << 20
    work: int = 0
    mark_every: int = GOP
    export: str = "_start"


class Held(NamedTuple):
    """An instance with an image's memory in it, that nothing else was done with yet; `image` has no memory any more, which was `size` bytes."""

    image: Image
    instance: Instance
    size: int


@dataclass
class Ended:
    """`trap`: the word of the trap, "" if it ended by itself; `root`: of its final state; `page_work`: pages of memory x work."""

    exit: int
    trap: str
    work: int
    root: bytes
    marks: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    page_work: int = 0


class Output:
    """Hashes what passes through to the host."""

    def __init__(self, host: FileHost) -> None:
        self.host = host
        self.hashes = (blake3(), blake3())

    def ready(self, file: int, first: int, last: int) -> bool:
        return self.host.ready(file, first, last)

    def block(self, file: int, n: int) -> bytes:
        return self.host.block(file, n)

    def stdin(self, count: int) -> bytes | None:
        return self.host.stdin(count)

    def output(self, stream: int, content: bytes) -> None:
        self.hashes[stream].update(content)
        self.host.output(stream, content)


class Runner:
    """Made by `start` or `resume`. `step` runs one slice; after it the program is stopped or over (`ended`)."""

    def __init__(self, module: wasmtime.Module, spec: Spec, host: FileHost, instance: Instance | None = None) -> None:
        self.spec = spec
        self.ended: Ended | None = None
        self.waiting = False
        self.marks: list[tuple[int, bytes]] = []
        self.speed = FIRST_SLICE / SLICE_S  # work a second
        self._out = Output(host)
        self._names = {export.name for export in module.exports}
        if instance is not None:
            instance.adopt(self._out, spec.memory_bytes)
        self._instance = instance or Instance(module, self._out, spec.memory_bytes)
        self.export = "ipos_begin" if "ipos_begin" in self._names else spec.export

    @classmethod
    def start(cls, module: wasmtime.Module, spec: Spec, host: FileHost, image: Image | Held | None = None) -> Runner:
        """From the beginning, or from where an image of the program waits at its marker. `Refused`: not with so little memory."""
        held = image if isinstance(image, Held) else None
        state = held.image if held is not None else image if isinstance(image, Image) else None
        needed = held.size if held is not None else len(state.parts.memory) if state is not None else 0
        if needed > spec.memory_bytes:
            raise Refused(
                f"the image needs {needed / (1 << 20):.0f} MiB of memory to begin; the task has "
                f"{spec.memory_bytes >> 20} MiB (allow more with --memory)"
            )
        self = cls(module, spec, host, held.instance if held is not None else None)
        self._instance.boot(spec.boot)
        if state is not None:
            self._instance.place(state.parts)
            self._instance.set_used(0)
            self.export = state.export
        return self

    @classmethod
    def resume(
        cls,
        module: wasmtime.Module,
        spec: Spec,
        host: FileHost,
        saves: Saves,
        printed: tuple[bytes, bytes],
        held: Held | None = None,
    ) -> Runner:
        """From the newest save. `printed`: what the program had written to stdout and stderr when it was made (at least; the rest is
        cut by the caller to `head.written`). `held`: an instance that may be used; after a `BadRecord` it is as it was."""
        head = saves.head()
        if head is None:
            raise BadRecord("save", "there is none")
        if head.engine != version():
            raise BadRecord("save", f"made by engine {head.engine}, this is {version()}")
        if head.task != spec.task:
            raise BadRecord("save", f"of task {head.task}, not of {spec.task}")
        parts = saves.parts(head)
        hashes = blake3(printed[0][: head.written[0]]), blake3(printed[1][: head.written[1]])
        if tuple(hasher.digest() for hasher in hashes) != (head.stdout, head.stderr):
            raise BadRecord("output", "what the program printed before this save is not at hand any more")
        self = cls(module, spec, host, held.instance if held is not None else None)
        self._instance.restore(parts, head.work)
        self.export, self.marks, self._out.hashes = head.export, list(head.marks), hashes
        return self

    def close(self) -> None:
        self._instance.close()

    @property
    def state(self) -> Instance:
        """For what reads the files it made (`wasi.output`); not while it runs."""
        return self._instance

    @property
    def work(self) -> int:
        return self.ended.work if self.ended is not None else self._instance.used

    @property
    def page_work(self) -> int:
        """So far: 64 KiB pages of memory times the work they were held for."""
        return self.ended.page_work if self.ended is not None else self._instance.page_work

    def exhausted(self) -> bool:
        """Whether the work it may use is used."""
        return bool(self.spec.work) and self.ended is None and self._instance.used > self.spec.work

    def step(self, most: int | None = None) -> None:
        """Run about 10 ms, or `most` units of work. `Fault`: this node failed, the save before is what there is."""
        used = self._instance.used
        mark = self._due()
        target = min(mark, used + (most if most is not None else max(1, int(self.speed * SLICE_S))))
        if self.spec.work:
            target = min(target, self.spec.work)
        began = time.perf_counter()
        try:
            returned = self._instance.run(self.export, target)
        except (wasmtime.Trap, TooDeep) as trap:
            self._trapped(trap)
            return
        took = time.perf_counter() - began
        self.waiting = self._instance.waiting
        now = self._instance.used
        if took > 0.001 and now > used:
            self.speed = 0.5 * self.speed + 0.5 * (now - used) / took
        status = self._instance.exit
        if returned and self.export != self.spec.export:
            self.export = self.spec.export  # the start function is over
        elif returned or status is not None:
            self.ended = Ended(status or 0, "", now, self.root(), self.marks, self.page_work)
        elif now > mark and not self.waiting:
            self.marks.append((now, self.root()))

    def _due(self) -> int:
        """The work that the next mark must exceed. Not a function of the work used: a slice may end exactly on the grid, or beyond it
        because input was missing, and the mark is still to come."""
        last, every = self.marks[-1][0] if self.marks else 0, self.spec.mark_every
        return max(1, -(-last // every)) * every

    def _trapped(self, trap: BaseException) -> None:
        word = "call depth" if isinstance(trap, TooDeep) else _word(trap)
        self._instance.drain()
        used = self._instance.used
        stdout, stderr = (hasher.digest() for hasher in self._out.hashes)
        self.ended = Ended(TRAPPED, word, used, root.trapped(used, word, stdout, stderr), self.marks, self.page_work)

    # ---- state

    def _state(self) -> tuple[root.Header, list[bytes], Parts]:
        parts = self._instance.parts()
        hashes = [root.leaf_hash(leaf) for leaf in root.leaves(parts)]
        lengths = (len(parts.globals), len(parts.frames), len(parts.memory), len(parts.wasi))
        stdout, stderr = (hasher.digest() for hasher in self._out.hashes)
        return root.Header(self._instance.used, lengths, stdout, stderr), hashes, parts

    def root(self) -> bytes:
        header, hashes, _ = self._state()
        return root.root(header, hashes)

    def save(self, saves: Saves) -> tuple[bytes, int]:
        """The state's root, and the bytes written. The program goes on, here or wherever the save is."""
        header, hashes, parts = self._state()
        head = Head(
            engine=version(), task=self.spec.task, export=self.export, work=header.work, lengths=header.lengths,
            stdout=header.stdout, stderr=header.stderr, written=self._instance.written(), marks=self.marks,
            leaves=b"".join(hashes), root=root.root(header, hashes),
        )  # fmt: skip
        return head.root, saves.put(head, hashes, parts)


def _word(trap: BaseException) -> str:
    code = trap.trap_code if isinstance(trap, wasmtime.Trap) else None
    if code is None:
        raise Fault(str(trap))
    if code.name == "STACK_OVERFLOW":
        raise Fault("the program's machine frames were larger than this node's stack")
    return code.name.lower().replace("_", " ")
