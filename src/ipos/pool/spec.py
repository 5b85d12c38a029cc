"""What a person asks for: the text that is written to /job/clone. JSON, every field checked, unknown ones refused."""

from __future__ import annotations

import os
from collections import Counter

import msgspec

from ipos.pool.verified import rank
from ipos.wire import limits
from ipos.wire.errors import Refused


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input file of this host: `name` is what its task and its output are called, `path` is absolute."""

    name: str
    path: str


class Wasm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a job in the engine says besides. Bytes, units of work; `seed`: 64 hexadecimal digits; `image`: what a
    script starts from: "" the common image of CPython, "none", or the CID of one of this home."""

    memory_bytes: int = limits.engine_memory_bytes
    work: int = 0
    mark_every: int = limits.mark_every
    seed: str = "00" * 32
    env: dict[str, str] = {}
    image: str = ""


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An unfinished task that this job goes on with: CIDs of its record and of its save (None: from the beginning), which are in the
    node's store, the work that was done when the save was made, and the CID of who did it."""

    task: str
    save: str | None
    work: int
    receipt: str | None = None


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"with_": "with"}):
    """A job of native tasks: `program` once for each of `over`, or once if `over` is None (`ipos run`).

    Paths are absolute paths of the host on which the node runs, so only its owner, on its own socket, may hand in a job. In `args`
    every `{}` becomes the name of the input file, which then lies in the task's directory; without a `{}` the input is the standard
    input. `out`: the directory that gets each task's standard output under the name of its input; without inputs, the files that the
    program made. `root`: a directory that becomes the program's files (engine only); `ns`: the text of a namespace that does
    (`pool.rootfs`). `friends`: machines of friends may have tasks too, without being named. `verified`: what a result from the store must have been through at least (`pool.verified`). `hold`: no task begins before `start` is written to a ctl file; `open_stdin`: the standard
    input is what is written to /job/<n>/0/stdin, and the task is held until that is closed. Seconds and bytes; 0 = no limit.
    """

    program: str
    args: tuple[str, ...] = ()
    over: tuple[Input, ...] | None = None
    stdin: str | None = None
    out: str | None = None
    root: str | None = None
    ns: str | None = None
    nodes: tuple[str, ...] = ()
    friends: bool = False
    with_: tuple[str, ...] = ()
    output_bytes: int = limits.output_bytes
    memory_bytes: int = 0
    wall_s: float = 0.0
    retries: int = 0
    fresh: bool = False
    verified: str = "none"
    grace_s: float = limits.grace_s
    wasm: Wasm | None = None
    save_every_s: float = limits.save_every_s
    resume: Resume | None = None
    hold: bool = False
    open_stdin: bool = False

    @property
    def by_argument(self) -> bool:
        """The input is a file named in the arguments, not the standard input."""
        return any("{}" in arg for arg in self.args)


def parse(data: bytes) -> JobSpec:
    """Raises `Refused` with the field that is wrong; checks all that can be checked without reading a file."""
    try:
        spec = msgspec.json.decode(data, type=JobSpec)
    except msgspec.MsgspecError as error:
        raise Refused(f"not a job: {error}") from None
    if not os.path.isabs(spec.program):
        raise Refused(f"not a job: program {spec.program!r} is not an absolute path")
    if spec.grace_s < limits.grace_min_s:
        raise Refused(f"a grace of {spec.grace_s:g} s is too short, the least is {limits.grace_min_s:g} s")
    if sum(len(arg) for arg in spec.args) > limits.args_bytes:
        raise Refused(f"the arguments are longer than {limits.args_bytes} bytes")
    if min(spec.output_bytes, spec.memory_bytes, spec.wall_s, spec.retries) < 0:
        raise Refused("a limit cannot be negative")
    if spec.save_every_s < limits.save_every_least_s:
        raise Refused(
            f"a save every {spec.save_every_s:g} s is too often, the least is {limits.save_every_least_s:g} s"
        )
    rank(spec.verified)
    if spec.wasm is None and (spec.friends or any(":" in name for name in spec.nodes)):
        raise Refused("friends' machines run programs of the engine only: --wasm")
    if (spec.friends or any(":" in name for name in spec.nodes)) and spec.verified.startswith("quorum"):
        raise Refused("replicas are not spread over friends' machines in this version: leave --verify away")
    if spec.root is not None and (spec.wasm is None or spec.over is not None):
        raise Refused("a root directory is for one run in the engine (ipos run --wasm --root DIR)")
    if spec.open_stdin and (spec.over is not None or spec.stdin is not None or spec.resume is not None):
        raise Refused("an open standard input is for one new task that has no other: leave out over, stdin and resume")
    if spec.ns is not None:
        if spec.wasm is None or spec.over is not None:
            raise Refused("a namespace is for one run in the engine (ipos run --wasm --ns FILE)")
        if spec.root is not None:
            raise Refused("both a root directory and a namespace: ipos add the directory, and bind its CID")
        if len(spec.ns) > limits.namespace_bytes:
            raise Refused(f"a namespace of {len(spec.ns)} characters; the most is {limits.namespace_bytes}")
    if spec.wasm is not None:
        _check_wasm(spec.wasm)
    if spec.over is not None:
        if not spec.over:
            raise Refused("no input files match: a job needs at least one")
        if len(spec.over) > limits.tasks_per_job:
            raise Refused(
                f"{len(spec.over)} inputs are more than the {limits.tasks_per_job} that one job may have: split it"
            )
        for one in spec.over:
            if not one.name or "/" in one.name or one.name in (".", ".."):
                raise Refused(f"{one.name!r} cannot be the name of an input")
        name, count = Counter(one.name for one in spec.over).most_common(1)[0]
        if count > 1:
            paths = [one.path for one in spec.over if one.name == name][:2]
            raise Refused(
                f"two inputs are called {name} ({paths[0]} and {paths[1]}): their outputs would overwrite each other"
            )
    return spec


def check_memory(bytes_: int) -> None:
    """Whether a program in the engine can have so much."""
    if not limits.MiB <= bytes_ <= limits.engine_memory_most_bytes:
        raise Refused(
            f"a program in the engine can have 1 MiB to {limits.engine_memory_most_bytes >> 30} GiB of memory, not {bytes_} bytes"
        )


def _check_wasm(wasm: Wasm) -> None:
    check_memory(wasm.memory_bytes)
    if wasm.work < 0 or wasm.mark_every < limits.mark_every_least:
        raise Refused(f"marks lie at least {limits.mark_every_least} units of work apart, and work cannot be negative")
    if len(wasm.seed) != 64 or set(wasm.seed) - set("0123456789abcdef"):
        raise Refused(f"a seed is 64 hexadecimal digits, not {wasm.seed[:80]!r}")
