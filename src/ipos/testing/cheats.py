"""cheats: workers that lie, each a process like any other: `python -m ipos.testing.cheats KIND SEED HOME`.

They differ from an honest worker (`ipos.pool.seat`) in what they do, and in nothing that a coordinator is told: none of them knows what
this process is. `among` makes the command of a replication whose workers are honest but for some.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ipos.pool import seat, workers
from ipos.pool.commitment import Ending, Mark, Use, commit
from ipos.pool.seat import Sitting, Workplace
from ipos.pool.seatrun import Engine
from ipos.vm.runner import Ended

COPY_S: Final = 60.0  # how long a copier waits for something to copy


class Cheat(Sitting):
    seed = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.dice = random.Random(self.seed)


class Flip(Cheat):
    """Flips one bit of the program's memory at a random moment, and goes on as if nothing had been."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.after = self.dice.randrange(2, 6)  # marks
        self.slices = self.dice.randrange(1, 4)
        self.done = False

    def slice(self, engine: Engine) -> None:
        if not self.done and len(engine.runner.marks) >= self.after:
            self.slices -= 1
            if self.slices <= 0:
                flip(engine, self.dice)
                self.done = True
        super().slice(engine)


class Collude(Cheat):
    """Flips the same bit at the same moment as every other of its seed: several of them agree on what is wrong."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.after = self.dice.randrange(2, 6)
        self.done = False

    def slice(self, engine: Engine) -> None:
        if not self.done and engine.at_mark and len(engine.runner.marks) == self.after:
            flip(engine, self.dice)
            self.done = True
        super().slice(engine)


def flip(engine: Engine, dice: random.Random) -> None:
    memory = engine.runner.state.parts().memory
    used = [at for at in range(0, len(memory), 4096) if any(memory[at : at + 4096])]
    at = dice.choice(used) + dice.randrange(4096)
    engine.runner.state.write("ipos_mem", at, bytes([memory[at] ^ 1 << dice.randrange(8)]))


class Overstate(Cheat):
    """Says that it did more work than the program took."""

    def commit(self, ending: Ending, marks: tuple[Mark, ...], use: Use) -> None:
        extra = self.dice.randrange(1, ending.work)
        super().commit(msgspec.structs.replace(ending, work=ending.work + extra), marks, use)


class EndEarly(Cheat):
    """Stops after some marks, and says that the program had ended there."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.after = self.dice.randrange(2, 6)

    def slice(self, engine: Engine) -> None:
        super().slice(engine)
        runner = engine.runner
        if len(runner.marks) == self.after and runner.ended is None:
            runner.ended = Ended(0, "", runner.work, runner.root(), runner.marks)


class Copy(Cheat):
    """Computes nothing: takes what another worker of this machine has written down, and binds to that one's commitment."""

    def _work(self) -> None:
        deadline = time.monotonic() + COPY_S
        while time.monotonic() < deadline and not self.stopped:
            found = list(self.place.home.parent.glob("*/sittings/*/found"))
            if found:
                self.directory.mkdir(parents=True, exist_ok=True)
                (self.directory / "found").write_bytes(found[0].read_bytes())
                known = self._written_down()
                assert known is not None
                self.bind(commit(*known))
                return
            time.sleep(0.05)
        self.tell("fault", reason="there was nothing to copy")


class Forge(Cheat):
    """Shows one wrong mark before a right end."""

    def commit(self, ending: Ending, marks: tuple[Mark, ...], use: Use) -> None:
        which = self.dice.randrange(len(marks))
        forged = (marks[which][0], self.dice.randbytes(32).hex())
        super().commit(ending, (*marks[:which], forged, *marks[which + 1 :]), use)


class Withhold(Cheat):
    """Keeps its saves to itself."""

    def offer(self) -> None:
        return


class Swap(Cheat):
    """Commits to one thing and opens another."""

    def reveal(self) -> None:
        known = self._written_down()
        assert known is not None
        claim, marks, salt = known
        self.open(msgspec.structs.replace(claim, ending=msgspec.structs.replace(claim.ending, exit=77)), marks, salt)


class Mute(Cheat):
    """Commits, and never opens."""

    def reveal(self) -> None:
        return


KINDS: Final[dict[str, type[Cheat]]] = {
    "flip": Flip, "collude": Collude, "overstate": Overstate, "end-early": EndEarly, "copy": Copy, "forge": Forge,
    "withhold": Withhold, "swap": Swap, "mute": Mute,
}  # fmt: skip


def among(cheats: Mapping[int, tuple[str, int]]) -> workers.Command:
    """Workers by number -> (kind, seed); the others are honest."""

    def command(number: int, home: Path) -> Sequence[str]:
        if number not in cheats:
            return workers.seat(number, home)
        kind, seed = cheats[number]
        return (sys.executable, "-m", "ipos.testing.cheats", kind, str(seed), str(home))

    return command


def main() -> int:
    kind, seed, home = sys.argv[1:]
    cheat = type(kind, (KINDS[kind],), {"seed": int(seed)})

    def sit(place: Workplace, *arguments: Any) -> Sitting:
        return cheat(place, *arguments)

    return seat.main(Path(home), sit)


if __name__ == "__main__":
    sys.exit(main())
