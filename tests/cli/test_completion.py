"""Completion: every place of every command is known, and the real shells take what they are given."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import IPOS, Machine, several, wait_for

from ipos.cli.completion import KINDS, candidates
from ipos.cli.main import parser

FREE = {
    "BYTES",
    "N",
    "S",
    "GOP",
    "MIB",
    "GIB",
    "K=V",
    "WORD",
    "MODULES",
    "TEXT",
    "NEW",
    "TIME",
    "code",
    "time",
    "name",
    "cores",
    "args",
    "retries",
    "task",
    "why",
    "passphrase",
}
"""Values that nobody can foretell."""


def words(*line: str) -> list[str]:
    return [word for word, _ in candidates(parser(), list(line)).words]


def parsers(one: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield one
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_every_place_is_known_or_free() -> None:
    """A new option is completed, or somebody has said that it cannot be."""
    unknown = {
        (one.prog, action.metavar or action.dest)
        for one in parsers(parser())
        for action in one._actions
        if action.nargs not in (0, argparse.PARSER) and action.choices is None
        and (action.metavar or action.dest) not in {*KINDS, *FREE}
    }  # fmt: skip
    assert unknown == set()


def test_words_of_the_parser() -> None:
    assert {"map", "marks"} <= set(words("ma"))
    assert words("comp") == ["completion"]
    assert words("completion", "") == ["bash", "zsh", "fish"]
    assert words("add", "--visibility", "p") == ["private", "pool", "public"]
    assert words("add", "--visibility", "=", "pu") == ["public"], "bash makes a word of ="
    assert words("add", "--visibility=pu") == ["--visibility=public"]
    assert set(words("ls", "-")) >= {"-l", "--long", "-R", "--json"}
    assert words("store", "p") == ["pins", "pin"]
    assert words("keys", "unlock", "--pass") == ["--passphrase-file"]
    assert words("nonsense", "x") == words("ls", "--nonsense=") == []
    assert candidates(parser(), ["run", ""]).how == "files"
    assert candidates(parser(), ["run", "prog", "an", "argument"]).how == "files"
    assert candidates(parser(), ["cp", "file", ":", "/ho"]).how == "files"


@pytest.fixture(scope="module")
def desk() -> Iterator[Machine]:
    with several() as make:
        machine = make("desk")
        machine.ok("run", "/bin/true")
        machine.ok("mkdir", "-p", "/home/sub dir/deep")
        machine.ok("write", "/home/sub dir/a file", "x")
        machine.ok("write", "/home/other", "x")
        (machine.home / "home" / "bad\nname").touch()
        yield machine


def asked(machine: Machine, *line: str) -> list[str]:
    return [one.partition("\t")[0] for one in machine.ok("__complete", *line).splitlines()]


@pytest.mark.real
def test_the_node_is_asked(desk: Machine, tmp_path: Path) -> None:
    assert asked(desk, "ls", "/ho") == ["paths", "/home/"]
    assert asked(desk, "cat", "/home/o") == ["paths", "/home/other"]
    assert sorted(asked(desk, "cp", "/home/")) == ["/home/other", "/home/sub dir/", "files"], (
        "no name that breaks lines"
    )
    assert asked(desk, "cp", "/home/other", "/home/sub dir/") == [
        "files",
        "/home/sub dir/a file",
        "/home/sub dir/deep/",
    ]
    assert asked(desk, "receipt", "") == ["words", "1"]
    assert desk.ok("__complete", "receipt", "1.").splitlines()[1].startswith("1.0\t")
    assert asked(desk, "wait", "") == ["words", "1"]
    assert asked(desk, "run", "--nodes", "") == ["words", "desk"]
    assert asked(desk, "run", "--nodes", "desk,") == ["words"]
    away = Machine(tmp_path / "none")
    assert asked(away, "ls", "/ho") == ["paths"]
    assert not away.home.exists(), "a Tab starts no node and makes no home"


LINES = {
    "ipos sta": ["status"],
    "ipos ls /home/sub": ["/home/sub dir/"],
    "ipos completion z": ["zsh"],
    "ipos cat /home/oth": ["/home/other"],
    "ipos run --nodes de": ["desk"],
}


def shell_environment(machine: Machine, tmp_path: Path) -> dict[str, str]:
    return {
        **machine.environment,
        "PATH": f"{IPOS.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
    }


@pytest.mark.real
def test_bash(desk: Machine, tmp_path: Path) -> None:
    for line, expected in LINES.items():
        typed = line.split(" ")
        asking = "\n".join((
            'eval "$(ipos completion bash)"', f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}",
            '_ipos; printf "%s\\n" "${COMPREPLY[@]}"',
        ))  # fmt: skip
        done = subprocess.run(
            ["bash", "--norc", "-c", asking],
            env=shell_environment(desk, tmp_path),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == expected, (line, done.stderr)


@pytest.mark.real
def test_bash_on_a_terminal(desk: Machine, tmp_path: Path) -> None:
    """Tab, in a bash that a person sits at: the name is quoted, and no space comes behind a directory."""
    import pty
    import select

    environment = {
        **shell_environment(desk, tmp_path),
        "PS1": "READY> ",
        "TERM": "dumb",
        "BASH_SILENCE_DEPRECATION_WARNING": "1",
    }
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    text = ""

    def says(what: str) -> bool:
        nonlocal text
        if select.select([ours], [], [], 0.05)[0]:
            text += os.read(ours, 4096).decode(errors="replace")
        return what in text

    try:
        wait_for("a prompt", lambda: says("READY> "))
        os.write(ours, b'eval "$(ipos completion bash)"; echo LOA""DED\n')
        wait_for("the script", lambda: says("LOADED"))
        os.write(ours, b"ipos ls /home/su\t")
        wait_for("the completion", lambda: says("/home/sub\\ dir/"))
        os.write(ours, b"a\t\n")
        wait_for("the answer", lambda: says("\na file"))
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)


@pytest.mark.real
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(desk: Machine, tmp_path: Path, shell: str) -> None:
    """`make setup` installs them where it may; elsewhere their scripts are only looked at."""
    script = desk.ok("completion", shell)
    assert "__complete" in script
    if shutil.which(shell) is None:
        return
    environment = shell_environment(desk, tmp_path)
    for line, expected in LINES.items():
        if shell == "fish":
            asking = ["fish", "-c", f"ipos completion fish | source; complete -C '{line}'"]
            done = subprocess.run(asking, env=environment, capture_output=True, text=True, check=True)
            assert [one.partition("\t")[0] for one in done.stdout.splitlines()] == expected, done.stderr
            continue
        typed = line.split(" ")
        stubs = 'compdef() { :; }; _files() { :; }\ncompadd() { while [[ $1 != -- ]]; do shift; done; shift; print -l -- "$@"; }\n'
        stubs += '_describe() { local one; for one in "${(@P)2}"; do print -r -- "${one%%:*}"; done }\n'
        call = f'eval "$(ipos completion zsh)"\nwords=({" ".join(typed)}); CURRENT={len(typed)}; _ipos'
        done = subprocess.run(
            ["zsh", "-fc", stubs + call], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.splitlines() == expected, done.stderr
