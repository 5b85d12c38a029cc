"""Builds `src/ipos/vm/ipwasi.wasm` from the C beside this file, with the zig of PyPI's `ziglang`.

python instrument/wasi/build.py            # build
python instrument/wasi/build.py --check    # build again and compare bytes with what is checked in
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BUILT = HERE.parents[1] / "src/ipos/vm/ipwasi.wasm"
FLAGS = [
    "-std=gnu11",
    "-O2",
    "-g0",
    "-flto",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Wno-sign-conversion",
    "-Werror",
]
STACK_BYTES = 65536


def sources() -> list[Path]:
    return sorted(HERE.glob("*.c"))


def exports() -> list[str]:
    """`EXPORT(f)` and `MAY_WAIT(f, ...)` export f, `FREE_OF_WORK(f)` exports it as free_f."""
    text = "".join(source.read_text() for source in sources())
    names = re.findall(r"(?:EXPORT|MAY_WAIT)\((\w+)[,)]", text)
    free = [f"free_{name}" for name in re.findall(r"FREE_OF_WORK\((\w+)\)", text)]
    return sorted({*names, *free} - {"name", "free_name"})


def build(target: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        "wasm32-freestanding",
        *FLAGS,
        "-nostdlib",
        "-Wl,--no-entry",
        "-Wl,-s",
    ]
    command += [f"-Wl,-z,stack-size={STACK_BYTES}", *(f"-Wl,--export={name}" for name in exports())]
    subprocess.run([*command, "-o", str(target), *(source.name for source in sources())], check=True, cwd=HERE)


def main() -> int:
    if "--check" not in sys.argv:
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        build(BUILT)
        print(f"{BUILT.relative_to(HERE.parents[1])}: {BUILT.stat().st_size} bytes")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder, "ipwasi.wasm")
        build(fresh)
        if fresh.read_bytes() == BUILT.read_bytes():
            return 0
    print("src/ipos/vm/ipwasi.wasm differs from a fresh build: run python instrument/wasi/build.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
