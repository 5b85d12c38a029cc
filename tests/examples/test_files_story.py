"""The story by files fails when what it tells does not happen: planted in each node."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).parents[2] / "examples" / "files.py"
PLANT = """
from importlib.util import find_spec
if find_spec("ipos"):  # not in the interpreters of plain runs
    from ipos.pool.native import engine
    {plant}
"""
GOES_ON = "engine.EngineRun.pause = lambda self: None"
RUNS_AGAIN = """
    begin = engine.Engine.start
    async def start(self, key, task, program, save):
        self.forget(task)
        return await begin(self, key, task, program, None)
    engine.Engine.start = start
"""


def the_story() -> Any:
    spec = importlib.util.spec_from_file_location("files", FILES)
    assert spec is not None
    assert spec.loader is not None
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    return files


@pytest.mark.real
@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        pytest.param(GOES_ON, r"it was at \d+ when it was saved, \d+ is kept here, and it is at \d+", id="goes-on"),
        pytest.param(RUNS_AGAIN, r"it was not resumed at \d+, but at 0", id="runs-again"),
    ],
)
def test_a_build_without_it_fails_the_story(monkeypatch: pytest.MonkeyPatch, plant: str, sentence: str) -> None:
    """A pause that is said and not done; a save that is kept and not gone on from."""
    files = the_story()
    with tempfile.TemporaryDirectory(prefix="ipt") as directory:
        scratch = Path(directory)
        homes = {name: scratch / name for name in files.NAMES}
        (scratch / "sitecustomize.py").write_text(PLANT.format(plant=plant))
        monkeypatch.setenv("PYTHONPATH", directory)
        try:
            files.pool(homes)
            with pytest.raises(files.Failed, match=sentence):
                files.story(scratch, homes, print)
        finally:
            for home in homes.values():
                with contextlib.suppress(files.Failed):  # the one that was killed
                    files.ipos(home, "down")
