"""Make soups: run recipes on held-out data, store the choices, then report on test data once."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from soupray.core.candidates import Candidate, Outcome, WeightCandidate, as_trained, mean_of
from soupray.core.errors import CheckpointError, ConfigError, EvaluationError
from soupray.core.progress import Show
from soupray.core.records import Basis, Record, Scores, Split, digest
from soupray.core.requests import FileDigest, Temperature
from soupray.core.trials import Pool
from soupray.evaluation.evaluator import StoredEvaluator
from soupray.evaluation.live_model import EVALUATION_VERSION
from soupray.evaluation.selection import HeldOutSelection
from soupray.maths.metrics import on_classes_of, score
from soupray.maths.objectives import best_thresholds
from soupray.recipes import (
    BY_NAME,
    RECIPES,
    Wanted,
    check_objective,
    code_of,
    find_recipe,
    load_recipes,
    run_recipes,
    total_cost,
)
from soupray.recipes.baselines import UPDATE_BN
from soupray.recipes.recipe import ONE_CLASS, PoolSize
from soupray.reporting.plots import line_candidates
from soupray.reporting.ranking import Calibrated, Entry, champion, leaderboard, one_model
from soupray.reporting.results import SoupResult
from soupray.reporting.tracker import load_trackers
from soupray.search.plan import CODE_VERSION
from soupray.soup.check import refuse_or_note
from soupray.soup.details import gather
from soupray.soup.session import Session, open_session, watched
from soupray.spec.sweep_spec import NAME_LENGTH, SweepSpec
from soupray.store import layout
from soupray.store.objects import Store, create_record, find_record

log = logging.getLogger(__name__)

LARGE, READ_LIMIT = 50 * 10**9, 1000 * 10**9
"""Limits in bytes for the weights that a recipe reads.

Above LARGE the amount is logged. Above READ_LIMIT the user must agree (`--yes`).
"""


class Choices(Record, frozen=True, kw_only=True):
    """What the recipes chose; it is stored before test or shift data are used, and never changed.

    `tau`: bfloat16 results with a smaller logit margin were not trusted; None if bfloat16 was not
    used to decide.
    """

    pool: list[str]
    recipes: Wanted
    outcomes: list[Outcome]
    tau: float | None
    made: float


class Allowed(NamedTuple):
    """What a soup run may do without asking the user.

    `partial`: continue without the trials that are missing. `large`: read any number of bytes of
    weights that a recipe needs.
    """

    partial: bool = False
    large: bool = False


ASK = Allowed()


def run_soup(
    specs: Sequence[SweepSpec],
    home: Path,
    address: str | None,
    recipes: Wanted,
    allowed: Allowed = ASK,
    show: Show | None = None,
) -> SoupResult:
    """Choose soups with `recipes`, then report them. A second run evaluates nothing again.

    With several specs, the outputs of their models are mixed, not their weights; the anchor is that
    of the first spec.

    Args:
        specs: the sweep whose trials are the pool, and others on the same data.
        home: folder for the state of this machine: embedded servers, caches.
        address: address of a Ray cluster; None for RAY_ADDRESS, else Ray starts on this machine.
        recipes: options by the name of the recipe; see `chosen_recipes`.
        allowed: what the run may do without asking.
        show: shows the progress.

    Raises:
        EvaluationError: no ingredients, some are missing without `allowed.partial`, NaN weights, or
            a recipe that reads too many bytes without `allowed.large`.
        IncompatibleWeights: ingredients that cannot be averaged.
        StoreError: the store cannot be reached.
    """
    spec, *others = specs
    load_trackers(spec)
    with open_session(specs, home, address, allowed.partial, show, "soup") as session:
        if not others:
            for finding in refuse_or_note(session):
                log.warning(f"{finding.what}. {finding.advice}.")
        choices, key = _chosen(session, specs, recipes, allowed.large)
        for note in dict.fromkeys(n for o in choices.outcomes for n in o.notes):
            log.warning(f"{note}.")
        return _result(session, spec, choices, key)


def _chosen(
    session: Session, specs: Sequence[SweepSpec], recipes: Wanted, large: bool
) -> tuple[Choices, str]:
    """Run the recipes on held-out and training data. Return their choices, and the key of these."""
    spec, basis = specs[0], session.basis
    work = _choosing_work(session.pool, recipes, len(basis.selection) - 2)
    with watched(session.evaluator, "choosing", work, session.show) as progress:
        selection = HeldOutSelection(
            session.evaluator,
            session.pool,
            basis.selection,
            cascade=spec.precision == "cascade",
            metric=spec.metric,
        )
        choices = choose(session.store, specs, selection, recipes, large)
        progress.finish()
    path = choices_path(specs, selection.pool, choices.recipes, tuple(selection.proxies.values()))
    return choices, layout.stem(path)


def _result(session: Session, spec: SweepSpec, choices: Choices, key: str) -> SoupResult:
    """Report the choices on test and shift data, rank them, and store the champion's weights."""
    pool, outcomes, evaluator = session.pool, choices.outcomes, session.evaluator
    asked = to_report(outcomes, pool)
    reported = _reported(session, asked)
    bodies = session.bodies([o.candidate for o in outcomes])
    entries = leaderboard(outcomes, pool, session.basis, reported, spec.metric, bodies)
    entries = calibrated(evaluator, entries, outcomes, session.basis)
    taken = champion(entries, outcomes, reported, spec.metric)
    model = one_model(next(o.candidate for o in outcomes if o.name == taken.name))
    return SoupResult(
        key=key,
        recipes=choices.recipes,
        entries=entries,
        outcomes=outcomes,
        pool=pool,
        basis=session.basis,
        reported=reported,
        champion=taken,
        details=gather(evaluator, entries, taken, outcomes, (pool, session.basis), reported),
        weights=None if model is None else evaluator.save(model),
        digests=_digests(session, outcomes),
        statistics=evaluator.statistics(asked),
        services=session.services,
        made=choices.made,
        foreign=session.foreign,
    )


def _digests(session: Session, outcomes: list[Outcome]) -> dict[str, str]:
    """Return the SHA-256 of the file of each of `models_of`, by the digest of the model."""
    models = models_of(outcomes)
    asked = [FileDigest(model=model) for model in models]
    found = session.evaluator.measure(asked, session.basis.split("held_out"))
    return {model.digest: sha for model, sha in zip(models, found, strict=True)}


def models_of(outcomes: list[Outcome]) -> list[WeightCandidate]:
    """Return each entry's model, and each soup in an ensemble.

    A single model as trained is left out of ensembles: the digest that names it verifies it.
    """
    found: dict[WeightCandidate, None] = {}
    for outcome in outcomes:
        model = one_model(outcome.candidate)
        members = [m for m in outcome.candidate.members if not as_trained(m)]
        found |= dict.fromkeys(members if model is None else [model])
    return list(found)


def _reported(session: Session, asked: list[Candidate]) -> dict[tuple[Candidate, str], Scores]:
    """Return the scores of the models on the rank, test and shift splits."""
    members = len({m for c in asked for m in c.members})
    due = members * len(session.basis.reported)
    with watched(session.evaluator, "reporting", due, session.show):
        return report(session.evaluator, asked, session.basis)


def joint(specs: Sequence[SweepSpec]) -> SweepSpec:
    """Return the spec under which joint results are stored: the first, with the names of all."""
    name = "_and_".join(s.name for s in specs)
    return specs[0].model_copy(update={"name": name[:NAME_LENGTH]})


def choose(
    store: Store,
    specs: Sequence[SweepSpec],
    selection: HeldOutSelection,
    recipes: Wanted,
    large: bool = False,
) -> Choices:
    """Return the stored choices, or run the recipes and store their choices.

    If two drivers choose at the same time, both continue with the choices that were stored first.

    Args:
        store: the store.
        specs: the specs of the pool.
        selection: the pool and its held-out scores.
        recipes: options by the name of the recipe.
        large: read any number of bytes of weights.

    Raises:
        EvaluationError: a recipe would read too many bytes, and `large` is false.
    """
    pool = selection.pool
    wanted = {**{name: {} for name in baselines(pool)}, **recipes}
    wanted = {name: find_recipe(name).complete(options) for name, options in wanted.items()}
    path = choices_path(specs, pool, wanted, tuple(selection.proxies.values()))
    choices: Choices | None = find_record(store, path, Choices)
    if choices is not None:
        _refuse_other(choices, pool, wanted, f"{path} in {store.url}")
    else:
        _say_what_is_read(pool, wanted, large)
        outcomes = run_recipes(selection, wanted)
        chosen = Choices(
            pool=pool.checkpoints,
            recipes=wanted,
            outcomes=outcomes,
            tau=selection.tau,
            made=time.time(),
        )
        choices = create_record(store, path, chosen)
    return choices


def baselines(pool: Pool) -> list[str]:
    """Return the names of the recipes that always run.

    `update_bn` is one where training moved BatchNorm statistics. Elsewhere it has nothing to do,
    and is not among the recipes that name the choices.
    """
    always = [r.name for r in RECIPES if r.kind == "baseline"]
    return [name for name in always if name != UPDATE_BN.name or pool.moved]


def _refuse_other(choices: Choices, pool: Pool, wanted: Wanted, where: str) -> None:
    """Raise CheckpointError if stored choices are not those of the pool and the recipes."""
    known = {*pool.checkpoints, pool.init.sha256, pool.anchor.sha256}
    names = [o.name for o in choices.outcomes]
    named = {find_recipe(name).name for name in wanted}
    chosen = {sha for o in choices.outcomes for sha in o.candidate.checkpoints}
    if (
        choices.pool != pool.checkpoints
        or digest(choices.recipes) != digest(wanted)
        or not {"best_single"} <= {o.recipe for o in choices.outcomes} <= named
        or len(set(names)) < len(names)
        or not chosen <= known
    ):
        raise CheckpointError(
            f"{where} are not the choices of these recipes on this pool: they were copied there, "
            "or edited. Delete them and run again: what was evaluated is kept."
        )


def choices_path(
    specs: Sequence[SweepSpec], pool: Pool, wanted: Wanted, proxies: tuple[str, ...] = ()
) -> str:
    """Return the path of the choices in the store, named by a digest of all their inputs.

    Args:
        specs: the specs of the pool.
        pool: the ingredients.
        wanted: options by the name of the recipe.
        proxies: digests of the proxy shifts.
    """
    spec, *others = specs
    parts = [
        pool.checkpoints,
        pool.anchor.sha256,
        pool.init.sha256,  # the same checkpoints may be imported with another theta_0
        pool.ingredients[0].trial.data,  # VRF, Fisher and BatchNorm statistics use train data
        wanted,
        spec.setting,
        spec.precision,
        spec.metric,
        CODE_VERSION,
        EVALUATION_VERSION,
        pool.ingredients[0].held_out.split,
        *(other.setting for other in others),  # their models are evaluated with their own settings
        *code_of(wanted),  # of plug-ins: none for soupray's own
        *proxies,
    ]
    return layout.choices(joint(specs).name, digest(parts)[:32])


def _say_what_is_read(pool: Pool, wanted: Wanted, large: bool) -> None:
    """Log how many bytes a recipe reads, or raise EvaluationError if there are too many.

    Learned soups read every ingredient twice in each step.
    """
    for name, options in wanted.items():
        recipe = find_recipe(name)
        if recipe.reads is None:
            continue
        read = recipe.reads(pool.ingredients, recipe.read(options, "recipes"))
        if read > LARGE:
            log.info(f"{name} reads {read / 1e9:,.0f} GB of weights.")
        if read > READ_LIMIT and not large:
            raise EvaluationError(
                f"{name} would read {read / 1e9:,.0f} GB of weights ({len(pool.ingredients)} "
                f"ingredients). Add --yes to read more than {READ_LIMIT / 1e9:,.0f} GB. A larger "
                "batch_size or fewer steps (recipes in the spec) read less."
            )


def to_report(outcomes: list[Outcome], pool: Pool) -> list[Candidate]:
    """Return the models to report, each once: entries, ingredients, points of the WiSE-FT lines."""
    candidates: list[Candidate] = [o.candidate for o in outcomes]
    candidates += [mean_of([sha]) for sha in pool.checkpoints]
    for line in line_candidates(outcomes).values():
        candidates += line
    return list(dict.fromkeys(candidates))


def report(
    evaluator: StoredEvaluator, candidates: list[Candidate], basis: Basis
) -> dict[tuple[Candidate, str], Scores]:
    """Evaluate the models on the rank, test and shift splits; each model is loaded once.

    Returns:
        Scores by (model, name of the split).
    """
    evaluator.fill(candidates, basis.reported)
    evaluator.on_result = lambda count: None  # everything is stored now: no more progress
    reported = {}
    for split in basis.reported:
        for candidate, scores in zip(candidates, evaluator.scores(candidates, split), strict=True):
            reported[candidate, split.name] = scores
    return reported | _on_classes_of_shifts(evaluator, candidates, basis)


def calibrated(
    evaluator: StoredEvaluator, entries: list[Entry], outcomes: list[Outcome], basis: Basis
) -> list[Entry]:
    """Return the entries with a temperature each, and what it does on test. See `Calibrated`.

    All comes from stored logits.

    Args:
        evaluator: has the logits of all outcomes.
        entries: the leaderboard.
        outcomes: what the recipes chose.
        basis: the splits.
    """
    held_out, test = basis.split("held_out"), basis.split("test")
    if test.objective is not msgspec.UNSET:
        return _with_thresholds(evaluator, entries, outcomes, held_out)
    found: dict[str, Calibrated] = {}
    for outcome in outcomes:
        model = outcome.candidate
        if model.digest in found:
            continue
        (temperature,) = evaluator.measure([Temperature(candidate=model)], held_out)
        predictions = evaluator.predictions(model, test)
        cooled = (predictions.logits / temperature).astype(np.float32)
        scores = score(msgspec.structs.replace(predictions, logits=cooled))
        found[model.digest] = Calibrated(
            temperature=temperature, test_nll=scores.nll, test_ece=scores.ece
        )
    return [msgspec.structs.replace(e, calibrated=found[e.candidate]) for e in entries]


def _on_classes_of_shifts(
    evaluator: StoredEvaluator, candidates: list[Candidate], basis: Basis
) -> dict[tuple[Candidate, str], Scores]:
    """Return ID test scores on the classes of each shift that has only some classes.

    They come from stored logits.
    """
    shifts = [s for s in basis.reported if s.label_map is not None]
    found = {}
    for candidate in candidates if shifts else []:
        predictions = evaluator.predictions(candidate, basis.split("test"))
        for shift in shifts:
            there = on_classes_of(predictions, shift)
            if there is not None:
                found[candidate, there.split.name] = score(there)
    return found


def _with_thresholds(
    evaluator: StoredEvaluator, entries: list[Entry], outcomes: list[Outcome], held_out: Split
) -> list[Entry]:
    """Return the entries of a multi-label pool with thresholds; those of a regression have none."""
    if not held_out.objective or held_out.objective.kind != "multi_label":
        return entries
    found = {}
    for outcome in outcomes:
        said = evaluator.predictions(outcome.candidate, held_out)
        found[outcome.candidate.digest] = best_thresholds(said.logits, said.labels)
    return [msgspec.structs.replace(e, thresholds=found[e.candidate]) for e in entries]


def chosen_recipes(specs: Sequence[SweepSpec], flags: list[str], everything: bool) -> Wanted:
    """Return the recipes to run, with their options: from the flags, the spec, or all of them.

    Args:
        specs: the specs of the pool; several specs allow only ensembles.
        flags: names of recipes that are asked for.
        everything: run all recipes that are allowed, except those that `Recipe.with_all` leaves out
            and neither the flags nor the first spec ask for.

    Raises:
        ConfigError: no recipe, a baseline, or one that averages weights for several specs.
    """
    spec, several = specs[0], len(specs) > 1
    kinds = ("ensemble",) if several else ("soup", "line", "ensemble")
    plugged = [n for n in spec.recipes if n not in BY_NAME and find_recipe(n).kind in kinds]
    objective = spec.targets.kind if spec.targets else ONE_CLASS
    offered = [r.name for r in RECIPES if r.kind in kinds and objective in r.objectives]
    offered += plugged
    unsuited = [r.name for r in RECIPES if r.kind in kinds and objective not in r.objectives]
    if everything and unsuited:
        log.info(f"Not for {objective}, and left out: {', '.join(unsuited)}.")
    listed = [name for name in spec.recipes if name in offered or name in unsuited]
    names = flags or listed or (offered if several else [])
    if everything:
        asked = {*flags, *spec.recipes}
        names = [name for name in offered if find_recipe(name).with_all or name in asked]
        if left := [name for name in offered if name not in names]:
            log.info(f"--all leaves out {', '.join(left)}. Add their flags to run them too.")
    if not names:
        raise ConfigError(f"no recipe chosen: name one of {', '.join(offered)}, or --all.")
    for name in names:
        kind = find_recipe(name).kind
        if kind == "baseline":
            raise ConfigError(f"{name} always runs. Leave it out, or add {', '.join(offered)}.")
        if kind not in kinds:
            raise ConfigError(
                f"{name} averages weights, which models of several specs do not share: with "
                f"several specs, choose among {', '.join(offered)}, or all."
            )
        check_objective(name, objective)
        if spec.targets and spec.recipes.get(name, {}).get("space") == "probabilities":
            raise ConfigError(
                f"recipes.{name}.space: probabilities are of one class; with {objective} write "
                "logits, the mean of outputs."
            )
    chosen = {name: dict(spec.recipes.get(name, {})) for name in names}
    load_recipes(chosen)
    return chosen


def _choosing_work(pool: Pool, recipes: Wanted, proxies: int) -> int:
    """Return the approximate number of evaluations of a selection, for the progress bar."""
    size = PoolSize(len(pool.ingredients), pool.ingredients[0].held_out.n, proxies)
    cost = total_cost(size, {**recipes, **{name: {} for name in baselines(pool)}})
    return cost.decided + cost.scored
