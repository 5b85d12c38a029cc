"""The demo fails when a part of it is a stub."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.mark.real
def test_a_stubbed_network_process_fails_the_demo(tmp_path: Path) -> None:
    stub = tmp_path / "netd"
    stub.write_text("#!/bin/sh\nexec sleep 60 <&-\n")
    stub.chmod(0o755)
    environment = {**os.environ, "IPOS_NETD": str(stub), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(DEMO)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "the demo failed: ipos up" in done.stderr


RERUN = """
from importlib.util import find_spec
if find_spec("ipos"):  # not in the interpreters of plain runs
    from ipos.pool.native import engine
    begin = engine.Engine.start
    async def start(self, key, task, program, save):
        self.forget(task)
        return await begin(self, key, task, program, None)
    engine.Engine.start = start
"""


def the_demo() -> Any:
    if str(DEMO.parent) not in sys.path:
        sys.path.append(str(DEMO.parent))
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


@pytest.mark.real
def test_a_build_that_runs_again_instead_of_resuming_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in each node: no save is gone on from, so a task begins at its beginning."""
    demo = the_demo()
    monkeypatch.setattr(demo, "ROUNDS", "8000")
    with tempfile.TemporaryDirectory(prefix="ipt") as directory:
        scratch = Path(directory)
        homes = {name: scratch / name for name in demo.NAMES}
        (scratch / "sitecustomize.py").write_text(RERUN)
        monkeypatch.setenv("PYTHONPATH", directory)
        demo.data(scratch / "data")
        try:
            demo.pool(homes)
            with pytest.raises(demo.Failed, match="no task was resumed from its save: it was restarted"):
                demo.in_engine(scratch, homes)
        finally:
            for home in homes.values():
                with contextlib.suppress(demo.Failed):  # the one that was killed
                    demo.ipos(home, "down")


def test_wrong_outputs_are_seen(tmp_path: Path) -> None:
    demo = the_demo()
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
        (directory / "a").write_text("same")
        (directory / "b").write_text("same")
    assert demo.differing(one, two) == []
    (two / "b").write_text("other")
    (two / "c").write_text("more")
    assert demo.differing(one, two) == ["b", "c"]
