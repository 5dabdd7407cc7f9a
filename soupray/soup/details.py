"""Gather the numbers behind the pictures of a report, from stored results alone."""

from __future__ import annotations

from msgspec import UNSET

from soupray.core.candidates import Candidate, Outcome, mean_of
from soupray.core.records import Basis
from soupray.core.trials import Ingredient, Pool
from soupray.evaluation.evaluator import StoredEvaluator
from soupray.maths.mistakes import confusion, reliability
from soupray.maths.terms import terms_of
from soupray.maths.worth import leave_one_out
from soupray.reporting.champion import Champion
from soupray.reporting.details import Answers, Details, TrialFacts, details_of
from soupray.reporting.plots import robustness
from soupray.reporting.ranking import Entry, Reported, measured, shift_mean


def gather(
    evaluator: StoredEvaluator,
    entries: list[Entry],
    champion: Champion,
    outcomes: list[Outcome],
    world: tuple[Pool, Basis],
    reported: Reported,
) -> Details:
    """Return the details of a leaderboard.

    Args:
        evaluator: has the logits of all outcomes.
        entries: the leaderboard, with temperatures.
        champion: the entry to take.
        outcomes: what the recipes chose.
        world: the pool and its basis.
        reported: scores by (model, name of the split).
    """
    pool, basis = world
    by_name = {o.name: o.candidate for o in outcomes}
    compared = [e for e in entries if e.name == champion.name or e.recipe == "best_single"]
    compared.sort(key=lambda e: e.name != champion.name)
    shifts = [s.name for s in basis.reported if s.role == "shift"]
    return details_of(
        outcomes,
        pool,
        robustness(champion.name, outcomes, pool, basis, reported) if shifts else None,
        tuple(_answers(evaluator, e, by_name[e.name], basis) for e in compared),
        tuple(
            _facts(ingredient, worth, reported, shifts)
            for ingredient, worth in zip(
                pool.ingredients, _worth(evaluator, pool, basis), strict=True
            )
        ),
    )


def _worth(evaluator: StoredEvaluator, pool: Pool, basis: Basis) -> list[float]:
    """What each ingredient is worth to the ensemble of all, on held-out data."""
    held_out = basis.split("held_out")
    models = [mean_of([sha]) for sha in pool.checkpoints]
    labels = evaluator.predictions(models[0], held_out).labels
    terms = terms_of(labels, held_out.objective)
    return leave_one_out(
        len(models),
        lambda k: terms.of(evaluator.predictions(models[k], held_out).logits),
        terms.loss,
    )


def _answers(evaluator: StoredEvaluator, entry: Entry, model: Candidate, basis: Basis) -> Answers:
    predictions = evaluator.predictions(model, basis.split("test"))
    if predictions.split.objective is not UNSET:
        return Answers(
            name=entry.name, confusion=(), reliability=(), temperature=1.0, calibrated=()
        )
    temperature = entry.calibrated.temperature if entry.calibrated else 1.0
    return Answers(
        name=entry.name,
        confusion=confusion(predictions),
        reliability=reliability(predictions),
        temperature=temperature,
        calibrated=reliability(predictions, temperature),
    )


def _facts(
    ingredient: Ingredient, worth: float, reported: Reported, shifts: list[str]
) -> TrialFacts:
    model, trial = mean_of([ingredient.checkpoint.sha256]), ingredient.trial
    there = {name: measured(reported[model, name]) for name in shifts}
    return TrialFacts(
        key=trial.key,
        hparams=trial.hparams,
        imported=trial.method == "imported",
        held_out=(ingredient.held_out.accuracy, ingredient.held_out.standard_error),
        test=reported[model, "test"].accuracy,
        shift_mean=shift_mean(there) if there else None,
        leave_one_out=worth,
        seconds=ingredient.finished - ingredient.started,
        workers=trial.training.workers,
    )
