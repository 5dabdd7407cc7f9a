"""The report of a leaderboard: one HTML file that opens without a network."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from soupray import __version__
from soupray.core.errors import CheckpointError, NotFound
from soupray.core.names import plain
from soupray.core.records import SHARES, Basis, Metric, Record
from soupray.maths.metrics import Z
from soupray.reporting.anytime import points, rows
from soupray.reporting.charts import MOST_CLASSES, charts
from soupray.reporting.details import DETAILS, Answers, Details, TrialFacts
from soupray.reporting.dials import dial_table, of_dials
from soupray.reporting.history import SoupRun, stored_leaderboard
from soupray.reporting.notes import of_statistics, p_value, percent, protocol
from soupray.reporting.ranking import Entry, Gain, SameModel, ranked_on, same_models
from soupray.reporting.sections import Section, stored_sections
from soupray.reporting.taught import of_teacher, taught
from soupray.reporting.trial_charts import anytime_chart, importance_chart
from soupray.reporting.vega import Chart
from soupray.reporting.verdict import verdict
from soupray.search.importance import LEAST, importances
from soupray.search.prefixes import Prefix
from soupray.search.state import prefixes_of
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import find_record

REPORT, NOTEBOOK = "report.html.jinja", "notebook.html.jinja"
"""Files in assets/: a whole page, and what a notebook shows of a leaderboard."""

MOST_MISTAKES = 20
"""Pairs of classes that the report lists where there is no room for a confusion matrix."""


class ReportedBoard(NamedTuple):
    """A leaderboard and all that is known of it.

    Attributes:
        spec: of the sweep.
        entries: best first.
        basis: the splits.
        run: of `soup`, which made it.
        details: the numbers behind the pictures.
        sections: what `soupray diagnose` measured.
        prefixes: what the first trials were worth, the smallest number first.
    """

    spec: SweepSpec
    entries: list[Entry]
    basis: Basis
    run: SoupRun
    details: Details
    sections: tuple[Section, ...] = ()
    prefixes: tuple[Prefix, ...] = ()


def stored_board(spec: SweepSpec, home: Path, key: str | None = None) -> ReportedBoard:
    """Return a leaderboard from the store, with all that a report shows.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        key: of the run of `soup`, or its first characters; None for the newest one.

    Raises:
        NotFound: there is no such leaderboard, or an older soupray made it.
    """
    entries, basis, run = stored_leaderboard(spec, home, key)
    store = find_place(spec, home).open_store()
    details: Details | None = None
    if run is not None:
        path = layout.leaderboard_file(spec.name, run.key, DETAILS)
        details = find_record(store, path, Details)
    if run is None or details is None:
        raise NotFound(
            f"an older soupray made this leaderboard of {spec.name}, without the numbers that a "
            "report needs. Run `soupray soup` again: it evaluates nothing again."
        )
    _refuse_damaged(details, entries, spec, f"{path} in {store.url}")
    sections = stored_sections(store, spec.name, run.key)
    prefixes = tuple(prefixes_of(store, spec, basis))
    return ReportedBoard(spec, entries, basis, run, details, sections, prefixes)


def _refuse_damaged(details: Details, entries: list[Entry], spec: SweepSpec, where: str) -> None:
    count, names = len(spec.task.classes), {e.name for e in entries}
    cells = [c for a in details.answers for c in a.confusion]
    bad = [k for c in cells for k in (c.label, c.answer) if not 0 <= k < count]
    if bad or any(a.name not in names for a in details.answers):
        what = f"names class {bad[0]} of {count}" if bad else "names no entry of the leaderboard"
        raise CheckpointError(
            f"{where} {what}: it is damaged. Run `soupray soup` again: it evaluates nothing again."
        )


class Cost(Record, frozen=True, kw_only=True):
    """What the training of the ingredients took.

    Attributes:
        trials: number of trials that trained here.
        hours: from start to end, all trials together.
        cpu_hours, gpu_hours: the CPUs and GPUs that they reserved, times the hours.
    """

    trials: int
    hours: float
    cpu_hours: float
    gpu_hours: float


def cost_of(trials: Sequence[TrialFacts], cpu: float, gpu: float) -> Cost:
    """Return what the training of the ingredients took.

    Args:
        trials: the ingredients; imported ones cost nothing here.
        cpu: number of CPUs that a worker of a trial reserves.
        gpu: the same of GPUs.
    """
    own = [t for t in trials if not t.imported]
    worked = sum(t.seconds * t.workers for t in own) / 3600
    return Cost(
        trials=len(own),
        hours=sum(t.seconds for t in own) / 3600,
        cpu_hours=worked * cpu,
        gpu_hours=worked * gpu,
    )


def charts_of(board: ReportedBoard) -> dict[str, Chart]:
    """Return the charts that a leaderboard allows, by name.

    Args:
        board: the leaderboard.
    """
    details = board.details
    drawn = charts(details, board.entries, _class_names(board.spec))
    shares = importances(
        [t.hparams for t in details.trials if not t.imported],
        [t.held_out[0] for t in details.trials if not t.imported],
    )
    if shares:
        drawn["importance"] = importance_chart(shares)
    if board.prefixes:
        found = points(board.prefixes, board.spec.metric)
        drawn["anytime"] = anytime_chart(rows(found), board.spec.metric)
    return drawn


def _class_names(spec: SweepSpec) -> list[str]:
    """The names of the classes as text: Vega cannot read a line separator in a name."""
    return [plain(name) for name in spec.task.classes]


def render_board(board: ReportedBoard) -> str:
    """Return the verdict and the table as HTML that stands in a notebook.

    Args:
        board: the leaderboard.
    """
    return _filled(NOTEBOOK, **_board(board))


def render(board: ReportedBoard) -> str:
    """Return the report as HTML.

    Args:
        board: the leaderboard.
    """
    import vl_convert

    spec, entries, details = board.spec, board.entries, board.details
    classes, drawn, shown = _class_names(spec), charts_of(board), _board(board)
    figures = {f.name: Chart(f"chart-{f.name}", f.spec) for s in board.sections for f in s.figures}
    return _filled(
        REPORT,
        **shown,
        spec=spec,
        spec_text=json.dumps(spec.model_dump(mode="json", exclude_defaults=True), indent=2),
        champion=next(e for e in entries if e.name == shown["verdict"].take),
        run=board.run,
        made=datetime.datetime.fromtimestamp(board.run.made, datetime.UTC),
        details=details,
        basis=board.basis,
        charts=drawn,
        sections=board.sections,
        dials=[(e.name, found) for e in entries if (found := dial_table(e))],
        mistakes=[(a.name, _mistakes(a, classes)) for a in details.answers],
        classes=len(classes),
        most_classes=MOST_CLASSES,
        least_trials=LEAST,
        cost=cost_of(details.trials, spec.resources.cpu, spec.resources.gpu),
        version=__version__,
        script=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        data=_as_script(drawn | figures),
    )


def _board(board: ReportedBoard) -> dict[str, Any]:
    """Return what the verdict and the table need."""
    spec, entries = board.spec, board.entries
    said = verdict(entries, board.run.champion, spec.name, spec.metric)
    return {
        "verdict": said,
        "entries": entries,
        "rows": [_row(r, said.take, spec.metric) for r in same_models(entries)],
        "notes": [
            protocol(board.basis, spec, entries[0]),
            of_statistics(entries, spec.metric),
            of_teacher(taught(entries, board.basis, board.run.champion.name)),
            *of_dials(entries),
        ],
    }


def _filled(template: str, **values: Any) -> str:
    """Return a file of assets/ with its values, which become text, never markup."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "p_value": p_value, "gain": _gained}
    page: str = environment.get_template(template).render(values)
    return page


def _row(row: SameModel, taken: str, metric: Metric) -> dict[str, Any]:
    chosen = None  # by another metric than the accuracy that the table has
    if metric not in (*SHARES, row.entry.test.graded):
        chosen = (metric.rpartition(":")[2], f"{ranked_on(row.entry).read(metric):.3f}")
    return {
        "metric": chosen,
        "place": row.place,
        "names": row.names,
        "entry": row.entry,
        "taken": taken in row.names,
        "baseline": "best_single" in row.names,
    }


def _gained(gain: Any) -> str:
    """+0.7 ± 0.3, in points, with the paired standard error; empty in older leaderboards."""
    if not isinstance(gain, Gain):
        return ""
    return f"{100 * gain.difference:+.1f} ± {percent((gain.high - gain.low) / (2 * Z))}"


def _mistakes(answers: Answers, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """The most frequent mistakes as (class, answer, number of samples)."""
    wrong = [cell for cell in answers.confusion if cell.label != cell.answer]
    wrong.sort(key=lambda cell: (-cell.n, cell.label, cell.answer))
    return [(classes[c.label], classes[c.answer], c.n) for c in wrong[:MOST_MISTAKES]]


def _as_script(drawn: dict[str, Chart]) -> str:
    """The charts as JSON that may stand in a script: no text in it can end the script."""
    text = json.dumps({chart.id: chart.spec for chart in drawn.values()})
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
