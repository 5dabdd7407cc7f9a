"""The evaluator of a recipe: it reads held-out data, copies of it, and training data; no other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from soupray.core.arrays import Float64
from soupray.core.candidates import Candidate, OutputCandidate, WeightCandidate, mean_of
from soupray.core.errors import EvaluationError
from soupray.core.ports import Accept, Evaluator, Hints, Reached
from soupray.core.records import PROXY, Metric, Rejected, Scores, SelectionSplit, Tally
from soupray.core.requests import Deviation, Margins, Request
from soupray.core.trials import Ingredient, Pool
from soupray.evaluation.schedule import hardest_first
from soupray.maths.excess import excess_bounds
from soupray.maths.metrics import value

if TYPE_CHECKING:
    from soupray.core.records import Basis, ReportedSplit

T = TypeVar("T")
DEVIATION_SAMPLES = 128
"""Number of held-out samples on which bfloat16 is compared with float32."""

SAFETY = 6.0
"""tau is SAFETY times the largest deviation of the best single model on these samples. A prediction
can change where its margin is below twice the candidate's own largest deviation. That deviation was
at most 2.6 times the one of the best single model
(benchmarks/reports/2026-11-22-greedy-speed.md)."""


class HeldOutSelection:
    """The `ports.Selection` of the recipes.

    No method has a split as a parameter, so that no recipe can choose on the test set. Nor can it
    be made of a split that is reported: that is a `ReportedSplit`, which mypy refuses here.
    """

    __slots__ = (
        "_cascade",
        "_fill_proxies",
        "_first_reaching",
        "_held_out",
        "_hints",
        "_joint",
        "_metric",
        "_pool",
        "_proxies",
        "_scores",
        "_tallies",
        "_train",
    )

    def __init__(
        self,
        evaluator: Evaluator,
        pool: Pool,
        splits: Sequence[SelectionSplit],
        *,
        cascade: bool = False,
        metric: Metric = "accuracy",
    ) -> None:
        """`splits`: held-out data, training data and proxy shifts, as in `Basis.selection`."""
        held_out, proxies = splits[0], splits[2:]
        for split, role in zip(
            splits, ("held_out", "train", *["proxy"] * len(proxies)), strict=True
        ):
            if split.role != role:
                raise EvaluationError(
                    "recipes see held-out and training data only, and proxy shifts of held-out "
                    f"data, in this order. The split {split.name!r} has role {split.role!r}."
                )
        if not pool.ingredients:
            raise EvaluationError("the pool is empty: there is nothing to choose from.")
        self._metric = metric
        # Whether a sample is right depends on the others of its split.
        about = held_out.objective
        self._joint = about is not msgspec.UNSET and about.kind == "retrieval"
        self._pool = msgspec.structs.replace(pool, ingredients=self._best_first(pool))
        # The splits are bound here: a recipe can reach neither the evaluator nor another split.
        self._scores = functools.partial(evaluator.scores, split=held_out)
        self._held_out = functools.partial(evaluator.measure, split=held_out)
        self._train = functools.partial(evaluator.measure, split=splits[1])
        self._first_reaching = functools.partial(evaluator.first_reaching, split=held_out)
        self._proxies = {
            split.name.removeprefix(PROXY): (
                split.digest,
                functools.partial(evaluator.scores, split=split),
            )
            for split in proxies
        }
        self._fill_proxies = functools.partial(evaluator.fill, splits=proxies) if proxies else None
        # A second pass looks at unsure classes: with a graded metric all decisions are in float32.
        self._cascade = cascade and not pool.ingredients[0].held_out.graded
        self._hints: Hints | None = None
        self._tallies: dict[Candidate, Tally] = {}

    def _find_hints(self) -> Hints:
        best = self._pool.ingredients[0]
        margins = functools.cache(self._find_margins)  # read only if a candidate must run

        def order(candidate: WeightCandidate) -> tuple[int, ...]:
            shares = zip(candidate.checkpoints, candidate.coefficients, strict=True)
            known = [share * margins()[sha] for sha, share in shares if sha in margins()]
            return hardest_first(known) if known else tuple(range(best.held_out.n))

        if not self._cascade:
            return Hints(order, None)
        asked = Deviation(
            candidate=mean_of([best.checkpoint.sha256]),
            samples=DEVIATION_SAMPLES,
            logits=best.logits if best.trial.setting.precision == "fp32" else None,
        )
        (seen,) = self._held_out([asked])
        return Hints(order, SAFETY * seen)

    def _find_margins(self) -> dict[str, Float64]:
        """The margins [N] of each ingredient, by its checkpoint."""
        logits = {i.checkpoint.sha256: i.logits for i in self._pool.ingredients}
        asked = [Margins(checkpoint=sha, logits=ref) for sha, ref in logits.items()]
        return dict(zip(logits, map(np.array, self._held_out(asked)), strict=True))

    @property
    def tau(self) -> float | None:
        """The margin below which a bfloat16 result is unsure. None if bfloat16 was not used."""
        return self._hints.tau if self._hints else None

    @property
    def pool(self) -> Pool:
        """The ingredients, the best on held-out data first."""
        return self._pool

    def scores(self, candidates: Sequence[Candidate]) -> list[Scores]:
        """The held-out scores of each candidate, in the order of `candidates`.

        Raises:
            EvaluationError: a decision with bfloat16 counted other samples than float32.
        """
        found = self._scores(candidates)
        for candidate, scores in zip(candidates, found, strict=True):
            tally = self._tallies.get(candidate)
            if tally is not None and tally.right != scores.right:
                raise EvaluationError(
                    f"candidate {candidate.digest[:12]}: the cascade counted {tally.correct} of "
                    f"{tally.n} samples right, float32 {scores.correct}: tau = {self.tau:.3g} is "
                    "too small. Write `precision: fp32` in the spec and run again."
                )
        return found

    @property
    def proxies(self) -> dict[str, str]:
        """The digest of each proxy shift, by its name in the spec."""
        return {name: digest for name, (digest, _) in self._proxies.items()}

    def proxy_scores(self, candidates: Sequence[Candidate]) -> list[dict[str, Scores]]:
        """The scores of each candidate on each proxy shift, by its name in the spec."""
        if self._fill_proxies is not None:
            self._fill_proxies(candidates)
        found = {name: scores(candidates) for name, (_, scores) in self._proxies.items()}
        return [{name: of[k] for name, of in found.items()} for k in range(len(candidates))]

    def excess(self, results: Sequence[Scores], confidence: float) -> list[float]:
        """The most by which the loss of each model may exceed that of the best of them.

        The loss of a sample is 1 if the model gets it wrong, else 0; with a graded metric, 1 minus
        its value. See `ports.Selection.excess`.
        """
        values = np.array([one.values() for one in results])
        return list(map(float, excess_bounds(values, confidence)))

    def value(self, result: Scores | Tally | Rejected) -> float:
        """The selection metric of a result: larger is better. A `Rejected` has -infinity."""
        return float("-inf") if isinstance(result, Rejected) else value(result, self._metric)

    def _best_first(self, pool: Pool) -> tuple[Ingredient, ...]:
        return tuple(sorted(pool.ingredients, key=lambda i: (-self.value(i.held_out), i.trial.key)))

    def first_reaching(
        self, candidates: Sequence[Candidate], bound: float, accept: Accept
    ) -> Reached:
        """Find the first candidate, in the given order, whose value reaches `bound`.

        With accuracy or a graded metric, a candidate can be given up early. With another metric,
        and in retrieval, each candidate is scored on all samples. See
        `ports.Selection.first_reaching`.
        """
        known = self._pool.ingredients[0].held_out
        if self._joint or self._metric != (known.graded or "accuracy"):
            return self._one_by_one(candidates, bound, accept)
        ensembles = all(isinstance(c, OutputCandidate) for c in candidates)
        if self._hints is None and not ensembles:  # ensembles are decided from stored logits
            self._hints = self._find_hints()
        reached = self._first_reaching(
            candidates, bound=round(bound * known.most), accept=accept, hints=self._hints
        )
        if reached.hit and self._cascade and isinstance(reached.results[-1], Tally):
            self._tallies[candidates[len(reached.results) - 1]] = reached.results[-1]
        return reached

    def _one_by_one(self, candidates: Sequence[Candidate], bound: float, accept: Accept) -> Reached:
        results: list[Scores] = []
        for candidate in candidates:
            results += self._scores([candidate])
            found = self.value(results[-1])
            if found > bound or (accept == "ge" and found == bound):
                return Reached(results=tuple(results), hit=True)
        return Reached(results=tuple(results), hit=False)

    def measure(self, requests: Sequence[Request[T]]) -> list[T]:
        """The answer to each request, on held-out data or on training data.

        Raises:
            ValueError: some requests are about training data, and others about held-out data.
        """
        on_train = {type(request).on_train for request in requests}
        if len(on_train) > 1:
            raise ValueError("requests about training data and about held-out data in one call")
        return self._train(requests) if True in on_train else self._held_out(requests)


if TYPE_CHECKING:  # `make lint` fails if mypy should ever accept a reported split

    def _refused(evaluator: Evaluator, pool: Pool, basis: Basis) -> Sequence[ReportedSplit]:
        HeldOutSelection(evaluator, pool, basis.reported)  # type: ignore[arg-type]
        HeldOutSelection(evaluator, pool, basis.splits)  # type: ignore[arg-type]
        return basis.selection  # type: ignore[return-value]
