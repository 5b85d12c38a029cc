"""prepare: from what a person asked for to task records. Reads files, resolves the environment; decides nothing."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ipos.pool import data, estimate, verified
from ipos.pool import task as t
from ipos.pool.image import NAME, Images, Python
from ipos.pool.jobs import Job, Row
from ipos.pool.journal import Answer, Journal, Offload
from ipos.pool.native.environment import resolve
from ipos.pool.placement import Offer
from ipos.pool.records import EngineRun, Limits, Task
from ipos.pool.site import NAME as SITE
from ipos.pool.site import gather
from ipos.pool.spec import JobSpec, Wasm
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm.version import platform as platform_of_engine
from ipos.wire.errors import Refused
from ipos.wire.record import Record, decode

Known = dict[int, Answer]
ELF = b"\x7fELF"


def here() -> str:
    """This machine's kind, as a native program cares for it."""
    return f"{platform.system().lower()}-{platform.machine()}"


def check_out(out: str) -> None:
    """`Refused` if results cannot be written there."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".ipos-"):
            pass
    except OSError as error:
        raise Refused(f"the output directory {out} cannot be written: {os.strerror(error.errno or 0)}") from None


def check_program(path: Path) -> str:
    """The platform that the program is built for, "" for scripts; `Refused` if it cannot be run."""
    try:
        with open(path, "rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise Refused(f"the program {path} cannot be read: {os.strerror(error.errno or 0)}") from None
    if path.suffix == ".py":
        return ""
    if not os.access(path, os.X_OK):
        raise Refused(f"{path} is neither a .py script nor executable: chmod +x {path}")
    return here() if magic == ELF else ""


async def prepare(
    job: Job,
    *,
    store: BlockStore,
    journal: Journal,
    offload: Offload,
    names: set[str],
    account: str,
    images: Images,
    say: Callable[[str], None],
) -> tuple[list[Row], Known]:
    """The job's tasks in input order, and those whose result is known. `Refused` says what stands in the way."""
    spec = job.spec
    if unknown := [name for name in spec.nodes if name not in names]:
        raise Refused(f"no machine of this pool is called {unknown[0]}; there are {', '.join(sorted(names))}")
    if spec.resume is not None:
        task = decode(Task, store.get(c.parse(spec.resume.task)))
        rows = [Row(0, "", task, t.Pending())]
        job.times, job.lessons = journal.times(task.program), journal.times(estimate.jobs_of(task.program))
        return rows, _known(job, rows, store, journal, account)
    path = Path(spec.program)
    built_for = platform_of_engine() if spec.wasm is not None else await offload(lambda: check_program(path))
    if spec.out is not None:
        out = spec.out
        await offload(lambda: check_out(out))
    python: Python | None = None
    site: bytes | None = None
    environment: Record | None
    if spec.wasm is not None:
        if path.suffix == ".py":
            python = await images.python(_image(spec.wasm), say)
            site = await _site(path, spec.with_, store, images, say)
        elif spec.with_:
            raise Refused(f"--with adds Python modules, {path.name} is not a .py script")
        elif spec.wasm.image:
            raise Refused(f"--image is for Python scripts, {path.name} is none")
        wasm = spec.wasm
        variables = dict(wasm.env)
        if python is not None and python.image is None and site is not None:
            variables = {
                "PYTHONPATH": f"/{SITE}",
                "PYTHONDONTWRITEBYTECODE": "1",
                **variables,
            }  # what the image's runner does
        environment = EngineRun(
            engine=built_for[5:], env=variables, seed=wasm.seed, memory_bytes=wasm.memory_bytes, work=wasm.work,
            mark_every=wasm.mark_every,
        )  # fmt: skip
    elif path.suffix == ".py":
        environment = await resolve(path, spec.with_, say)
    elif spec.with_:
        raise Refused(f"--with adds Python packages, {path.name} is not a .py script")
    else:
        environment = None
    say("reading inputs")
    rows = await offload(lambda: _read(job, spec, path, built_for, environment, store, python, site))
    if rows:
        program = rows[0].task.program
        job.times, job.lessons = journal.times(program), journal.times(estimate.jobs_of(program))
    if spec.hold or spec.open_stdin:
        for row in rows:
            row.state = t.Held()
        return rows, {}  # asked for when it begins: until then it may become another task
    return rows, {} if spec.fresh else _known(job, rows, store, journal, account)


def _image(wasm: Wasm) -> str:
    """Which image a script starts from. A variable that Python reads when it starts comes too late for an image, which has started."""
    early = next((name for name in wasm.env if name.startswith("PYTHON")), None)
    if early is None:
        return wasm.image
    if wasm.image not in ("", "none"):
        raise Refused(f"{early} is read when Python starts, and an image has started: leave it out, or --image none")
    return "none"


async def _site(
    script: Path, withs: Sequence[str], store: BlockStore, images: Images, say: Callable[[str], None]
) -> bytes | None:
    """What the script can import besides the standard library, as a directory of the store."""
    with tempfile.TemporaryDirectory(prefix="ipos-site-") as scratch:
        made = await gather(script, withs, images.sites, Path(scratch), say)
        return await asyncio.to_thread(unixfs.add_dir, store, made) if made is not None else None


def _known(job: Job, rows: list[Row], store: BlockStore, journal: Journal, account: str) -> Known:
    found: Known = {}
    for row in rows:
        answer = verified.known(journal, store, row.cid, account, job.spec.verified)
        if answer is not None:
            found[row.i] = answer
            store.put([(c.of_dag_cbor(body), body) for body in (answer.result, answer.receipt) if body is not None])
    return found


def _read(
    job: Job,
    spec: JobSpec,
    path: Path,
    built_for: str,
    environment: Record | None,
    store: BlockStore,
    python: Python | None,
    site: bytes | None,
) -> list[Row]:
    """In a thread: files become content of the store."""
    program = python.program if python is not None else unixfs.add_file(store, path)[0]
    env: bytes | None = None
    if environment is not None:
        env, body = data.record_block(environment)
        store.put([(env, body)])
    limits = Limits(output_bytes=spec.output_bytes, memory_bytes=spec.memory_bytes, wall_ms=round(spec.wall_s * 1000))

    def task(args: tuple[str, ...], stdin: bytes | None, files: dict[str, bytes]) -> Task:
        if python is not None:
            args, files = (path.name, *args), {**files, path.name: content(str(path))}
            files |= {SITE: site} if site is not None else {}
        return Task(
            program=program, name=path.name if python is None else NAME, image=None if python is None else python.image, args=args, environment=env, stdin=stdin, files=files,
            platform=built_for, limits=limits,
        )  # fmt: skip

    def content(file: str) -> bytes:
        try:
            cid, size = unixfs.add_file(store, file)
        except OSError as error:
            if isinstance(error, Refused):
                raise
            raise Refused(f"the input {file} cannot be read: {os.strerror(error.errno or 0)}") from None
        job.info.sizes[cid.hex()] = size
        return cid

    if spec.over is None:
        stdin = content(spec.stdin) if spec.stdin is not None else None
        files = _root(store, spec.root) if spec.root is not None else {}
        if site is not None and SITE in files:
            raise Refused(f"{spec.root} has a {SITE} of its own, where --with puts modules: leave out one of the two")
        if python is not None and path.name in files:
            raise Refused(f"{spec.root} has a {path.name} of its own, where the script would lie: rename one")
        return [Row(0, "", task(spec.args, stdin, files), t.Pending())]
    rows: list[Row] = []
    for i, one in enumerate(spec.over):
        cid = content(one.path)
        if spec.by_argument:
            args = tuple(arg.replace("{}", one.name) for arg in spec.args)
            made = task(args, None, {one.name: cid})
        else:
            made = task(spec.args, cid, {})
        row = Row(i, one.name, made, t.Pending())
        _ = job.size(row), row.cid  # computed here, not on the loop
        rows.append(row)
    return rows


def _root(store: BlockStore, root: str) -> dict[str, bytes]:
    """What lies in a directory, by name."""
    try:
        return {link.name: link.cid for link in unixfs.entries(store, unixfs.add_dir(store, Path(root), links=True))}
    except OSError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"the root directory {root} cannot be read: {os.strerror(error.errno or 0)}") from None


def foretell(job: Job, rows: list[Row], known: Known, offers: list[Offer]) -> float | None:
    """The estimate that is shown before the job runs."""
    sizes = [job.size(row) for row in sorted(rows, key=job.rank) if row.i not in known]
    fit = [offer for offer in offers if not job.spec.nodes or offer.name in job.spec.nodes]
    return estimate.job(job.times, sizes, fit, job.lessons) if sizes else 0.0
