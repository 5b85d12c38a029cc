"""friendly: what of a friend's node is listened to. It says what it likes; its words count for the leases that it has, and its results as far as its
account is believed.

My own machines may say anything of anything, because they are me.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ipos.pool.records import Result
from ipos.wire.errors import Gone

Event = dict[str, Any]
ID_BYTES = 64

NONSENSE = (KeyError, TypeError, ValueError, AttributeError, msgspec.MsgspecError)
"""What comes of an event that is none."""


def its_own(node: str, event: Event, holder: Callable[[str], str | None]) -> Event | None:
    """What of an event counts; None: it is of a lease that nobody has any more. `holder(lease)`: the node that has it, or None. `Gone` if it is
    of another's lease, one of `NONSENSE` if it is no event."""
    if event["event"] == "here":
        return {**event, "leases": [each for each in event["leases"] if holder(_id(each["lease"])) in (None, node)]}
    if "lease" not in event:
        return event
    if (has := holder(_id(event["lease"]))) is None:
        return None
    if has != node:
        raise Gone(f"it spoke of lease {event['lease']}, which is another's")
    figures = (event.get(key) for key in ("work", "speed", "save_age_s"))
    if not all(type(figure) in (int, float, type(None)) for figure in figures):
        raise ValueError("figures that are no numbers")
    if not all(isinstance(event.get(key, ""), str) for key in ("text", "reason", "state", "phase")):
        raise ValueError("words that are no text")
    return event


def _id(lease: str) -> str:
    if len(lease) > ID_BYTES or lease.split() != [lease]:
        raise ValueError("the name of a lease that is none")
    return lease


def unbelieved(level: str, node: str, result: Result, receipt: bytes | None) -> str:
    """Why a result of a friend's node does not count, or "". `level`: how far its account is believed; `receipt`: None, there is none that
    holds."""
    if result.node != node:
        return "its result names another node"
    if level == "none":
        return "results of that account are not believed (ipos trust NAME receipt)"
    return "" if level == "full" or receipt is not None else "its receipt does not hold"
