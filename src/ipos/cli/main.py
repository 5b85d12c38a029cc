"""The command line. Every command is a client of the node's file tree; modules are imported when their command runs.

argparse, not a richer library: the whole of `ipos --help` may take 0.2 s (docs/rationale.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ipos.cli import groups, options, values
from ipos.wire import limits

MORE = "Everything else is a file: ipos ls / shows the tree, ipos cat reads it. Exit status: 0 done, 1 refused or failed, 2 usage, 130 interrupted; run and resume give the program's own, and 125 where IPOS failed."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """What the shell made of an unquoted pattern is no argument of ours: say so."""
        if "unrecognized arguments" in message and "--over" in sys.argv:
            message = "the shell has replaced the pattern of --over by names: quote it, --over 'data/*'"
        super().error(message)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib import metadata

        print(f"ipos {metadata.version('interplanetary-os')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = _Parser(prog="ipos", description="Many people's PCs become one computer.", epilog=MORE)
    top.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, words: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=words, description=words)
        one.add_argument("--json", action="store_true", help="print JSON: one object, or one a line")
        return one

    up = add("up", "start this machine's node")
    up.add_argument("--name", help="what people call this machine")
    up.add_argument("--cores", type=int, help="processes it gives to tasks (default: every core)")
    up.add_argument("--listen", choices=("lan", "local"), help="lan: all addresses and mDNS; local: this machine only")
    up.add_argument("--foreground", action="store_true", help="stay, and log to the terminal")
    add("down", "end this machine's node")
    add("status", "how this machine's node is")
    add("doctor", "what protects this machine, what is missing, and what would mend it")
    invite = add("invite", "let another machine of yours join, or a friend: prints a code to say, and a QR")
    kinds: Any = {"dest": "kind", "choices": ("own", "friend"), "metavar": "own|friend"}
    invite.add_argument(
        "--as", default="own", **kinds, help="another machine of mine (own), or another account (friend)"
    )
    invite.add_argument("--yes", action="store_true", help="let in whoever knows the code, without asking")
    joining = add("join", "make this machine one of those that invited it")
    joining.add_argument("code", nargs="+", help="the spoken code (7-guitar-upset) or the text of the QR")
    joining.add_argument("--as", **kinds, help="refuse an invite of the other kind")
    joining.add_argument("--yes", action="store_true", help="do not ask whether both machines show the same words")
    add("pool", "the machines that are one computer")
    groups.friends(commands)
    trusting = add("trust", "how far a friend's results are believed")
    trusting.add_argument("name", nargs="?", metavar="FRIEND")
    trusting.add_argument("level", nargs="?", choices=("none", "receipt", "full"), help="do they count?")
    groups.machines(commands)
    mapping = add("map", "run a program once for each input file, on all machines")
    mapping.add_argument("program", metavar="PROGRAM", help="a .py script or any executable")
    mapping.add_argument(
        "--over", action="append", required=True, metavar="GLOB", help="the input files, for example 'data/*'"
    )
    mapping.add_argument("--args", default="", help="arguments; {} is the input file, without it the input is stdin")
    mapping.add_argument("--out", metavar="DIR", help="write each task's standard output to DIR/<name of its input>")
    running = add("run", "run a program once, on the machine that suits best")
    running.add_argument("program", metavar="PROGRAM", help="a .py script or any executable")
    for one in (mapping, running):
        one.add_argument("--nodes", default="", metavar="NODES", help="only on these machines: attic,desk, bob:laptop")
        one.add_argument("--friends", action="store_true", help="on machines of friends too (with --wasm)")
        one.add_argument(
            "--with",
            dest="with_",
            action="append",
            default=[],
            metavar="PACKAGE|DIR",
            help="a Python package; with --wasm also a local module (./name)",
        )
        one.add_argument(
            "--wasm", action="store_true", help="in the engine: a .wasm program, or a .py script on CPython"
        )
        one.add_argument("--env", action="append", default=[], metavar="K=V", help="a variable (with --wasm)")
        one.add_argument("--seed", default="", metavar="WORD", help="of its random numbers (with --wasm)")
        one.add_argument(
            "--image", default="", metavar="IMAGE", help="what a script starts from (with --wasm): ipos image ls; none"
        )
        one.add_argument(
            "--work", type=values.work, default=0, metavar="GOP", help="the most work it may use (with --wasm)"
        )
        one.add_argument(
            "--mark-every",
            type=values.work,
            default=limits.mark_every,
            metavar="GOP",
            help="work between marks (with --wasm)",
        )
        one.add_argument(
            "--every",
            type=values.seconds,
            default=limits.save_every_s,
            metavar="S",
            help="time between saves (with --wasm)",
        )
        one.add_argument(
            "--verify",
            type=values.replicas,
            default=0,
            metavar="N",
            help="run N replicas and compare them (with --wasm)",
        )
        one.add_argument("--fresh", action="store_true", help="run again what was run before")
        one.add_argument("--timeout", type=float, default=0.0, metavar="S", help="end a task after so many seconds")
        one.add_argument(
            "--max-output", type=float, default=256.0, metavar="MIB", help="what a task may print (default 256)"
        )
        one.add_argument(
            "--memory",
            type=values.memory,
            default=0,
            metavar="GIB",
            help="what a task may use, and needs free: 2, 256M",
        )
        one.add_argument("--retries", type=int, default=0, help="how often a program that failed is run again")
        one.add_argument(
            "--grace", type=float, default=15.0, metavar="S", help="silence after which a task moves (default 15)"
        )
        one.add_argument("--detach", action="store_true", help="do not wait: print the job's number")
    running.add_argument("--root", metavar="DIR", help="the directory that is the program's file system (with --wasm)")
    running.add_argument(
        "--ns", metavar="FILE", help="a namespace that is its file system: bind /ipfs/CID /data (with --wasm)"
    )
    running.add_argument("--out", metavar="DIR", help="write the files that it made to DIR")
    running.add_argument("--stdin", metavar="FILE", help="its standard input")
    running.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the program's arguments")
    resuming = add("resume", "go on with a task that was stopped, or that somebody handed over")
    resuming.add_argument(
        "task", metavar="TASK|F.car", help="a job's number, 7.3, a task's CID, or a file of ipos handover"
    )
    resuming.add_argument("--work", type=values.work, default=0, metavar="GOP", help="the most work it may use in all")
    resuming.add_argument(
        "--nodes",
        default="",
        metavar="NODES",
        help="machines on which a task from a file may go on (default: this one)",
    )
    resuming.add_argument("--detach", action="store_true", help="do not wait")
    handing = add("handover", "stop a task and put it into a file, to go on anywhere")
    handing.add_argument("task", metavar="TASK", help="a job's number, 7.3, or a task's CID")
    handing.add_argument("-o", "--output", required=True, metavar="F.car")
    handing.add_argument("--force", action="store_true", help="replace a file that is there")
    receipt = add("receipt", "who computed a task, signed; with -o all that a stranger needs to check it, in a file")
    receipt.add_argument("task", metavar="TASK", help="a job's number, 7.3, or a task's CID")
    receipt.add_argument("-o", "--output", metavar="F.car")
    receipt.add_argument("--force", action="store_true", help="replace a file that is there")
    receipt.add_argument(
        "--saves",
        type=int,
        default=0,
        metavar="N",
        help="run it again here and add N saves: intervals become cheap to check",
    )
    verifying = add("verify", "judge a receipt: signatures, and the program run again; needs no node and no network")
    verifying.add_argument("file", metavar="F.car")
    how = verifying.add_mutually_exclusive_group()
    how.add_argument("--full", action="store_true", help="run all of it again")
    how.add_argument("--mark", type=int, metavar="N", help="run the interval again that ends with mark N")
    verifying.add_argument("--seed", type=int, metavar="S", help="which interval is drawn, if none is named")
    add("marks", "the chain of marks of a task in the engine: work and state root").add_argument("task", metavar="TASK")
    _image(commands.add_parser("image", help="the start states of Python in the engine"))
    add("jobs", "the jobs of this machine").add_argument(
        "number", nargs="?", type=int, metavar="JOB", help="one job, with its tasks"
    )
    add("wait", "follow a job to its end").add_argument("number", type=int, metavar="JOB")
    add("ps", "what runs on this machine")
    why = add("why", "why a job's tasks ran where they did")
    why.add_argument("job", type=int, metavar="JOB")
    why.add_argument("task", nargs="?", help="a task's number or the name of its input")
    add("cancel", "stop a job").add_argument("job", type=int, metavar="JOB")
    groups.keys(commands)
    groups.service(commands)
    groups.ns(add("ns", "which files are found under which names: print it, bind, mount, unmount"))
    options.files(add)
    options.top(add)
    content(add)
    groups.net(add)
    return top


def content(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands of `cli.store`."""

    def visible(one: argparse.ArgumentParser) -> None:
        levels = ("private", "pool", "public")
        one.add_argument("--visibility", choices=levels, default="private", help="who may have it (default private)")

    adding = add("add", "make files and directories content of the store, by CID")
    adding.add_argument("path", nargs="+", metavar="FILE")
    adding.add_argument("--nocopy", action="store_true", help="keep references to the files, not copies of them")
    adding.add_argument(
        "--profile", choices=("unixfs-v1-2025", "legacy-cid-v1"), default="unixfs-v1-2025", help="how files are cut"
    )
    visible(adding)
    getting = add("get", "write content to this disk")
    getting.add_argument("path", metavar="CID[/PATH]")
    getting.add_argument("-o", "--output", metavar="OUT", help="where to (default: its name)")
    store = add("store", "what is kept here, and why")
    commands = store.add_subparsers(dest="what", metavar="COMMAND", required=True)

    def sub(name: str, words: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=words, description=words)
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        return one

    sub("pins", "what is kept, who may have it, and why")
    pinning = sub("pin", "keep what is in the store")
    pinning.add_argument("cid", metavar="CID")
    visible(pinning)
    pinning.add_argument("--why", default="ipos store pin", help="the reason that ipos store pins shows")
    unpinning = sub("unpin", "keep it no longer")
    unpinning.add_argument("cid", metavar="CID", nargs="?")
    unpinning.add_argument("--why", help="let go of all that is pinned for this reason")
    sub("gc", "delete what no pin keeps")
    sub("du", "how much there is")
    taking = sub("import", "take in a CAR file")
    taking.add_argument("path", metavar="F.car")
    visible(taking)
    giving = sub("export", "write content to a CAR file")
    giving.add_argument("cid", nargs="+", metavar="CID")
    giving.add_argument("-o", "--output", required=True, metavar="F.car")


def _image(group: argparse.ArgumentParser) -> None:
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, words in (("build", "make one"), ("ls", "those of this home"), ("rm", "remove one")):
        one = actions.add_parser(name, help=words, description=words)
        one.add_argument("--json", action="store_true", help="print JSON: one object, or one a line")
        if name == "build":
            one.add_argument(
                "--import",
                dest="modules",
                action="append",
                default=[],
                metavar="MODULES",
                help="more modules of the standard library: sqlite3,unittest",
            )
        elif name == "rm":
            one.add_argument("image", metavar="IMAGE")


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["__complete"]:  # what the shells' scripts ask
        from ipos.cli.completion import complete

        return complete(parser(), words[1:])
    arguments = parser().parse_args(words)
    import asyncio
    from collections.abc import Awaitable

    if arguments.command == "completion":
        from ipos.cli import completion

        return completion.script(arguments)
    if arguments.command == "verify":
        from ipos.cli import verify

        return verify.verify(arguments)

    async def done(work: Awaitable[int]) -> int:
        return await work

    try:
        if arguments.command in ("map", "run", "wait", "resume", "handover", "marks", "receipt"):
            from ipos.cli import work

            return asyncio.run(done(work.COMMANDS[arguments.command](arguments)))
        if arguments.command == "keys":
            from ipos.cli import keys

            return asyncio.run(done(keys.ACTIONS[arguments.action or "list"](arguments)))
        if arguments.command == "machines":
            from ipos.cli import machines

            return asyncio.run(done(machines.ACTIONS[arguments.action or "list"](arguments)))
        if arguments.command in ("friends", "trust"):
            from ipos.cli import friends

            one = friends.trust if arguments.command == "trust" else friends.ACTIONS[arguments.action or "list"]
            return asyncio.run(done(one(arguments)))
        if arguments.command in ("ls", "cat", "cp", "rm", "mkdir", "mv", "write"):
            from ipos.cli import files

            return asyncio.run(done(files.COMMANDS[arguments.command](arguments)))
        if arguments.command == "top":
            from ipos.cli import top

            return asyncio.run(done(top.top(arguments)))
        if arguments.command in ("add", "get", "store"):
            from ipos.cli import store

            return asyncio.run(done(store.COMMANDS[arguments.command](arguments)))
        if arguments.command == "service":
            from ipos.cli import service

            return asyncio.run(done(service.ACTIONS[arguments.action](arguments)))
        if arguments.command == "ns":
            from ipos.cli import ns

            return asyncio.run(done(ns.ns(arguments)))
        if arguments.command in ("net", "ping", "relay"):
            from ipos.cli import net

            return asyncio.run(done(net.COMMANDS[arguments.command](arguments)))
        if arguments.command == "image":
            from ipos.cli import image

            return asyncio.run(done(image.COMMANDS[arguments.action](arguments)))
        from ipos.cli import plain

        return asyncio.run(done(plain.COMMANDS[arguments.command](arguments)))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        from ipos.cli.printed import safe

        print(f"ipos: {safe(str(error), chr(10))}", file=sys.stderr)
        return 125 if arguments.command in ("run", "resume") else 1


if __name__ == "__main__":
    sys.exit(main())
