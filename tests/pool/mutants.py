"""A machine's module with one line of its source changed: a bug that was planted, to see whether the checker finds it."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def planted(module: Any, right: str, wrong: str, **names: Any) -> Iterator[Any]:
    """`right` must stand in the source exactly once; `names` are replaced in the module instead."""
    source = Path(module.__file__).read_text()
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in {module.__name__}"
    name = f"{module.__name__}_planted"
    made = types.ModuleType(name)
    sys.modules[name] = made
    try:
        exec(compile(source.replace(right, wrong), module.__file__, "exec"), made.__dict__)
        made.__dict__.update(names)
        yield made
    finally:
        del sys.modules[name]
