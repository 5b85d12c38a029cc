"""Two machines behind different routers, and a rented one that relays for them: joined, pinged, read; then the rented one relays no more."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Machine, wait_for

sys.path.append(str(Path(__file__).parents[1] / "net"))
from natlab import Lab, inside

pytestmark = pytest.mark.real


def test_machines_behind_nats_are_one_computer() -> None:
    with tempfile.TemporaryDirectory(prefix="ipn") as scratch, Lab() as lab, ExitStack() as stack:

        def machine(name: str, kind: str, bootstrap: str = "") -> Machine:
            made = Machine(Path(scratch) / name / "home", inside(lab.machine(kind)))
            (made.home.parent / "run").mkdir(mode=0o700, parents=True)
            if bootstrap:
                made.home.mkdir(mode=0o700)
                (made.home / "ipos.toml").write_text(f'bootstrap = ["{bootstrap}"]\n')
            stack.callback(made.run, "down")
            made.ok("up", "--name", name, "--listen", "lan", "--cores", "1")
            return made

        vps = machine("vps", "open")
        assert "relays for pool, 50 MB/s" in vps.ok("relay", "on", "--limit", "50M")
        seen = vps.json("net")
        here = next(address for address in seen["addresses"] if "/44." in address and "/udp/" in address)
        desk, attic = (machine(name, "symmetric", f"{here}/p2p/{seen['peer']}") for name in ("desk", "attic"))
        for other in (desk, attic):
            other.ok("join", vps.json("invite")["qr"], "--yes")
        for other in (desk, attic):
            wait_for("a place at the relay", lambda other=other: "vps" in other.json("net")["relays_used"])
            wait_for("the pool", lambda other=other: other.json("pool")["nodes"] == 3, 40)
        assert desk.ok("cat", "/n/attic/status").startswith("name attic\n")
        told = desk.ok("ping", "attic")
        assert "attic: via relay vps" in told, "both NATs are symmetric"
        assert "not direct: " in told
        assert "vps: direct" in desk.ok("ping", "vps")
        peer = next(peer for peer in desk.json("net")["peers"] if peer["name"] == "attic")
        assert (peer["path"], peer["via"]) == ("relay", "vps")
        assert "attic  via relay vps" in desk.ok("net")
        assert "circuits open" in vps.ok("net")
        assert "is called 'nobody'" in desk.refused("ping", "nobody")
        assert "is of no use" in vps.refused("relay", "on", "--limit", "10")
        assert vps.json("relay", "off") == {"service": "off"}
