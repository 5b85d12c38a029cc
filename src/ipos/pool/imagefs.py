"""/image: the images of this home, and one to be made or removed."""

from __future__ import annotations

import errno

import msgspec

from ipos.pool.image import Images, Note
from ipos.tree.file import Caller, File
from ipos.tree.synthetic import Clone, Dir, Text
from ipos.wire import limits
from ipos.wire.errors import Refused


def described(note: Note) -> dict[str, object]:
    """For people: `current` means that scripts start from it unless they say otherwise, or could."""
    return {
        "image": note.image,
        "python": "3.12",
        "modules": list(note.modules),
        "bytes": note.bytes,
        "engine": note.engine,
        "current": note.current,
        "program": note.program,
    }


def image_dir(images: Images) -> Dir:
    """The directory /image."""

    async def build(caller: Caller, question: bytes) -> str:
        _own(caller)
        note = await images.build(question.decode(errors="replace").replace(",", " ").split(), lambda text: None)
        return msgspec.json.encode(described(note)).decode() + "\n"

    async def ctl(caller: Caller, line: str) -> None:
        _own(caller)
        match line.split():
            case ["rm", cid]:
                await images.remove(cid)
            case []:
                pass
            case words:
                raise Refused(f"'{words[0]}' is not a command of /image/ctl; it knows rm CID")

    def listing() -> str:
        return "".join(msgspec.json.encode(described(note)).decode() + "\n" for note in images.notes())

    files: dict[str, File] = {
        "list": Text(listing),
        "build": Clone(build, limits.ctl_line_bytes),
        "ctl": Text(None, ctl),
    }
    return Dir(files)


def _own(caller: Caller) -> None:
    if not caller.local:
        raise Refused("images are made and removed on the node's own socket only", errno.EPERM)
