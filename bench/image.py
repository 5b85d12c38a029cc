"""Python in the engine: from asking for a task to its first byte of output, from the image and without it; and `ipos run` as a person meets it.

.venv/bin/python bench/image.py
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ipos.pool.image import COMMON, NAME, python_image
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.vm.client import Workers
from ipos.vm.image import decoded
from ipos.vm.plan import Plan
from ipos.vm.process import Places
from ipos.vm.version import cache_root

IPOS = Path(sys.executable).with_name("ipos")
RUNS = 9
HELLO = "print('hello', flush=True)\n"


def places(at: Path, name: str, image: Path | None, program: str) -> Places:
    where = at / name
    for part in ("root", "out", "saves"):
        (where / part).mkdir(parents=True)
    (where / "root" / "hello.py").write_text(HELLO)
    paths = (where / part for part in ("root", "out", "saves", "stdout", "stderr"))
    return Places(*paths, image=image, image_of=program)


async def one(
    workers: Workers, at: Path, name: str, program: Path, cid: str, image: Path | None
) -> tuple[float, float, float]:
    """Seconds to the first byte of output; of CPU until then, and in all."""
    where = places(at, name, image, cid)
    what = Plan(task=name, args=(NAME, "hello.py"), image=image.name if image is not None else "")
    began = time.perf_counter()
    worker = await workers.start(what, where, program)
    while not (where.stdout.exists() and where.stdout.stat().st_size) and not worker.ended.done():  # noqa: ASYNC110  (nothing tells it)
        await asyncio.sleep(0.0005)
    first, spent = time.perf_counter() - began, on_cpu(worker.pid)
    ended = await worker.ended
    assert (ended.report.exit, where.stdout.read_text()) == (0, "hello\n"), ended.report
    return first, spent, ended.cpu_s


def on_cpu(pid: int | None) -> float:
    """Seconds that the threads of a process have run so far: what a busy machine does not change."""
    return sum(int(one.read_text().split()[0]) for one in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def ms(values: list[float]) -> str:
    return f"{1000 * statistics.median(values):.0f} (best {1000 * min(values):.0f})"


async def workers_of(at: Path) -> None:
    program = await python_image(at / "images", lambda text: None)
    cid = c.text(unixfs.add_file(MemoryStore(), program)[0])
    image = at / "packed"
    began = time.perf_counter()
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", "-m", "ipos.vm.imager", program, cid, cache_root(), image, *COMMON],
        check=True,
    )
    print(f"image: in the store {image.stat().st_size / 1e6:.1f} MB; made, or taken from this user's cache, in {time.perf_counter() - began:.1f} s")  # fmt: skip
    async with Workers() as workers:
        for name, given in (("warm", image), ("warm0", None)):  # compiled, the parent warm, the instance held
            await one(workers, at, name, program, cid, given)
        body = await workers.image(image, cid)
        print(f"image: {len(decoded(os.pread(body, os.fstat(body).st_size, 0)).parts.memory) / 1e6:.1f} MB of memory")
        kinds: dict[str, list[tuple[float, float, float]]] = {"image": [], "no image": []}
        for i in range(RUNS):
            for name, given in (("image", image), ("no image", None)):
                kinds[name].append(await one(workers, at, f"{name}{i}", program, cid, given))
        for name, found in kinds.items():
            firsts, spent, cpu = (list(column) for column in zip(*found, strict=True))
            print(f"worker, {name}: to the first line {ms(firsts)} ms, of which its process was on a processor for {ms(spent)} ms; to the end {ms(cpu)} ms of CPU")  # fmt: skip
        ratio = statistics.median(found[0] for found in kinds["no image"]) / statistics.median(
            found[0] for found in kinds["image"]
        )
        print(f"worker: the first line comes {ratio:.1f} times sooner from the image; target 50 ms")


def commands_of(at: Path) -> None:
    home = at / "home"
    environment = {**os.environ, "IPOS_HOME": str(home), "XDG_RUNTIME_DIR": str(at / "run")}
    (at / "run").mkdir(mode=0o700)

    def ipos(*arguments: str) -> str:
        return subprocess.run([IPOS, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout  # fmt: skip

    script = at / "hello.py"
    script.write_text(HELLO)
    ipos("up", "--listen", "local", "--cores", "1")
    try:
        kinds: dict[str, list[float]] = {"image": [], "no image": [], "ipos status": []}
        for _ in range(RUNS + 1):
            for name, options in (("image", ()), ("no image", ("--image", "none"))):
                began = time.perf_counter()
                assert ipos("run", "--wasm", "--fresh", *options, str(script)) == "hello\n"
                kinds[name].append(time.perf_counter() - began)
            began = time.perf_counter()
            assert json.loads(ipos("status", "--json"))["state"] == "up"
            kinds["ipos status"].append(time.perf_counter() - began)
        for name, took in kinds.items():
            print(f"ipos run --wasm hello.py, {name}: {ms(took[1:])} ms" if name != "ipos status" else f"ipos status (a command that only asks): {ms(took[1:])} ms")  # fmt: skip
    finally:
        ipos("down")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ipb") as scratch:
        asyncio.run(workers_of(Path(scratch)))
        commands_of(Path(scratch))


if __name__ == "__main__":
    main()
