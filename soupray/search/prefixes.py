"""The first trials of a plan, and what a soup of them was worth: the anytime soup.

A prefix of a plan is its first K trials, all of which are over. It depends on the plan alone, not
on which trial finished first: a sweep that crashed has the same prefixes as one that did not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean, median
from typing import Annotated

import msgspec

from soupray.core.names import TrialKey
from soupray.core.records import Basis, Record, Scores, digest
from soupray.core.trials import STATISTICS, Ingredient, Manifest, Trial
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import Store, create_record, find_record


class Prefix(Record, frozen=True, kw_only=True):
    """What the first trials of a plan are worth on held-out data. No test or shift data are here.

    Attributes:
        size: number of trials; some may have diverged or were stopped.
        ingredients: number of those that can be averaged.
        best: the best single trial by the metric of the spec, and
        single: its scores.
        members: the trials of the greedy ensemble: in the order of their loss, one is kept if the
            loss of the mean of logits does not rise.
        ensemble: scores of the mean of logits of `members`.
        uniform: scores of the mean of the weights of all ingredients. None: it was not measured,
            see `budget_allows`.
        greedy: scores of the mean of the weights of `members`, or None likewise.
        seconds: how long all this took.
        trained: how long the trials trained, in seconds.
    """

    size: Annotated[int, msgspec.Meta(ge=1)]
    ingredients: Annotated[int, msgspec.Meta(ge=1)]
    best: TrialKey
    single: Scores
    members: tuple[TrialKey, ...]
    ensemble: Scores
    uniform: Scores | None
    greedy: Scores | None
    seconds: float
    trained: float


SHARE = 0.02
"""The largest share of the time of training that the soups of prefixes take."""


def sizes(trials: int) -> list[int]:
    """Return the sizes of the prefixes that are measured: powers of the square root of 2, and all.

    With sums over trials of such sizes, the reading of weights grows as the number of trials does.

    Args:
        trials: number of trials of the plan.
    """
    found = {round(2 ** (half / 2)) for half in range(2, 2 * trials.bit_length())}
    return sorted({size for size in found if size < trials} | ({trials} if trials > 1 else set()))


def finished(plan: Sequence[Trial], over: Collection[str]) -> int:
    """Return the number of trials at the beginning of `plan` that are over.

    Args:
        plan: the trials in the order of the plan.
        over: keys of trials that are complete, diverged or were stopped.
    """
    return next((k for k, trial in enumerate(plan) if trial.key not in over), len(plan))


def budget_allows(earlier: Sequence[Prefix], size: int, trained: float, first: float) -> bool:
    """Whether the soups of a prefix may be measured without taking more than SHARE of the training.

    It reads records only, so that a sweep that crashed goes on as before.

    Args:
        earlier: smaller prefixes, in order.
        size: number of trials of this one.
        trained: how long these trained, in seconds.
        first: how long its soups will take, in seconds, if those of no smaller one were measured.
    """
    spent = sum(one.seconds for one in earlier)
    last = next((one for one in reversed(earlier) if one.uniform is not None), None)
    expected = first if last is None else last.seconds * size / last.size
    return spent + expected <= SHARE * trained


def first_seconds(epoch: float, train: int, held_out: int, statistics: int = 0) -> float:
    """Forecast the seconds of the two soups of a prefix, which evaluate `held_out` samples twice.

    An epoch costs a forward pass for each held-out sample, and three for each training sample: the
    backward pass takes about as long as two.

    Args:
        epoch: duration of an epoch, in seconds.
        train: number of samples that it trains on. With 0, all of the epoch counts as evaluation:
            the forecast is then a bound, whatever the training costs.
        held_out: number of samples that it evaluates.
        statistics: number of samples on which each soup estimates BatchNorm statistics. It counts
            as two passes for each: 1.7 were measured.
    """
    return epoch * 2 * (held_out + 2 * statistics) / (3 * train + held_out)


def forecast_first(manifests: Sequence[Manifest], basis: Basis, most: int) -> float:
    """Forecast the seconds of the first soups of a sweep from the records of its trials.

    Args:
        manifests: of trials of one sweep that are over; one at least is complete.
        basis: of the sweep.
        most: training samples on which a soup estimates BatchNorm statistics, at most.
    """
    if manifests[0].trial.method == "lp":
        # The epochs saw stored features. What a trial took beside them has one evaluation of the
        # whole model, that of the stored weights; a few trials computed the features, too.
        beside = [
            one.finished - one.started - sum(epoch.seconds for epoch in one.history)
            for one in manifests
            if isinstance(one, Ingredient)
        ]
        return 2 * median(beside)
    epoch = fmean(epoch.seconds for one in manifests for epoch in one.history)
    # A training sample costs less than three passes if few blocks are trained, or in bf16.
    cheaper = any(
        one.trial.hparams.get("last_blocks") or one.trial.training.precision == "bf16"
        for one in manifests
    )
    train, held_out = basis.split("train").size, basis.split("held_out").size
    tensors = {n for one in manifests if isinstance(one, Ingredient) for n in one.tensors}
    statistics = min(most, train) if any(n.endswith(STATISTICS) for n in tensors) else 0
    return first_seconds(epoch, 0 if cheaper else train, held_out, statistics)


def find_prefix(store: Store, sweep: str, trials: Sequence[Trial]) -> Prefix | None:
    """Return the record of these trials of `sweep`, or None. Raises CheckpointError, StoreError."""
    found: Prefix | None = find_record(store, _path(sweep, trials), Prefix)
    return found


def find_prefixes(store: Store, sweep: str, plan: Sequence[Trial], trials: int) -> list[Prefix]:
    """Return the records of the prefixes of `plan`, the smallest first.

    Args:
        store: the store.
        sweep: name of the sweep.
        plan: the trials that are known, in order.
        trials: number of trials of the whole plan.

    Raises:
        CheckpointError: a record cannot be read.
        StoreError: the store cannot be reached.
    """
    there = set(store.list(layout.prefixes(sweep)))
    known = [plan[:size] for size in sizes(trials) if size <= len(plan)]
    found = [find_prefix(store, sweep, one) for one in known if _path(sweep, one) in there]
    return [one for one in found if one is not None]


def create_prefix(store: Store, sweep: str, trials: Sequence[Trial], made: Prefix) -> Prefix:
    """Store the record of these trials, and return the one that is in the store."""
    return create_record(store, _path(sweep, trials), made)


class Enough(Record, frozen=True, kw_only=True):
    """The stop rule ended the search: the trials after `size` that did not run are not needed.

    Attributes:
        size: number of trials at the beginning of the plan that were looked at.
        chance: of a gain by one more trial, below `probability`.
        gain, probability: as the spec has them.
    """

    size: Annotated[int, msgspec.Meta(ge=2)]
    chance: float
    gain: float
    probability: float


def enough_said(enough: Enough) -> str:
    """Return why the stop rule ended the search, in words."""
    return (
        f"{enough.size} trials are enough: the chance that one more lowers the held-out loss of "
        f"their ensemble by {enough.gain:g} is {enough.chance:.3f}, below {enough.probability:g}"
    )


def find_enough(store: Store, spec: SweepSpec, plan: Sequence[Trial]) -> Enough | None:
    """Return the decision of the stop rule of `spec`, or None: it has no rule, or none was made.

    Args:
        store: the store.
        spec: the sweep.
        plan: its trials, in order.

    Raises:
        CheckpointError: the record cannot be read.
        StoreError: the store cannot be reached.
    """
    if spec.search.stop is None:
        return None
    found: Enough | None = find_record(store, _enough(spec, plan), Enough)
    return found


def create_enough(store: Store, spec: SweepSpec, plan: Sequence[Trial], made: Enough) -> Enough:
    """Store the decision, and return the one that is in the store."""
    return create_record(store, _enough(spec, plan), made)


def _enough(spec: SweepSpec, plan: Sequence[Trial]) -> str:
    """Return the path of the decision: it follows from the trials and the rule.

    The first trials of a plan are the same for any number of them, so that the key of the first
    stands for all: it has the seed and everything that the spec fixes. The space has the rest.
    """
    assert spec.search.stop is not None
    space = spec.search.space.model_dump(mode="json")
    about = [plan[0].key, spec.search.sampler, space, spec.search.stop.model_dump(mode="json")]
    return layout.enough(spec.name, digest(about)[:16])


def _path(sweep: str, trials: Sequence[Trial]) -> str:
    return layout.prefix(sweep, digest([trial.key for trial in trials])[:32])
