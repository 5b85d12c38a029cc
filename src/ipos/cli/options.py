"""The options of the commands on files of the tree (`cli.files`), of `cli.top` and of `cli.completion`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ipos.cli import values

Add = Callable[[str, str], argparse.ArgumentParser]
RULE = (
    "A path that begins with a name of the tree's root (/home/x, /n/attic/home/x) or with a CID is of the tree; file:/home/x and every other "
    "path is of this disk. Quoted patterns are expanded in the tree: '/home/*.txt'."
)


def top(add: Add) -> None:
    """top, and completion."""
    one = add("top", "what runs, how fast, with how much memory, and how old its save is; q quits")
    one.add_argument("--pool", action="store_true", help="on all machines")
    one.add_argument("-n", "--count", type=int, metavar="N", help="so often, plainly, then end")
    one.add_argument(
        "-d", "--delay", type=values.seconds, default=1.0, metavar="S", help="between two looks (default 1)"
    )
    completion = add(
        "completion", "a shell's completion of commands, options, paths, tasks and machines; prints a script"
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))


def files(add: Add) -> None:
    """ls, cat, cp, rm, mkdir, mv, write."""
    ls = add("ls", "list directories of the tree")
    ls.add_argument("path", nargs="*", default=["/"], metavar="PATH")
    ls.add_argument("-l", "--long", action="store_true", help="with mode, size and time")
    ls.add_argument("-R", "--recursive", action="store_true", help="and what is in its directories")
    cat = add("cat", "read files of the tree")
    cat.add_argument("path", nargs="+", metavar="PATH")
    cat.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    cat.add_argument("--offset", type=int, default=0, metavar="N", help="from this byte on")
    cat.add_argument("--length", type=int, metavar="N", help="so many bytes at most")
    cp = add("cp", "copy files into the tree, out of it, or within it; - is the standard input or output")
    cp.epilog = RULE
    cp.add_argument("path", nargs="+", metavar="SOURCE")
    cp.add_argument("target", metavar="TARGET")
    cp.add_argument("-r", "--recursive", action="store_true", help="directories too; links stay links")
    cp.add_argument("-n", "--no-clobber", action="store_true", help="replace nothing that is there")
    rm = add("rm", "remove files of the tree")
    rm.add_argument("path", nargs="+", metavar="PATH")
    rm.add_argument("-r", "--recursive", action="store_true", help="directories too, with all that is in them")
    rm.add_argument("-f", "--force", action="store_true", help="what is not there is no mistake")
    mkdir = add("mkdir", "make directories in the tree")
    mkdir.add_argument("path", nargs="+", metavar="PATH")
    mkdir.add_argument("-p", "--parents", action="store_true", help="and those above; one that is there is no mistake")
    mv = add("mv", "rename or move files of the tree")
    mv.add_argument("path", nargs="+", metavar="PATH")
    mv.add_argument("target", metavar="TARGET")
    mv.add_argument("-n", "--no-clobber", action="store_true", help="replace nothing that is there")
    write = add("write", "write to a file of the tree: a command to a control file, or its content")
    write.add_argument("path", metavar="PATH")
    write.add_argument("text", nargs="*", metavar="TEXT", help="what to write (default: the standard input)")
    write.add_argument("-a", "--append", action="store_true", help="at the end of the file")
    write.add_argument("--answer", action="store_true", help="print what the same file answers")
