"""What a person asks for: the text that is written to /job/clone. JSON, every field checked, unknown ones refused."""

from __future__ import annotations

import os
from collections import Counter

import msgspec

from ipos.wire import limits
from ipos.wire.errors import Refused


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input file of this host: `name` is what its task and its output are called, `path` is absolute."""

    name: str
    path: str


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"with_": "with"}):
    """A job of native tasks: `program` once for each of `over`, or once if `over` is None (`ipos run`).

    Paths are absolute paths of the host on which the node runs, so only its owner, on its own socket, may hand in a job. In `args`
    every `{}` becomes the name of the input file, which then lies in the task's directory; without a `{}` the input is the standard
    input. `out`: the directory that gets each task's standard output under the name of its input. Seconds and bytes; 0 = no limit.
    """

    program: str
    args: tuple[str, ...] = ()
    over: tuple[Input, ...] | None = None
    stdin: str | None = None
    out: str | None = None
    nodes: tuple[str, ...] = ()
    with_: tuple[str, ...] = ()
    output_bytes: int = limits.output_bytes
    memory_bytes: int = 0
    wall_s: float = 0.0
    retries: int = 0
    fresh: bool = False
    grace_s: float = limits.grace_s

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
