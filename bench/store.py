"""The store: adding and getting one large file and many small ones, garbage collection, the index of a million blocks; Kubo beside it.

    bench/store.py [--kubo PATH-OF-IPFS] [--mib 512] [--small 5000] [--blocks 1000000]

Kubo is not part of this project: where an `ipfs` is named (or found in PATH) it adds the same files in the same run, in a repository of its
own in the scratch directory, and its CIDs must be the same. IPOS has everything on disk when it says so; Kubo is run as it comes, which does not
sync, and with `sync: true`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ipos.store import cid as c
from ipos.store import gc, unixfs
from ipos.store.pack import PackStore
from ipos.store.pins import Pins

KUBO_FLAGS = {
    "unixfs-v1-2025": ["--chunker=size-1048576", "--max-file-links=1024"],
    "legacy-cid-v1": ["--chunker=size-262144", "--max-file-links=174"],
}


def cpu() -> float:
    """Seconds of CPU, of this process and those it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(work: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    out = work()
    return time.perf_counter() - began, out


def costed(work: Callable[[], object]) -> tuple[float, float, object]:
    """(seconds, seconds of CPU, result)."""
    before = cpu()
    took, out = timed(work)
    return took, cpu() - before, out


def ipos_add(store: Path, path: Path, profile: str) -> str:
    """As the node does it: a process of its own, then its pack is taken into the index, then the pin."""
    packs = PackStore(store)
    question = json.dumps({"store": str(store), "paths": [str(path)], "profile": profile})
    done = subprocess.run(
        [sys.executable, "-I", "-m", "ipos.store.adding"], input=question, capture_output=True, text=True, check=True
    )
    cid = json.loads(done.stdout.splitlines()[-2])["cid"]
    packs.take_in(synced=True)
    pins = Pins(store / "pins.sqlite", packs)
    pins.pin(f"ipos add {path}", [c.parse(cid)], durable=True)
    pins.close()
    packs.close()
    return cid


class Kubo:
    def __init__(self, program: str, scratch: Path) -> None:
        self.program = program
        self._repository = scratch / "kubo"
        self.environment = {**os.environ, "IPFS_PATH": str(self._repository)}
        self.version = self.run("version").split()[-1]

    def fresh(self, synced: bool) -> None:
        """An empty repository. As it comes, Kubo does not sync its blocks to the disk."""
        shutil.rmtree(self._repository, ignore_errors=True)
        self.run("init", "--profile=test")
        config = self._repository / "config"
        assert '"sync": false' in config.read_text()
        config.write_text(config.read_text().replace('"sync": false', f'"sync": {str(synced).lower()}'))

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.program, *arguments], env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def add(self, path: Path, profile: str) -> str:
        return self.run("add", "-Q", "-r", "-H", "--cid-version=1", "--raw-leaves", *KUBO_FLAGS[profile], str(path))


def fresh(size: int, path: Path, seed: int) -> None:
    dice = random.Random(seed)
    with open(path, "wb") as out:
        for _ in range(size >> 20):
            out.write(dice.randbytes(1 << 20))
        out.flush()
        os.fsync(out.fileno())


def adding_and_getting(scratch: Path, kubo: Kubo | None, mib: int, small: int) -> None:
    large, many = scratch / "large", scratch / "many"
    fresh(mib << 20, large, 1)
    dice = random.Random(2)
    total = 0
    for i in range(small):
        file = many / f"{i // 500}" / f"{i}"
        file.parent.mkdir(parents=True, exist_ok=True)
        body = dice.randbytes(dice.randint(1, 8000))
        total += file.write_bytes(body)
    for profile in KUBO_FLAGS:
        for path, size, what in (
            (large, mib << 20, f"one file of {mib} MiB"),
            (many, total, f"{small} files, {total >> 20} MiB"),
        ):
            ours: list[tuple[float, float]] = []
            theirs: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for turn in range(3):  # by turns, so that both meet the same machine
                store = scratch / f"store-{profile}-{path.name}-{turn}"
                *figures, cid = costed(lambda store=store, path=path, profile=profile: ipos_add(store, path, profile))
                ours.append((figures[0], figures[1]))
                for synced in (False, True) if kubo is not None else ():
                    assert kubo is not None
                    kubo.fresh(synced)
                    *figures, expected = costed(lambda path=path, profile=profile: kubo.add(path, profile))
                    theirs[synced].append((figures[0], figures[1]))
                    assert cid == expected, (profile, path, cid, expected)
                if turn < 2:
                    shutil.rmtree(store)
            took, work = (sorted(each)[1] for each in zip(*ours, strict=True))
            words = f"add, {profile}, {what}: {size / took / 1e6:.0f} MB/s, {work * 1e9 / size:.1f} s of CPU a GB"
            for synced, each in theirs.items() if kubo is not None else ():
                kubos, kuboc = (sorted(figure)[1] for figure in zip(*each, strict=True))
                words += (
                    f"; Kubo{' synced' if synced else ''} {size / kubos / 1e6:.0f} MB/s, {kuboc * 1e9 / size:.1f} s: "
                )
                words += f"{kubos / took:.2f} times its rate"
            print(words, flush=True)
            took, _ = timed(lambda store=store, cid=cid: _export(store, str(cid), scratch / "out"))
            print(f"get, {profile}, {what}: {size / took / 1e6:.0f} MB/s", flush=True)
            shutil.rmtree(store)
    began = time.perf_counter()
    digest = hashlib.sha256()
    with open(large, "rb", buffering=0) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    print(f"sha256 of the large file alone: {(mib << 20) / (time.perf_counter() - began) / 1e6:.0f} MB/s")
    began = time.perf_counter()
    with open(large, "rb", buffering=0) as stream, open(scratch / "copy", "wb", buffering=0) as out:
        while piece := stream.read(16 << 20):
            out.write(piece)
            os.fdatasync(out.fileno())
    print(f"copying it, synced every 16 MiB: {(mib << 20) / (time.perf_counter() - began) / 1e6:.0f} MB/s")


def _export(store: Path, cid: str, target: Path) -> None:
    packs = PackStore(store)
    unixfs.export(packs, c.parse(cid), target)
    packs.close()
    (shutil.rmtree if target.is_dir() else os.unlink)(target)


def a_million(scratch: Path, count: int) -> None:
    """Blocks of 64 bytes: the packs are small, the index is what it is."""
    packs = PackStore(scratch / "blocks")

    def fill() -> None:
        for at in range(0, count, 2000):
            packs.put([(c.of_raw(body), body) for body in (i.to_bytes(64, "big") for i in range(at, at + 2000))])

    took, _ = timed(fill)
    figures = packs.figures()
    print(
        f"{count} blocks put in {took:.0f} s; the index has {figures['index_bytes'] / count:.0f} bytes a block",
        flush=True,
    )
    packs.close()
    code = f"""
import time
from pathlib import Path
from ipos.store import cid as c
from ipos.store.pack import PackStore
began = time.perf_counter()
store = PackStore(Path({str(scratch / "blocks")!r}))
opened = time.perf_counter() - began
print("opened in", round(opened * 1000), "ms;", end=" ")
began = time.perf_counter()
for i in range(0, {count}, {max(1, count // 20000)}):
    assert store.has(c.of_raw(i.to_bytes(64, "big")))
print("has:", round((time.perf_counter() - began) / {count // max(1, count // 20000)} * 1e6), "us;", end=" ")
print(Path("/proc/self/smaps_rollup").read_text().split("Pss:")[1].split()[0], "kB of memory (PSS)")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    empty = code.replace(str(scratch / "blocks"), str(scratch / "empty")).replace("assert store", "store")
    print("an empty store beside it:", end=" ", flush=True)
    subprocess.run([sys.executable, "-c", empty], check=True)
    packs = PackStore(scratch / "blocks")
    pins = Pins(scratch / "blocks" / "pins.sqlite", packs, packs.age)
    pins.pin("one in four", [c.of_raw(i.to_bytes(64, "big")) for i in range(0, count, 4)])
    took, got = timed(lambda: gc.collect(packs, pins, grace_s=-1))
    assert isinstance(got, gc.Collected)
    print(f"garbage collection of {got.blocks} of {count} blocks: {took:.1f} s, {got.packs} packs compacted")
    print(f"peak memory of all of this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kubo", default=shutil.which("ipfs"))
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--small", type=int, default=5000)
    options.add_argument("--blocks", type=int, default=1_000_000)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="ipos-bench-") as scratch:
        kubo = Kubo(chosen.kubo, Path(scratch)) if chosen.kubo else None
        print(f"Kubo {kubo.version}" if kubo else "no Kubo here: bench/store.py --kubo PATH compares with one")
        adding_and_getting(Path(scratch), kubo, chosen.mib, chosen.small)
        a_million(Path(scratch), chosen.blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
