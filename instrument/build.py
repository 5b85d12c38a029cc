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
PASS = TARGET / "ipinst.wasm"
WASI_BUILD = HERE / "wasi" / "build.py"  # has steps of its own


def build(sources: Path, product: Path) -> None:
    files = sorted(path.name for path in sources.glob("*.c"))
    # run in the folder and with relative names: no path of this machine may end up in the product
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", product, *files], cwd=sources, check=True)
    product.chmod(0o644)


def main() -> int:
    checking = "--check" in sys.argv[1:]
    status = 0
    if checking:
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / PASS.name
            build(HERE / "pass", fresh)
            if fresh.read_bytes() != PASS.read_bytes():
                print(f"{PASS.name} is not what its sources give; run instrument/build.py", file=sys.stderr)
                status = 1
    else:
        build(HERE / "pass", PASS)
    if WASI_BUILD.exists():
        status |= subprocess.run([sys.executable, WASI_BUILD, *sys.argv[1:]], check=False).returncode
    return status


if __name__ == "__main__":
    raise SystemExit(main())
