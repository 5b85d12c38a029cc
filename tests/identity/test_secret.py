"""A secret shows itself to `reveal()` and to nothing else. Each test would fail for a plain `bytes`: `Plain` shows that."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import traceback
from typing import Any

import msgspec
import pytest

from ipos.identity.keys import Key
from ipos.identity.secret import Secret

HUSH = b"hush-4711-hush"


class Plain:
    """What a secret would be without its care."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Plain({self.value!r})"


def shown(value: object) -> dict[str, str]:
    """Everything that prints it by accident: how -> what is seen."""
    out = {
        "repr": repr(value),
        "str": str(value),
        "f-string": f"{value} {value!r} {value!s} {value:}",
        "percent": "%s %r" % (value, value),  # noqa: UP031
        "format": "{} {!r}".format(value, value),  # noqa: UP032
        "in a list": str([value, {"key": value}]),
        "json, by its text": json.dumps({"key": value}, default=str),
        "vars": str(getattr(value, "__dict__", "")),
    }
    stream = io.StringIO()
    logger = logging.Logger("of a test")
    logger.addHandler(logging.StreamHandler(stream))
    logger.warning("the key is %s %r", value, value)
    try:
        raise ValueError(value)
    except ValueError as error:
        logger.exception("it went wrong")
        out["traceback"] = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    out["log"] = stream.getvalue()
    return out


def test_it_is_not_shown() -> None:
    for how, text in shown(Secret(HUSH)).items():
        assert HUSH.decode() not in text, how
    for how, text in shown(Plain(HUSH)).items():
        assert HUSH.decode() in text, f"the test could not fail: {how}"


@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps, copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode, bytes, list, hash, msgspec.to_builtins,
        lambda secret: pickle.dumps(secret, 0), lambda secret: f"{secret:>20}", lambda secret: b"" + secret,
        "".join, lambda secret: secret[0], lambda secret: secret.value, lambda secret: secret < secret,
    ],
)  # fmt: skip
def test_it_is_not_taken_apart(leak: Any) -> None:
    with pytest.raises((TypeError, AttributeError)) as caught:
        leak(Secret(HUSH))
    assert HUSH.decode() not in str(caught.value)


def test_comparing() -> None:
    """By hmac.compare_digest, with another secret only."""
    assert Secret(HUSH) == Secret(HUSH)
    assert Secret(HUSH) != Secret(b"hush")
    assert Secret(HUSH) != HUSH
    assert Secret(HUSH) != HUSH.decode()
    assert Secret(b"").empty
    assert Secret(HUSH).reveal() == HUSH


def test_a_key_is_not_shown_either() -> None:
    key = Key(Secret(b"\x11" * 32))
    for how, text in shown(key).items():
        assert "11" * 16 not in text, how
        assert "\\x11" not in text, how
    with pytest.raises(TypeError):
        pickle.dumps(key)
