"""The demo fails when a part of it is a stub."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

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


def test_wrong_outputs_are_seen(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
        (directory / "a").write_text("same")
        (directory / "b").write_text("same")
    assert demo.differing(one, two) == []
    (two / "b").write_text("other")
    (two / "c").write_text("more")
    assert demo.differing(one, two) == ["b", "c"]
