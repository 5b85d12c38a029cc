"""`tcp` in ipos.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipos.node.home import Home
from ipos.wire.errors import Refused


def test_only_a_loopback_address_is_taken(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.settings().tcp == ""
    (tmp_path / "ipos.toml").write_text('tcp = "127.0.0.1:5640"\n')
    assert home.settings().tcp == "127.0.0.1:5640"
    for address in ("0.0.0.0:5640", "192.168.1.2:5640", "localhost:5640", "127.0.0.1"):
        (tmp_path / "ipos.toml").write_text(f'tcp = "{address}"\n')
        with pytest.raises(Refused, match=r"loopback|is not an address"):
            home.settings()
