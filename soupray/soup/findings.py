"""Judge the measurements of a pre-flight check: what they mean for a soup. No input or output.

Two results disappoint users: the accuracy of a uniform soup collapses, or a greedy soup keeps only
one model. The causes can be seen before: weights that cannot be averaged, ingredients in another
basin than the others, or ingredients that are much worse than the best one. Nothing is dropped
here.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from soupray.core.arrays import Float64
from soupray.core.findings import Finding, IngredientRow, Kind, PairRow, Report
from soupray.core.records import Record, Scores
from soupray.core.requests import Defect, Matrix
from soupray.core.trials import Ingredient, Pool, Tombstone
from soupray.maths.geometry import (
    angles,
    barrier,
    interpolation_advantage,
    norms,
    paired_difference,
)

FAR = 10.0
"""An ingredient is an outlier if |theta_i - theta_0| exceeds this factor times the median.

Distances grow with the learning rate, and searches cover several decades of it. A factor of 4 is
ordinary (sweeps/digits.yaml, where the best model has it). At a factor of 10, nine tenths of the
step from theta_0 to the mean with a typical ingredient come from the outlier.
"""

APART = 85.0
"""An ingredient is in another direction if its median angle to the others is at least this.

In degrees. Models fine-tuned from one theta_0 move partly in the same direction (20 to 72 degrees
in sweeps/digits.yaml). Random directions in a high-dimensional space have 90 degrees; models in
another basin have about 90 degrees or more.
"""

ERRORS = 2.0
"""A difference of accuracies is noise if it is below this number of standard errors.

About one in twenty random differences is larger.
"""

IMPORTED = "imported"
"""`Trial.method` of a model from a file: its origin is what the spec claims, and not known."""


class Midpoint(Record, frozen=True, kw_only=True):
    """Held-out scores of the mean of two ingredients; `ends` are their indices in the pool."""

    ends: tuple[int, int]
    scores: Scores


class Facts(Record, frozen=True, kw_only=True):
    """The measurements of a pool, with ingredients in the pool's order.

    `defects` has one tuple for each ingredient. `gram` is [K, K]: inner products of the differences
    from theta_0, summed over tensors; empty if not measured. `as_trained`: where the ingredients
    are scored with estimated BatchNorm statistics, the scores of the one that is best with those of
    its training.
    """

    defects: tuple[tuple[Defect, ...], ...]
    gram: Matrix
    init: Scores | None = None
    midpoints: tuple[Midpoint, ...] = ()
    diverged: tuple[Tombstone, ...] = ()
    as_trained: Scores | None = None


def sampled_pairs(
    k: int, count: int, seed: int, first: Sequence[int] = ()
) -> list[tuple[int, int]]:
    """Return pairs i < j of models to evaluate; most contain model 0, the best one.

    Both models of every other pair are also paired with the best model, so that the results show
    which of the two is the cause of a barrier.

    Args:
        k: number of models.
        count: largest number of pairs.
        seed: seed of the sampling.
        first: models that are paired with the best one before the others.
    """
    draw = random.Random(seed)  # noqa: S311 - not a secret
    others = [i for i in range(1, k) if i not in first]
    order = [i for i in dict.fromkeys(first) if i] + draw.sample(others, len(others))
    with_best = order[: count if k - 1 <= count else max(1, 3 * count // 4)]
    between = [(i, j) for i in sorted(with_best) for j in sorted(with_best) if i < j]
    left = min(len(between), count - len(with_best))
    return [(0, i) for i in with_best] + draw.sample(between, left)


def broken(pool: Pool, defects: Sequence[Sequence[Defect]]) -> list[Finding]:
    """Return findings for ingredients with tensors that cannot be averaged."""
    found = []
    for ingredient, own in zip(pool.ingredients, defects, strict=True):
        by_kind: dict[str, list[Defect]] = defaultdict(list)
        for defect in own:
            by_kind[defect.kind].append(defect)
        found += [_broken(ingredient, list_) for list_ in by_kind.values()]
    return found


def _broken(ingredient: Ingredient, defects: Sequence[Defect]) -> Finding:
    key, first = ingredient.trial.key, defects[0]
    more = f" (and {len(defects) - 1} more tensors)" if len(defects) > 1 else ""
    advice = {
        "not_finite": f"Delete trials/{key}/manifest.json from the store and sweep again: only "
        "this trial is repeated",
        "differs": "Only models of one architecture and one head can be averaged: give it a sweep "
        "of its own",
        "integer": "Integers have no average: a soup of models in which they differ is refused",
    }
    return Finding(
        severity="warning" if first.kind == "integer" else "error",
        kind=first.kind,
        trials=(key,),
        what=f"trial {key}: tensor {first.tensor!r} {first.problem}{more}",
        advice=advice[first.kind],
    )


def alike(pool: Pool) -> list[Finding]:
    """Return findings for ingredients with equal weights, or equal hyperparameters and scores."""
    groups: dict[object, list[Ingredient]] = defaultdict(list)
    for i in pool.ingredients:
        groups[i.checkpoint.sha256].append(i)
    twins: dict[object, list[Ingredient]] = defaultdict(list)
    for same in groups.values():
        settings = tuple(sorted(same[0].trial.hparams.items()))
        twins[settings, same[0].held_out.right, same[0].held_out.nll].append(same[0])
    found = [_alike(g, "the same weights") for g in groups.values() if len(g) > 1]
    same_scores = "equal hyperparameters and equal held-out scores"
    return found + [_alike(g, same_scores) for g in twins.values() if len(g) > 1]


def _alike(group: Sequence[Ingredient], what: str) -> Finding:
    return Finding(
        severity="note",
        kind="duplicate",
        trials=tuple(i.trial.key for i in group),
        what=f"trials {_listed([i.trial.key for i in group])} have {what}",
        advice="A mean counts each of them; greedy with accept: ge may keep them all, with gt none",
    )


def from_records(pool: Pool) -> list[Finding]:
    """Return the findings for which no weights are read: equal models, and unusual distances.

    The distances are those that the trials measured at their end, if all of them did.
    """
    length = [i.distance for i in pool.ingredients]
    known = [one for one in length if one is not None]
    return alike(pool) + (misplaced(pool, np.array(known)) if len(known) == len(length) else [])


def misplaced(pool: Pool, length: Float64) -> list[Finding]:
    """Return findings for ingredients with an unusual distance from theta_0.

    Args:
        pool: the ingredients.
        length: [K] distances from theta_0.
    """
    found = []
    for i, ingredient in enumerate(pool.ingredients):
        others = np.delete(length, i)
        usual = float(np.median(others[others > 0])) if (others > 0).any() else np.inf
        if length[i] == 0:
            found.append(_unchanged(pool, ingredient))
        elif length[i] > FAR * usual:
            what = f"is {length[i] / usual:.0f} times as far from theta_0 as the median of the"
            cure = _cure(pool, ingredient)
            found.append(_warn("far", ingredient.trial.key, f"{what} others", cure))
    return found


def astray(pool: Pool, degrees: Float64) -> list[Finding]:
    """Return findings for ingredients that left theta_0 in an unusual direction.

    Args:
        pool: the ingredients.
        degrees: [K, K] angles between them, as seen from theta_0.
    """
    found = []
    for ingredient, apart in zip(pool.ingredients, median_angles(degrees), strict=True):
        if apart >= APART:
            what = f"left theta_0 in another direction: {apart:.0f} degrees to the others"
            advice = "It shares nothing of their way, and probably not their basin. "
            cure = advice + _cure(pool, ingredient)
            found.append(_warn("apart", ingredient.trial.key, what, cure))
    return found


def _cure(pool: Pool, ingredient: Ingredient) -> str:
    """Return what to change about an ingredient that went too far or astray.

    A learning rate that is not above the median of the pool is no reason: others went well with a
    higher one.
    """
    if ingredient.trial.method == IMPORTED:
        return (
            "It was imported: it may have started from another model than theta_0. Leave it out, "
            "or import it into a sweep whose init is that model"
        )
    own, usual = ingredient.trial.hparams.get("lr"), _usual_rate(pool)
    if not isinstance(own, int | float) or usual is None:
        return "Look at its hyperparameters"
    if own > usual:
        return f"Lower its learning rate ({own:.1e}; the median of the pool is {usual:.1e})"
    rest = [
        f"{name} ({ingredient.trial.hparams[name]})"
        for name in ("epochs", "batch_size", "weight_decay")
        if name in ingredient.trial.hparams
    ]
    return (
        f"Its learning rate ({own:.1e}) is not above the median of the pool ({usual:.1e}): look "
        f"at {', '.join([*rest, 'init'])}"
    )


def _usual_rate(pool: Pool) -> float | None:
    """Return the median learning rate of the trials of a pool. None: all models were imported."""
    rates = [i.trial.hparams.get("lr") for i in pool.ingredients]
    known = [rate for rate in rates if isinstance(rate, int | float)]
    return float(np.median(known)) if known else None


def _unchanged(pool: Pool, ingredient: Ingredient) -> Finding:
    """Return a note for a trial equal to theta_0.

    It is only a note: a mean with theta_0 is harmless, and WiSE-FT uses it for robustness.
    """
    key, usual = ingredient.trial.key, _usual_rate(pool)
    own = ingredient.trial.hparams.get("lr")
    cure = "train it longer"
    if ingredient.trial.method == IMPORTED:
        cure = "leave it out"
    elif isinstance(own, int | float) and usual is not None and own < usual:
        cure = f"raise its learning rate ({own:.1e}; the median of the pool is {usual:.1e})"
    return Finding(
        severity="note",
        kind="unchanged",
        trials=(key,),
        what=f"trial {key} is theta_0: training changed nothing",
        advice=f"It pulls every mean towards theta_0: {cure}",
    )


def median_angles(degrees: Float64) -> Float64:
    """Return the median angle of each model to the others, in degrees.

    Args:
        degrees: [K, K] angles; NaN where a model has no direction.

    Returns:
        [K] medians; NaN where no angle is known.
    """
    k = len(degrees)
    others = [np.delete(degrees[i], i) for i in range(k)]
    known = [row[np.isfinite(row)] for row in others]
    return np.array([np.median(row) if len(row) else np.nan for row in known])


def below_init(pool: Pool, init: Scores) -> list[Finding]:
    """Return findings for ingredients that are worse than theta_0 on held-out data.

    A difference counts if it is larger than ERRORS standard errors.
    """
    found = []
    for ingredient in pool.ingredients:
        own = ingredient.held_out
        difference, error = paired_difference(own.values(), init.values())
        if difference < -ERRORS * error:
            what = f"has {_percent(own.accuracy)} held-out, below theta_0's"
            what += f" {_percent(init.accuracy)}"
            found.append(_warn("below_init", ingredient.trial.key, what, _cure(pool, ingredient)))
    return found


def has_barrier(pool: Pool, midpoint: Midpoint) -> bool:
    """Return whether the mean of two models is significantly worse than the worse of the two."""
    ends = [pool.ingredients[i].held_out for i in midpoint.ends]
    worse = min(ends, key=lambda s: s.correct)
    difference, error = paired_difference(midpoint.scores.values(), worse.values())
    return difference < -ERRORS * error


def blocked(pool: Pool, midpoints: Sequence[Midpoint]) -> list[Finding]:
    """Return findings for ingredients with a barrier in more than half of their sampled pairs.

    If this is true of the best model, the others are judged only by pairs without the best model.
    """
    found = _mostly_behind(pool, midpoints)
    if 0 in found and len(found[0][1]) > 1:
        rest = _mostly_behind(pool, [m for m in midpoints if 0 not in m.ends])
        found = {0: found[0]} | rest
    elif 0 in found:
        del found[0]  # one pair only: the finding names the worse model
    return [_blocked(pool, i, *found[i]) for i in sorted(found)]


def _mostly_behind(
    pool: Pool, midpoints: Sequence[Midpoint]
) -> dict[int, tuple[list[Midpoint], list[Midpoint]]]:
    """Return the models with a barrier in more than half of their pairs.

    Each has a tuple: its midpoints with a barrier, and all its midpoints.
    """
    tried: dict[int, list[Midpoint]] = defaultdict(list)
    for midpoint in midpoints:
        for i in midpoint.ends:
            tried[i].append(midpoint)
    behind = {i: [m for m in own if has_barrier(pool, m)] for i, own in tried.items()}
    return {i: (behind[i], tried[i]) for i in tried if 2 * len(behind[i]) > len(tried[i])}


def _blocked(pool: Pool, i: int, worst: Sequence[Midpoint], tried: Sequence[Midpoint]) -> Finding:
    def height(midpoint: Midpoint) -> float:
        a, b = (pool.ingredients[e].held_out.accuracy for e in midpoint.ends)
        return barrier(midpoint.scores.accuracy, (a, b))

    top = max(worst, key=height)
    other = pool.ingredients[top.ends[0] + top.ends[1] - i]
    what = (
        f"is behind a barrier from {len(worst)} of {len(tried)} others: its mean with "
        f"{other.trial.key} has {_percent(top.scores.accuracy)} held-out, "
        f"{_points(height(top))} below the mean of the two"
    )
    advice = f"It is in another basin. {_cure(pool, pool.ingredients[i])}"
    return _warn("barrier", pool.ingredients[i].trial.key, what, advice)


def left_out(diverged: Sequence[Tombstone]) -> list[Finding]:
    """Return notes for trials that diverged, so that they are not ingredients."""
    return [
        Finding(
            severity="note",
            kind="diverged",
            trials=(t.trial.key,),
            what=f"trial {t.trial.key} diverged and is no ingredient: {t.reason}",
            advice="If many do, lower the learning rates of the search space",
        )
        for t in diverged
    ]


def _warn(kind: Kind, key: str, what: str, advice: str) -> Finding:
    return Finding(
        severity="warning", kind=kind, trials=(key,), what=f"trial {key} {what}", advice=advice
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:-1]) + f" and {keys[-1]}" if len(keys) > 1 else keys[0]


def judge(pool: Pool, facts: Facts) -> list[Finding]:
    """Return all findings, errors first."""
    found = broken(pool, facts.defects) + alike(pool)
    if facts.gram:
        gram = np.asarray(facts.gram)
        found += misplaced(pool, norms(gram)) + astray(pool, angles(gram))
    if facts.init is not None:
        found += below_init(pool, facts.init)
    found += blocked(pool, facts.midpoints) + left_out(facts.diverged)
    return sorted(found, key=lambda f: ("error", "warning", "note").index(f.severity))


def report_on(pool: Pool, facts: Facts) -> Report:
    """Return the findings, the verdict and the numbers behind them."""
    found = judge(pool, facts)
    averageable = not any(f.severity == "error" for f in found)
    return Report(
        averageable=averageable,
        init=pool.init,
        n=pool.ingredients[0].held_out.n,
        verdict=tuple(_verdict(pool, facts, found) if averageable else _refusal(found)),
        findings=tuple(found),
        ingredients=tuple(_rows(pool, facts, found)),
        pairs=tuple(_pair(pool, m) for m in facts.midpoints),
    )


def _refusal(found: Sequence[Finding]) -> list[str]:
    errors = [f for f in found if f.severity == "error"]
    bad = len({f.trials for f in errors})
    return [f"This pool cannot be averaged: {bad} of its ingredients cannot be read as a model."]


def _verdict(pool: Pool, facts: Facts, found: Sequence[Finding]) -> list[str]:
    k = len(pool.ingredients)
    theta_0 = f"the same theta_0 ({pool.init.sha256[:12]}, head included)"
    imported = sum(i.trial.method == IMPORTED for i in pool.ingredients)
    start = f"All {k} ingredients started from {theta_0}, have the same tensors"
    if imported:
        start = f"All {k} ingredients are claimed to start from {theta_0}; {imported} of them were"
        start += " imported, and their files do not tell. All have the same tensors"
    said = [f"{start} and no NaN: they can be averaged."]
    hurt = list(dict.fromkeys(t for f in found if f.severity == "warning" for t in f.trials))
    if hurt:
        said.append(
            f"{len(hurt)} of {k} hurt: {', '.join(hurt)}. A uniform soup takes them in all the "
            "same; greedy, pruned and learned can leave them out."
        )
    else:
        said.append("No ingredient stands out as harmful.")
    best = pool.ingredients[0].held_out
    if facts.as_trained is not None:
        said.append(
            "Scores are with BatchNorm statistics estimated on training data, as a mean has them; "
            f"with the statistics of its training the best ingredient has "
            f"{_percent(facts.as_trained.accuracy)}, with estimated ones {_percent(best.accuracy)}."
        )
        best = max(best, facts.as_trained, key=lambda s: s.correct)
    with_best = [m for m in facts.midpoints if 0 in m.ends]
    return said + ([_greedy(pool, best, with_best, hurt)] if with_best else [])


def _greedy(pool: Pool, best: Scores, midpoints: Sequence[Midpoint], hurt: Sequence[str]) -> str:
    """Predict the result of a greedy soup from the means with the best ingredient.

    A greedy soup starts with the best single model, whose scores are `best`.
    """
    reach = sum(m.scores.correct >= best.correct for m in midpoints)
    top = f"the best ingredient ({_percent(best.accuracy)} ± {_percent(best.standard_error)})"
    if reach:
        return (
            f"Greedy should keep more than one: {reach} of {len(midpoints)} sampled means with "
            f"{top} are at least as good as it."
        )
    said = (
        f"Greedy may keep only one: none of {len(midpoints)} sampled means with {top} reaches it. "
    )
    others = [pool.ingredients[sum(m.ends)] for m in midpoints]
    if sum(i.trial.key in hurt for i in others) * 2 > len(others) or (
        pool.ingredients[0].trial.key in hurt
    ):
        return said + "Most of them have a finding above, with its advice."
    differences = [paired_difference(m.scores.values(), best.values()) for m in midpoints]
    if all(d < -ERRORS * e for d, e in differences):
        return said + "The other ingredients are much weaker: narrow the search around the best."
    return said + "Some are within noise of it: a larger held-out set would tell."


def _rows(pool: Pool, facts: Facts, found: Sequence[Finding]) -> list[IngredientRow]:
    k = len(pool.ingredients)
    known = bool(facts.gram)
    gram = np.asarray(facts.gram) if known else np.full((k, k), np.nan)
    length, degrees = norms(gram), angles(gram)
    others = median_angles(degrees)
    with_best = {sum(m.ends): m.scores.accuracy for m in facts.midpoints if 0 in m.ends}
    return [
        IngredientRow(
            trial=i.trial.key,
            hparams=i.trial.hparams,
            held_out=i.held_out.accuracy,
            standard_error=i.held_out.standard_error,
            distance=_number(length[at]),
            angle_best=_number(degrees[0, at]) if at else None,
            angle_others=_number(others[at]),
            with_best=with_best.get(at),
            finds=tuple(f.kind for f in found if i.trial.key in f.trials),
        )
        for at, i in enumerate(pool.ingredients)
    ]


def _number(value: float) -> float | None:
    """Return `value`, or None if it is not finite, because JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _pair(pool: Pool, midpoint: Midpoint) -> PairRow:
    a, b = (pool.ingredients[i] for i in midpoint.ends)
    ends = (a.held_out.accuracy, b.held_out.accuracy)
    return PairRow(
        trials=(a.trial.key, b.trial.key),
        ends=ends,
        middle=midpoint.scores.accuracy,
        advantage=interpolation_advantage(midpoint.scores.accuracy, ends),
    )
