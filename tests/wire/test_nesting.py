"""Hostile nesting is seen before anything recurses over it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.wire.errors import BadRecord
from ipos.wire.nesting import deeper_than
from ipos.wire.record import plain_value

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=300) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)  # fmt: skip


def depth(value: Any) -> int:
    """Containers within each other; an empty one holds nothing and is none."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0) if value else 0
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0) if value else 0
    return 0


@given(VALUES)
def test_it_is_the_depth_that_the_value_has(value: Any) -> None:
    body = libipld.encode_dag_cbor(value)
    here = depth(libipld.decode_dag_cbor(body))
    assert not deeper_than(body, here)
    assert here == 0 or deeper_than(body, here - 1)


@given(st.binary(max_size=200), st.integers(0, 40))
def test_any_bytes_have_an_answer(body: bytes, most: int) -> None:
    assert deeper_than(body, most) in (True, False)


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x61a", b"\xd8\x2a", b"\x9a\x00\x00\x00\x01", b"\x82\x81\x00"])
def test_hostile_nesting_is_refused(opening: bytes) -> None:
    with pytest.raises(BadRecord, match="nested deeper than 32"):
        plain_value(opening * 300_000)


def test_without_the_look_the_process_ends() -> None:
    """The planted bug: libipld alone, in a process of its own, on the stack that a thread has."""
    code = "import libipld, threading\nthreading.stack_size(1 << 18)\nt = threading.Thread(target=lambda: libipld.decode_dag_cbor(b'\\x81' * 300_000))\nt.start()\nt.join()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0
