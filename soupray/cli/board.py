"""The leaderboard as a person reads it: what to take first, then the table that says why."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from msgspec import UNSET, UnsetType

from soupray.cli.console import out, wrapped
from soupray.core.errors import NotFound
from soupray.core.records import Basis, Metric, Record
from soupray.maths.metrics import SHARES, Z
from soupray.maths.retrieval import PLACES
from soupray.reporting.dials import of_dials
from soupray.reporting.live import WIDTH, table
from soupray.reporting.notes import of_statistics, p_value, percent, protocol
from soupray.reporting.ranking import Champion, Entry, Gain, SameModel, ranked_on, same_models
from soupray.reporting.taught import Taught, of_teacher, taught
from soupray.reporting.verdict import Verdict, verdict

if TYPE_CHECKING:
    from soupray.spec.sweep_spec import SweepSpec

SORTS: dict[str, Callable[[Entry], float | str]] = {
    "held-out": lambda e: -ranked_on(e).accuracy,
    "test": lambda e: -e.test.accuracy,
    "shifts": lambda e: -e.shift_mean,
    "nll": lambda e: ranked_on(e).nll,
    "ece": lambda e: ranked_on(e).ece,
    "passes": lambda e: e.forward_passes_per_sample,
    "size": lambda e: e.size_bytes,
    "name": lambda e: e.name,
}
"""What `--sort` takes: a key for each entry, the smallest first."""


class Look(NamedTuple):
    """How the table looks: all columns, however wide; the order (one of SORTS; None: by rank)."""

    all_columns: bool = False
    sort: str | None = None


RANKED = Look()


class _Column(NamedTuple):
    title: str
    value: Callable[[SameModel], str]
    meaning: str = ""


def show_leaderboard(
    entries: list[Entry],
    basis: Basis,
    spec: SweepSpec,
    champion: Champion | None = None,
    look: Look = RANKED,
) -> None:
    """What to take and why, the entries, and what the columns mean.

    Args:
        entries: the leaderboard, best first.
        basis: the splits.
        spec: the sweep.
        champion: the entry to take; None if an older soupray made the leaderboard.
        look: which columns, in which order.
    """
    width = shutil.get_terminal_size((WIDTH, 24)).columns if out.is_terminal else WIDTH
    most = min(width, 98)
    if champion is not None:
        for line in verdict(entries, champion, spec.name, spec.metric).lines:
            out.print(textwrap.fill(line, most, subsequent_indent="  "))
        out.print()
    rows = _rows(entries, look.sort)
    shown = _fitting(rows, _columns(entries, spec), 10_000 if look.all_columns else width)
    right = tuple(c.title for c in shown if c.title != "entry")
    made = table(*(c.title for c in shown), right=right)
    for row in rows:
        made.add_row(*(c.value(row) for c in shown))
    before, out.width = out.width, max(width, sum(_width(c, rows) + 1 for c in shown))
    out.print(made)
    out.width = before
    said = f"{protocol(basis, spec, entries[0])} {' '.join(c.meaning for c in shown if c.meaning)}"
    out.print(textwrap.fill(said, most), style="dim")
    learnt = taught(entries, basis, None if champion is None else champion.name)
    notes = [of_statistics(entries, spec.metric), of_teacher(learnt), *of_dials(entries)]
    for said in filter(None, notes):
        out.print(textwrap.fill(said, most))
    if dials := [e.name for e in entries if e.dial]:
        out.print(f"soupray show {spec.name} '{dials[0]}' has its curve.", style="dim")


class Shown(Record, frozen=True, kw_only=True):
    """A leaderboard as `--json` prints it.

    Attributes:
        verdict: what to take, and why; None if an older soupray made the leaderboard.
        entries: the entries, best first.
        teacher: what is left of the gain of the teacher of the trials. Unset: there is none.
    """

    verdict: Verdict | None
    entries: list[Entry]
    teacher: Taught | UnsetType = UNSET


def with_verdict(
    entries: list[Entry], basis: Basis, champion: Champion | None, spec: SweepSpec
) -> Shown:
    """The leaderboard as `--json` prints it.

    Args:
        entries: the leaderboard, best first.
        basis: the splits, and the teacher of the trials.
        champion: the entry to take; None if an older soupray made the leaderboard.
        spec: the sweep.
    """
    said = None if champion is None else verdict(entries, champion, spec.name, spec.metric)
    learnt = taught(entries, basis, None if champion is None else champion.name)
    return Shown(verdict=said, entries=entries, teacher=learnt or UNSET)


def _rows(entries: list[Entry], sort: str | None) -> list[SameModel]:
    """Entries of the same model are one row."""
    rows = same_models(entries)
    if sort is not None:
        rows.sort(key=lambda row: (SORTS[sort](row.entry), row.place))
    return rows


def _columns(entries: list[Entry], spec: SweepSpec) -> list[_Column]:
    """All columns in their order."""
    ranked = "rank" if entries[0].rank else "held-out"

    def quality(name: str) -> Callable[[SameModel], str]:
        return lambda row: f"{getattr(ranked_on(row.entry), name):.3f}".lstrip("0")

    def score(row: SameModel) -> str:
        found = ranked_on(row.entry)
        return f"{percent(found.accuracy)} ± {percent(found.standard_error)}"

    def interval(row: SameModel) -> str:
        return f"{percent(row.entry.test.low)}-{percent(row.entry.test.high)}"

    def p(row: SameModel) -> str:
        return "" if _is_baseline(row) else p_value(row.entry.test_versus_best_single.p)

    def shifts(row: SameModel) -> str:
        return percent(row.entry.shift_mean) if row.entry.shifts else ""

    def megabytes(row: SameModel) -> str:
        return f"{row.entry.size_bytes / 1e6:.{1 if row.entry.size_bytes < 1e9 else 0}f}"

    names = "* the baseline, best_single."
    if len({e.candidate for e in entries}) < len(entries):
        names += " =: the same model."
    classes = not spec.targets or spec.targets.kind == "multi_label"
    graded = entries[0].test.graded
    exact, test = ("exact", "exact McNemar") if not graded else ("bootstrap", "permutation")
    less = "minus that of best_single, ± one paired standard error."
    return [
        _Column("#", lambda row: str(row.place)),
        _Column("entry", _names, names),
        _Column("K", lambda row: str(len(row.entry.ingredients)), "K: checkpoints."),
        _Column(ranked, score, f"{ranked}: ± one standard error."),
        _Column("test", lambda row: percent(row.entry.test.accuracy)),
        _Column("Δ test", lambda row: _difference(row, row.entry.test_gain), f"Δ: {less}"),
        _Column("95 %", interval, f"95 %: {exact} interval of test."),
        _Column("p", p, f"p: {test} test against best_single on test."),
        _Column("shifts", shifts, f"shifts: mean over {', '.join(entries[0].shifts)}."),
        _Column("Δ shifts", lambda row: _difference(row, row.entry.shift_gain)),
        *_of_objective(entries[0], spec),
        _Column("NLL", quality("nll"), f"NLL{', ECE' if classes else ''}: on {ranked}."),
        *([_Column("ECE", quality("ece"))] if classes else []),
        _Column(
            "fwd", lambda row: str(row.entry.forward_passes_per_sample), "fwd: forward passes."
        ),
        _Column("MB", megabytes, "MB: models to keep."),
    ]


def _of_objective(entry: Entry, spec: SweepSpec) -> list[_Column]:
    """The metrics of several labels, of a regression and of the user, on test."""
    found = {} if isinstance(entry.test.others, UnsetType) else entry.test.others

    def read(metric: Metric) -> Callable[[SameModel], str]:
        share = metric in SHARES
        return lambda row: (
            percent(row.entry.test.read(metric)) if share else f"{row.entry.test.read(metric):.3g}"
        )

    own = []
    if spec.own_metric and spec.metric in found:
        title = spec.metric.rpartition(":")[2]
        own = [_Column(title, read(spec.metric), f"{title}: {spec.metric}, on test.")]
    if "map" in found:
        f1 = _Column("F1", read("macro_f1"), "F1: macro-F1 on test.")
        return [*own, _Column("mAP", read("map"), "mAP: on test."), f1]
    if "dice" in found:
        pixels = _Column("pixels", read("pixel_accuracy"), "pixels: pixel accuracy on test.")
        return [*own, _Column("Dice", read("dice"), "Dice: on test."), pixels]
    if "mrr" in found:
        names = {f"R@{k}": f"recall_at_{k}" for k in PLACES if f"recall_at_{k}" != spec.metric}
        recalls = [_Column(at, read(name), f"{at}: {name} on test.") for at, name in names.items()]
        mrr = _Column("MRR", read("mrr"), "MRR: mean of 1 / the document's place, on test.")
        return [*own, *recalls, mrr]
    if "mae" in found:
        r2 = _Column("R2", read("r2"), "R2: on test.")
        return [*own, _Column("MAE", read("mae"), "MAE: on test."), r2]
    return own


FIRST = (
    *("#", "entry", "test", "Δ test", "mAP", "MAE", "Dice", "shifts", "Δ shifts", "fwd"),
    *("R2", "F1", "pixels", "R@1", "R@5", "R@10", "MRR", "held-out", "rank"),
    *("K", "MB", "p", "NLL", "ECE", "95 %"),
)
"""Titles of columns, the most important first: a narrow table leaves out the last ones."""


def _importance(column: _Column) -> int:
    """The place of a column in FIRST; a metric of the user is where mAP is."""
    return FIRST.index(column.title if column.title in FIRST else "mAP")


def _fitting(rows: list[SameModel], columns: list[_Column], width: int) -> list[_Column]:
    """The most important columns that fit and say something, in the order of `columns`."""
    kept, used = set(), 0
    speaking = [c for c in columns if any(c.value(row) for row in rows)]
    for column in sorted(speaking, key=_importance):
        used += _width(column, rows) + 1
        if used > width:
            break
        kept.add(column.title)
    return [c for c in columns if c.title in kept]


def _width(column: _Column, rows: list[SameModel]) -> int:
    lines = [line for row in rows for line in column.value(row).split("\n")]
    return max(len(column.title), *map(len, lines))


def _names(row: SameModel) -> str:
    first, *others = row.names
    return "\n".join([f"{first}{' *' if _is_baseline(row) else ''}", *(f"= {n}" for n in others)])


def _is_baseline(row: SameModel) -> bool:
    return "best_single" in row.names


def _difference(row: SameModel, gain: Gain | UnsetType) -> str:
    if not gain or _is_baseline(row):
        return ""
    error = (gain.high - gain.low) / (2 * Z)
    return f"{100 * gain.difference:+.1f} ± {percent(error)}"


def show_calibration(entries: list[Entry]) -> None:
    """NLL and ECE on ID test before and after temperature scaling. Raises NotFound."""
    right = ("T", "NLL", "with T", "ECE", "with T")
    shown = table("entry", *right, right=right)
    for e in entries:
        if not e.calibrated:
            raise NotFound(
                "this leaderboard has no temperatures, because an older soupray made it, or its "
                "targets are not one class. Run `soupray soup` again: it evaluates nothing again."
            )
        pairs = ((e.test.nll, e.calibrated.test_nll), (e.test.ece, e.calibrated.test_ece))
        numbers = (f"{v:.3f}".lstrip("0") for pair in pairs for v in pair)
        shown.add_row(e.name, f"{e.calibrated.temperature:.3g}", *numbers)
    out.print(shown)
    meaning = (
        "Probabilities are softmax(logits / T). T is fitted to NLL on held-out data; NLL and ECE "
        "here are of ID test. T changes no predicted class. `predict --calibrated` and "
        "`soupray.load(..., calibrated=True)` use it."
    )
    out.print(wrapped(meaning), style="dim")
