"""A hostile native task: tries to reach what it must not, prints as JSON what it reached. Run by test_native_isolation, not by pytest.

Arguments: home, a socket of the node, pid of the node, pid of the warm parent. Standard library only: it runs under any interpreter.
"""

import ctypes
import glob
import json
import os
import socket
import stat
import sys

HOME, SOCKET, NODE, PARENT = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
KEY = HOME + "/keys/account"
libc = ctypes.CDLL(None, use_errno=True)
reached = []


def attempt(name):
    def run(function):
        try:
            found = function()
        except (OSError, ValueError):
            found = None
        if found:
            reached.append(name)

    return run


def key_at(path):
    with open(path, "rb") as stream:
        return b"SECRET" in stream.read()


def text(path):
    with open(path) as stream:
        return stream.read()


def write(path, what):
    with open(path, "w") as stream:
        stream.write(what)


def ok(result):
    return result == 0


@attempt("the key")
def _():
    return key_at(KEY)


@attempt("names in the home")
def _():
    return set(os.listdir(HOME)) - {"env", "here", "program"}


@attempt("another path to the home")
def _():
    return key_at(HOME + "/here/../../" + os.path.basename(HOME) + "/keys/account") or key_at("/proc/self/root" + KEY)


@attempt("the key by another path")
def _():
    return key_at(os.path.dirname(HOME) + "/alias/keys/account")


@attempt("other tasks' directories")
def _():
    return os.listdir(HOME + "/work")


@attempt("the node's socket")
def _():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(SOCKET)
        return True


@attempt("sockets under /run")
def _():
    return any(stat.S_ISSOCK(os.stat(path).st_mode) for path in glob.glob("/run/**", recursive=True))


for pid in (NODE, PARENT):
    for what in ("environ", "mem", "cmdline", "maps"):

        @attempt(f"/proc/{pid}/{what}")
        def _(pid=pid, what=what):
            return open(f"/proc/{pid}/{what}", "rb").read(1)

    @attempt(f"descriptors of {pid}")
    def _(pid=pid):
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))

    @attempt(f"a signal to {pid}")
    def _(pid=pid):
        os.kill(pid, 0)
        return True

    @attempt(f"tracing {pid}")
    def _(pid=pid):
        return libc.ptrace(16, pid, None, None) == 0


@attempt("tracing the seat")
def _():
    return libc.ptrace(16, os.getppid(), None, None) == 0


@attempt("the root, a descriptor or the memory of some process")
def _():
    for proc in glob.glob("/proc/[0-9]*"):
        if proc == f"/proc/{os.getpid()}":
            continue
        for path in (f"{proc}/root{KEY}", *glob.glob(f"{proc}/fd/*/keys/account"), f"{proc}/cwd/{KEY}"):
            try:
                if key_at(path):
                    return True
            except OSError:
                continue
        try:
            open(f"{proc}/mem", "rb").close()
            return True
        except OSError:
            continue
    return False


@attempt("unmounting what hides the home")
def _():
    return ok(libc.umount2(HOME.encode(), 2)) or ok(libc.umount2(HOME.encode(), 0))


@attempt("a raw disk in /dev")
def _():
    return any(stat.S_ISBLK(os.stat("/dev/" + name).st_mode) for name in os.listdir("/dev"))


@attempt("a raw disk by mknod")
def _():
    for line in text("/proc/partitions").splitlines()[2:]:
        major, minor, _, name = line.split()
        path = f"disk-{name}"
        os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
        open(path, "rb").close()
        return True
    return False


@attempt("capabilities")
def _():
    status = dict(line.split(":\t", 1) for line in text("/proc/self/status").splitlines() if ":\t" in line)
    return (
        any(int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"))
        or status["NoNewPrivs"] != "1"
    )


for path in (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
):

    @attempt("writing " + path)
    def _(path=path):
        return os.access(path, os.W_OK)


OPEN_TO_ALL = ("/tmp/", "/var/tmp/", "/dev/shm/")  # where tests have their homes, and where every task may write
for path in (
    HOME,
    HOME + "/env",
    HOME + "/program",
    "/etc",
    "/usr/bin",
    os.path.expanduser(f"~{os.getuid()}"),
    os.path.dirname(HOME),
):
    if path == os.path.dirname(HOME) and (path + "/").startswith(OPEN_TO_ALL):
        continue

    @attempt("writing in " + path)
    def _(path=path):
        return os.access(path, os.W_OK)


@attempt("moving the home away")
def _():
    os.rename(HOME, HOME + "-moved")
    os.rename(HOME + "-moved", HOME)
    return True


def nested():
    """In a namespace of its own, where it is all-powerful over what is its own."""
    uid = os.getuid()
    if libc.unshare(0x10000000 | 0x20000) != 0:
        return
    try:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"0 {uid} 1")
    except OSError:
        pass  # without a map it still has every capability there

    @attempt("unmounting from a nested namespace")
    def _():
        return any(ok(libc.umount2(HOME.encode(), flags)) for flags in (0, 1, 2))

    @attempt("binding the disk without what hides the home")
    def _():
        os.makedirs("copy", exist_ok=True)
        for source in ("/", os.path.dirname(HOME)):
            if ok(libc.mount(source.encode(), b"copy", None, 4096, None)):
                return key_at("copy" + os.path.relpath(KEY, source).join(("/", "")))
        return False

    @attempt("cloning the disk's mount")
    def _():
        return libc.syscall(428, -100, b"/", 1) >= 0  # open_tree, OPEN_TREE_CLONE without AT_RECURSIVE

    @attempt("making the disk writable")
    def _():
        libc.mount(None, b"/", None, 32 | 4096, None)  # MS_REMOUNT | MS_BIND, no MS_RDONLY
        return os.access("/", os.W_OK)

    @attempt("making /proc/sys writable")
    def _():
        libc.mount(None, b"/proc", None, 32 | 4096, None)
        libc.mount(b"proc", b"/proc", b"proc", 0, None)
        return os.access("/proc/sys/kernel/core_pattern", os.W_OK)

    @attempt("the key from a nested namespace")
    def _():
        return key_at(KEY)


pid = os.fork()
if pid == 0:
    reached.clear()
    nested()
    write("nested.json", json.dumps(reached))
    os._exit(0)
os.waitpid(pid, 0)
reached += json.loads(text("nested.json"))
print(json.dumps(reached))
