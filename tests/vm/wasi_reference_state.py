"""What the WASI in Python (`wasi_reference.py`) holds: files, descriptors; how it finds a path. Directories are dicts, a file is a dict of
pages of bytearray."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from ipos.vm.wasi import boot

PAGE = 65536
OK, BADF, BUSY, EXIST, FAULT, FBIG, ILSEQ, INVAL, ISDIR, LOOP = 0, 8, 10, 20, 21, 22, 25, 28, 31, 32
NAMETOOLONG, NOENT, NOSPC, NOTDIR, NOTEMPTY, NOTSOCK, PERM, SPIPE, NOTCAPABLE = 37, 44, 51, 54, 55, 57, 63, 70, 76
ALL = (1 << 30) - 1
DIRECTORY_RIGHTS = sum(1 << bit for bit in [0, 3, 4, 7, *range(9, 22), 23, 24, 25, 26, 27])
FILE_RIGHTS = sum(1 << bit for bit in [*range(9), 21, 22, 23, 27])
MOST_BYTES = 1 << 40


class Error(Exception):
    def __init__(self, errno: int) -> None:
        self.errno = errno


@dataclass(eq=False)
class Node:
    kind: int
    number: int
    times: list[int]
    names: int = 0
    entries: dict[bytes, Node] = field(default_factory=dict)
    parent: Node | None = None
    target: bytes = b""
    size: int = 0
    pages: dict[int, bytearray] = field(default_factory=dict)

    def read(self, offset: int, length: int) -> bytes:
        out = b""
        length = max(0, min(length, self.size - offset))
        while len(out) < length:
            page, within = divmod(offset + len(out), PAGE)
            part = min(PAGE - within, length - len(out))
            out += bytes(self.pages[page][within : within + part]) if page in self.pages else bytes(part)
        return out

    def write(self, offset: int, content: bytes) -> None:
        done = 0
        while done < len(content):
            page, within = divmod(offset + done, PAGE)
            part = min(PAGE - within, len(content) - done)
            self.pages.setdefault(page, bytearray(PAGE))[within : within + part] = content[done : done + part]
            done += part
        self.size = max(self.size, offset + len(content))

    def resize(self, size: int) -> None:
        if size < self.size:
            for page in [page for page in self.pages if page * PAGE >= size]:
                del self.pages[page]
            if size // PAGE in self.pages:
                self.pages[size // PAGE][size % PAGE :] = bytes(PAGE - size % PAGE)
        self.size = size


@dataclass(eq=False)
class Open:
    kind: str  # empty, stdin, out, file, dir
    rights: int
    inheriting: int = 0
    node: Node | None = None
    stream: int = 0
    flags: int = 0
    offset: int = 0
    preopened: bool = False
    cursor: tuple[int, bytes] | None = None


class State:
    def __init__(
        self, task: boot.Boot, files: dict[int, bytes], memory: memoryview, stdin: Callable[[int], bytes | None]
    ) -> None:
        self.memory, self.stdin, self.task = memory, stdin, task
        self.work = self.calls = self.slept = self.numbers = self.stdin_taken = self.block = 0
        self.out: list[tuple[int, bytes]] = []
        self.exited: int | None = None
        self.full: int | None = None
        self.root = self.node(3)
        self.root.parent, self.root.names = self.root, 1
        common = 1 << 3 | 1 << 21 | 1 << 27 | (0 if task.stdin.kind == boot.StdinKind.TERMINAL else 1 << 5)
        if task.stdin.kind == boot.StdinKind.FILE:
            file = self.node(4)
            file.write(0, files.get(task.stdin.file.number, b""))
            stdin_open = Open("file", FILE_RIGHTS & ~(1 << 6 | 1 << 8 | 1 << 22), node=file)
        else:
            stdin_open = Open("stdin" if task.stdin.kind else "empty", common | 2)
        self.fds: dict[int, Open] = {
            0: stdin_open,
            1: Open("out", common | 64, stream=0, flags=1),
            2: Open("out", common | 64, stream=1, flags=1),
            3: Open("dir", DIRECTORY_RIGHTS, ALL, self.root),
        }
        for open_ in self.fds.values():
            open_.preopened = True
        todo = [(self.root, task.tree)]
        for directory, listed in todo:
            for name in sorted(listed.entries, key=str.encode):
                match listed.entries[name]:
                    case boot.Directory() as below:
                        node = self.node(3)
                        todo.append((node, below))
                    case boot.File(number, size):
                        node = self.node(4)
                        node.write(0, files.get(number, b"")[:size])
                    case boot.Symlink(target):
                        node = self.node(7)
                        node.target = target.encode()
                self.enter(directory, name.encode(), node)

    def node(self, kind: int) -> Node:
        self.numbers += 1
        return Node(kind, self.numbers, [self.now()] * 3)

    def enter(self, directory: Node, name: bytes, node: Node) -> None:
        directory.entries[name] = node
        node.names += 1
        if node.kind == 3:
            node.parent = directory
        self.touch(directory)

    def leave(self, directory: Node, name: bytes) -> None:
        self.drop(directory.entries.pop(name))
        self.touch(directory)

    def drop(self, node: Node) -> None:
        node.names -= 1
        node.times[2] = self.now()
        if node.kind == 3:
            node.parent = None

    def touch(self, node: Node) -> None:
        node.times[1] = node.times[2] = self.now()

    def now(self, clock: int = 0) -> int:
        busy = self.work + 1000 * self.calls
        return busy + (self.slept if clock < 2 else 0) + (self.task.epoch_ns if clock == 0 else 0) & (1 << 64) - 1

    # ---- the program's memory

    def check(self, address: int, length: int) -> None:
        if address + length > len(self.memory):
            raise Error(FAULT)

    def get(self, format_: str, address: int) -> int:
        return struct.unpack_from("<" + format_, self.memory, address)[0]

    def put(self, format_: str, address: int, *values: int) -> None:
        struct.pack_into("<" + format_, self.memory, address, *values)

    # ---- calls

    def __call__(self, name: str, *arguments: int, full: int | None = None) -> int | None:
        """The errno, or None for a wait. `full`: the other side ran out of space after so many bytes."""
        waits = name in {"fd_read", "fd_write", "fd_pread", "fd_pwrite"}
        self.full = full
        self.calls += not waits
        try:
            getattr(self, name)(*arguments)
            error = OK
        except Error as why:
            error = why.errno
        except BlockingIOError:
            return None
        self.calls += waits
        return None if name == "proc_exit" or (name == "proc_raise" and self.exited is not None) else error

    def need_space(self) -> None:
        if self.full is not None:
            raise Error(NOSPC)

    def fd(self, number: int, right: int | None = None, error: int = NOTCAPABLE) -> Open:
        if number not in self.fds:
            raise Error(BADF)
        if right is not None and not self.fds[number].rights >> right & 1:
            raise Error(error)
        return self.fds[number]

    def of_kind(self, number: int, **errors: int) -> Open:
        open_ = self.fd(number)
        if open_.kind in errors or ("other" in errors and open_.kind not in {"file", "dir"}):
            raise Error(errors.get(open_.kind, errors.get("other", OK)))
        return open_

    def text(self, address: int, length: int) -> bytes:
        self.check(address, length)
        if not length or length > 4095:
            raise Error(NAMETOOLONG if length else NOENT)
        text = bytes(self.memory[address : address + length])
        try:
            text.decode()
        except UnicodeDecodeError:
            raise Error(ILSEQ) from None
        if b"\0" in text:
            raise Error(ILSEQ)
        return text

    def find(
        self, fd: int, rights: list[int], path: int, length: int, last: str
    ) -> tuple[Node | None, Node | None, bytes, bool]:
        """(node, directory of the last name, that name, ends in a slash)"""
        start = self.of_kind(fd, file=NOTDIR, other=NOTDIR)
        if any(not start.rights >> right & 1 for right in rights):
            raise Error(NOTCAPABLE)
        text = self.text(path, length)
        assert start.node
        return self.walk(start.node, text, last)

    def walk(self, start: Node, text: bytes, last: str) -> tuple[Node | None, Node | None, bytes, bool]:
        if text.startswith(b"/"):
            raise Error(PERM)
        here: Node = start
        directory, name, links, steps = None, b"", 0, 0
        slash = text.endswith(b"/")
        todo = [part for part in text.split(b"/") if part]
        while todo:
            name = todo.pop(0)
            steps += 1
            if steps > 4096:
                raise Error(LOOP)
            if len(name) > 255:
                raise Error(NAMETOOLONG)
            if here.kind != 3:
                raise Error(NOTDIR)
            if name in {b".", b".."}:
                directory = None
                if name == b"..":
                    if here is start:
                        raise Error(PERM)
                    if here.parent is None:
                        raise Error(NOENT)
                    here = here.parent
                continue
            node = here.entries.get(name)
            if node and node.kind == 7 and (todo or last == "follow" or (last == "stay" and slash)):
                links += 1
                if links > 32:
                    raise Error(LOOP)
                rest = b"/".join(todo)
                if not todo and node.target.endswith(b"/"):
                    slash = True
                if len(node.target) + len(rest) > 8000:
                    raise Error(NAMETOOLONG)
                todo = [part for part in node.target.split(b"/") if part] + todo
                if node.target.startswith(b"/"):
                    if start is not self.root:
                        raise Error(PERM)
                    here = self.root
                directory = None
                continue
            if node is None:
                if todo or here.names == 0:
                    raise Error(NOENT)
                return None, here, name, slash
            directory, here = here, node
        if slash and here.kind != 3:
            raise Error(NOTDIR)
        return here, directory, name, slash


def chacha20(key: bytes, counter: int) -> bytes:
    """One block of RFC 8439's function, with a counter of 64 bits and no nonce, as Bernstein's original."""
    start = [
        *struct.unpack("<4I", b"expand 32-byte k"),
        *struct.unpack("<8I", key),
        counter & 0xFFFFFFFF,
        counter >> 32,
        0,
        0,
    ]
    s = list(start)
    for turn in range(80):
        a, b, c, d = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))[turn % 8]  # fmt: skip
        for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = s[x] + s[y] & 0xFFFFFFFF
            mixed = s[z] ^ s[x]
            s[z] = (mixed << by | mixed >> (32 - by)) & 0xFFFFFFFF
    return struct.pack("<16I", *((x + y) & 0xFFFFFFFF for x, y in zip(s, start, strict=True)))
