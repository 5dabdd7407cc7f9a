"""One seed: a small sweep and its soup through the command line, disturbed, again until they end.

Then both once more with nothing in their way, and the comparison with an undisturbed home.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak.checks import (
    Kept,
    Known,
    Lost,
    counted_too_much,
    known_of,
    lost,
    other_prefixes,
    trained_again,
    trainings,
    wrongly_kept,
)
from benchmarks.soak.faults import FREEING, Injected, Trouble, due
from benchmarks.soak.place import (
    KEPT,
    TRIALS,
    WITH_KEEP,
    WITH_LIMITS,
    Kind,
    Place,
    complete_rows,
    kind_of,
    small_disk,
)
from benchmarks.soak.proxy import Told
from benchmarks.soak.servers import Servers, in_background

RUNS = 20
"""Of a phase, at most: each ends at least one of its faults."""
LONGEST_S = 1200.0
KILLED = ("driver killed", FREEING)
"""Faults that end a driver."""


class Ended(NamedTuple):
    """A run of the command line: its status and all that it said."""

    phase: str
    run: int
    status: int
    said: str


class Result(NamedTuple):
    """What came of a seed: faults, which of them ended a run, trainings lost, what was wrong."""

    seed: int
    came: list[Injected]
    fatal: list[Injected]
    lost: list[Lost]
    runs: list[Ended]
    problems: list[str]
    seconds: float


class Seed:
    """Runs one seed to its end."""

    def __init__(self, place: Place, can_fill: bool) -> None:
        self._place, self._servers, self._can_fill = place, place.servers, can_fill
        self._deeds: dict[str, Callable[[], None]] = {
            "node killed": self._servers.kill_node,
            "store killed, 5 s away": lambda: self._servers.kill_store(5),
            "store killed, 45 s away": lambda: self._servers.kill_store(45),
            "store frozen, 8 s": lambda: self._servers.freeze_store(8),
            "MLflow killed": self._servers.kill_mlflow,
            "local disk full": self._fill,
        }
        self.kept = Kept(place.open_store)
        self.problems = self.kept.problems
        self.runs: list[Ended] = []
        self.came: list[Injected] = []
        self.fatal: list[Injected] = []
        self.told: list[Told] = []

    def phase(self, trouble: Trouble) -> None:
        """Run a phase until it ends well."""
        for run in range(RUNS):
            trouble.run = run
            before = len(trouble.came)
            ended = self._run(trouble)
            self.runs.append(ended)
            self._free()
            self.kept.look()
            came = trouble.came[before:]
            self._judge(ended, came)
            if ended.status == 0:
                break
        else:
            self.problems.append(f"{trouble.phase} did not end in {RUNS} runs")
        self.came += trouble.came

    def _judge(self, ended: Ended, came: list[Injected]) -> None:
        where = f"{ended.phase}, run {ended.run}"
        if "Traceback" in ended.said:
            self.problems.append(f"{where}: a traceback")
        if ended.status == 0:
            return
        if not came:
            self.problems.append(f"{where}: status {ended.status} without a fault")
            return
        killed = [c for c in came if c.kind in KILLED]
        self.fatal.append((killed or came)[-1])
        if ended.status != -signal.SIGKILL and "error: " not in ended.said:
            self.problems.append(f"{where}: status {ended.status} without a word")

    def _run(self, trouble: Trouble) -> Ended:
        log = self._place.folder / f"{trouble.phase}-{trouble.run}.log"
        process = self._place.start(trouble.phase, log)
        deadline = time.monotonic() + LONGEST_S
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    self.problems.append(f"{trouble.phase}, run {trouble.run}: hangs")
                    break
                with suppress(queue.Empty):
                    self._disturb(trouble, trouble.beside.get(timeout=0.2), process)
        finally:  # also when the soak itself is stopped
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return Ended(trouble.phase, trouble.run, process.wait(), log.read_text(errors="replace"))

    def _disturb(self, trouble: Trouble, kind: str, process: subprocess.Popen[bytes]) -> None:
        """What comes beside the requests. What finds nothing to kill does not count."""
        title = {"worker killed": "Trainable", "actor killed": "_Worker"}.get(kind)
        while title and not self._servers.kill_worker(title):
            if process.poll() is not None:
                return
            time.sleep(0.05)
        if kind == "local disk full" and not self._can_fill:
            return
        trouble.happened(kind)
        if kind in KILLED:
            os.killpg(process.pid, signal.SIGKILL)
        elif not title:
            self._deeds[kind]()

    @property
    def _ballast(self) -> Path:
        return self._place.home / "ballast"

    def _fill(self) -> None:
        with suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass

    def _free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def once_more(self, verb: str) -> Ended:
        """Undisturbed."""
        log = self._place.folder / f"{verb}-undisturbed.log"
        process = self._place.start(verb, log)
        try:
            status = process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        ended = Ended(verb, -1, status, log.read_text(errors="replace"))
        if status:
            self.problems.append(f"undisturbed {verb}: status {status}: {ended.said[-300:]}")
        return ended


class Reference(NamedTuple):
    """Of a home that nothing disturbs: its leaderboard, and what its store knows of prefixes."""

    leaderboard: list[dict]
    known: Known


def disturbed(servers: Servers, seed: int, undisturbed: dict[str, Reference]) -> Result:
    """Run a seed; everything that is wrong is in `problems`."""
    started, kind = time.monotonic(), kind_of(seed)
    faults = {phase: due(seed, phase) for phase in kind.edits}
    tracked = any(d.kind == "MLflow killed" for dues in faults.values() for d in dues)
    place = Place(servers, f"soak-{seed}", tracked, kind.recipes)
    with small_disk(place.home) as can_fill:
        one = Seed(place, can_fill)
        servers.proxy.note = one.told.append
        for phase, edits in kind.edits.items():
            place.write_spec(edits)
            trouble = Trouble(phase, faults[phase])
            servers.proxy.judge = trouble.judge
            try:
                one.phase(trouble)
            finally:
                servers.proxy.judge = lambda asked: None
                restarting = in_background(servers.restart_mlflow) if tracked else None
            if kind is WITH_KEEP:
                _compare_kept(one, place, phase)
        if restarting:
            restarting.join()
        _compare(one, place, undisturbed[kind.name], kind)
        if kind is WITH_LIMITS:
            one.problems += counted_too_much(place, time.monotonic() - started)
    begun = trainings(one.told)
    one.problems += trained_again(begun, one.kept.stored_at())
    return Result(
        seed=seed,
        came=one.came,
        fatal=one.fatal,
        lost=lost(begun, one.came),
        runs=one.runs,
        problems=one.problems,
        seconds=time.monotonic() - started,
    )


def _compare_kept(one: Seed, place: Place, phase: str) -> None:
    """Where a fault kept weights from being let go, the same command lets them go."""
    if phase == "sweep":
        return
    one.once_more(phase)
    one.problems += wrongly_kept(place, KEPT if phase == "soup" else 0)


def _compare(one: Seed, place: Place, undisturbed: Reference, kind: Kind) -> None:
    """With a stop rule, trials that ran when it decided may be more or fewer; the rest is equal."""
    limited = kind is WITH_LIMITS
    swept = one.once_more("sweep")
    whole = "in the store, 0 to train" if limited else f"{TRIALS} in the store, 0 to train"
    if whole not in swept.said:
        one.problems.append(f"the undisturbed sweep trained: {swept.said[:200]}")
    one.once_more("soup")
    one.problems += other_prefixes(known_of(place), undisturbed.known)
    one.kept.look()
    if kind is WITH_KEEP:
        one.problems += wrongly_kept(place, 0)
    if limited:
        return
    if place.leaderboard() != undisturbed.leaderboard:
        one.problems.append("the leaderboard is another one")
    if place.tracked:
        one.once_more("publish")
        rows, expected = complete_rows(place), 1 + TRIALS + len(undisturbed.leaderboard)
        if rows != expected:
            one.problems.append(f"{rows} complete runs in MLflow, not {expected}")


def reference(servers: Servers, kind: Kind) -> Reference:
    """What comes of a home that nothing disturbs."""
    place = Place(servers, f"soak-undisturbed-{kind.name}", tracked=False, recipes=kind.recipes)
    one = Seed(place, can_fill=False)
    for phase, edits in kind.edits.items():
        place.write_spec(edits)
        ended = one.once_more(phase)
        if ended.status:
            raise RuntimeError(ended.said)
        if kind is WITH_KEEP and phase != "sweep":
            wrong = list(wrongly_kept(place, KEPT if phase == "soup" else 0))
            assert not wrong, wrong
    return Reference(place.leaderboard(), known_of(place))
