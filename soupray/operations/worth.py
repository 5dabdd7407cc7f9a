"""What one trial is worth (`soupray why`), from stored logits alone: no model runs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import UNSET, structs

from soupray.core.arrays import Float64
from soupray.core.errors import NotFound
from soupray.core.records import Record, Split
from soupray.core.trials import Ingredient, pool_of
from soupray.evaluation.evidence import check_scores
from soupray.maths.metrics import value
from soupray.maths.terms import terms_of
from soupray.maths.worth import Shapley, leave_one_out, shapley
from soupray.operations.details import TrialDetail, find_sweep_state, newest, trial_detail
from soupray.services.place import find_place
from soupray.soup.findings import ERRORS, alike
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.checkpoints import Checkpoints


class Estimate(Record, frozen=True, kw_only=True):
    """What a trial is worth by one definition.

    Attributes:
        value: in units of the loss; positive if the trial helps.
        standard_error: of the value, because the held-out samples are a sample.
        place: of the value among all finished trials, from 1.
    """

    value: float
    standard_error: float
    place: int


class TrialWorth(Record, frozen=True, kw_only=True):
    """What a trial is worth, on held-out data.

    Attributes:
        trial: all that is known of it: scores, coefficients by entry, flags of `check`.
        trials: number of finished trials, of which the ensemble is made.
        n: number of held-out samples.
        loss: name of the loss: NLL, or that of another objective.
        place: by the metric of the spec among the finished trials, from 1.
        loss_place: the same by the loss.
        ensemble: loss of the ensemble of all, the mean of their outputs.
        alone: mean loss of one trial: that of a trial drawn at random.
        leave_one_out: loss of the ensemble without the trial, minus that with it.
        shapley: how much the trial lowers the loss when it joins others, on average over all
            orders in which trials join. The values of all trials sum to `alone - ensemble`.
        order_error: standard error of the Shapley value because orders were sampled; 0 if not.
        orders: number of sampled orders; 0: all subsets were evaluated.
        copies: trials with the same weights, or equal hyperparameters and scores.
        entries: number of entries of the newest leaderboard; 0 before the first soup.
        champion: the entry to take, if the trial is in it.
        verdict: is it worth keeping?
    """

    trial: TrialDetail
    trials: int
    n: int
    loss: str
    place: int
    loss_place: int
    ensemble: float
    alone: float
    leave_one_out: Estimate
    shapley: Estimate
    order_error: float
    orders: int
    copies: tuple[str, ...]
    entries: int
    champion: str | None
    verdict: str


class _Worths(NamedTuple):
    """Of each trial and sample, [K, N], in the order of the ingredients; losses of single trials.

    `ensemble` is the loss of the ensemble of all.
    """

    left_out: Float64
    shapley: Shapley
    losses: Float64
    ensemble: float


def find_worth(spec: SweepSpec, home: Path, named: str) -> TrialWorth:
    """Return what a trial is worth to the ensemble of all finished trials.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        named: the key of the trial, the unique beginning of one, or its index.

    Raises:
        NotFound: there is no such trial, it has no outputs, or its logits are not in the store.
        CheckpointError: scores contradict the stored logits.
    """
    place = find_place(spec, home)
    store = place.open_store()
    state = find_sweep_state(store, spec)
    board = newest(store, spec)
    trial = trial_detail(store, spec, state, named)
    keys = [i.trial.key for i in state.ingredients]
    if trial.key not in keys:
        why = "" if trial.reason is None else f" ({trial.reason})"
        raise NotFound(
            f"trial {trial.key} of {spec.name} is {trial.state}{why}: it has no model, and is in "
            "no soup. `soupray trials` lists the trials that are complete; `soupray sweep` trains "
            "those that are missing."
        )
    held_out = state.basis.split("held_out")
    checkpoints = Checkpoints(store, place.folder / "weights")
    found = _worths(state.ingredients, held_out, checkpoints, spec.seed)
    at = keys.index(trial.key)
    scores = np.array([value(i.held_out, spec.metric) for i in state.ingredients])
    taken = board.run.champion.name if board.run else None
    twins = [one.trials for one in alike(pool_of(state.basis, state.ingredients))]
    copies = {key for trials in twins if trial.key in trials for key in trials}
    made = TrialWorth(
        trial=trial,
        trials=len(keys),
        n=held_out.size,
        loss=loss_name(held_out),
        place=_place(scores, at),
        loss_place=_place(-found.losses.mean(axis=1), at),
        ensemble=found.ensemble,
        alone=float(found.losses.mean()),
        leave_one_out=_estimate(found.left_out, at),
        shapley=_estimate(found.shapley.values, at),
        order_error=float(found.shapley.order_errors[at]),
        orders=found.shapley.orders,
        copies=tuple(sorted(copies - {trial.key})),
        entries=len(board.entries),
        champion=taken if taken in trial.coefficients else None,
        verdict="",
    )
    return structs.replace(made, verdict=verdict_of(made))


def _worths(
    ingredients: list[Ingredient], held_out: Split, checkpoints: Checkpoints, seed: int
) -> _Worths:
    """Compute what each trial is worth. The logits of all trials are in memory."""
    check_scores(ingredients, held_out, checkpoints)
    stored = [checkpoints.load_blob(i.logits.sha256) for i in ingredients]
    terms = terms_of(stored[0]["labels"].numpy(), held_out.objective)
    outputs = [terms.of(one["logits"].numpy()) for one in stored]
    losses = terms.losses

    left_out = leave_one_out(len(outputs), lambda k: outputs[k], losses)
    return _Worths(
        left_out=np.stack(left_out),
        shapley=shapley(outputs, losses, seed),
        losses=np.stack([losses(one.astype(np.float64)) for one in outputs]),
        ensemble=float(losses(np.mean(outputs, axis=0, dtype=np.float64)).mean()),
    )


def loss_name(split: Split) -> str:
    """Return what `Scores.nll` is for the objective of a split, as people call it."""
    if split.objective is UNSET:
        return "NLL"
    names = {"regression": "squared error", "retrieval": "NLL"}
    return names.get(split.objective.kind, "binary cross-entropy")


def _estimate(values: Float64, at: int) -> Estimate:
    own, n = values[at], values.shape[1]
    return Estimate(
        value=float(own.mean()),
        standard_error=float(own.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0,
        place=_place(values.mean(axis=1), at),
    )


def _place(values: Float64, at: int) -> int:
    """The place of one of several numbers, from 1: the largest is the first."""
    return 1 + int((values > values[at]).sum())


def verdict_of(found: TrialWorth) -> str:
    """Answer whether a trial is worth keeping, from its numbers; `found.verdict` is not read."""
    if found.trials == 1:
        return f"Keep it: {found.trial.key} is the only finished trial."
    helps, said = _evidence(found)
    if found.trial.freed is not None:
        return f"Its weights were let go already, and {said}."
    if found.copies:
        said += f"; its copies are {', '.join(found.copies)}"
    used = [name for name, share in found.trial.coefficients.items() if share != 0]
    if used:
        first = found.champion if found.champion in used else used[0]
        more = f" and {len(used) - 1} more" if len(used) > 1 else ""
        what = "entry" if len(used) == 1 else "entries"
        return f"Keep it: the {what} {first}{more} need{'s' * (len(used) == 1)} it, and {said}."
    if helps:
        return f"Keep it: no entry is made of it, but {said}."
    if not found.entries:
        return f"Keep it until `soupray soup` has chosen: {said}."
    return f"It need not be kept: no entry is made of it, and {said}."


def _evidence(found: TrialWorth) -> tuple[bool, str]:
    """Return whether the ensemble clearly needs the trial, and what leave-one-out shows."""
    one = found.leave_one_out
    change = f"{found.loss} {one.value:+.2g} ± {one.standard_error:.2g}"
    if abs(one.value) <= ERRORS * one.standard_error:
        return False, (
            f"{found.n} held-out samples do not show whether the ensemble of all "
            f"{found.trials} needs it (without it, {change})"
        )
    how = "worse" if one.value > 0 else "better"
    return one.value > 0, (
        f"the ensemble of all {found.trials} is {how} without it by more than chance ({change})"
    )
