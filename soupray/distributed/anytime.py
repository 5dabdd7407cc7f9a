"""The anytime soup: what the first trials of a sweep are worth, measured while it runs.

The worker that completes a prefix of the plan measures it, before its next trial: the store, the
data and the model are at hand there, and no other worker waits for it. See docs/decisions/0024.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from soupray.core.candidates import ensemble_of, mean_of
from soupray.core.records import Basis, Scores, Split
from soupray.core.trials import Ingredient, Manifest, Trial
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.live_model import STATISTICS_SAMPLES
from soupray.evaluation.local import LocalWorkers
from soupray.maths.metrics import score, value
from soupray.maths.prefixes import greedy_ensemble
from soupray.maths.terms import terms_of
from soupray.search.history import find_stopped
from soupray.search.prefixes import (
    Prefix,
    budget_allows,
    create_prefix,
    find_prefix,
    finished,
    forecast_first,
    sizes,
)
from soupray.search.state import find_basis, known_trials
from soupray.store import layout
from soupray.store.manifests import find_freed, find_manifests
from soupray.training.worker import WorkerContext

ABANDONED_S = 600.0
"""Seconds after which a prefix is measured by the next worker: the one that completed it died."""


def measure_prefixes(here: WorkerContext, mine: Trial) -> None:
    """Measure the prefixes of the plan that a trial has completed, and store what was found.

    Args:
        here: of this worker.
        mine: the trial, which is over.

    Raises:
        SouprayError: a record or the logits of a trial cannot be read, or the store is away.
    """
    spec, store = here.spec, here.checkpoints.store
    basis = find_basis(store, spec)
    assert basis is not None, "a trial of this sweep is over"
    plan = known_trials(store, spec, basis)
    over = {path.split("/")[1] for path in store.list(layout.TRIALS)}
    here_so_far = finished(plan, over | find_stopped(store, spec, basis))
    earlier: list[Prefix] = []
    for size in sizes(spec.search.trials):
        if size > here_so_far:
            return
        trials = plan[:size]
        known = find_prefix(store, spec.name, trials)
        if known is None:
            manifests = [found for found in find_manifests(store, trials) if found is not None]
            if not _is_for(mine, manifests):
                continue
            made = _measured(here, basis, manifests, (size, earlier))
            known = made and create_prefix(store, spec.name, trials, made)
        earlier += [known] if known else []


def _is_for(mine: Trial, manifests: Sequence[Manifest]) -> bool:
    """Whether this worker measures the prefix: its trial completed it, or nobody else will."""
    if not any(isinstance(one, Ingredient) for one in manifests):
        return False
    last = max(manifests, key=lambda one: one.finished)
    return last.trial.key == mine.key or time.time() - last.finished > ABANDONED_S


def _measured(
    here: WorkerContext,
    basis: Basis,
    manifests: Sequence[Manifest],
    at: tuple[int, Sequence[Prefix]],
) -> Prefix:
    """Return what a prefix is worth. `at`: its size, and the records of smaller ones."""
    started = time.monotonic()
    held_out, metric = basis.split("held_out"), here.spec.metric
    pool = [one for one in manifests if isinstance(one, Ingredient)]
    pool.sort(key=lambda one: (one.held_out.nll, one.trial.key))
    best = max(pool, key=lambda one: value(one.held_out, metric))
    workers = here.workers()
    workers.cache.add(tuple(pool))
    evaluator = StoredEvaluator(Site(workers, workers.cache, here.spec.setting))
    models = [mean_of([one.checkpoint.sha256]) for one in pool]
    terms = terms_of(evaluator.predictions(models[0], held_out).labels, held_out.objective)
    kept = greedy_ensemble(
        lambda k: terms.of(evaluator.predictions(models[k], held_out).logits),
        terms.loss,
        range(len(pool)),
    )
    mixed = ensemble_of([(models[k], 1, 1.0) for k in kept], len(kept), "logits")
    members = [pool[k] for k in kept]
    trained = sum(epoch.seconds for one in manifests for epoch in one.history)
    size, earlier = at
    first = forecast_first(manifests, basis, STATISTICS_SAMPLES)
    measured = budget_allows(earlier, size, trained, first)
    if find_freed(here.checkpoints.store, pool):  # `keep` in the spec: there is nothing to average
        measured = False
    return Prefix(
        size=size,
        ingredients=len(pool),
        best=best.trial.key,
        single=best.held_out,
        members=tuple(one.trial.key for one in members),
        ensemble=evaluator.scores([mixed], held_out)[0],
        uniform=_soup(pool, workers, held_out) if measured else None,
        greedy=_soup(members, workers, held_out) if measured else None,
        seconds=time.monotonic() - started,
        trained=trained,
    )


def _soup(members: Sequence[Ingredient], workers: LocalWorkers, held_out: Split) -> Scores:
    """Return the scores of the mean of weights. They are not stored as results of the engine.

    A sweep that crashed may have measured other prefixes: `soupray soup` must not see which.
    """
    if len(members) == 1:
        return members[0].held_out
    soup = mean_of([one.checkpoint.sha256 for one in members])
    return score(workers.predictions(soup, held_out))
