"""Machines behind NATs: network namespaces, veth pairs, a bridge that is the internet, routers made of nftables. Nothing here leaves the computer.

    with Lab() as lab:
        vps, laptop = lab.machine("open"), lab.machine("cone")

A place is the pid of a process in its namespace; `inside(place)` is the command prefix that runs another one there. When a process ends, by us or
because we did, the kernel takes its namespace and its cables away.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

NET = "44.7.7"  # addresses that libp2p takes for public ones; they exist in the namespaces of a test alone
MASQUERADE = 'chain post { type nat hook postrouting priority 100; oifname "wan" masquerade; }'
INPUT = """chain input { type filter hook input priority 0; policy drop; iifname { "lo", "lan" } accept;
    ct state established,related accept; ip protocol icmp accept; }"""


def _forward(first: str = "", last: str = "") -> str:
    return (
        f"{INPUT} chain forward {{ type filter hook forward priority 0; policy drop; {first} "
        f'ct state established,related accept; iifname "lan" accept; {last} }}'
    )


# What a router does with the ports of what goes out (mapping) and with what comes in unasked (filtering); the words are those of RFC 4787.
ROUTERS: dict[str, str] = {
    # neither depends on the other end: whoever knows the port gets in
    "full cone": MASQUERADE
    + 'chain pre { type nat hook prerouting priority -100; iifname "wan" dnat to INNER; }'
    + _forward(last='iifname "wan" accept;'),
    # any port of an address that was spoken to gets in
    "address-restricted": "set seen { type ipv4_addr; flags dynamic, timeout; timeout 120s; }"
    + MASQUERADE
    + 'chain pre { type nat hook prerouting priority -100; iifname "wan" ip saddr @seen dnat to INNER; }'
    + _forward('iifname "lan" update @seen { ip daddr };', 'iifname "wan" ip saddr @seen accept;'),
    # the usual router: the same port outside as inside; only the address and port that was spoken to gets in
    "cone": MASQUERADE + _forward(),
    # another port outside for every other end
    "symmetric": MASQUERADE.replace("masquerade", "masquerade fully-random") + _forward(),
    # an office: TCP alone
    "tcp only": MASQUERADE + _forward('iifname "lan" ip protocol udp drop;'),
}


def inside(place: int) -> list[str]:
    return ["nsenter", "-t", str(place), "-n"]


class Lab:
    """Everything is gone when the `with` ends."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._count = 0
        self._houses: dict[int, tuple[int, int]] = {}  # router -> its network's number, the last address given
        self._internet = self._place()
        self._ip(self._internet, "link add name net type bridge", "link set net up")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def machine(self, kind: str) -> int:
        """A machine: "open" (a public address), "firewall" (the same, but nothing comes in unasked), behind a router of its own of a kind of
        `ROUTERS`, or "double" (a router behind its provider's router)."""
        if kind in ("open", "firewall"):
            place = self._place()
            self._online(place)
            if kind == "firewall":
                self._nft(place, INPUT)
            return place
        if kind == "double":
            return self.behind(self.router("cone", self.router("cone")))
        return self.behind(self.router(kind))

    def router(self, kind: str, provider: int | None = None) -> int:
        place = self._place()
        if provider is None:
            self._online(place)
        else:
            self._house(provider, place, "wan")
        subprocess.run([*inside(place), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)
        number = self._next()
        self._ip(place, "link add name lan type bridge", "link set lan up", f"address add 10.{number}.0.1/24 dev lan")
        self._nft(place, ROUTERS[kind].replace("INNER", f"10.{number}.0.2"))
        self._houses[place] = number, 1
        return place

    def behind(self, router: int) -> int:
        """A machine on the router's local network."""
        place = self._place()
        self._house(router, place, "eth")
        return place

    def _house(self, router: int, place: int, name: str) -> None:
        number, last = self._houses[router]
        self._houses[router] = number, last + 1
        self._plug(place, name, router, f"p{self._next()}", "lan")
        self._ip(place, f"address add 10.{number}.0.{last + 1}/24 dev {name}", f"route add default via 10.{number}.0.1")

    def _online(self, place: int) -> None:
        number = self._next()
        self._plug(place, "wan", self._internet, f"p{number}", "net")
        self._ip(place, f"address add {NET}.{number}/24 dev wan")

    def _plug(self, place: int, name: str, into: int, port: str, bridge: str) -> None:
        self._ip(place, f"link add name {name} type veth peer name {port} netns {into}", f"link set {name} up")
        self._ip(into, f"link set {port} master {bridge} up")

    def _place(self) -> int:
        first = ["unshare", "--net", "--fork", "--kill-child", "cat"]
        outer = self._stack.enter_context(subprocess.Popen(first, stdin=subprocess.PIPE))
        self._stack.callback(outer.kill)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        _wait(lambda: outer.poll() is not None or children.read_text())
        assert outer.poll() is None, "this machine makes no namespaces: `unshare --net` failed"
        pid = int(children.read_text())
        _wait(lambda: Path(f"/proc/{pid}/comm").read_text() == "cat\n")
        self._ip(pid, "link set lo up")
        return pid

    def _ip(self, place: int, *commands: str) -> None:
        batch = "".join(command + "\n" for command in commands)
        subprocess.run([*inside(place), "ip", "-batch", "-"], input=batch, text=True, check=True)

    def _nft(self, place: int, chains: str) -> None:
        ended = re.sub(r";\s*}", ";\n}\n", chains)
        rules = f"table ip lab {{\n{ended}\n}}"
        subprocess.run([*inside(place), "nft", "-f", "-"], input=rules, text=True, check=True)

    def _next(self) -> int:
        self._count += 1
        return self._count


def _wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "a namespace was not made within 10 s"
        time.sleep(0.01)
