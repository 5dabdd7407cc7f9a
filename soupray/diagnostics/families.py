"""Do models of other specs err more differently, and what do ensembles across specs gain?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from soupray.core.candidates import Candidate, OutputCandidate
from soupray.core.records import pack_right
from soupray.core.requests import Embedding
from soupray.diagnostics.across import (
    MOST_TRIALS,
    Families,
    Interval,
    compared,
    measure_families,
    their_rows,
)
from soupray.diagnostics.additions import Addition
from soupray.diagnostics.figures import Axis, dots, figure, level
from soupray.diagnostics.matching import matched
from soupray.diagnostics.measure import Inputs, Measure, Needed, Shown
from soupray.diagnostics.specialisation import show_pairs
from soupray.reporting.notes import percent, points
from soupray.reporting.sections import Figure, Table

SHOWN_TRIALS = 8
"""Trials of each spec in the table of additions."""


def _show(made: Families) -> Shown:
    two = show_pairs(made.champions, "families_specialisation")
    return Shown(
        sentences=(*_sentences(made), *two.sentences),
        tables=(_groups(made), _families(made), _additions(made), *two.tables),
        figures=(_gains(made), *two.figures),
    )


def _sentences(made: Families) -> Iterator[str]:
    for c in made.contrasts:
        a, b = c.specs
        yield (
            f"{a} and {b}: models of different specs {_more(c.inconsistency, 'err', 'differently')}"
            f" than models of one spec ({_points(c.inconsistency)} points of the samples), and "
            f"ensembles of two of them {_more(c.gain, 'gain')} over the mean of the two "
            f"({_points(c.gain)} points)."
        )
        yield (
            f"Over the better one of the two, the gain across {a} and {b} differs from that within "
            f"one spec by {_points(c.over_better)} points."
        )
    own, *others = made.offers
    for offer in others:
        sure = [t for t in offer.trials if t.loss_high < 0]
        best, mine = offer.trials[0], own.trials[0]
        yield (
            f"{len(sure)} of {len(offer.trials)} trials of {offer.spec} lower the held-out loss of "
            f"{made.champion} as one more member by more than the interval. The best one, "
            f"{best.trial[:8]}, changes it by {_nats(best)}; the best of {own.spec} itself by "
            f"{_nats(mine)}."
        )
        if sure:
            yield (
                f"To use trials of {offer.spec}, run `soupray soup` with both specs: it chooses, "
                "and reports on test."
            )
    for family in made.families:
        if family.shared:
            yield (
                f"{family.shared} trials of {family.spec} are left out: a spec before it has the "
                "same checkpoints."
            )


def _more(of: Interval, verb: str, how: str = "") -> str:
    sure = of[1] > 0 or of[2] < 0
    what = ("more" if of[0] > 0 else "less") if sure else "neither more nor less, beyond chance,"
    return f"{verb} {what} {how}".rstrip(" ,")


def _points(of: Interval) -> str:
    return f"{points(of[0])} [{points(of[1])}, {points(of[2])}]"


def _nats(of: Addition) -> str:
    return f"{of.loss:+.4f} nats ([{of.loss_low:+.4f}, {of.loss_high:+.4f}])"


def _share(of: Interval) -> str:
    return f"{percent(of[0])} [{percent(of[1])}, {percent(of[2])}]"


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _groups(made: Families) -> Table:
    rows = [
        (
            _called(g.specs),
            str(g.pairs),
            _share(g.inconsistency),
            _said(g.kappa_complement, ".2f"),
            f"{g.divergence:.3f}",
            _said(g.cka_complement, ".3f"),
            _points(g.gain),
            _points(g.over_better),
            "-" if g.conversion is None else percent(g.conversion),
        )
        for g in made.groups
    ]
    rows += [
        (f"across - within ({' x '.join(c.specs)})", "", _points(c.inconsistency), "", "", "",
         _points(c.gain), _points(c.over_better), "")
        for c in made.contrasts
    ]  # fmt: skip
    numbers = ("pairs", "inc.", "1-κ", "KL", "1-CKA", "gain", "over better", "conv.")
    return Table(
        columns=("models of", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        least=("over better", "conv.", "KL", "1-κ", "1-CKA", "pairs"),
        meaning=(
            f"ID test (n = {made.n}); means over all pairs, with 95 % intervals paired by sample. "
            "inc.: samples that exactly one of the two gets right, in %. 1-κ: complement of "
            "Cohen's kappa. KL: symmetric divergence of predictions in nats. 1-CKA: of features. "
            "gain: ensemble minus the mean of the two, in points; over better: minus the better "
            "one. conv.: of the samples that exactly one gets right, those that the ensemble "
            "does, in %. Logits are over each model's temperature, fitted on held-out data. The "
            "last rows: pairs across specs minus pairs within."
        ),
    )


def _called(specs: tuple[str, str]) -> str:
    return f"{specs[0]} alone" if specs[0] == specs[1] else " x ".join(specs)


def _families(made: Families) -> Table:
    numbers = ("models", "mean", "best")
    rows = [
        (f.spec, f.model, str(f.models), percent(f.accuracy), percent(f.best))
        for f in made.families
    ]
    return Table(
        columns=("spec", "network", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        meaning=(
            f"The models that are compared: of each spec the {MOST_TRIALS} trials that are best on "
            "held-out data, and the entry to take. mean, best: accuracy on ID test, in %."
        ),
    )


def _additions(made: Families) -> Table:
    rows = [
        (
            offer.spec,
            t.trial[:8] + ("*" if t.inside else ""),
            percent(t.accuracy),
            percent(t.inconsistency),
            f"{t.loss:+.4f}",
            f"[{t.loss_low:+.4f}, {t.loss_high:+.4f}]",
            points(t.gain),
        )
        for offer in made.offers
        for t in offer.trials[:SHOWN_TRIALS]
    ]
    numbers = ("held-out", "inc.", "Δ loss", "95 %", "Δ acc.")
    return Table(
        columns=("spec", "trial", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        least=("inc.", "Δ acc."),
        meaning=(
            f"Held-out data (n = {made.held_out}), which also chose the champion: {made.champion} "
            f"({percent(made.accuracy)} %) with one more member minus the champion alone, of each "
            f"spec the {SHOWN_TRIALS} trials that lower the loss most. held-out: accuracy of the "
            "trial. inc.: samples that exactly one of trial and champion gets right. loss in nats, "
            "accuracy in points. *: the champion has this trial in it."
        ),
    )


def gain_points(made: Families) -> list[dict[str, Any]]:
    """Return inconsistency, as a share, and gain, in points, of each pair."""
    return [
        {
            "inconsistency": p.inconsistency,
            "gain": 100 * p.gain,
            "models of": _called(p.specs),
            "first": p.models[0],
            "second": p.models[1],
        }
        for p in made.points
    ]


def _gains(made: Families) -> Figure:
    x = Axis("inconsistency", "exactly one of the two is right", percent=True, zero=True)
    y = Axis("gain", "ensemble minus mean of the two accuracies (points)")
    chart = level(0) + dots(gain_points(made), x, y, Axis("models of", "", words=True), size=40)
    title = f"Ensemble gain against error inconsistency, within and across specs (n = {made.n})"
    return figure("families_gain", title, chart)


def _needs(inputs: Inputs) -> Needed:
    first, *others = (
        _needs_of(inputs, of, tuple(some.models.values()))
        for of, some in zip((inputs, *inputs.others), compared(inputs), strict=True)
    )
    return first._replace(others=tuple(others))


def _needs_of(ours: Inputs, theirs: Inputs, models: tuple[Candidate, ...]) -> Needed:
    rows = their_rows(ours, matched(ours, theirs, "test"))
    networks = [m for m in models if not isinstance(m, OutputCandidate)]
    asked = [Embedding(model=m, rows=pack_right(rows)) for m in networks]
    return Needed(
        models=((models, theirs.test), ((*theirs.trials.values(), *models), theirs.held_out)),
        requests=tuple((one, theirs.test, int(rows.sum())) for one in asked),
    )


def _depends(inputs: Inputs) -> object:
    return [
        [
            of.spec.name,
            [one.checkpoint.sha256 for one in of.pool.ingredients],
            None if of.board is None else of.board.models[of.board.champion].digest,
            [of.held_out.digest, of.test.digest],
            of.spec.task.classes,
            of.spec.setting,
        ]
        for of in inputs.others
    ]


def _cannot(inputs: Inputs) -> str | None:
    return (
        None if inputs.others else "it compares the models of several specs: name others by --with"
    )


FAMILIES = Measure(
    name="families",
    title="Error inconsistency across specs",
    summary="do models of other specs err more differently, and which would help the champion?",
    paper="Gontijo-Lopes et al. 2021, arXiv:2110.12899",
    about=(
        "The paper finds: the more the trainings of two models differ, the more differently they "
        "err, and the more their ensemble gains. Here all pairs of models of one spec stand beside "
        "all pairs across specs, on the same samples, which are matched by name, as the classes "
        "are. Nothing is chosen."
    ),
    record=Families,
    compute=measure_families,
    show=_show,
    needs=_needs,
    depends=_depends,
    cannot=_cannot,
)
