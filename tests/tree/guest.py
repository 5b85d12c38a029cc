"""A Linux kernel with its own 9P client, as a guest of QEMU: Debian's kernel, the few modules it needs and busybox, without any disk.

    .venv/bin/python tests/tree/guest.py       fetch and build what `boot` uses (`make setup` does; nothing to do if it is there)

The processor is emulated, so that it runs wherever the tests do; a boot takes three seconds of the guest's time.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

BUILT = Path(sys.prefix) / "share" / "ipos-tests" / "linux"
MODULES = ("virtio_pci", "virtio_net", "9pnet_fd", "9p")
_PLACES = ("/drivers/virtio/", "/drivers/net/", "/net/", "/fs/", "/lib/", "/crypto/")
PACKAGES = "qemu-system-x86 busybox-static"
HINT = f"a Linux guest is needed here: `make setup` as root on Debian (x86-64) makes it (apt-get install {PACKAGES}, a kernel's package)"
HOST = "10.0.2.2"  # what QEMU calls the host's loopback

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via {HOST}
echo GUEST READY $(cut -d' ' -f1 /proc/uptime)
sh /script
echo GUEST DONE $(cut -d' ' -f1 /proc/uptime)
poweroff -f
"""


def _cpio(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive that the kernel unpacks as its root: (name, mode, content). The newc form of cpio(5)."""
    out = io.BytesIO()
    for number, (name, mode, body) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name) + 1, 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        out.write(bytes(-out.tell() % 4) + body)
        out.write(bytes(-out.tell() % 4))
    return out.getvalue()


def _needs(module: bytes) -> list[str]:
    """The modules that must be there before this one, as it says itself."""
    at = module.index(b"\0depends=") + len(b"\0depends=")
    return [name for name in module[at : module.index(b"\0", at)].decode().split(",") if name]


def _kernel(package: Path) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The kernel of a Debian package, and the modules in the order in which they have to be loaded."""
    held: dict[str, bytes] = {}
    kernel = b""
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as tar,
    ):
        for member in tar:
            name = member.name.rpartition("/")[2]
            if member.isfile() and name.startswith("vmlinuz-"):
                kernel = _body(tar, member)
            elif member.isfile() and name.endswith(".ko") and any(part in member.name for part in _PLACES):
                held[name.removesuffix(".ko").replace("-", "_")] = _body(tar, member)
    order: list[str] = []

    def add(name: str) -> None:
        for needed in _needs(held[name]):
            add(needed.replace("-", "_"))
        if name not in order:
            order.append(name)

    for name in MODULES:
        add(name)
    return kernel, [(f"{name}.ko", held[name]) for name in order]


def _body(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def build() -> None:
    """Fetch Debian's kernel and make the guest's root of it. `SystemExit` with a sentence where that cannot be done."""
    busybox = shutil.which("busybox")
    if platform.machine() != "x86_64" or shutil.which("qemu-system-x86_64") is None or busybox is None:
        raise SystemExit(HINT)
    found = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=True)
    name = next(line.split()[-1] for line in found.stdout.splitlines() if "Depends:" in line)
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)
        subprocess.run(["apt-get", "download", "-q", name], cwd=scratch, check=True, capture_output=True)
        kernel, modules = _kernel(next(Path(scratch).glob("*.deb")))
    directories = [(name, 0o40755, b"") for name in ("bin", "proc", "sys", "dev", "mnt", "node", "tmp", "modules")]
    files = [
        ("init", 0o100755, _INIT.encode()),
        ("bin/busybox", 0o100755, Path(busybox).read_bytes()),
        *((f"modules/{name}", 0o100644, body) for name, body in modules),
        ("modules/order", 0o100644, "\n".join(name for name, _ in modules).encode()),
    ]
    BUILT.mkdir(parents=True, exist_ok=True)
    (BUILT / "root").write_bytes(_cpio([*directories, *files]))
    (BUILT / "kernel.new").write_bytes(kernel)
    (BUILT / "kernel.new").rename(BUILT / "kernel")


def boot(script: str, scratch: Path, timeout_s: float = 240.0) -> str:
    """Boot, run the script, power off: what the guest said. `AssertionError` if it did not come to its end."""
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None, HINT
    assert (BUILT / "kernel").exists(), HINT
    root = scratch / "initrd"
    root.write_bytes((BUILT / "root").read_bytes() + _cpio([("script", 0o100644, script.encode())]))
    command = (
        qemu, "-accel", "tcg", "-machine", "q35", "-m", "256", "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio",
        "-kernel", str(BUILT / "kernel"), "-initrd", str(root), "-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check",
        "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile=",
    )  # fmt: skip
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
    )
    said = ran.stdout.replace("\r", "")
    assert "GUEST DONE" in said, (
        f"the guest did not come to its end (status {ran.returncode}): {said[-3000:]} {ran.stderr[-1000:]}"
    )
    return said


if __name__ == "__main__" and not (BUILT / "kernel").exists():
    try:
        build()
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise SystemExit(f"{HINT}: {error}") from None
