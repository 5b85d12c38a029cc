"""The Linux kernel as our client: Debian's, in QEMU, mounts a local directory, synthetic files and a real node's tree, in all dialects."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import guest
import pytest
from nine import ME

from ipos.tree.file import Attr, Caller, File, Handle
from ipos.tree.local import local
from ipos.tree.ninep.transport import ServerProtocol, serve_tcp
from ipos.tree.synthetic import Dir, Text, new_qid

pytestmark = pytest.mark.real
DIALECTS = ("9p2000.L", "9p2000.u", "9p2000")
SIZE = 3 << 20
# What the dialects themselves cannot: stat(5) forbids to rename onto a file, 9P2000 has no links, only .L tells of the file system.
GAPS = {
    "9p2000.L": set[str](),
    "9p2000.u": {"rename-over", "df"},
    "9p2000": {"rename-over", "df", "symlink", "through-symlink", "hardlink"},
}

# One line for each check: "ok NAME" or "FAIL NAME: got [...] want [...]". $1 is the dialect.
CHECKS = r"""
is() { # NAME got want
 if [ "$2" = "$3" ]; then echo "ok $V $1"; else echo "FAIL $V $1: got [$2] want [$3]"; fi; }
may() { "$@" && echo yes || echo no; }
all() {
 V=$1
 mount -t 9p -o trans=tcp,port=PORT,version=$V,aname=/,uname=root,access=any,msize=1048600,cache=none HOST /mnt || return
 cd /mnt/disk/$V
 is cat "$(cat hello)" "from the host"
 echo guest > f; is create "$(cat f)" guest
 echo more >> f; is append "$(wc -c < f)" 11
 mkdir -p d/e; is mkdir "$(ls -d d/e)" d/e
 mv f d/e/g; is rename-across "$(cat d/e/g)$(may test -e f)" "$(printf 'guest\nmoreno')"
 echo 2 > r; mv r r2; is rename-within "$(cat r2)" 2
 echo old > r3; mv r2 r3; is rename-over "$(cat r3)" 2
 ln -s hello sl; is symlink "$(readlink sl)" hello
 is through-symlink "$(cat sl)" "from the host"
 ln hello hl; is hardlink "$(cat hl)$(stat -c %i hl)" "from the host$(stat -c %i hello)"
 chmod 600 r3; is chmod "$(stat -c %a r3)" 600
 dd if=/dev/zero of=t bs=1k count=8 2>/dev/null; truncate -s 100 t; is truncate "$(wc -c < t)" 100
 truncate -s 3000 t; is truncate-longer "$(wc -c < t)" 3000
 touch -d '2020-01-02 03:04:05' t; is utime "$(stat -c %Y t)" 1577934245
 is readdir "$(ls m | wc -l) $(ls m | sort -u | wc -l)" "200 200"
 is checksum "$(md5sum < big | cut -c1-32)" MD5
 cp big copy; is copy "$?" 0
 is df "$(stat -f -c '%S %b' .)" "DF"
 echo held > held; exec 3<>held; rm held; echo unlinked >&3; is write-after-unlink "$?$(may test -e held)" 0no; exec 3>&-
 is missing "$(may cat nothing 2>/dev/null)" no
 is name-too-long "$(may touch $(printf 'n%.0s' $(seq 256)) 2>/dev/null)" no
 rmdir d 2>/dev/null; is rmdir-full "$?" 1
 rm -r d; is rm "$(may test -e d)" no
 cd /mnt
 is async "$(cat slow)" "slow answer"
 echo stop > ctl; is ctl "$(cat ctl)" stop
 is refused "$(may sh -c 'echo bang > ctl' 2>/dev/null)" no
 cat never & P=$!; usleep 300000; kill $P; wait $P; is interrupted "$?" 143
 is alive-after-it "$(cat ctl)" stop
 is read-only "$(may touch made 2>/dev/null)" no
 cd /; umount /mnt; is umount "$?" 0
 mount -t 9p -o trans=tcp,port=NODE,version=$V,aname=/,uname=root,access=any,cache=none HOST /node || return
 is node-status "$(cat /node/status | head -1)" "STATUS"
 is node-list "$(ls /node | grep -c -E '^(home|job|status|log)$')" 4
 is node-refuses "$(may sh -c 'echo nonsense > /node/ctl' 2>/dev/null)" no
 echo "$V" > /node/home/from-guest; is node-home "$(cat /node/home/from-guest)" "$V"
 is node-umount "$(umount /node)" ""
}
"""


class _Never(File):
    """Reads that wait for ever; `cancelled` counts those that were flushed."""

    def __init__(self) -> None:
        self.qid, self.cancelled = new_qid(), 0

    async def attr(self) -> Attr:
        return Attr(0o100444)

    async def open(self, caller: Caller, flags: int) -> Handle:
        return _NeverHandle(self)


class _NeverHandle(Handle):
    def __init__(self, never: _Never) -> None:
        self._never = never

    async def read(self, offset: int, count: int) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._never.cancelled += 1
            raise
        return b""


@contextlib.contextmanager
def node() -> Iterator[tuple[int, str]]:
    """A real node with its TCP door open: the port, and the first line of its /status."""
    with tempfile.TemporaryDirectory(prefix="ipos-linux-") as scratch, socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        home = Path(scratch) / "home"
        env = {**os.environ, "IPOS_HOME": str(home), "XDG_RUNTIME_DIR": scratch}
        home.mkdir()
        (home / "ipos.toml").write_text(f'tcp = "127.0.0.1:{port}"\nlisten = "local"\n')
        probe.close()

        def ipos(*words: str) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "ipos.cli.main", *words],
                env=env,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        ipos("up")
        try:
            yield port, ipos("cat", "/status").splitlines()[0]
        finally:
            ipos("down")


def test_linux_is_a_client_in_every_dialect(tmp_path: Path) -> None:
    disk, body = tmp_path / "disk", os.urandom(SIZE)
    for dialect in DIALECTS:
        (disk / dialect).mkdir(parents=True)
        (disk / dialect / "hello").write_text("from the host\n")
        (disk / dialect / "m").mkdir()
        for i in range(200):
            (disk / dialect / "m" / f"a-file-with-a-longer-name-{i}").touch()
        (disk / dialect / "big").write_bytes(body)
    said: list[str] = []
    never, lines = _Never(), ["stop"]

    async def slow() -> str:
        await asyncio.sleep(0.2)
        return "slow answer\n"

    def told(caller: Caller, line: str) -> None:
        if line != "stop":
            raise PermissionError(1, f"{line} is no command")
        lines.append(line)

    files = {"disk": local(disk), "slow": Text(slow), "ctl": Text(lambda: f"{lines[-1]}\n", told), "never": never}
    protocols: list[ServerProtocol] = []

    async def main(node_port: int, status: str) -> None:
        async def attach(caller: Caller, aname: str) -> File:
            return Dir(files)

        def door() -> ServerProtocol:
            protocols.append(ServerProtocol(attach, ME))
            return protocols[-1]

        server = await serve_tcp("127.0.0.1:0", door)
        port = server.sockets[0].getsockname()[1]
        words = {
            "PORT": str(port), "NODE": str(node_port), "HOST": guest.HOST, "STATUS": status,
            "MD5": hashlib.md5(body).hexdigest(), "DF": f"{os.statvfs(disk).f_bsize} {os.statvfs(disk).f_blocks}",
        }  # fmt: skip
        script = CHECKS
        for word, value in words.items():
            script = script.replace(word, value)
        script += "V=-; is planted a b\n" + "".join(f"all {dialect}\n" for dialect in DIALECTS)
        try:
            said.extend((await asyncio.to_thread(guest.boot, script, tmp_path)).splitlines())
            async with asyncio.timeout(5):
                while any(p.session.busy or p.session.fids for p in protocols):
                    await asyncio.sleep(0.01)
        finally:
            server.close()

    with node() as (port, status):
        asyncio.run(main(port, status))
    text = "\n".join(said)
    assert "FAIL - planted: got [a] want [b]" in said  # the checks can fail
    names = set(re.findall(r"^ is ([a-z-]+) ", CHECKS, re.MULTILINE) + re.findall(r"; is ([a-z-]+) ", CHECKS))
    for dialect, gaps in GAPS.items():
        failed = set(re.findall(rf"^FAIL {re.escape(dialect)} ([a-z-]+):", text, re.MULTILINE))
        passed = set(re.findall(rf"^ok {re.escape(dialect)} ([a-z-]+)$", text, re.MULTILINE))
        assert (failed, passed) == (gaps, names - gaps), text
        here = disk / dialect
        assert (here / "copy").read_bytes() == body
        assert (here / "t").read_bytes() == bytes(3000)
        assert (here / "t").stat().st_mtime == 1577934245
        assert (here / "r3").stat().st_mode & 0o777 == 0o600
        assert (here / "hello").stat().st_nlink == (1 if "hardlink" in gaps else 2)
        left = {"big", "m", "hello", "copy", "t", "r3", *({"sl", "hl"} if "hardlink" not in gaps else {"r2"})}
        assert {path.name for path in here.iterdir()} - {"r2"} == left - {"r2"}
    assert never.cancelled == len(DIALECTS)  # Tflush
