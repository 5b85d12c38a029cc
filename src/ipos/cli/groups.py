"""Commands with actions of their own (`ipos keys unlock`), and those of `cli.net`: their options and words."""

from __future__ import annotations

import argparse
from typing import Any

from ipos.cli.options import Add


def _actions(group: argparse.ArgumentParser) -> Add:
    """Adds actions to a command that may do without one."""
    actions = group.add_subparsers(dest="action", metavar="ACTION")

    def add(name: str, words: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=words, description=words)
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON: one object")
        return one

    return add


def net(add: Add) -> None:
    """The commands of `cli.net`."""
    add("net", "how this machine is reached, and how it reaches others")
    add("ping", "how long a machine takes to answer, which way, and why").add_argument("node", metavar="NODE")
    relaying = add("relay", "help machines that cannot dial each other: carry their bytes")
    relaying.add_argument("what", nargs="?", choices=("on", "off", "status"), default="status")
    relaying.add_argument("--limit", metavar="BYTES", help="bytes a second for all of them together: 500K, 10M")
    relaying.add_argument("--for", dest="for_", choices=("pool", "anyone"), default="pool", help="whom (default pool)")


def machines(commands: Any) -> None:
    words = "the machines of your account: list, name, remove"
    top = commands.add_parser("machines", help=words, description=words)
    top.add_argument("--json", action="store_true", help="print JSON: one object a machine")
    add = _actions(top)

    add("list", "their names, and when they were seen last")
    naming = add("name", "call one otherwise")
    naming.add_argument("old", metavar="MACHINE")
    naming.add_argument("new", metavar="NEW")
    removing = add("remove", "let it in nowhere any more: one that was lost, stolen or given away")
    removing.add_argument("name", metavar="MACHINE")
    removing.add_argument("--yes", action="store_true", help="do not ask")


def friends(commands: Any) -> None:
    words = "other accounts, and what they may do on this machine: list, name, remove, grant, revoke"
    top = commands.add_parser("friends", help=words, description=words)
    top.add_argument("--json", action="store_true", help="print JSON: one object a friend")
    add = _actions(top)

    add("list", "who they are, what they were granted, whether their machines are in reach")
    naming = add("name", "call one otherwise")
    naming.add_argument("old", metavar="FRIEND")
    naming.add_argument("new", metavar="NEW")
    removing = add("remove", "take back all that was granted, and know him no more")
    granting = add("grant", "let a friend run programs of the engine on this machine")
    granting.add_argument("--cores", type=int, default=1, metavar="N", help="how many at once (default 1)")
    granting.add_argument("--for", dest="time", metavar="TIME", help="2h, 7d; without it until it is revoked")
    for one in (removing, granting):
        one.add_argument("name", metavar="FRIEND")
        one.add_argument("--yes", action="store_true", help="do not ask")
    add("revoke", "take a grant back, from the next operation on").add_argument("what", metavar="ID|FRIEND")


def keys(commands: Any) -> None:
    words = "the keys of this machine: list, unlock, lock, passphrase, backup, restore"
    top = commands.add_parser("keys", help=words, description=words)
    top.add_argument("--json", action="store_true", help="print JSON: one object a key")
    add = _actions(top)

    def secret(one: argparse.ArgumentParser, option: str, words: str) -> None:
        one.add_argument(
            option, metavar="F", help=f"a file that only you can read, with {words}; without it, it is asked for"
        )

    add("list", "which keys there are, where, and how they are")
    unlock = add("unlock", "open the account key for a time, to invite machines and sign their list")
    unlock.add_argument("time", nargs="?", default="10m", help="30s, 10m, 2h (default 10m)")
    secret(unlock, "--passphrase-file", "the passphrase")
    add("lock", "lock the account key now")
    change = add("passphrase", "set or change the account key's passphrase")
    change.add_argument("--none", action="store_true", help="go without one from now on")
    secret(change, "--passphrase-file", "the passphrase that it has now")
    secret(change, "--new-passphrase-file", "the new one")
    for name, words in (
        ("backup", "write the account key to a file, under a passphrase"),
        ("restore", "take the account key from a backup, or from a keystore of geth"),
    ):
        one = add(name, words)
        one.add_argument("file", metavar="FILE")
        one.add_argument("--yes", action="store_true", help="replace what is there")
        secret(one, "--passphrase-file", "the passphrase of the file")


def service(commands: Any) -> None:
    words = "the node as a service of your systemd: install, remove, status"
    top = commands.add_parser("service", help=words, description=words)
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, words in (
        ("install", "start the node with your session, and again after a crash"),
        ("remove", "end that; the home stays"),
        ("status", "whether it is installed, and runs"),
    ):
        one = actions.add_parser(name, help=words, description=words)
        one.add_argument("--json", action="store_true", help="print JSON: one object")


def ns(group: argparse.ArgumentParser) -> None:
    add = _actions(group)

    for name, words, new in (
        ("bind", "let OLD be NEW from now on, or both", "NEW"),
        ("mount", "the same with a posted file server", "/srv/NAME"),
    ):
        one = add(name, words)
        one.add_argument("-b", dest="before", action="store_true", help="NEW before what OLD has")
        one.add_argument("-a", dest="after", action="store_true", help="NEW after what OLD has")
        one.add_argument("-c", dest="create", action="store_true", help="new files in OLD are made in NEW")
        one.add_argument("new", metavar=new)
        one.add_argument("old", metavar="OLD")
    unmount = add("unmount", "undo it: all that is mounted on OLD, or NEW only")
    unmount.add_argument("path", nargs="+", metavar="[NEW] OLD")
    add("clear", "undo all of it")
    add("load", "replace it by that of a file").add_argument("file", metavar="FILE", help="- is the standard input")
