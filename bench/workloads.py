"""The real programs that the engine is measured with: the C programs of `tests/vm/programs`, Lua, SQLite and CPython on scripts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, cast

import wasmtime

from ipos.vm import engine
from ipos.vm.instance import Instance
from ipos.vm.wasi.boot import Boot, Directory, File, Stdin, StdinKind
from tests.vm import programs_real
from tests.vm.programs import SMALL, c

HERE = Path(__file__).parent.parent
MEMORY_BYTES = 1 << 30
ALL_AT_ONCE = 1 << 50
T = TypeVar("T")

SCRIPTS = {
    "loops": "total = 0\nfor i in range(900_000):\n    total = (total * 31 + i) % 1_000_003\nprint(total)\n",
    "dicts": (
        "words = [f'{i * i % 9973:x}' for i in range(60_000)]\ncount = {}\nfor word in words * 4:\n    count[word] = count.get(word, 0) + 1\n"
        "print(len(count), sorted(count.items(), key=lambda item: (-item[1], item[0]))[:3])\n"
    ),
    "objects": (
        "class Node:\n    def __init__(self, value, rest):\n        self.value, self.rest = value, rest\n    def total(self):\n"
        "        return self.value + (self.rest.total() if self.rest else 0)\n"
        "n = 0\nfor round in range(300):\n    node = None\n    for i in range(200):\n        node = Node(i, node)\n    n += node.total()\nprint(n)\n"
    ),
    "floats": (
        "import math\nx, y = 0.1, 0.2\nfor i in range(250_000):\n    x, y = math.sin(y) * 1.5 + i * 1e-7, x * 0.5 - y / (1.0 + x * x)\nprint(repr(x), repr(y))\n"
    ),
    "text": (
        "import json, re\ntext = json.dumps([{'name': f'row {i}', 'at': i * 0.5, 'tags': ['a', 'b', str(i)]} for i in range(4000)])\n"
        "rows = json.loads(text)\nprint(len(rows), len(re.findall(r'\"(row \\d+)\"', text)), len(text.split(',')), text.upper().count('ROW'))\n"
    ),
}


@dataclass(frozen=True)
class Workload:
    """`files`: the input root by name; `native`: C sources and options for gcc, if it is a single file."""

    name: str
    program: Callable[[], bytes]
    args: tuple[str, ...] = ()
    stdin: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    native: str = ""


def _c(name: str, many: int) -> Workload:
    return Workload(name, lambda: c(name, SMALL), (str(many),), native=f"{name}.c")


def workloads() -> list[Workload]:
    programs = HERE / "tests/vm/programs"
    lua = (programs / "lua/bench.lua").read_bytes()
    sql = (programs / "sqlite/batch.sql").read_bytes()
    return [
        _c("fib", 36), _c("qsort", 2_000_000), _c("core", 6000), _c("nbody", 2_000_000), _c("matmul", 500), _c("sha256", 3_000_000),
        Workload("lua", programs_real.lua, ("bench.lua",), b"".join(b"%d\n" % i for i in range(40)), {"bench.lua": lua}),
        Workload("sqlite", programs_real.sqlite, ("/work.db", "batch.sql"), b"", {"batch.sql": sql}),
        *(Workload(f"python {name}", programs_real.cpython, ("job.py",), b"", {"job.py": text.encode()}) for name, text in SCRIPTS.items()),
    ]  # fmt: skip


class _Given:
    """`ipos.vm.host.FileHost` of a workload; counts what is printed."""

    def __init__(self, workload: Workload) -> None:
        self.files, self.input, self.printed = list(workload.files.values()), workload.stdin, bytearray()

    def ready(self, file: int, first: int, last: int) -> bool:
        return True

    def block(self, file: int, n: int) -> bytes:
        return self.files[file - 1][n << 16 : (n + 1) << 16]

    def stdin(self, count: int) -> bytes:
        piece, self.input = self.input[:count], self.input[count:]
        return piece

    def output(self, stream: int, content: bytes) -> None:
        self.printed += content


@dataclass(frozen=True)
class Run:
    """`cpu_s` of the thread, from the first instruction to the last; `work`: 0 of a plain run."""

    cpu_s: float
    work: int
    printed: bytes


def started(workload: Workload, module: wasmtime.Module) -> tuple[Instance, _Given]:
    host = _Given(workload)
    tree = Directory({name: File(i + 1, len(body)) for i, (name, body) in enumerate(workload.files.items())})
    instance = Instance(module, host, MEMORY_BYTES)
    instance.boot(
        Boot((workload.name, *workload.args), seed=b"seed".ljust(32), stdin=Stdin(StdinKind.STREAM), tree=tree)
    )
    return instance, host


def in_engine(workload: Workload, module: wasmtime.Module) -> Run:
    instance, host = started(workload, module)
    began = time.thread_time()
    instance.run("_start", ALL_AT_ONCE)
    took, work = time.thread_time() - began, instance.used
    instance.close()
    return Run(took, work, bytes(host.printed))


def plain(workload: Workload, module: wasmtime.Module) -> Run:
    """In wasmtime as it comes, with its own WASI."""
    with TemporaryDirectory() as folder:
        root, out = Path(folder, "root"), Path(folder, "out")
        root.mkdir()
        for name, body in workload.files.items():
            (root / name).write_bytes(body)
        Path(folder, "in").write_bytes(workload.stdin)
        linker = wasmtime.Linker(engine.engine())
        linker.define_wasi()
        store = wasmtime.Store(engine.engine())
        config = wasmtime.WasiConfig()
        config.argv = (workload.name, *workload.args)
        config.stdin_file, config.stdout_file = str(Path(folder, "in")), str(out)
        config.preopen_dir(str(root), "/")
        store.set_wasi(config)
        start = cast("wasmtime.Func", linker.instantiate(store, module).exports(store)["_start"])
        began = time.thread_time()
        with suppress(wasmtime.ExitTrap):
            start(store)
        took = time.thread_time() - began
        store.close()
        return Run(took, 0, out.read_bytes())


def on_large_stack(what: Callable[[], T]) -> T:
    results: list[T] = []
    before = threading.stack_size(engine.THREAD_STACK_BYTES)
    thread = threading.Thread(target=lambda: results.append(what()))
    thread.start()
    threading.stack_size(before)
    thread.join()
    if not results:
        raise SystemExit(1)
    return results[0]
