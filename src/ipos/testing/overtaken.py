"""A warm parent whose workers are taken over: in the place of a program they run the Python they are given, confined as they are.

`python -m ipos.testing.overtaken WITHOUT SCRIPT FD HOME HIDDEN...`: `client.Workers(module="ipos.testing.overtaken", arguments=(WITHOUT, SCRIPT))`. WITHOUT
names layers of `confine.LAYERS` that are planted as missing, by commas; `namespaces` is the parent's own isolation, `hardening` what it gives up.
The script sees `pipe`, and what `import` gives; its standard output is the worker's.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import wasmtime

from ipos.vm import parent
from ipos.vm.runner import Held
from ipos.vm.sandbox import confine, namespace
from ipos.vm.worker import Pipe


def nothing(*_: object, **options: object) -> str:
    """In the place of what is planted as missing."""
    return ""


def main() -> None:
    without, script = sys.argv[1:3]
    del sys.argv[1:3]
    for layer in without.split(",") if without else ():
        match layer:
            case "namespaces":
                namespace.isolate = nothing
            case "hardening":
                namespace.drop_privileges = namespace.harden = lambda: None
            case "uid":
                parent.own_uids = lambda: False
            case _:
                del confine.LAYERS[layer]
    for name in ("mmap", "platform", "socket", "threading"):
        importlib.import_module(name)  # for the script: confined, it can load nothing any more
    body = compile(Path(script).read_text(), script, "exec")

    def child(module: wasmtime.Module, pipe: Pipe, held: Held | None) -> None:
        exec(body, {"module": module, "pipe": pipe})

    parent.main(child)


if __name__ == "__main__":
    main()
