"""docs/tree.md as rows, and how a live tree differs from it.

A row names files: `{a,b}` stands for several, `<n>` for any one name, a last `/...` for all that is below. "-" in the column `read` (`write`)
says that nobody may read (write) the file, everything else that its owner may.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

DOCUMENT = Path(__file__).parents[2] / "docs" / "tree.md"


class Row(NamedTuple):
    """`names`: of the path, one after the other."""

    names: tuple[str, ...]
    read: bool
    write: bool
    below: bool

    @property
    def path(self) -> str:
        return "/" + "/".join(self.names) + ("/..." if self.below else "")

    def names_it(self, names: tuple[str, ...]) -> bool:
        if len(names) != len(self.names) and not (self.below and len(names) > len(self.names)):
            return False
        return all(own.startswith("<") or own == name for own, name in zip(self.names, names, strict=False))


def expanded(path: str) -> list[str]:
    """`/a/{b,c}` -> `/a/b`, `/a/c`."""
    found = re.search(r"\{([^}]*)\}", path)
    if found is None:
        return [path]
    return [one for word in found[1].split(",") for one in expanded(path[: found.start()] + word + path[found.end() :])]


def rows(text: str) -> list[Row]:
    """Of the table in docs/tree.md."""
    out: list[Row] = []
    for line in text.splitlines():
        if not line.startswith("| `/"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert len(cells) == 4, f"a row has file, read, write, errors: {line}"
        for path in expanded(cells[0].strip("`")):
            names = tuple(name for name in path.split("/") if name)
            below = names[-1] == "..."
            out.append(Row(names[:-1] if below else names, cells[1] != "-", cells[2] != "-", below))
    return out


def row_of(listed: Iterable[Row], names: tuple[str, ...]) -> Row | None:
    """The row that names it most exactly."""
    fit = [row for row in listed if row.names_it(names)]
    return max(fit, key=lambda row: (not row.below, -sum(name.startswith("<") for name in row.names)), default=None)


def differences(listed: list[Row], live: Mapping[tuple[str, ...], int | None]) -> list[str]:
    """Sentences. `live`: names of the path -> the mode of a file, None of a directory."""
    said: list[str] = []
    met: set[Row] = set()
    for names, mode in live.items():
        row = row_of(listed, names)
        path = "/" + "/".join(names)
        if row is not None:
            met.add(row)
        if mode is None or (row is not None and row.below):
            continue
        if row is None:
            said.append(f"{path} is served and docs/tree.md has no row for it")
            continue
        for word, bit, wanted in (("read", 0o400, row.read), ("written", 0o200, row.write)):
            if bool(mode & bit) != wanted:
                here = "can" if mode & bit else "cannot"
                said.append(f"{path} {here} be {word}, docs/tree.md says otherwise")
    said += [f"docs/tree.md has a row for {row.path}, and no node here serves it" for row in listed if row not in met]
    return said
