"""machine: the small kernel that every protocol machine of the pool is written with.

A machine is a table: (state, event) -> the function that answers it and the states it may lead to. `step` looks the row up, `drawing`
prints the same rows as a diagram, so that the picture in the docs cannot differ from the code. States, events and instructions are
frozen structs; nothing here does I/O, looks at a clock or throws dice: time and chance arrive inside events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec


class State(msgspec.Struct, frozen=True, tag=True):
    """Where one thing is."""


class Event(msgspec.Struct, frozen=True, tag=True):
    """What happened to it."""


class Instruction(msgspec.Struct, frozen=True, tag=True):
    """What the driver shall do about it. The machine never learns whether it worked but by another event."""


class Ignored(Instruction, frozen=True):
    """The event means nothing in this state. Drivers log it; they never fail on it."""

    sentence: str


Answer = tuple[State, Sequence[Instruction]]
Row = Callable[[Any, Any], Answer]
F = TypeVar("F", bound=Row)


class Machine:
    """A named table of transitions. Rows are added by `on`; a row added twice is a mistake and says so."""

    def __init__(self, name: str, start: type[State]) -> None:
        self.name = name
        self.start = start
        self.rows: dict[tuple[type[State], type[Event]], tuple[Row, tuple[type[State], ...]]] = {}

    def on(
        self,
        states: type[State] | tuple[type[State], ...],
        event: type[Event],
        *,
        to: type[State] | tuple[type[State], ...] | None = None,
    ) -> Callable[[F], F]:
        """The decorated function answers `event` in each of `states` and leads to one of `to` (None: the state stays of its type)."""

        def add(function: F) -> F:
            for state in states if isinstance(states, tuple) else (states,):
                if (state, event) in self.rows:
                    raise TypeError(f"{self.name}: two rows for {state.__name__} and {event.__name__}")
                targets = (state,) if to is None else to if isinstance(to, tuple) else (to,)
                self.rows[state, event] = (function, targets)
            return function

        return add

    def step(self, state: State, event: Event) -> tuple[State, list[Instruction]]:
        """The next state and what to do. Raises AssertionError if a row leads where its table does not say."""
        row = self.rows.get((type(state), type(event)))
        if row is None:
            return state, [
                Ignored(f"{type(event).__name__} means nothing to a {self.name} that is {type(state).__name__}")
            ]
        function, targets = row
        new, instructions = function(state, event)
        if type(new) not in targets:
            raise AssertionError(
                f"{self.name}: {type(state).__name__} on {type(event).__name__} led to {type(new).__name__}, "
                f"the table says {' or '.join(t.__name__ for t in targets)}"
            )
        return new, list(instructions)

    @property
    def states(self) -> list[type[State]]:
        """Every state of the table, in the order of its first mention."""
        seen: dict[type[State], None] = {self.start: None}
        for (state, _), (_, targets) in self.rows.items():
            for each in (state, *targets):
                seen.setdefault(each)
        return list(seen)

    def drawing(self) -> str:
        """The table as a Mermaid state diagram; events that lead from one state to the same other share an arrow."""
        arrows: dict[tuple[str, str], list[str]] = {}
        for (state, event), (_, targets) in self.rows.items():
            for target in targets:
                arrows.setdefault((state.__name__, target.__name__), []).append(event.__name__)
        leaves = {state for state, _ in self.rows}
        lines = ["stateDiagram-v2", f"    [*] --> {self.start.__name__}"]
        lines += [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in arrows.items()]
        lines += [f"    {state.__name__} --> [*]" for state in self.states if state not in leaves]
        return "\n".join(lines) + "\n"
