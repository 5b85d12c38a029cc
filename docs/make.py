"""Makes docs/machines.md from the tables of the machines and docs/commands.md from the parser of the command line; with --check, says whether
they are as they should be, and looks for dead links."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ipos.cli.main import MORE, parser
from ipos.cli.options import RULE
from ipos.pool import dispute, handover, holder, job, lease, placement, quorum, task

HERE = Path(__file__).parent

COMMANDS = f"""# The commands

Made by `make docs` from the parser, which also makes `ipos COMMAND --help` and the completion of the shells; do not edit.

{MORE} Every command takes `--json`: one object, or one a line where it streams.

**Paths.** {RULE} `*` matches no `/` and no dot at the beginning of a name, `[*]` is a star; a pattern that matches nothing stands for itself.
`ls`, `cat`, `rm`, `mkdir`, `mv` and `write` are for the tree alone. Directories are copied with `-r`, links as links: none is followed, at either
end, but one of this disk that is named as SOURCE itself. A file is written under another name beside the goal and renamed over it at the end, so
Ctrl-C, a kill, a full disk or a lost connection leave the old one whole (a kill leaves a `.ipos-*` behind); mode and time of modification come along.
A file that changes while it is read is read again, then refused. Nothing is asked before something is replaced: `-n` replaces nothing. What was
sent and not answered when a connection ended may have happened; the sentence says so, and nothing is sent twice.

**Names** with line feeds, escapes or other characters that are not seen are printed as `\\n`, `\\x1b`, `\\u202e`; `--json` has them as they are.

**Completion.** `eval "$(ipos completion bash)"` in `~/.bashrc`, `eval "$(ipos completion zsh)"` behind `compinit` in `~/.zshrc`,
`ipos completion fish | source` in `config.fish`: commands, options, paths of the tree, tasks, machines. Where no node is up it says nothing.

"""


def text() -> str:
    out = ["# The machines\n\nMade by `make docs` from the tables in `src/ipos/pool`; do not edit.\n"]
    machines = (
        (lease, lease.lease), (holder, holder.holder), (task, task.task), (job, job.job), (handover, handover.handover),
        (quorum, quorum.quorum), (dispute, dispute.dispute),
    )  # fmt: skip
    for module, machine in machines:
        assert module.__doc__ is not None
        out.append(f"## {machine.name}\n\n{module.__doc__.strip()}\n\n```mermaid\n{machine.drawing()}```\n")
    assert placement.__doc__ is not None
    out.append(f"## placement\n\n{placement.__doc__.strip()}\n\n```mermaid\n{placement.drawing()}```\n")
    return "\n".join(out)


def commands() -> str:
    """docs/commands.md."""
    return COMMANDS + "\n".join(_command(one) for one in _parsers(parser()))


def _parsers(one: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [action.choices for action in one._actions if action.nargs == argparse.PARSER]
    if not below:
        yield one
    for name in below[0] if below else ():
        yield from _parsers(below[0][name])


def _command(one: argparse.ArgumentParser) -> str:
    places, lines = [], []
    for action in one._actions:
        what = (action.help or "").replace("|", "\\|")
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        value = (
            ""
            if action.nargs == 0
            else str(action.metavar or (action.choices and "|".join(map(str, action.choices))) or action.dest)
        )
        if not action.option_strings:
            many = {"*": f"[{value} ...]", "+": f"{value} ...", "?": f"[{value}]"}.get(str(action.nargs), value)
            places.append(many)
            if what:
                lines.append(f"| `{value}` | {what} |".replace("|F.car`", "\\|F.car`"))
        elif action.dest not in ("help", "json"):
            shown = value.upper() if value == action.dest else value
            lines.append(f"| {names}{f' `{shown}`'.replace('|', chr(92) + '|') if shown else ''} | {what} |")
    table = "\n".join(["", "| | |", "|---|---|", *lines]) + "\n" if lines else ""
    return f"## `{' '.join([one.prog, *places])}`\n\n{one.description}.\n{table}"


def dead_links() -> list[str]:
    """Relative links of our pages that lead nowhere."""
    found: list[str] = []
    root = HERE.parent
    pages = [p for folder in ("docs", "src", "vectors") for p in (root / folder).rglob("*.md")]
    for page in [root / "README.md", *pages]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in link and not (page.parent / link).exists():
                found.append(f"{page.relative_to(root)}: {link}")
    return found


PAGES = {"machines.md": text, "commands.md": commands}


def main() -> int:
    if "--check" not in sys.argv:
        for page, made in PAGES.items():
            (HERE / page).write_text(made())
        return 0
    problems = dead_links()
    for page, made in PAGES.items():
        if not (HERE / page).exists() or (HERE / page).read_text() != made():
            problems.append(f"docs/{page} is not what the code says: make docs")
    print("\n".join(problems), end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
