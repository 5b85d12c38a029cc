"""Kill a process before each of its steps on the file system, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

STEPS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "rename", "close")
KILLED = 99


def killed_at(step: int, work: Callable[[], Any]) -> bool:
    """Run `work` in a child that dies, without any clean-up, before its step number `step`. False: it was over before that step."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                if count == step:
                    os._exit(KILLED)
                count += 1
                return real(*arguments, **options)

            return call

        try:
            for name in STEPS:
                setattr(os, name, dying(getattr(os, name)))
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), f"the child failed at step {step}: {code}"
    return code == KILLED
