"""seat: a worker process that holds seats of quorums: `python -m ipos.pool.seat HOME`.

It has a home, a store and a run key of its own, and hears and says everything through its standard input and output (`pipe`), as another
machine would: programs, inputs and saves come as blocks, and its saves and results go as blocks to who asks for them. What it has found it
writes down, with the salt, before it commits, so that a process that was killed opens what it committed to. It saves at marks where it
can, for a state at a mark is one that others can confirm. At the end of its input it dies, and is started again by who wants it.

The same process can keep saves for others, or judge: only who asks it knows which of the three it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from ipos.identity import keys
from ipos.identity.private import write_private
from ipos.identity.typed import RunKey
from ipos.pool import pipe, saves
from ipos.pool.commitment import SALT_BYTES, Claim, Ending, Entry, Mark, Use, commit, entries
from ipos.pool.seatrun import Engine
from ipos.pool.signing import COMMITMENT, KEPT, OPENING, sign
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.pack import PackStore
from ipos.store.pins import Pins
from ipos.vm import engine, pack
from ipos.vm.host import Fault
from ipos.vm.save import read_head
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import decode, encode

BEAT_S: Final = 0.5
LOCK_S: Final = 20.0  # how long the process before may take to die


class Stopped(Exception):
    """The seat is wanted no more."""


class Sitting:
    """One lease of one seat. Everything that an honest worker does is here, so that `ipos.testing.cheats` can do it otherwise."""

    def __init__(
        self, place: Workplace, lease: str, seat: str, task: bytes, save: bytes | None, every_s: float
    ) -> None:
        self.place = place
        self.lease, self.seat, self.task_cid, self.first = lease, seat, task, save
        self.every_s = every_s
        self.directory = place.home / "sittings" / lease
        self.leaving = False
        self.stopped = False
        self._signed = threading.Event()
        self._last = time.monotonic()
        self._told = 0.0
        self.importer: saves.Importer | None = None

    # ---- what it does

    def run(self) -> None:
        """On a thread with a large stack."""
        try:
            if (known := self._written_down()) is not None:
                self.bind(commit(*known))
                return
            self._work()
        except Stopped:
            return
        except (Fault, OSError, MemoryError, ValueError) as fault:
            self.tell("fault", reason=str(fault) or type(fault).__name__)

    def _work(self) -> None:
        where = self.directory / "state"
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.first is not None:
            saves.lay_out(self.place.store, self.first, where)
        began = time.monotonic()
        engine = Engine(self.place.store, self.task_cid, where)
        self.importer = saves.Importer(self.place.store, where, self.place.holds, self.lease)
        try:
            self.tell("running", work=engine.runner.work)
            while (ending := engine.ending()) is None:
                self.slice(engine)
                self._look(engine)
            use = Use(
                cpu_ms=round(time.thread_time() * 1000),
                wall_ms=round((time.monotonic() - began) * 1000),
                rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            )
            self.commit(ending, engine.marks, use)
        finally:
            engine.close()

    def slice(self, engine: Engine) -> None:
        """Compute a little."""
        engine.runner.step()

    def _look(self, engine: Engine) -> None:
        """Between two slices: is there something to save, or to say?"""
        if self.stopped:
            raise Stopped
        runner, now = engine.runner, time.monotonic()
        if runner.ended is not None:
            return
        if now - self._told >= BEAT_S:
            self._told = now
            self.tell("progress", work=runner.work, speed=round(runner.speed))
        waited = now - self._last
        if self.leaving:
            self._leave(engine)
        elif waited >= 2 * self.every_s or (waited >= self.every_s and engine.at_mark):
            engine.save()
            self.offer()
            self._last = time.monotonic()

    def offer(self) -> None:
        """The newest save to the keeper, by way of the coordinator."""
        assert self.importer is not None
        save, head = self.importer.newest(), read_head(self.directory / "state")
        if save is not None and head is not None:
            self.tell("saved", save=c.text(save.cid), work=save.work, root=head.root.hex())

    def _leave(self, engine: Engine) -> None:
        """Nothing is lost by a worker that leaves: it stays until its last save is signed for."""
        self._signed.clear()
        engine.save()
        self.offer()
        while not self._signed.wait(0.1):
            if self.stopped:
                raise Stopped
        self.tell("left", work=engine.runner.work)
        raise Stopped

    def commit(self, ending: Ending, marks: tuple[Mark, ...], use: Use) -> None:
        """Write down what was found, then bind to it."""
        claim = Claim(task=c.text(self.task_cid), seat=self.seat, node=self.place.key.address, ending=ending, use=use)
        salt = os.urandom(SALT_BYTES)
        found = {"claim": encode(claim).hex(), "marks": marks, "salt": salt.hex()}
        write_private(self.directory / "found", json.dumps(found).encode())
        self.bind(commit(claim, marks, salt))

    def bind(self, commitment: str) -> None:
        """Send a commitment."""
        signature = sign(self.place.key, COMMITMENT, **self._names(), commitment=bytes.fromhex(commitment))
        self.tell("committed", commitment=commitment, signature=signature)

    def reveal(self) -> None:
        """Open the commitment."""
        known = self._written_down()
        if known is None:
            raise Refused(f"seat {self.seat} has committed to nothing")
        self.open(*known)

    def open(self, claim: Claim, marks: tuple[Mark, ...], salt: bytes) -> None:
        """Send what a commitment stands for."""
        body = encode(claim)
        signature = sign(self.place.key, OPENING, **self._names(), salt=salt, claim=body)
        self.tell("revealed", claim=body.hex(), marks=marks, salt=salt.hex(), signature=signature)

    # ---- what it hears

    def signed(self) -> None:
        self._signed.set()

    # ---- pieces

    def _written_down(self) -> tuple[Claim, tuple[Mark, ...], bytes] | None:
        try:
            found = json.loads((self.directory / "found").read_bytes())
        except FileNotFoundError:
            return None
        marks = tuple((int(work), str(root)) for work, root in found["marks"])
        return decode(Claim, bytes.fromhex(found["claim"])), marks, bytes.fromhex(found["salt"])

    def _names(self) -> dict[str, object]:
        return {"task": c.text(self.task_cid), "seat": self.seat}

    def tell(self, event: str, **words: Any) -> None:
        self.place.tell(event, lease=self.lease, **words)


Sit = Callable[["Workplace", str, str, bytes, bytes | None, float], Sitting]


class Workplace:
    """The home of one worker process, and its pipe."""

    def __init__(
        self, home: Path, sit: Sit = Sitting, stdin: BinaryIO | None = None, stdout: int | None = None
    ) -> None:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home = home
        self._sit = sit
        self._lock = _locked(home)
        self.key = RunKey(keys.load(home / "run.key") or keys.create(home / "run.key"))
        self.store = PackStore(home / "store")
        self.holds = saves.Holds(Pins(home / "store" / "pins.sqlite", self.store, self.store.age))
        self.sittings: dict[str, Sitting] = {}
        self._in = stdin if stdin is not None else sys.stdin.buffer
        self._out = stdout if stdout is not None else _own_stdout()
        self._speaking = threading.Lock()

    def serve(self) -> None:
        """Until the end of its input; then the process dies, whatever runs."""
        self.say({"event": "hello", "node": self.key.address, "pid": os.getpid()})
        threading.Thread(target=self._beat, daemon=True).start()
        while (got := pipe.read(self._in)) is not None:
            message, blocks = got
            try:
                answer = self._answer(message, blocks)
            except (OSError, KeyError, ValueError, TypeError) as error:
                answer = {"refused": str(error), "bad": isinstance(error, BadRecord)}, []
            if answer is not None and "ask" in message:
                self.say({"re": message["ask"], **answer[0]}, answer[1])
        os._exit(0)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self.say({"event": "beat"})

    def tell(self, event: str, **words: Any) -> None:
        self.say({"event": event, **words})

    def say(self, message: pipe.Message, blocks: list[tuple[bytes, bytes]] | None = None) -> None:
        body = memoryview(pipe.pack(message, blocks or []))
        with self._speaking:
            try:
                while body:
                    body = body[os.write(self._out, body) :]
            except BrokenPipeError:
                os._exit(0)  # nobody is left to work for

    def _answer(self, message: pipe.Message, blocks: list[tuple[bytes, bytes]]) -> tuple[pipe.Message, Any] | None:
        match message["op"]:
            case "missing":
                gone = [cid for root in message["roots"] for cid in unixfs.missing(self.store, c.parse(root))]
                return {"missing": [c.text(cid) for cid in dict.fromkeys(gone)]}, []
            case "put":
                self.store.put(blocks)
                return {}, []
            case "get":
                return {}, [(cid, self.store.get(cid)) for cid in map(c.parse, message["wanted"])]
            case "start":
                return self._start(message), []
            case "leave" | "signed" | "reveal" | "drop":
                return self._of_sitting(message), []
            case "keep":
                return self._keep(message), []
            case "judge":
                self._thread(lambda: self._judge(message))
                return None
            case word:
                raise Refused(f"{word!r} is nothing that a seat is asked")

    def _start(self, message: pipe.Message) -> pipe.Message:
        lease = message["lease"]
        if lease not in self.sittings:
            save = c.parse(message["save"]) if message["save"] else None
            sitting = self._sit(self, lease, message["seat"], c.parse(message["task"]), save, message["every_s"])
            self.sittings[lease] = sitting
            self._thread(sitting.run)
        return {}

    def _of_sitting(self, message: pipe.Message) -> pipe.Message:
        sitting = self.sittings.get(message["lease"])
        if sitting is None:
            raise Refused(f"there is no lease {message['lease']} here")
        match message["op"]:
            case "leave":
                sitting.leaving = True
            case "signed":
                sitting.signed()
            case "reveal":
                sitting.reveal()
            case _:
                sitting.stopped = True
        return {}

    def _thread(self, work: Callable[[], None]) -> None:
        threading.stack_size(engine.THREAD_STACK_BYTES)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        threading.stack_size(0)

    # ---- as a keeper, as a judge

    def _keep(self, message: pipe.Message) -> pipe.Message:
        save, work, root = message["save"], message["work"], message["root"]
        head = saves.verified(self.store, c.parse(save), self.home)
        if (head.work, head.root.hex()) != (work, root):
            raise BadRecord("save", f"its root is {head.root.hex()[:16]} at {head.work}, not {root[:16]} at {work}")
        self.holds.hold(f"{message['task']} {save}", c.parse(save))
        task, holder = message["task"], message["holder"]
        signature = sign(self.key, KEPT, task=task, save=save, work=work, root=head.root, holder=holder)
        return {"signature": signature}

    def _judge(self, message: pipe.Message) -> None:
        try:
            answer = self._judged(message)
        except (Fault, OSError, MemoryError, ValueError) as fault:
            answer = {"refused": str(fault) or type(fault).__name__}
        self.say({"re": message["ask"], **answer})

    def _judged(self, message: pipe.Message) -> pipe.Message:
        """From a save, or the start, to the step that is in doubt: what was there before it, and where it leads. `upto`: the work of the
        agreed state before the step, 0 = the start; None: the step is the next one."""
        scratch = Path(tempfile.mkdtemp(dir=self.home, prefix=".judge-"))
        try:
            if message["save"]:
                saves.lay_out(self.store, c.parse(message["save"]), scratch / "state")
                pack.verify(scratch / "state")
            engine = Engine(self.store, c.parse(message["task"]), scratch / "state")
            try:
                return _steps(engine, message["upto"])
            finally:
                engine.close()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _steps(engine: Engine, upto: int | None) -> pipe.Message:
    since = engine.runner.work
    before: Entry | None = None
    if since and upto is not None:
        root = engine.runner.root().hex()
        before = Entry(since, root) if since == upto else None
    while True:
        count = len(engine.runner.marks)
        while len(engine.runner.marks) == count and (ending := engine.ending()) is None:
            engine.runner.step()
        ending = engine.ending()
        step = entries(engine.marks, ending)[-1] if ending is not None else Entry(*engine.marks[-1])
        reached = (before.work if before is not None else 0) >= (upto or 0)
        if upto is None or reached or ending is not None:
            work = engine.runner.work - since
            return {"before": before, "entry": step, "since": since, "work": work}
        before = step


def _locked(home: Path) -> int:
    """One process at a time: the one before may be dying still."""
    fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Refused(f"{home} is in use by another process") from None
            time.sleep(0.02)


def _own_stdout() -> int:
    """The pipe is for messages: what is printed by mistake goes to standard error."""
    own = os.dup(1)
    os.dup2(2, 1)
    return own


def main(home: Path, sit: Sit = Sitting) -> int:
    with suppress(KeyboardInterrupt):
        Workplace(home, sit).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
