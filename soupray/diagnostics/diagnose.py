"""Measure how the models of a pool differ (`soupray diagnose`), on held-out data only."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from soupray.core.arrays import Float64
from soupray.core.candidates import WeightSoup, soups_of_one, weight_soup
from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.progress import Show
from soupray.core.records import Pool, Split, digest, encode_pretty
from soupray.core.requests import Gram
from soupray.diagnostics.diversity import Diagnosis, Pair, compare_pair, diagnosis, drawn_pairs
from soupray.diagnostics.figures import draw_diagnosis
from soupray.evaluation.live_model import EVALUATION_VERSION
from soupray.maths.geometry import angles, distances, total_gram
from soupray.maths.metrics import right_mask
from soupray.soup.check import refuse_or_note, treated_alike
from soupray.soup.session import Session, open_session, watched
from soupray.spec.files import atomic_write
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import create_record, find_record

log = logging.getLogger(__name__)

NUMBERS = "diagnostics.json"


def run_diagnose(
    spec: SweepSpec,
    home: Path,
    address: str | None,
    *,
    partial: bool = False,
    pairs: int = 20,
    show: Show | None = None,
) -> Diagnosis:
    """Compute the diagnostics of Model soups and No One Representation for the pool of `spec`.

    Three models between the two ingredients of each pair are evaluated. The outputs of the
    ingredients are stored already, unless their BatchNorm statistics must be estimated. The numbers
    are stored under a digest of their inputs, so a second run computes nothing.

    Args:
        spec: the sweep whose trials are the pool.
        home: folder for the state of this machine: embedded servers, caches.
        address: address of a Ray cluster; None for RAY_ADDRESS, else Ray starts on this machine.
        partial: continue without the trials that are missing.
        pairs: largest number of pairs of ingredients to evaluate.
        show: shows the progress.

    Raises:
        ConfigError: the targets are several labels, or numbers.
        EvaluationError: fewer than two ingredients, or NaN weights.
        IncompatibleWeights: ingredients that cannot be averaged.
        StoreError: the store cannot be reached.
    """
    if spec.targets:
        raise ConfigError(
            f"diagnose compares answers of one class; the targets of this spec are of "
            f"{spec.targets.kind}. `soupray check` looks at the weights of any pool."
        )
    with open_session([spec], home, address, partial, show=show, what="diagnose") as session:
        if len(session.pool.ingredients) < 2:
            raise EvaluationError("the pool has one ingredient: there is nothing to compare it to.")
        for finding in refuse_or_note(session):
            log.warning(f"{finding.what}. {finding.advice}.")
        held_out, sample = session.basis.split("held_out"), (pairs, spec.seed)
        path = _path(spec, session.pool, held_out, sample)
        known: Diagnosis | None = find_record(session.store, path, Diagnosis)
        if known is not None:
            return known
        made = measure_pairs(treated_alike(session) if session.pool.moved else session, sample)
        return create_record(session.store, path, made)


def _path(spec: SweepSpec, pool: Pool, held_out: Split, sample: tuple[int, int]) -> str:
    models = [(i.trial.key, i.checkpoint.sha256) for i in pool.ingredients]
    pairs = drawn_pairs(len(models), *sample)
    parts = [models, pool.init.sha256, held_out.digest, pairs, spec.setting, EVALUATION_VERSION]
    if pool.moved:  # earlier versions stored numbers whose ends had the statistics of training
        parts.append("estimated")
    return layout.diagnosis(spec.name, digest(parts)[:32])


def measure_pairs(session: Session, sample: tuple[int, int]) -> Diagnosis:
    """Measure sampled pairs of ingredients; needs memory for the logits of five models.

    Args:
        session: the pool and its evaluator.
        sample: (largest number of pairs, seed).
    """
    evaluator, pool, held_out = session.evaluator, session.pool, session.basis.split("held_out")
    ends = drawn_pairs(len(pool.ingredients), *sample)
    asked = Gram(checkpoints=tuple(pool.checkpoints), origin=pool.init.sha256)
    (grams,) = evaluator.measure([asked], held_out)
    gram = total_gram(grams)
    between = np.stack([distances(gram), angles(gram)])
    with watched(evaluator, "evaluating pairs", 5 * len(ends), session.show) as progress:
        # All at once, because Ray distributes models, not pairs.
        evaluator.fill([m for i, j in ends for m in segment(pool, i, j)], [held_out])
        progress.finish()
    pairs = [_pair(session, (i, j), between) for i, j in ends]
    if not pool.ingredients[0].held_out.graded:
        return diagnosis(pool, pairs)
    # Scores have values of the graded metric: what is right is in the answers alone.
    models = soups_of_one(pool.checkpoints, pool)
    return diagnosis(pool, pairs, [right_mask(evaluator.predictions(m, held_out)) for m in models])


def segment(pool: Pool, i: int, j: int) -> list[WeightSoup]:
    """Return theta_i + a (theta_j - theta_i) for a = 0, 1/4, 1/2, 3/4, 1.

    All five have BatchNorm statistics that are made alike.
    """
    a, b = pool.checkpoints[i], pool.checkpoints[j]
    between = [weight_soup([(a, 4 - k), (b, k)], 4) for k in (1, 2, 3)]
    first, last = soups_of_one([a, b], pool)
    return [first, *between, last]


def _pair(session: Session, ends: tuple[int, int], between: Float64) -> Pair:
    pool, held_out = session.pool, session.basis.split("held_out")
    along = [session.evaluator.predictions(m, held_out) for m in segment(pool, *ends)]
    keys = (pool.ingredients[ends[0]].trial.key, pool.ingredients[ends[1]].trial.key)
    distance, angle = between[:, ends[0], ends[1]].tolist()
    return compare_pair(keys, distance, angle if np.isfinite(angle) else None, along)


def write_diagnosis(made: Diagnosis, output: Path) -> list[Path]:
    """Write the numbers as JSON and draw the figures; return the paths."""
    atomic_write(output / NUMBERS, encode_pretty(made))
    return [output / NUMBERS, *draw_diagnosis(made, output)]
