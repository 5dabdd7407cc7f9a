"""Pre-flight check of a pool (`soupray check`): measure the models and report problems."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from soupray.core.candidates import mean_of, soups_of_one
from soupray.core.errors import EvaluationError, IncompatibleWeights
from soupray.core.findings import Finding, Report
from soupray.core.progress import Progress, Show
from soupray.core.records import encode
from soupray.core.requests import Defect, Gram, Health
from soupray.core.trials import pool_of
from soupray.maths.geometry import total_gram
from soupray.soup.findings import Facts, Midpoint, judge, report_on, sampled_pairs
from soupray.soup.session import Session, open_session, watched
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout

AT_A_TIME = 8
"""Number of checkpoints that are read between two updates of the progress line."""


def run_check(
    spec: SweepSpec,
    home: Path,
    address: str | None,
    *,
    partial: bool = False,
    pairs: int = 8,
    show: Show | None = None,
) -> Report:
    """Check the weights of the pool of `spec`, and the mean of some pairs of ingredients.

    Only held-out data are used. Nothing is dropped or changed. Evaluations are stored, so `soupray
    soup` does not repeat them, and the report is stored for `soupray show`.

    Args:
        spec: the sweep whose trials are the pool.
        home: folder for the state of this machine: embedded servers, caches.
        address: address of a Ray cluster; None for RAY_ADDRESS, else Ray starts on this machine.
        partial: continue without the trials that are missing.
        pairs: largest number of pairs of ingredients to evaluate.
        show: shows the progress.

    Raises:
        EvaluationError: no ingredients, or some are missing and `partial` is false.
        IncompatibleWeights: an ingredient did not start from the theta_0 of the pool.
        StoreError: the store cannot be reached.
    """
    with open_session([spec], home, address, partial, show=show, what="check") as session:
        facts = measure_weights(session)
        if not any(f.severity == "error" for f in judge(session.pool, facts)):
            if session.pool.moved:
                best = session.pool.ingredients[0].held_out
                session = treated_alike(session)
                ranked = pool_of(session.basis, list(session.pool.ingredients))
                session = session._replace(pool=ranked)
                facts = structs.replace(measure_weights(session), as_trained=best)
            facts = measure_midpoints(session, facts, (pairs, spec.seed))
        pool = session.pool
        report = report_on(pool, structs.replace(facts, diverged=session.diverged))
        session.store.put(layout.check(spec.name), encode(report))  # `soupray show` reads it
    return report


def measure_weights(session: Session) -> Facts:
    """Measure the weights without a forward pass; every checkpoint is read twice.

    Returns:
        Defects of each ingredient, and the Gram matrix if the weights can be averaged.
    """
    evaluator, held_out = session.evaluator, session.basis.split("held_out")
    origin, models = session.pool.init.sha256, session.pool.checkpoints
    defects: list[tuple[Defect, ...]] = []
    with Progress("looking at weights", len(models) + 1, session.show) as progress:
        for start in range(0, len(models), AT_A_TIME):
            part = models[start : start + AT_A_TIME]
            asked = [Health(checkpoint=sha, origin=origin) for sha in part]
            defects += evaluator.measure(asked, held_out)
            progress.advance(len(part))
        gram = None
        # Tensors of another shape, or NaN, have no inner products.
        if all(d.kind == "integer" for own in defects for d in own):
            (grams,) = evaluator.measure([Gram(checkpoints=tuple(models), origin=origin)], held_out)
            gram = total_gram(grams)
        progress.finish()
    rows = () if gram is None else tuple(tuple(row) for row in gram.tolist())
    return Facts(defects=tuple(defects), gram=rows)


def treated_alike(session: Session) -> Session:
    """Return a session whose ingredients have held-out scores that soups can be compared with.

    Soups have estimated BatchNorm statistics. Where training moved those of the ingredients, each
    one is scored with estimated ones. The order of the pool stays.
    """
    pool, held_out = session.pool, session.basis.split("held_out")
    models = soups_of_one(pool.checkpoints, pool)
    with watched(session.evaluator, "evaluating ingredients", len(models), session.show):
        scores = session.evaluator.scores(models, held_out)
    ingredients = [
        structs.replace(ingredient, held_out=own)
        for ingredient, own in zip(pool.ingredients, scores, strict=True)
    ]
    return session._replace(pool=structs.replace(pool, ingredients=tuple(ingredients)))


def measure_midpoints(session: Session, facts: Facts, sample: tuple[int, int]) -> Facts:
    """Add the held-out scores of theta_0 and of the means of sampled pairs to `facts`.

    Each model takes one pass over the held-out data. Pairs with ingredients that have a finding are
    taken first.

    Args:
        session: the pool and its evaluator.
        facts: the result of `measure_weights`.
        sample: (largest number of pairs, seed).
    """
    pool, held_out = session.pool, session.basis.split("held_out")
    named = {t for f in judge(pool, facts) for t in f.trials}
    first = [i for i, ingredient in enumerate(pool.ingredients) if ingredient.trial.key in named]
    pairs = sampled_pairs(len(pool.ingredients), *sample, first)
    midpoints = [mean_of([pool.checkpoints[i] for i in ends]) for ends in pairs]
    evaluator, what = session.evaluator, "evaluating means of pairs"
    with watched(evaluator, what, 1 + len(midpoints), session.show) as progress:
        init = soups_of_one([pool.init.sha256], pool)
        start, *scores = evaluator.scores([*init, *midpoints], held_out)
        progress.finish()
    measured = zip(pairs, scores, strict=True)
    return structs.replace(
        facts, init=start, midpoints=tuple(Midpoint(ends=e, scores=s) for e, s in measured)
    )


def refuse_or_note(session: Session) -> list[Finding]:
    """Check the weights before a soup, and return the findings if there is no error.

    Where weights were let go, those that are left are checked, unless all were before.

    Args:
        session: the pool and its evaluator.

    Raises:
        EvaluationError: weights are NaN or infinite; the message names trial and tensor.
        IncompatibleWeights: weights of another architecture.
    """
    session = _with_weights(session)
    found = judge(session.pool, measure_weights(session))
    errors = [f for f in found if f.severity == "error"]
    if errors:
        kind = EvaluationError if errors[0].kind == "not_finite" else IncompatibleWeights
        raise kind(" ".join(f"{f.what}. {f.advice}." for f in errors[:3]))
    return found


def _with_weights(session: Session) -> Session:
    """Return a session with the ingredients that have weights; all if their answers are stored."""
    pool, held_out = session.pool, session.basis.split("held_out")
    whole = Gram(checkpoints=tuple(pool.checkpoints), origin=pool.init.sha256)
    if not session.freed or session.evaluator.knows(whole, held_out):
        return session
    left = tuple(i for i in pool.ingredients if i.checkpoint.sha256 not in session.freed)
    return session._replace(pool=structs.replace(pool, ingredients=left))
