"""What the Python image runs, inside the engine, never here: it imports, waits at the marker, and then runs the script of a task.

The marker is a read of one byte at the beginning of standard input by position: while the image is made that is an input file whose block
never comes, in a task it changes nothing, whatever standard input is. Behind it nothing may be left of the image's own making: the hash
seed is fixed (PYTHONHASHSEED=0), what else is random is seeded anew from the task's seed.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import io
import json
import os
import random
import sys
import time
import types
from importlib.machinery import SourceFileLoader

START = "/.ipos-start"  # `ipos.vm.image` puts it there
SITE = "/site-packages"


def _import(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is here before the marker is here to the end


def _wait() -> None:
    with contextlib.suppress(OSError):
        os.pread(0, 1, 0)


def _become() -> str:
    """The process that the task's descriptor asks for; the path of its script."""
    with open(START, "rb") as stream:
        told = json.loads(stream.read())
    os.unlink(START)
    arguments: list[str] = told["args"]
    script = "/" + arguments[1].lstrip("/")
    os.environ.clear()
    os.environ.update(told["env"])
    sys.orig_argv = arguments
    sys.argv = arguments[1:]
    sys.dont_write_bytecode = True  # what a task leaves is its result
    sys.path[0] = os.path.dirname(script)
    for place in [place for place in sys.path_importer_cache if not place.startswith(sys.prefix)]:
        del sys.path_importer_cache[place]  # directories as they were when the image was made
    if os.path.isdir(SITE):
        sys.path.append(SITE)
    _standard_input()
    random.seed()
    if "logging" in sys.modules:
        vars(sys.modules["logging"])["_startTime"] = time.time()
    return script


def _standard_input() -> None:
    """Made anew: what was there knew itself to be a file that can be sought in."""
    was = sys.stdin
    raw = io.FileIO(0, "r", closefd=False)
    raw.name = "<stdin>"
    made = io.TextIOWrapper(io.BufferedReader(raw), encoding=was.encoding, errors=was.errors, newline="\n")
    setattr(made, "mode", "r")  # noqa: B010  (typed as read-only, and is not)
    sys.stdin = sys.__stdin__ = made


def _run(path: str) -> None:
    """As `python script.py` runs it: `__main__`, tracebacks that begin in the script, exit statuses."""
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __annotations__={},
        __builtins__=builtins,
        __cached__=None,
        __file__=path,
        __loader__=SourceFileLoader("__main__", path),
    )
    runner = sys.modules["__main__"]
    sys.modules["__main__"] = main
    try:
        try:
            with open(path, "rb") as stream:
                source = stream.read()
        except OSError as error:
            print(f"python: can't open file {path!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
            raise SystemExit(2) from None
        exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
        for name, value in (("exc", error), ("type", type(error)), ("value", error), ("traceback", trace)):
            setattr(sys, f"last_{name}", value)
        error.__traceback__ = trace
        sys.excepthook(type(error), error, trace)
        del error, trace
    else:
        return
    finally:
        del runner
    raise SystemExit(1)


if __name__ == "__main__":
    _import(sys.argv[1:])
    _wait()
    _run(_become())
