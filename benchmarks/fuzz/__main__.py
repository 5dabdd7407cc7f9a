"""Inputs that nobody writes on purpose: `make fuzz`, or python -m benchmarks.fuzz [SUBJECT ...].

Specs, records, tables, shards, images, arrays and folders are made by a grammar or changed at
random, by hypothesis, and read. Objects of a small real store are damaged, and verbs are run on it.
Each input may be accepted, or refused with an error of soupray in one line. All else is a find:
another exception, a message of several lines, more than 20 seconds, 4 GB more memory, or an object
that `gc` deleted though it is used. FUZZ_MINUTES (10) says how long, FUZZ_SEED (0) which inputs.
Prints the report; exit status 1 if there was a find. Finds become tests in tests/test_hostile_*.py.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.fuzz.reading import Room, Subject, subjects
from benchmarks.fuzz.stores import store_subjects
from soupray.core.errors import SouprayError
from soupray.data.opening import Unreadable

LONGEST_S, MOST_MEMORY, ROUND = 20, 4 * 2**30, 100


class Find(NamedTuple):
    """An input that ended in neither way: of which subject, where, and what was said."""

    subject: str
    where: str
    said: str
    example: str


class TookTooLong(Exception):
    """An input took more than LONGEST_S seconds."""


def _late(number: int, frame: object) -> None:
    raise TookTooLong


def ended(subject: Subject, given_: Any) -> str:
    """How an input ended: accepted, or refused. Raises whatever is a find."""
    signal.alarm(LONGEST_S)
    try:
        subject.read(given_)
    except (SouprayError, Unreadable) as error:
        said = str(error)
        said.encode()
        # Names of classes are shown side by side, in lines; mistakes of a spec have a line each.
        listed = "in task.classes" in said or said.split("\n")[0].endswith(" mistakes:")
        assert "\n" not in said or listed, f"several lines: {said!r}"
        return "refused"
    finally:
        signal.alarm(0)
    return "accepted"


def fuzzed(subject: Subject, number: int, counts: Counter[str]) -> Find | None:
    """ROUND inputs of a subject; the first find, made small."""
    examples: list[Any] = []

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        report_multiple_bugs=False,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(subject.inputs)
    def one(given_: Any) -> None:
        examples.append(given_)
        counts[ended(subject, given_)] += 1

    try:
        one()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/soupray/" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return Find(subject.name, where, said, repr(examples[-1])[:400] if examples else "")
    return None


def main() -> int:
    """Read inputs until the time is over, and print the report."""
    minutes = float(os.environ.get("FUZZ_MINUTES", "10"))
    first = int(os.environ.get("FUZZ_SEED", "0"))
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
    counts: dict[str, Counter[str]] = {}
    finds: dict[tuple[str, str, str], Find] = {}
    began, number = time.monotonic(), first
    with tempfile.TemporaryDirectory() as folder:
        every = [*subjects(Room(Path(folder))), *store_subjects(Path(folder))]
        only = sys.argv[1:]
        every = [s for s in every if not only or any(s.name.startswith(name) for name in only)]
        while time.monotonic() - began < 60 * minutes:
            for subject in every:
                mine = counts.setdefault(subject.name, Counter())
                if find := fuzzed(subject, number, mine):
                    finds.setdefault((find.subject, find.where, find.said.split(":")[0]), find)
            number += 1
    print(report(counts, list(finds.values()), time.monotonic() - began, first))
    return 1 if finds else 0


def report(counts: dict[str, Counter[str]], finds: list[Find], seconds: float, first: int) -> str:
    """The report, in Markdown."""
    total = sum(sum(c.values()) for c in counts.values())
    lines = [
        f"{total} inputs in {seconds / 60:.1f} minutes from seed {first}: {len(finds)} finds.\n",
        "| subject | inputs | accepted | refused |",
        "|---|---:|---:|---:|",
    ]
    for name, mine in counts.items():
        lines.append(f"| {name} | {sum(mine.values())} | {mine['accepted']} | {mine['refused']} |")
    lines += [
        f"\n- **{find.subject}**, {find.where}: {find.said}\n\n      {find.example}"
        for find in finds
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
