"""completion: what can follow on the command line. The parser says where a word stands, the node what there is; without a node, nothing.

The shells' own scripts only ask: `ipos __complete WORD...` prints the words that can stand where the last one does, each with a tab and what it is
behind it, below a line that says how to take them: `words`, `paths` (of the tree), or `files` (of this disk too).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from ipos.cli.paths import place
from ipos.cli.plain import pairs, rows
from ipos.node.home import Home
from ipos.tree.ninep.client import Client, connect_unix

ASK_S = 1.0  # a person waits for it
NEWEST = 30  # jobs that are offered


class Found(NamedTuple):
    """`how`: words, paths, files; `words`: what can stand there, and what it is."""

    how: str
    words: list[tuple[str, str]]


NOTHING = Found("words", [])


def complete(parser: argparse.ArgumentParser, words: list[str]) -> int:
    found = candidates(parser, words or [""])
    print(found.how)
    for word, what in found.words:
        if word.isprintable():  # a name with a line feed in it has to be typed
            print(f"{word}\t{what}" if what.isprintable() and what else word)
    return 0


def candidates(parser: argparse.ArgumentParser, words: list[str]) -> Found:
    """For the last of `words`, which may be empty or begun."""
    *before, last = _joined(words)
    last = re.sub(r"\\(.)", r"\1", last.lstrip("'\""))  # as it was typed: quoted, or only begun to be
    here, value, seen = parser, None, 0
    for word in before:
        if value is not None:
            value = None
        elif word.startswith("-") and word != "-" and (option := _option(here, word)) is not None:
            value = option if option.nargs != 0 else None
        elif (named := _commands(here)) is not None and seen == 0 and word in named:
            here = named[word]
        else:
            seen += 1
    if value is not None:
        return _values(value, last)
    if last.startswith("--") and "=" in last:
        name, _, part = last.partition("=")
        option = _option(here, name)
        found = _values(option, part) if option is not None else NOTHING
        return Found(found.how, [(f"{name}={word}", what) for word, what in found.words])
    if last.startswith("-"):
        return Found("words", [one for one in _options(here) if one[0].startswith(last)])
    if (named := _commands(here)) is not None and seen == 0:
        return Found("words", [(name, one.description or "") for name, one in named.items() if name.startswith(last)])
    positional = [one for one in _actions(here) if not one.option_strings and one.nargs != argparse.PARSER]
    if not positional:
        return NOTHING
    many = next((i for i, one in enumerate(positional) if one.nargs in ("*", "+", argparse.REMAINDER)), len(positional))
    at = min(seen, many)
    return _values(positional[at], last) if at < len(positional) else NOTHING


def _joined(words: Iterable[str]) -> list[str]:
    """As the shell gives them: bash makes words of `=` and `:`."""
    out: list[str] = []
    for word in words:
        if word == "=" and out and out[-1].startswith("--"):
            continue
        if out and (word == ":" or out[-1].endswith(":")):
            out[-1] += word
        else:
            out.append(word)
    return out


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # pyright: ignore[reportPrivateUsage]  (there is no public way to ask a parser what it knows)


def _option(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    return next((one for one in _actions(parser) if word in one.option_strings), None)


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser] | None:
    groups = [one.choices for one in _actions(parser) if one.nargs == argparse.PARSER]
    return groups[0] if groups and isinstance(groups[0], Mapping) else None


def _options(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    shown = [one for one in _actions(parser) if one.help != argparse.SUPPRESS]
    return [(name, one.help or "") for one in shown for name in one.option_strings]


# ---- what a place takes, by what it is called in the help


def _values(action: argparse.Action, last: str) -> Found:
    if action.choices is not None:
        return Found("words", [(str(one), "") for one in action.choices if str(one).startswith(last)])
    kind = action.metavar if isinstance(action.metavar, str) else action.dest
    ask = KINDS.get(kind)
    if ask is None:
        return NOTHING
    how, question = ask
    if how == "files" and last.startswith("file:"):
        return Found("files", [])
    found = _asked(question, last) if question is not None else []
    return Found(how, [one for one in found if one[0].startswith(last)])


Question = Callable[[Client, str], Awaitable[list[tuple[str, str]]]]


def _asked(question: Question, last: str) -> list[tuple[str, str]]:
    async def ask() -> list[tuple[str, str]]:
        async with asyncio.timeout(ASK_S):
            client = await connect_unix(Home().socket)
            try:
                return await question(client, last)
            finally:
                client.close()

    try:
        return asyncio.run(ask())
    except (OSError, TimeoutError, ValueError):
        return []


async def _tree(client: Client, last: str) -> list[tuple[str, str]]:
    directory, _, part = last.rpartition("/")
    where = place(last if directory else "/")
    if not where.tree or (not last.startswith("/") and not directory):
        return []
    entries = await client.ls(where.path.rpartition("/")[0] or "/")
    shown = [one for one in entries if part.startswith(".") or not one.name.startswith(".")]
    return [(f"{directory}/{one.name}{'/' if one.directory else ''}", "") for one in shown]


async def _tasks(client: Client, last: str) -> list[tuple[str, str]]:
    job, dot, _ = last.partition(".")
    if dot and job.isdigit():
        listed = await rows(client, f"/job/{job}/tasks")
        return [(f"{job}.{row['i']}", f"{row['name']} {row['state']}".strip()) for row in listed]
    return await _jobs(client, last)


async def _jobs(client: Client, last: str) -> list[tuple[str, str]]:
    numbers = sorted((int(one.name) for one in await client.ls("/job") if one.name.isdigit()), reverse=True)
    chosen = [number for number in numbers if str(number).startswith(last)][:NEWEST]
    told = await asyncio.gather(*(pairs(client, f"/job/{number}/status") for number in chosen))
    return [
        (str(number), f"{os.path.basename(str(one['program']))} {one['state']}")
        for number, one in zip(chosen, told, strict=True)
    ]


async def _nodes(client: Client, last: str) -> list[tuple[str, str]]:
    before, comma, _ = last.rpartition(",")
    chosen = before.split(",")
    members = await rows(client, "/pool/members")
    return [
        (f"{before}{comma}{one['name']}", "" if one["connected"] else "out of reach")
        for one in members
        if one["name"] not in chosen
    ]


async def _machines(client: Client, last: str) -> list[tuple[str, str]]:
    members = await rows(client, "/pool/members")
    return [(str(one["name"]), "" if one["connected"] else "out of reach") for one in members]


async def _friends(client: Client, last: str) -> list[tuple[str, str]]:
    return [(str(one["name"]), str(one["account"])) for one in await rows(client, "/friends/list")]


async def _content(client: Client, last: str) -> list[tuple[str, str]]:
    return [(one.name, "") for one in await client.ls("/ipfs")]


async def _images(client: Client, last: str) -> list[tuple[str, str]]:
    return [(str(one["image"]), f"Python {one['python']}") for one in await rows(client, "/image/list")]


KINDS: dict[str, tuple[str, Question | None]] = {
    "PATH": ("paths", _tree), "SOURCE": ("files", _tree), "TARGET": ("files", _tree), "CID[/PATH]": ("paths", _tree),
    **dict.fromkeys(("OLD", "[NEW] OLD", "/srv/NAME"), ("paths", _tree)),
    "TASK": ("words", _tasks), "TASK|F.car": ("files", _tasks), "JOB": ("words", _jobs), "NODES": ("words", _nodes), "NODE": ("words", _nodes),
    "MACHINE": ("words", _machines), "FRIEND": ("words", _friends), "ID|FRIEND": ("words", _friends),
    "CID": ("words", _content), "IMAGE": ("words", _images),
    **dict.fromkeys(("FILE", "...", "F.car", "F", "DIR", "OUT", "GLOB", "PROGRAM", "PACKAGE|DIR", "LOCAL"), ("files", None)),
}  # fmt: skip
"""Metavar of an argument -> how its words are taken, and what the node is asked. What is not here cannot be foretold."""

BASH = """# ipos: eval "$(ipos completion bash)"
_ipos() {
    local cur=${COMP_WORDS[COMP_CWORD]} how line
    COMPREPLY=()
    {
        IFS= read -r how
        while IFS= read -r line; do COMPREPLY+=("${line%%$'\\t'*}"); done
    } < <("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ $how == files ]]; then
        while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$cur")
    fi
    if [[ $how != words ]]; then
        compopt -o filenames 2>/dev/null
        [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == */ ]] && compopt -o nospace 2>/dev/null
    fi
    return 0
}
complete -F _ipos ipos
"""

ZSH = """#compdef ipos
# ipos: eval "$(ipos completion zsh)", after compinit
_ipos() {
    local how line
    local -a out described plain
    out=("${(@f)$("${words[1]}" __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    how=${out[1]}
    for line in "${(@)out[2,-1]}"; do
        plain+=("${line%%$'\\t'*}")
        described+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}")
    done
    if [[ $how == words ]]; then
        (( ${#plain} )) && _describe ipos described
    else
        (( ${#plain} )) && compadd -S '' -- "${(@)plain}"
        [[ $how == files ]] && _files
    fi
}
compdef _ipos ipos
"""

FISH = """# ipos: ipos completion fish | source
function __ipos_complete
    set -l words (commandline -opc)
    set -l out ($words[1] __complete $words[2..-1] (commandline -ct) 2>/dev/null)
    test "$out[1]" = files; and __fish_complete_path (commandline -ct)
    test (count $out) -gt 1; and printf '%s\\n' $out[2..-1]
end
complete -c ipos -f -a '(__ipos_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def script(arguments: argparse.Namespace) -> int:
    import json

    text = SCRIPTS[arguments.shell]
    sys.stdout.write(json.dumps({"shell": arguments.shell, "script": text}) + "\n" if arguments.json else text)
    return 0
