"""The same inputs, guided by which lines of soupray they reach, with atheris (libFuzzer).

    pip install atheris
    python -m benchmarks.fuzz.guided SUBJECT [SECONDS]    # the beginning of a subject's name; 60

libFuzzer changes the bytes from which hypothesis draws an input, and keeps those that reach new
branches. The first find ends it: its traceback is shown. Prints what libFuzzer counts (`cov`:
branches, `exec/s`), and at the end how many inputs were accepted and refused.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import atheris
from hypothesis import HealthCheck, given, settings

with atheris.instrument_imports(include=["soupray"]):
    from benchmarks.fuzz.__main__ import _late, ended
    from benchmarks.fuzz.reading import Room, subjects


def main() -> None:
    """Read inputs of one subject until the time is over, or one of them is a find."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        subject = next(s for s in subjects(Room(Path(folder))) if s.name.startswith(name))

        @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(subject.inputs)
        def one(given_: Any) -> None:
            counts[ended(subject, given_)] += 1
            if sum(counts.values()) % 1000 == 0:  # libFuzzer ends the process itself
                print(f"{subject.name}: {dict(counts)}", flush=True)

        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}"], one.hypothesis.fuzz_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
