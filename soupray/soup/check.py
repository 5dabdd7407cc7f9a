"""Pre-flight of a pool (`soupray check`): measures it, and hands the numbers to the verdict."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from soupray.core.candidates import mean_of
from soupray.core.errors import EvaluationError, IncompatibleWeights
from soupray.core.progress import Progress, Show
from soupray.core.requests import Defect, Gram, Health
from soupray.maths.geometry import total_gram
from soupray.soup.findings import Facts, Finding, Midpoint, Report, judge, report_on, sampled_pairs
from soupray.soup.session import Session, open_session, watched
from soupray.spec.sweep_spec import SweepSpec

AT_A_TIME = 8
"""Checkpoints whose tensors are looked at before the progress line moves."""


def run_check(
    spec: SweepSpec,
    home: Path,
    address: str | None,
    *,
    partial: bool = False,
    pairs: int = 8,
    show: Show | None = None,
) -> Report:
    """Everything about the pool of `spec`: weights, and the midpoints of `pairs` pairs at most.

    Held-out data only. Nothing is dropped or changed; what is evaluated, `soup` finds again.

    Args:
        spec: the sweep whose trials are the pool.
        home: state of this machine: embedded servers, caches.
        address: of a Ray cluster; None: RAY_ADDRESS, else Ray is started on this machine.
        partial: go on without the trials that are missing.
        pairs: how many pairs of ingredients are looked at, at most.
        show: shows the progress.

    Raises:
        EvaluationError: no ingredients, or some are missing and `partial` is false.
        IncompatibleWeights: an ingredient that did not start from the pool's init.
        StoreError: the store is away.
    """
    with open_session(spec, home, address, partial, show=show) as session:
        facts = measure_weights(session)
        if not any(f.severity == "error" for f in judge(session.pool, facts)):
            facts = measure_midpoints(session, facts, (pairs, spec.seed))
        pool = session.pool
    return report_on(pool, structs.replace(facts, diverged=session.diverged))


def measure_weights(session: Session) -> Facts:
    """What the weights alone say: no forward pass. Every checkpoint is read twice."""
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


def measure_midpoints(session: Session, facts: Facts, sample: tuple[int, int]) -> Facts:
    """`facts` with theta_0 and the midpoints of a sample of pairs: one forward pass each.

    `sample` is (pairs at most, seed); ingredients with a finding are among the pairs first.
    """
    pool, held_out = session.pool, session.basis.split("held_out")
    named = {t for f in judge(pool, facts) for t in f.trials}
    first = [i for i, ingredient in enumerate(pool.ingredients) if ingredient.trial.key in named]
    pairs = sampled_pairs(len(pool.ingredients), *sample, first)
    midpoints = [mean_of([pool.checkpoints[i] for i in ends]) for ends in pairs]
    evaluator, what = session.evaluator, "evaluating means of pairs"
    with watched(evaluator, what, 1 + len(midpoints), session.show) as progress:
        start, *scores = evaluator.scores([mean_of([pool.init.sha256]), *midpoints], held_out)
        progress.finish()
    measured = zip(pairs, scores, strict=True)
    return structs.replace(
        facts, init=start, midpoints=tuple(Midpoint(ends=e, scores=s) for e, s in measured)
    )


def refuse_or_note(session: Session) -> list[Finding]:
    """The part of a pre-flight that a soup starts with: what to tell, if nothing is broken.

    Raises:
        EvaluationError: weights that are NaN or infinite; trial and tensor are named.
        IncompatibleWeights: weights of another architecture.
    """
    found = judge(session.pool, measure_weights(session))
    errors = [f for f in found if f.severity == "error"]
    if errors:
        kind = EvaluationError if errors[0].kind == "not_finite" else IncompatibleWeights
        raise kind(" ".join(f"{f.what}. {f.advice}." for f in errors[:3]))
    return found
