"""pace: how long a worker waits before its next save.

A save costs time that grows with what the program has changed since the last one. What is asked for holds as long as saving takes a
twentieth of the time; a dearer save stretches the wait, but never beyond `MOST_S`: what a pulled plug may cost must not depend on the program.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.05  # of the time, that saving may take
MOST_S: Final = 60.0


def wait_s(asked_s: float, took_s: float) -> float:
    """Seconds from the end of a save that took `took_s` to the next. At least `asked_s`; at most `MOST_S`, unless more was asked for."""
    return max(asked_s, min(took_s / SHARE, MOST_S))
