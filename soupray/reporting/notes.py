"""Sentences that stand under a leaderboard, in the terminal and in the report."""

from __future__ import annotations

from soupray.core.records import Basis, Metric
from soupray.reporting.ranking import Entry, explained, ranked_on
from soupray.spec.sweep_spec import SweepSpec


def points(share: float) -> str:
    """Return a difference of shares in points, with its sign: +0.7. Zero is +0.0."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def percent(share: float) -> str:
    """97.2 for .972."""
    return f"{100 * share:.1f}"


def p_value(p: float | None) -> str:
    """.238, <.001 or 1; empty for None."""
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def protocol(basis: Basis, spec: SweepSpec, entry: Entry) -> str:
    """Return how the numbers of a leaderboard came about.

    Args:
        basis: the splits.
        spec: the sweep.
        entry: one of the leaderboard; it says for which shifts ID test has a part of the classes.
    """
    held_out, test = basis.split("held_out").size, basis.split("test").size
    rank = [s for s in basis.reported if s.role == "rank"]
    if rank:
        said = (
            f"Chosen on {held_out} held-out samples, ranked on {rank[0].size} others that no "
            "recipe saw."
        )
    else:
        said = (
            f"Ranked on the held-out data that also chose the models (n = {held_out}): these "
            "scores are optimistic, more so where a recipe has more freedom."
        )
    if spec.metric != "accuracy":
        said += f" Chosen and ordered by {spec.metric}."
    if spec.precision == "bf16":
        said += (
            " All in bfloat16, without a second pass in float32, but for gradients (learned, "
            "Fisher) and BatchNorm statistics, which are float32's."
        )
    said += f" Test (n = {test}) and shifts were evaluated once, after the choice."
    if some := ", ".join(entry.test_on_classes):
        said += f" Of some classes only, beside ID test on them in leaderboard.csv: {some}."
    return f"{said} {_scores(spec, entry.test.graded or '')}"


def _scores(spec: SweepSpec, graded: str) -> str:
    """Return what a score is."""
    if graded:
        return f"Scores: mean {graded.rpartition(':')[2]} of the samples, in %."
    if not spec.targets:
        return "Scores in %."
    if spec.targets.kind == "multi_label":
        return "Scores: samples with all labels right, in %."
    if spec.targets.kind == "retrieval":
        first = spec.targets.first or 1
        nearest = "the nearest one" if first == 1 else f"among the {first} nearest ones"
        return f"Scores: queries whose document is {nearest} of its split, in %."
    return f"Scores: samples within {spec.targets.tolerance:g} of their targets, in %."


def of_statistics(entries: list[Entry], metric: Metric) -> str:
    """Return what `(bn)` means, and which gains are those of statistics. Empty: nothing to say.

    Args:
        entries: the leaderboard, best first.
        metric: the metric that ranks the entries.
    """
    found = explained(entries, metric)
    if found is None:
        return ""
    said = (
        "(bn): one model as trained, but its BatchNorm statistics are estimated on training data, "
        "as those of soups are."
    )
    pair = [ranked_on(e) for e in (found.before, found.after)]
    if pair[1].by(metric) <= pair[0].by(metric):
        return said
    held_out, test = (
        f"{percent(a.accuracy)} to {percent(b.accuracy)}"
        for a, b in (pair, [e.test for e in (found.before, found.after)])
    )
    said += (
        f" They alone bring the best single model from {held_out} held-out ({test} on test): "
        "best_single(bn)."
    )
    above, still = len(found.above_before), len(found.above_after)
    if above == 0:
        return said
    said += f" Of {above} entries of several models above best_single, {still} are above it"
    if still < above:
        said += "; the gain of the others is one of statistics, not of averaging"
    first = (found.above_after or found.above_before)[0]
    if first.test_versus_updated:
        p = p_value(first.test_versus_updated.p)
        said += f". p of {first.name} against it on test: {p}"
    return f"{said}."
