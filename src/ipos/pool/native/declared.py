"""What a script says it needs: a PEP 723 block (https://peps.python.org/pep-0723/), a lock beside it, or the project it lies in."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple, cast

from ipos.wire.errors import Refused

BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # the PEP's own
OPENING = re.compile(r"(?m)^# /// script\s*$")
SPECIFIER = re.compile(r"\s*(===|==|!=|~=|>=|<=|>|<)\s*(\d+(?:\.\d+)*)(\.\*)?\s*")
MINORS = range(8, 40)


class Block(NamedTuple):
    needs: tuple[str, ...]
    python: str


def block(script: Path) -> Block | None:
    """The script's `# /// script` block, None if it has none. `Refused`, with the line, if it cannot be read."""
    text = script.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n") + "\n"
    found = [match for match in BLOCK.finditer(text) if match["type"] == "script"]
    if not found:
        opening = OPENING.search(text)
        if opening is not None:
            raise Refused(
                f"{script.name}, line {_line(text, opening.start())}: the '# /// script' block never ends with a line '# ///'"
            )
        return None
    if len(found) > 1:
        raise Refused(
            f"{script.name}, line {_line(text, found[1].start())}: a second '# /// script' block; one is allowed"
        )
    first = _line(text, found[0].start()) + 1
    lines = found[0]["content"].splitlines(keepends=True)
    try:
        table = tomllib.loads("".join(line[2:] if line.startswith("# ") else line[1:] for line in lines))
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"line (\d+)", str(error))
        line = first + int(where[1]) - 1 if where else first
        why = re.sub(r" \(at .*\)$", "", str(error))
        raise Refused(f"{script.name}, line {line}: the '# /// script' block cannot be read: {why}") from None
    return _checked(script, first, table)


def _checked(script: Path, line: int, table: dict[str, Any]) -> Block:
    needs, python = table.get("dependencies", []), table.get("requires-python", "")
    where = f"{script.name}, line {line}: in the '# /// script' block"
    if not isinstance(needs, list) or not all(isinstance(one, str) for one in cast("list[object]", needs)):
        raise Refused(f"{where} 'dependencies' must be a list of strings")
    if not isinstance(python, str):
        raise Refused(f"{where} 'requires-python' must be a string")
    return Block(tuple(cast("list[str]", needs)), python)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def lock_of(script: Path) -> Path | None:
    """`uv lock --script` puts it beside the script."""
    lock = script.with_name(script.name + ".lock")
    return lock if lock.is_file() else None


def project_of(script: Path) -> Path | None:
    """The nearest directory above with a uv.lock and a pyproject.toml, not beyond the root of a git repository."""
    for directory in script.resolve().parents:
        if (directory / "uv.lock").is_file() and (directory / "pyproject.toml").is_file():
            return directory
        if (directory / ".git").exists():
            return None
    return None


class Lock(NamedTuple):
    """Of a uv.lock: its requires-python, and the packages in it that are directories of this machine."""

    python: str
    local: tuple[str, ...]


def read_lock(path: Path) -> Lock:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read: {error}") from None
    local = [
        str(package.get("name"))
        for package in table.get("package", [])
        if {"editable", "directory", "path"} & set(package.get("source", {}))
    ]
    return Lock(str(table.get("requires-python", "")), tuple(local))


def choose_python(wanted: str, here: tuple[int, int, int]) -> str:
    """ "3.12": this machine's own version if it meets requires-python, else the next newer one that does, else the next older.

    Version specifiers as in https://packaging.python.org/en/latest/specifications/version-specifiers/, numbers only.
    """
    clauses: list[tuple[str, tuple[int, ...], bool]] = []
    for part in wanted.split(","):
        if part.strip():
            found = SPECIFIER.fullmatch(part)
            if found is None:
                raise Refused(f"requires-python: {part.strip()!r} is not a version specifier like '>=3.11'")
            clauses.append((found[1], tuple(int(number) for number in found[2].split(".")), bool(found[3])))
    major, minor, micro = here
    if _meets(clauses, (major, minor, micro)):
        return f"{major}.{minor}"
    newer = [one for one in MINORS if one >= minor]
    older = [one for one in reversed(MINORS) if one < minor]
    for other in (*newer, *older):
        if any(_meets(clauses, (3, other, patch)) for patch in range(40)):
            return f"3.{other}"
    raise Refused(f"requires-python: no Python 3 version is {wanted!r}")


def _meets(clauses: list[tuple[str, tuple[int, ...], bool]], version: tuple[int, int, int]) -> bool:
    for operator, number, prefix in clauses:
        cut, padded = version[: len(number)], (*number, 0, 0, 0)[:3]
        equal = cut == number[:3] if prefix else version == padded
        match operator:
            case "==" | "===":
                met = equal
            case "!=":
                met = not equal
            case ">=":
                met = version >= padded
            case "<=":
                met = version <= padded
            case ">":
                met = version > padded
            case "<":
                met = version < padded
            case _:
                met = version >= padded and version[: len(number) - 1] == number[:-1]
        if not met:
            return False
    return True
