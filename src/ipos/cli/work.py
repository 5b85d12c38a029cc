"""The commands that hand in work, follow it, and take it elsewhere: map, run, wait, resume, handover, marks."""

from __future__ import annotations

import argparse
import asyncio
import glob
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

from ipos.cli import stdin
from ipos.cli.connect import node
from ipos.cli.follow import Follower, explain, finish
from ipos.cli.ns import text_of
from ipos.cli.plain import pairs
from ipos.cli.printed import safe
from ipos.node.home import Home
from ipos.tree.ninep.client import Client, connect_unix
from ipos.wire import limits
from ipos.wire.errors import Refused

Arguments = argparse.Namespace


def spec_of(
    arguments: Arguments,
    over: list[str] | None,
    args: list[str],
    out: str | None,
    stdin: str | None,
    root: str | None = None,
    ns: str | None = None,
) -> bytes:
    program = shutil.which(str(arguments.program)) if "/" not in arguments.program else None
    path = os.path.abspath(arguments.program if os.path.exists(arguments.program) else program or arguments.program)
    if not os.path.isfile(path):
        raise Refused(f"there is no program {arguments.program}")
    spec: dict[str, Any] = {
        "program": path,
        "args": args,
        "over": None
        if over is None
        else [{"name": os.path.basename(one), "path": os.path.abspath(one)} for one in over],
        "stdin": None if stdin is None else os.path.abspath(stdin),
        "root": None if root is None else os.path.abspath(root),
        "ns": ns,
        "out": None if out is None else os.path.abspath(out),
        "nodes": [name for name in arguments.nodes.split(",") if name],
        "friends": arguments.friends,
        "with": [_with(one) for one in arguments.with_],
        "output_bytes": int(arguments.max_output * limits.MiB),
        "memory_bytes": arguments.memory,
        "wall_s": arguments.timeout,
        "retries": arguments.retries,
        "fresh": arguments.fresh,
        "grace_s": arguments.grace,
        "save_every_s": arguments.every,
        "verified": f"quorum {arguments.verify}" if arguments.verify else "none",
    }
    if arguments.friends or any(":" in name for name in spec["nodes"]):
        print("friends see the program and the data that their machines are given", file=sys.stderr)
    if arguments.wasm:
        spec["memory_bytes"] = 0
        spec["wasm"] = {
            "memory_bytes": arguments.memory or limits.engine_memory_bytes,
            "work": arguments.work,
            "mark_every": arguments.mark_every,
            "seed": seed(arguments.seed),
            "env": dict(variable(one) for one in arguments.env),
            "image": arguments.image,
        }
    elif (
        arguments.env
        or arguments.seed
        or arguments.work
        or arguments.image
        or arguments.verify
        or root
        or ns is not None
    ):
        raise Refused(
            "--env, --seed, --work, --image, --verify, --root and --ns are for programs in the engine: add --wasm"
        )
    return json.dumps(spec).encode()


def _with(one: str) -> str:
    """A directory is told from a package by its slash, and named from the root, for the node is elsewhere."""
    return os.path.abspath(os.path.expanduser(one)) if "/" in one and "@" not in one else one


def seed(word: str) -> str:
    """64 hexadecimal digits of any word; "" is the seed of zeros."""
    return hashlib.sha256(word.encode()).hexdigest() if word else "00" * 32


def variable(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise Refused(f"--env {text!r} is not NAME=VALUE")
    return name, value


async def hand_in(client: Client, spec: bytes) -> int:
    async with client.open("/job/clone", os.O_RDWR) as file:
        await file.write(spec)
        return int(await file.read_at(0, 32))


async def to_the_end(client: Client, follower: Follower, suspend: bool = False) -> dict[str, Any]:
    """The job's last status. Ctrl-C leaves it alone, or, with `suspend`, saves it and stops it; and says how to come back."""
    try:
        return await follower.follow(client)
    except asyncio.CancelledError:
        follower.progress.clear()
        job = follower.job
        words = f"detached; job {job} goes on: ipos wait {job} follows it, ipos cancel {job} stops it"
        if suspend:
            try:
                words = await _suspended(job)
            except OSError as error:
                words = f"{error}; ipos wait {job} follows it"
        print(f"ipos: {words}", file=sys.stderr)
        raise


async def _suspended(job: int) -> str:
    client = await connect_unix(Home().socket)
    try:
        if not int(str((await pairs(client, f"/job/{job}/status"))["total"])):
            await client.write(f"/job/{job}/ctl", b"cancel")
            return "stopped before it began: there is nothing to go on with"
        answer = await ask(client, "suspend", task=f"{job}.0")
        at = f"saved at {answer['work'] / 1e9:.2f} Gop" if answer["work"] else "stopped before its first save"
        return f"{at}; ipos resume {job} goes on, ipos handover {job} -o F.car takes it elsewhere"
    finally:
        client.close()


async def ask(client: Client, file: str, **question: Any) -> dict[str, Any]:
    """Of /job/find, suspend, resume, handover."""
    async with client.open(f"/job/{file}", os.O_RDWR) as opened:
        await opened.write_at(0, json.dumps(question).encode())
        return json.loads(await opened.read_at(0, 1 << 16))


async def follow(client: Client, job: int, arguments: Arguments, print_outputs: bool) -> int:
    follower = Follower(job, arguments, print_outputs)
    end = await to_the_end(client, follower)
    fresh = client if client.lost is None else await connect_unix(Home().socket)
    return await finish(fresh, follower, end)


async def map_(arguments: Arguments) -> int:
    over: list[str] = []
    for pattern in arguments.over:
        found = sorted(path for path in glob.glob(os.path.expanduser(pattern)) if os.path.isfile(path))
        if not found:
            raise Refused(f"no files match {pattern!r}")
        over += found
    spec = spec_of(arguments, over, shlex.split(arguments.args), arguments.out, None)
    async with node(make=True) as client:
        job = await hand_in(client, spec)
        if arguments.detach:
            print(json.dumps({"job": job}) if arguments.json else job)
            return 0
        return await follow(client, job, arguments, arguments.out is None)


async def run(arguments: Arguments) -> int:
    ns = None if arguments.ns is None else await text_of(arguments.ns)
    taken = arguments.stdin is not None or arguments.ns == "-" or sys.stdin.isatty()
    body = b"" if taken else await stdin.read()
    async with node(make=True) as client:
        handed = leave(body) if body else arguments.stdin
        try:
            spec = spec_of(arguments, None, list(arguments.arguments), arguments.out, handed, arguments.root, ns)
            job = await hand_in(client, spec)
        except OSError:
            if body and handed is not None:
                os.unlink(handed)
            raise
        if arguments.detach:
            print(json.dumps({"job": job}) if arguments.json else job)
            return 0
        return await attend(client, job, arguments, arguments.wasm)


async def attend(client: Client, job: int, arguments: Arguments, suspend: bool) -> int:
    """Follow a job of one task as if the program ran here; its exit status."""
    follower = Follower(job, arguments, print_outputs=False, live=True)
    end = await to_the_end(client, follower, suspend)
    return await _ran(client, job, follower, end, arguments)


def leave(body: bytes) -> str:
    """A file for the node, which outlives this command: the job may go on without it."""
    directory = Home().handed
    fd, path = tempfile.mkstemp(dir=directory)
    try:
        with open(fd, "wb") as out:
            out.write(body)
    except OSError as error:
        os.unlink(path)
        raise Refused(f"the standard input cannot be kept in {directory}: {error.strerror}") from None
    return path


async def _ran(client: Client, job: int, follower: Follower, end: dict[str, Any], arguments: Arguments) -> int:
    client = client if client.lost is None else await connect_unix(Home().socket)
    if end["state"] == "refused":
        raise Refused(str(end["refused"]))
    state = follower.states.get(0)
    if state is not None and state["state"] == "handed-over":
        raise Refused(f"job {job} was handed over: {state['reason']}")
    if state is None or state["state"] not in ("done", "failed"):
        raise Refused(f"job {job} has no result: {state.get('reason', end['state']) if state else end['state']}")
    status = await pairs(client, f"/job/{job}/0/status")
    code = int(str(status["exit"]))
    found = json.loads(await client.read(f"/job/{job}/0/verdict") or b"null")
    if arguments.json:
        same = {key: status.get(key) for key in ("task", "exit", "stdout", "stderr", "dir", "cached")}
        same |= {key: status.get(key) or None for key in ("work", "page_work", "root", "resumed_at", "note", "killed")}
        same |= {key: status.get(key) for key in ("receipt", "by", "verified")}
        print(json.dumps({**same, "node": state.get("node"), "job": job, "verdict": found}))
    elif status.get("cached"):
        print(f"ipos: {cached(status)}", file=sys.stderr)
    if found is not None and not arguments.json:
        for words in agreed(found):
            print(f"ipos: {words}", file=sys.stderr)
    if status.get("note"):
        print(f"ipos: {status['note']}", file=sys.stderr)
    if end.get("trouble"):
        print(f"ipos: {end['trouble']}", file=sys.stderr)
    if state["state"] == "failed":
        program = os.path.basename(str(end["program"]))
        print(f"ipos: {safe(await explain(client, job, state, program))}", file=sys.stderr)
    if end.get("trouble") and code == 0:
        return 125
    return code if code >= 0 else 128 - code


def agreed(found: dict[str, Any]) -> list[str]:
    """What replicas came to: the root, the two numbers, who deviated; and what they are worth."""
    return [
        f"{found['agreed']} of {found['seats']} replicas agree on root {found['root']}",
        *found["told"],
        f"{found['extra_work']:.0%} extra work; {found['assuming']}: {found['left_wrong']:.3%} (before the run: {found['left_wrong_before']:.3%})",
        found["guards"],
    ]


def cached(status: dict[str, object]) -> str:
    """That a result is an old one, whose it is and how sure."""
    by = f" on {status['by']}" if status.get("by") else ""
    how = {"none": "nobody signed it", "receipt": "its receipt is signed"}.get(
        str(status["verified"]), f"verified: {status['verified']}"
    )
    return f"the same task ran before{by} ({how}); this is its result from the store (--fresh runs it again)"


async def wait(arguments: Arguments) -> int:
    async with node() as client:
        return await follow(client, arguments.number, arguments, False)


async def resume(arguments: Arguments) -> int:
    task: str = arguments.task
    path = os.path.abspath(task) if task.endswith(".car") or os.path.isfile(task) else ""
    async with node(make=True) as client:
        question: dict[str, Any] = {"path": path} if path else {"task": task}
        if arguments.nodes and not path:
            raise Refused("--nodes is for a file of ipos handover: a job of this machine goes on where it suits best")
        question |= {"nodes": [name for name in arguments.nodes.split(",") if name]} if arguments.nodes else {}
        answer = await ask(client, "resume", **question, work=arguments.work)
        job = int(answer["job"])
        alone = len((await client.read(f"/job/{job}/tasks")).splitlines()) <= 1
        if arguments.detach or not alone:
            words = f"task {job}.{answer['i']} goes on: ipos wait {job} follows its job"
            print(json.dumps(answer) if arguments.json else words)
            return 0
        return await attend(client, job, arguments, True)


def new_file(path: str, force: bool) -> str:
    """The absolute path. `Refused` if something is there that nobody said to replace."""
    if os.path.lexists(path) and not force:
        raise Refused(f"{path} is there already: --force replaces it")
    return os.path.abspath(path)


async def handover(arguments: Arguments) -> int:
    path = new_file(arguments.output, arguments.force)
    async with node() as client:
        answer = await ask(client, "handover", task=arguments.task, path=path)
    size = f"{answer['bytes'] / limits.MiB:.1f} MiB"
    words = f"{answer['path']}: task {answer['job']}.{answer['i']} at {answer['work'] / 1e9:.2f} Gop, {size}"
    print(json.dumps(answer) if arguments.json else f"{words}; ipos resume {arguments.output} goes on, anywhere")
    return 0


async def receipt(arguments: Arguments) -> int:
    if arguments.saves and not arguments.output:
        raise Refused("--saves puts saves into the file: say which with -o F.car")
    path = new_file(arguments.output, arguments.force) if arguments.output else ""
    async with node() as client:
        answer = await ask(client, "evidence", task=arguments.task, path=path)
    if arguments.saves:
        from ipos.cli.verify import add_saves

        answer |= await asyncio.to_thread(add_saves, path, arguments.saves, arguments.json)
    print(json.dumps(answer) if arguments.json else told(answer))
    return 0


def told(answer: dict[str, Any]) -> str:
    """A receipt as people read it."""
    what = f"task {answer['job']}.{answer['i']} ({answer['name']})"
    who = f"{answer['node_name']} of account {answer['account']}"
    if answer["native"]:
        words = f"{what}: {who} says that it ran this native program; that proves who says so, not that it is right"
    else:
        since = f"from {answer['since'] / 1e9:.2f} " if answer["since"] else ""
        words = f"{what}: {who} computed it {since}to {answer['work'] / 1e9:.2f} Gop in engine {answer['engine']}"
        words += f"; root {answer['root']}" if answer["root"] else ""
    words += f"\nreceipt {answer['receipt']}, signed by run key {answer['run']}"
    words += f"; others computed before it: {answer['before']}" if answer["before"] else ""
    if "path" in answer:
        saves = f", {answer['saves']} saves" if answer.get("saves") else ""
        words += f"\n{answer['path']}: {answer['bytes'] / limits.MiB:.2f} MiB{saves}; ipos verify judges it, anywhere"
    return words


async def marks(arguments: Arguments) -> int:
    async with node() as client:
        answer = await ask(client, "find", task=arguments.task)
        where = f"/job/{answer['job']}/{answer['i']}"
        text = (await client.read(f"{where}/marks")).decode()
        status = await pairs(client, f"{where}/status")
    if arguments.json:
        listed = [[int(work), root] for work, root in (line.split() for line in text.splitlines())]
        ended = {key: status.get(key) or None for key in ("work", "root")}
        print(json.dumps({"task": answer["task"], "state": answer["state"], "marks": listed, **ended}))
    else:
        sys.stdout.write(text)
    return 0


COMMANDS: dict[str, Callable[[Arguments], Awaitable[int]]] = {
    "map": map_, "run": run, "wait": wait, "resume": resume, "handover": handover, "marks": marks, "receipt": receipt,
}  # fmt: skip
