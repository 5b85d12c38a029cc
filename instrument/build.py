"""Builds what runs inside the engine's sandbox: `python instrument/build.py` writes, `--check` compares with what is checked in.

The pass and the WASI are C for a bare WebAssembly machine, built by PyPI's `ziglang`: the same sources give the same bytes everywhere.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE.parent / "src" / "ipos" / "vm"
FLAGS = [
    *("-target", "wasm32-freestanding", "-mcpu=generic+bulk_memory+sign_ext+nontrapping_fptoint+mutable_globals"),
    *(
        "-std=c17",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-missing-field-initializers",
        "-ffreestanding",
        "-fno-builtin",
        "-g0",
    ),
    *("-nostdlib", "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,-z,stack-size=262144"),
]
PRODUCTS = {"ipinst.wasm": HERE / "pass", "ipwasi.wasm": HERE / "wasi"}


def build(sources: Path, product: Path) -> None:
    files = sorted(path.name for path in sources.glob("*.c"))
    # run in the folder and with relative names: no path of this machine may end up in the product
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", product, *files], cwd=sources, check=True)
    product.chmod(0o644)


def main() -> int:
    checking = "--check" in sys.argv[1:]
    stale: list[str] = []
    for name, sources in PRODUCTS.items():
        if not sources.is_dir():
            continue
        if not checking:
            build(sources, TARGET / name)
            continue
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / name
            build(sources, fresh)
            if fresh.read_bytes() != (TARGET / name).read_bytes():
                stale.append(name)
    if stale:
        print(f"not what its sources give: {', '.join(stale)}; run instrument/build.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
