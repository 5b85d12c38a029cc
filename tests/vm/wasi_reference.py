"""A second WASI, in plain Python, written from the specification and docs/protocols/wasi.md: the judge of the one in C.

It is slow and obvious: directories are dicts, a file is a dict of pages of bytearray. It has no limits of space: `full` says after
how many bytes, or at which call, the other one ran out, and it follows.
"""

from __future__ import annotations

import struct

from .wasi_reference_state import (
    ALL,
    BADF,
    BUSY,
    DIRECTORY_RIGHTS,
    EXIST,
    FBIG,
    FILE_RIGHTS,
    INVAL,
    ISDIR,
    LOOP,
    MOST_BYTES,
    NAMETOOLONG,
    NOENT,
    NOSPC,
    NOTCAPABLE,
    NOTDIR,
    NOTEMPTY,
    NOTSOCK,
    PAGE,
    PERM,
    SPIPE,
    Error,
    Node,
    Open,
    State,
    chacha20,
)


class Wasi(State):
    # ---- strings, time, chance

    def strings(self, pointers: int, buffer: int, strings: list[bytes]) -> None:
        self.check(pointers, 4 * len(strings))
        self.check(buffer, sum(map(len, strings)))
        starts = [buffer + sum(map(len, strings[:i])) for i in range(len(strings))]
        for i, start in enumerate(starts):
            self.put("I", pointers + 4 * i, start)
        joined = b"".join(strings)
        self.memory[buffer : buffer + len(joined)] = joined

    def sizes(self, count: int, size: int, strings: list[bytes]) -> None:
        self.check(count, 4)
        self.check(size, 4)
        self.put("I", count, len(strings))
        self.put("I", size, sum(map(len, strings)))

    def argv(self) -> list[bytes]:
        return [arg.encode() + b"\0" for arg in self.task.args]

    def envv(self) -> list[bytes]:
        return [f"{name}={value}".encode() + b"\0" for name, value in self.task.env.items()]

    def args_get(self, pointers: int, buffer: int) -> None:
        self.strings(pointers, buffer, self.argv())

    def args_sizes_get(self, count: int, size: int) -> None:
        self.sizes(count, size, self.argv())

    def environ_get(self, pointers: int, buffer: int) -> None:
        self.strings(pointers, buffer, self.envv())

    def environ_sizes_get(self, count: int, size: int) -> None:
        self.sizes(count, size, self.envv())

    def clock_res_get(self, clock: int, result: int) -> None:
        if clock > 3:
            raise Error(INVAL)
        self.check(result, 8)
        self.put("Q", result, 1)

    def clock_time_get(self, clock: int, _precision: int, result: int) -> None:
        if clock > 3:
            raise Error(INVAL)
        self.check(result, 8)
        self.put("Q", result, self.now(clock))

    def sched_yield(self) -> None:
        pass

    def random_get(self, buffer: int, length: int) -> None:
        self.check(buffer, length)
        if length > 1 << 20:
            raise Error(INVAL)
        for at in range(0, length, 64):
            part = chacha20(self.task.seed, self.block)[: length - at]
            self.block += 1
            self.memory[buffer + at : buffer + at + len(part)] = part

    def poll_oneoff(self, in_: int, out: int, count: int, result: int) -> None:
        if not 0 < count <= 1024:
            raise Error(INVAL)
        self.check(in_, 48 * count)
        self.check(out, 32 * count)
        self.check(result, 4)

        def wait(at: int) -> int | None:
            if self.get("B", at + 8) != 0 or self.get("I", at + 16) > 3:
                return None
            timeout = self.get("Q", at + 24)
            return max(0, timeout - self.now(self.get("I", at + 16))) if self.get("H", at + 40) & 1 else timeout

        waits = [wait(in_ + 48 * i) for i in range(count)]
        least = 0 if None in waits else min(waits)  # pyright: ignore[reportArgumentType]
        events = 0
        for i in range(count):
            at = in_ + 48 * i
            type_, user, fd = self.get("B", at + 8), self.get("Q", at), self.get("I", at + 16)
            due = wait(at)
            error = size = flags = 0
            if due is not None:
                if due > least:
                    continue
            elif type_ not in {1, 2}:
                error = INVAL
            elif fd not in self.fds:
                error = BADF
            elif not self.fds[fd].rights >> 27 & 1:
                error = NOTCAPABLE
            elif type_ == 2:
                size = PAGE
            elif self.fds[fd].kind == "file":
                size = max(0, self.fds[fd].node.size - self.fds[fd].offset)  # pyright: ignore[reportOptionalMemberAccess]
            elif self.fds[fd].kind == "empty":
                flags = 1
            else:
                size = 1
            self.put("QHHIQQ", out + 32 * events, user, error, type_, 0, size, flags)
            events += 1
        self.slept += min(least, 1 << 62)
        self.put("I", result, events)

    def proc_exit(self, status: int) -> None:
        self.exited = status

    def proc_raise(self, signal: int) -> None:
        if signal:
            self.exited = (128 + signal) & 0xFFFFFFFF

    # ---- descriptors

    def fd_close(self, fd: int) -> None:
        self.fd(fd)
        del self.fds[fd]

    def fd_renumber(self, from_: int, to: int) -> None:
        self.fd(from_)
        self.fd(to)
        if from_ != to:
            self.fds[to] = self.fds.pop(from_)

    def filetype(self, open_: Open) -> int:
        if open_.node:
            return open_.node.kind
        return 2 if open_.kind != "empty" and not open_.rights & 0x24 else 0

    def fd_fdstat_get(self, fd: int, result: int) -> None:
        open_ = self.fd(fd)
        self.check(result, 24)
        self.put("BBHIQQ", result, self.filetype(open_), 0, open_.flags, 0, open_.rights, open_.inheriting)

    def fd_fdstat_set_flags(self, fd: int, flags: int) -> None:
        open_ = self.fd(fd, 3)
        if flags > 31:
            raise Error(INVAL)
        open_.flags = flags

    def fd_fdstat_set_rights(self, fd: int, rights: int, inheriting: int) -> None:
        open_ = self.fd(fd)
        if rights & ~open_.rights or inheriting & ~open_.inheriting:
            raise Error(NOTCAPABLE)
        open_.rights, open_.inheriting = rights, inheriting

    def stat(self, result: int, kind: int, node: Node | None) -> None:
        self.check(result, 64)
        if node is None:
            self.put("QQQQQQQQ", result, 0, 0, kind, 1, 0, 0, 0, 0)
        else:
            size = 0 if node.kind == 3 else len(node.target) if node.kind == 7 else node.size
            self.put("QQQQQQQQ", result, 1, node.number, kind, node.names, size, *node.times)

    def fd_filestat_get(self, fd: int, result: int) -> None:
        open_ = self.fd(fd, 21)
        self.stat(result, self.filetype(open_), open_.node)

    def set_times(self, node: Node | None, accessed: int, modified: int, flags: int) -> None:
        if flags > 15 or flags & 3 == 3 or flags & 12 == 12:
            raise Error(INVAL)
        if node:
            for index, given in ((0, accessed), (1, modified)):
                bits = flags >> 2 * index & 3
                if bits:
                    node.times[index] = given if bits == 1 else self.now()
            node.times[2] = self.now()

    def fd_filestat_set_times(self, fd: int, accessed: int, modified: int, flags: int) -> None:
        self.set_times(self.fd(fd, 23).node, accessed, modified, flags)

    def fd_advise(self, fd: int, _offset: int, _length: int, advice: int) -> None:
        self.fd(fd, 7)
        if advice > 5:
            raise Error(INVAL)

    def fd_sync(self, fd: int) -> None:
        self.fd(fd, 4)

    def fd_datasync(self, fd: int) -> None:
        self.fd(fd, 0)

    def fd_prestat_get(self, fd: int, result: int) -> None:
        if fd not in self.fds or not self.fds[fd].preopened or self.fds[fd].kind != "dir":
            raise Error(BADF)
        self.check(result, 8)
        self.put("II", result, 0, 1)

    def fd_prestat_dir_name(self, fd: int, name: int, length: int) -> None:
        if fd not in self.fds or not self.fds[fd].preopened or self.fds[fd].kind != "dir":
            raise Error(BADF)
        if not length:
            raise Error(NAMETOOLONG)
        self.check(name, 1)
        self.memory[name] = ord("/")

    def sock_accept(self, fd: int, *_: int) -> None:
        self.fd(fd)
        raise Error(NOTSOCK)

    sock_recv = sock_send = sock_shutdown = sock_accept

    # ---- reading and writing

    def vectors(self, list_: int, count: int) -> list[tuple[int, int]]:
        if count > 1024:
            raise Error(INVAL)
        self.check(list_, 8 * count)
        vectors = [struct.unpack_from("<II", self.memory, list_ + 8 * i) for i in range(count)]
        left, cut = 1 << 20, []
        for address, length in vectors:
            self.check(address, length)
            cut.append((address, min(left, length)))
            left -= cut[-1][1]
        return cut

    def scatter(self, vectors: list[tuple[int, int]], content: bytes, result: int) -> None:
        at = 0
        for address, length in vectors:
            part = content[at : at + length]
            self.memory[address : address + len(part)] = part
            at += len(part)
        self.put("I", result, len(content))

    def gather(self, vectors: list[tuple[int, int]]) -> bytes:
        return b"".join(bytes(self.memory[address : address + length]) for address, length in vectors)

    def fd_read(self, fd: int, list_: int, count: int, result: int) -> None:
        open_ = self.of_kind(fd, dir=ISDIR)
        self.fd(fd, 1, BADF)
        self.check(result, 4)
        vectors = self.vectors(list_, count)
        total = sum(length for _, length in vectors)
        if open_.kind == "file" and open_.node:
            content = open_.node.read(open_.offset, total)
            open_.offset += len(content)
        elif open_.kind == "stdin" and total:
            given = self.stdin(min(total, PAGE))
            if given is None:
                raise BlockingIOError
            content = given
        else:
            content = b""
        self.scatter(vectors, content, result)

    def store(self, node: Node, offset: int, vectors: list[tuple[int, int]]) -> int:
        content = self.gather(vectors)
        if not content:
            return 0
        if offset >= MOST_BYTES:
            raise Error(FBIG)
        content = content[: MOST_BYTES - offset]
        if self.full is not None:
            content = content[: self.full]
            if not content:
                raise Error(NOSPC)
        node.write(offset, content)
        self.touch(node)
        return len(content)

    def fd_write(self, fd: int, list_: int, count: int, result: int) -> None:
        open_ = self.of_kind(fd, dir=ISDIR)
        self.fd(fd, 6, BADF)
        self.check(result, 4)
        vectors = self.vectors(list_, count)
        if open_.kind == "file" and open_.node:
            offset = open_.node.size if open_.flags & 1 else open_.offset
            done = self.store(open_.node, offset, vectors)
            if done:
                open_.offset = offset + done
        else:
            content = self.gather(vectors)
            room = self.task.limits.output_bytes - sum(len(part) for _, part in self.out)
            done = min(len(content), room)
            if content and not done:
                raise Error(NOSPC)
            if done:
                self.out.append((open_.stream, content[:done]))
        self.put("I", result, done)

    def positioned(self, fd: int, right: int, result: int) -> Node:
        open_ = self.of_kind(fd, dir=ISDIR, other=SPIPE)
        self.fd(fd, right, BADF)
        self.fd(fd, 2)
        self.check(result, 4)
        assert open_.node
        return open_.node

    def fd_pread(self, fd: int, list_: int, count: int, offset: int, result: int) -> None:
        node = self.positioned(fd, 1, result)
        vectors = self.vectors(list_, count)
        self.scatter(vectors, node.read(offset, sum(length for _, length in vectors)), result)

    def fd_pwrite(self, fd: int, list_: int, count: int, offset: int, result: int) -> None:
        node = self.positioned(fd, 6, result)
        self.put("I", result, self.store(node, offset, self.vectors(list_, count)))

    def fd_seek(self, fd: int, delta: int, whence: int, result: int) -> None:
        open_ = self.of_kind(fd, dir=ISDIR, other=SPIPE)
        delta -= (delta >> 63) << 64
        if not (open_.rights & 4 or (open_.rights & 32 and whence == 1 and delta == 0)):
            raise Error(NOTCAPABLE)
        if whence > 2:
            raise Error(INVAL)
        self.check(result, 8)
        assert open_.node
        to = delta + [0, open_.offset, open_.node.size][whence]
        if not 0 <= to < 1 << 63:
            raise Error(INVAL)
        open_.offset = to
        self.put("Q", result, to)

    def fd_tell(self, fd: int, result: int) -> None:
        open_ = self.of_kind(fd, dir=ISDIR, other=SPIPE)
        self.fd(fd, 5)
        self.check(result, 8)
        self.put("Q", result, open_.offset)

    def resize(self, node: Node | None, size: int) -> None:
        assert node
        if size > MOST_BYTES:
            raise Error(FBIG)
        node.resize(size)
        self.touch(node)

    def fd_filestat_set_size(self, fd: int, size: int) -> None:
        open_ = self.of_kind(fd, dir=INVAL, other=INVAL)
        self.fd(fd, 22)
        self.resize(open_.node, size)

    def fd_allocate(self, fd: int, offset: int, length: int) -> None:
        open_ = self.fd(fd, 8)
        if not length or offset + length >= 1 << 64:
            raise Error(INVAL)
        assert open_.node
        if offset + length > open_.node.size:
            self.resize(open_.node, offset + length)

    def fd_readdir(self, fd: int, buffer: int, room: int, cookie: int, result: int) -> None:
        open_ = self.of_kind(fd, file=NOTDIR, other=NOTDIR)
        self.fd(fd, 14)
        self.check(buffer, room)
        self.check(result, 4)
        directory = open_.node
        assert directory
        names = sorted(directory.entries)
        if cookie >= 2 and open_.cursor and open_.cursor[0] == cookie:
            names = [name for name in names if name > open_.cursor[1]]
        else:
            names = names[max(0, cookie - 2) :]
        listed = [(name, directory.entries[name]) for name in names]
        if cookie < 2:
            listed = [(b".", directory), (b"..", directory.parent or directory)][cookie:] + listed
        out = b""
        last: tuple[int, bytes] | None = None
        for name, node in listed:
            if len(out) >= room:
                break
            cookie += 1
            out += struct.pack("<QQII", cookie, node.number, len(name), node.kind) + name
            if len(out) <= room and cookie > 2:
                last = (cookie, name)
        if last:
            open_.cursor = last
        self.memory[buffer : buffer + min(len(out), room)] = out[:room]
        self.put("I", result, min(len(out), room))

    # ---- paths

    def path_open(
        self,
        fd: int,
        lookup: int,
        path: int,
        length: int,
        how: int,
        rights: int,
        inheriting: int,
        flags: int,
        result: int,
    ) -> None:
        create, is_directory, exclusive, truncate = (bool(how >> bit & 1) for bit in range(4))
        if how > 15 or flags > 31 or (create and is_directory):
            raise Error(INVAL)
        never = create and exclusive
        needed = [13] + [10] * create + [19] * truncate
        node, directory, name, slash = self.find(
            fd, needed, path, length, "name" if never else "follow" if lookup & 1 else "stay"
        )
        rights, inheriting = rights & ALL, inheriting & ALL
        if (rights | inheriting) & ~self.fds[fd].inheriting:
            raise Error(NOTCAPABLE)
        self.check(result, 4)
        if node:
            if never:
                raise Error(EXIST)
            if node.kind == 7:
                raise Error(LOOP)
            if is_directory and node.kind != 3:
                raise Error(NOTDIR)
            if node.kind == 3 and (rights & 64 or truncate or create):
                raise Error(ISDIR)
            if truncate:
                node.resize(0)
                self.touch(node)
        elif not create:
            raise Error(NOENT)
        elif slash:
            raise Error(ISDIR)
        else:
            self.need_space()
            assert directory
            node = self.node(4)
            self.enter(directory, name, node)
        number = min(set(range(len(self.fds) + 1)) - set(self.fds))
        kind, mask = ("dir", DIRECTORY_RIGHTS) if node.kind == 3 else ("file", FILE_RIGHTS)
        self.fds[number] = Open(kind, rights & mask, inheriting, node, flags=flags)
        self.put("I", result, number)

    def existing(self, fd: int, right: int, lookup: int, path: int, length: int) -> Node:
        node, _, _, _ = self.find(fd, [right], path, length, "follow" if lookup & 1 else "stay")
        if not node:
            raise Error(NOENT)
        return node

    def path_filestat_get(self, fd: int, lookup: int, path: int, length: int, result: int) -> None:
        node = self.existing(fd, 18, lookup, path, length)
        self.stat(result, node.kind, node)

    def path_filestat_set_times(
        self, fd: int, lookup: int, path: int, length: int, accessed: int, modified: int, flags: int
    ) -> None:
        self.set_times(self.existing(fd, 20, lookup, path, length), accessed, modified, flags)

    def path_create_directory(self, fd: int, path: int, length: int) -> None:
        node, directory, name, _ = self.find(fd, [9], path, length, "name")
        if node or not directory:
            raise Error(EXIST)
        self.need_space()
        self.enter(directory, name, self.node(3))

    def path_unlink_file(self, fd: int, path: int, length: int) -> None:
        node, directory, name, _ = self.find(fd, [26], path, length, "name")
        if not node:
            raise Error(NOENT)
        if node.kind == 3 or not directory:
            raise Error(ISDIR)
        self.leave(directory, name)

    def path_remove_directory(self, fd: int, path: int, length: int) -> None:
        node, directory, name, _ = self.find(fd, [25], path, length, "name")
        if not node:
            raise Error(NOENT)
        if node.kind != 3:
            raise Error(NOTDIR)
        if not directory:
            raise Error(INVAL)
        if node.entries:
            raise Error(NOTEMPTY)
        self.leave(directory, name)

    def path_rename(self, fd: int, path: int, length: int, fd2: int, path2: int, length2: int) -> None:
        node, directory, name, _ = self.find(fd, [16], path, length, "name")
        if not node:
            raise Error(NOENT)
        old, directory2, name2, slash = self.find(fd2, [17], path2, length2, "name")
        if not directory or not directory2:
            raise Error(BUSY)
        if slash and node.kind != 3:
            raise Error(NOTDIR)
        if node is old:
            return
        above: Node | None = directory2
        while node.kind == 3 and above:
            if above is node:
                raise Error(INVAL)
            above = None if above is self.root else above.parent
        if old:
            if node.kind == 3 and old.kind != 3:
                raise Error(NOTDIR)
            if node.kind != 3 and old.kind == 3:
                raise Error(ISDIR)
            if old.entries:
                raise Error(NOTEMPTY)
            self.drop(directory2.entries.pop(name2))
        else:
            self.need_space()
        del directory.entries[name]
        directory2.entries[name2] = node
        self.touch(directory)
        self.touch(directory2)
        node.times[2] = self.now()
        if node.kind == 3:
            node.parent = directory2

    def path_link(self, fd: int, lookup: int, path: int, length: int, fd2: int, path2: int, length2: int) -> None:
        node = self.existing(fd, 11, lookup, path, length)
        old, directory, name, slash = self.find(fd2, [12], path2, length2, "name")
        if node.kind == 3:
            raise Error(PERM)
        if old:
            raise Error(EXIST)
        if slash:
            raise Error(NOENT)
        self.need_space()
        assert directory
        self.enter(directory, name, node)
        node.times[2] = self.now()

    def path_symlink(self, target: int, target_length: int, fd: int, path: int, length: int) -> None:
        text = self.text(target, target_length)
        old, directory, name, slash = self.find(fd, [24], path, length, "name")
        if old:
            raise Error(EXIST)
        if slash:
            raise Error(NOENT)
        self.need_space()
        assert directory
        node = self.node(7)
        node.target = text
        self.enter(directory, name, node)

    def path_readlink(self, fd: int, path: int, length: int, buffer: int, room: int, result: int) -> None:
        node = self.existing(fd, 15, 0, path, length)
        if node.kind != 7:
            raise Error(INVAL)
        self.check(buffer, room)
        self.check(result, 4)
        text = node.target[:room]
        self.memory[buffer : buffer + len(text)] = text
        self.put("I", result, len(text))
