"""A hostile task (native_attack.py) against the isolation, as root and as an ordinary user, on kernels that give more or less of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ipos.pool.native.isolate import other_paths

pytestmark = pytest.mark.real

NODE = Path(__file__).with_name("native_node.py")
NOBODY = 65534
TREASURES = {"the key", "the node's socket", "names in the home", "other tasks' directories"}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that any user can use; pytest's own are its user's alone."""
    directory = Path(tempfile.mkdtemp(prefix="ipos-test-"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def everybodys_python() -> Iterator[str]:
    """An interpreter that an ordinary user can start, with this environment's packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (os.path.realpath(sys.executable), f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        tried = (
            subprocess.run([candidate, "-c", ""], user=NOBODY, capture_output=True, check=False)
            if _may_run(candidate)
            else None
        )
        if tried is not None and tried.returncode == 0:
            break
    else:
        pytest.skip(f"no {version} here that a user other than root can start: the test as an ordinary user needs one")
    directory = Path(tempfile.mkdtemp(prefix="ipos-test-"))
    directory.chmod(0o755)
    try:
        subprocess.run([candidate, "-m", "venv", "--without-pip", str(directory / "env")], check=True)
        (paths,) = (directory / "env" / "lib").glob("*/site-packages")
        source = str(Path(__file__).parents[3] / "src")
        (paths / "ipos-test.pth").write_text(
            f"{source}\n{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n"
        )
        yield str(directory / "env" / "bin" / "python")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _may_run(path: str) -> bool:
    """Every directory on the way can be searched by everybody."""
    return os.path.exists(path) and all(directory.stat().st_mode & 0o001 for directory in Path(path).parents)


class Attacked(NamedTuple):
    """What the runner said of its isolation, the pid of the node, and what the task reached."""

    isolation: str
    node: int
    reached: set[str]


def attack(
    place: Path, *, surroundings: str = "plain", isolate: str = "isolate", python: str = sys.executable, uid: int = -1
) -> Attacked:
    command = [python, str(NODE), "attack", str(place), str(uid), surroundings, isolate]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert second["exit"] == 0, second["stderr"]
    return Attacked(first["isolation"], first["node"], set(second["reached"]))


def test_nothing_is_reached(place: Path) -> None:
    assert attack(place)[::2] == ("namespaces", set())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_nothing_is_reached_by_an_ordinary_user(place: Path, everybodys_python: str) -> None:
    assert attack(place, python=everybodys_python, uid=NOBODY)[::2] == ("namespaces", set())


def test_a_build_without_isolation_fails_this_test(place: Path) -> None:
    """The planted bug: the attack does find what there is to find."""
    isolation, _, reached = attack(place, isolate="bare")
    assert isolation == "none: switched off"
    assert reached > TREASURES


OF_A_NODE = ("tracing {}", "/proc/{}/environ", "/proc/{}/mem", "/proc/{}/maps", "descriptors of {}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_without_isolation_the_node_still_cannot_be_traced(place: Path, everybodys_python: str) -> None:
    """What `harden` alone is worth."""
    node, reached = attack(place, isolate="bare", python=everybodys_python, uid=NOBODY)[1:]
    assert not {what.format(node) for what in OF_A_NODE} & reached


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_node_that_did_not_harden_itself_can_be_traced(place: Path, everybodys_python: str) -> None:
    """The planted bug."""
    found = attack(place, surroundings="soft", isolate="bare", python=everybodys_python, uid=NOBODY)
    assert {what.format(found.node) for what in OF_A_NODE} <= found.reached


def test_a_home_that_is_mounted_twice_is_hidden_twice(place: Path) -> None:
    isolation, _, reached = attack(place, surroundings="alias")
    assert isolation == "namespaces"
    assert not reached & TREASURES
    assert "the key by another path" not in reached


def test_the_alias_is_found_by_the_attack_where_nothing_hides_it(place: Path) -> None:
    assert "the key by another path" in attack(place, surroundings="alias", isolate="bare").reached


def test_inside_a_container_that_masks_proc(place: Path) -> None:
    isolation, _, reached = attack(place, surroundings="masked")
    assert isolation.startswith("namespaces; lacks a /proc of its own (")
    assert not reached & TREASURES
    assert not [what for what in reached if what.startswith(("tracing", "a signal", "descriptors"))]


@pytest.mark.parametrize(
    ("surroundings", "why"),
    [
        ("refused", "none: this machine's kernel refuses namespaces (clone: No space left on device)"),
        pytest.param(
            "unprivileged",
            "none: this machine's kernel refuses namespaces (/proc/self/uid_map: Operation not permitted)",
            marks=pytest.mark.skipif(os.getuid() != 0, reason="uid 0 is what cannot be mapped"),
        ),
    ],
)
def test_a_kernel_that_refuses_is_reported_and_tasks_still_run(place: Path, surroundings: str, why: str) -> None:
    isolation, _, reached = attack(place, surroundings=surroundings)
    assert isolation == why
    assert reached > TREASURES


def test_other_paths_of_a_directory(tmp_path: Path) -> None:
    assert other_paths(tmp_path) == [str(tmp_path)]
