"""The evaluator: reads stored results, lets workers compute the others, and makes ensembles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from soupray.core.arrays import Float32, Mask
from soupray.core.candidates import (
    Candidate,
    EntropyEnsemble,
    OutputCandidate,
    OutputEnsemble,
    VRFEnsemble,
    WeightCandidate,
)
from soupray.core.errors import EvaluationError
from soupray.core.ports import Accept, Hints, Reached
from soupray.core.records import (
    BlobRef,
    CheckpointRef,
    Predictions,
    Rejected,
    Scores,
    Setting,
    Split,
    Tally,
    pack_right,
    unpack_right,
)
from soupray.core.requests import (
    Distances,
    Embedding,
    Failures,
    FailureSet,
    Features,
    Margins,
    Request,
    Right,
    Temperature,
)
from soupray.evaluation.cache import Against, EvaluationCache
from soupray.evaluation.schedule import FirstReaching, Goal, Precision
from soupray.maths.metrics import margins, score
from soupray.maths.outputs import Blender, entropy_logits, fit_temperature, trust, vrf_logits
from soupray.maths.own_metric import graded_by
from soupray.maths.retrieval import side_by_side

T = TypeVar("T")
CACHED_LOGITS = 4
"""Number of models whose logits stay in memory. Recipes mix the same two models many times, and add
others one by one."""


class Workers(Protocol):
    """Runs models: in this process, or on actors of Ray."""

    def evaluate(
        self,
        candidates: Sequence[WeightCandidate],
        splits: Sequence[Split],
        done: Callable[[int], None],
    ) -> None:
        """Evaluate every candidate on every split, and store logits and scores.

        Args:
            candidates: the models.
            splits: the data.
            done: is called with the number of evaluations that are newly stored.
        """
        ...

    def decide(
        self,
        schedule: FirstReaching,
        candidates: Sequence[WeightCandidate],
        split: Split,
        tau: float | None,
    ) -> Reached:
        """Run units of the schedule until its answer is certain.

        Args:
            schedule: says which batch to run next.
            candidates: the models that the schedule numbers.
            split: the data.
            tau: see `ports.Hints`.
        """
        ...

    def measure(self, requests: Sequence[Request[Any]], split: Split) -> list[Any]:
        """The answer to each request, in the order of `requests`, and store it if it is kept."""
        ...

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """Store the candidate's weights as one checkpoint, and return its reference."""
        ...


class Site(NamedTuple):
    """The workers for models of one spec, and the stored results of these models."""

    workers: Workers
    cache: EvaluationCache
    setting: Setting


class StoredEvaluator:
    """A `ports.Evaluator` that reads every stored result, and computes only the others.

    Attributes:
        on_result: is called with the number of results that are newly known.
    """

    def __init__(self, site: Site, others: dict[str, Site] | None = None) -> None:
        """`others`: the site of each checkpoint that does not belong to `site`, by SHA-256."""
        self._home, self._others = site, others or {}
        self.on_result: Callable[[int], None] = lambda count: None
        self._blenders: dict[str, Blender] = {}
        self._distances = functools.lru_cache(maxsize=16)(self._find_distances)
        self._logits = functools.lru_cache(maxsize=CACHED_LOGITS)(self._load)

    def _site(self, checkpoint: str) -> Site:
        return self._others.get(checkpoint, self._home)

    def _of(self, model: WeightCandidate) -> Site:
        return self._site(model.checkpoints[0])

    def fill(self, candidates: Sequence[Candidate], splits: Sequence[Split]) -> None:
        """Evaluate the members of `candidates` on `splits`, where no result is stored.

        The weights of each member are loaded once.
        """
        members = list(dict.fromkeys(m for c in candidates for m in c.members))
        todo: dict[tuple[Site, tuple[Split, ...]], list[WeightCandidate]] = {}

        def unknown(member: WeightCandidate) -> tuple[Split, ...]:
            return tuple(s for s in splits if self._of(member).cache.find(member, s) is None)

        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(unknown, members))
        for member, missing in zip(members, found, strict=True):
            self.on_result(len(splits) - len(missing))
            if missing:
                todo.setdefault((self._of(member), missing), []).append(member)
        for (site, missing), group in todo.items():
            site.workers.evaluate(group, missing, self.on_result)

    def unknown(self, candidates: Sequence[Candidate], split: Split) -> list[WeightCandidate]:
        """The members of `candidates` that have no stored result on `split`, each once."""
        members = dict.fromkeys(m for c in candidates for m in c.members)
        return [m for m in members if self._of(m).cache.find(m, split) is None]

    def knows(self, request: Request[Any], split: Split) -> bool:
        """Whether the answer to a request is stored, or follows from stored results."""
        return self._known(request, split) is not None

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        """The scores of each candidate on `split`, in the order of `candidates`."""
        self.fill(candidates, [split])
        found = []
        for candidate in candidates:
            if isinstance(candidate, OutputCandidate):
                found.append(score(self.predictions(candidate, split)))
            else:
                evaluation = self._of(candidate).cache.find(candidate, split)
                assert evaluation is not None
                found.append(evaluation.scores)
        return found

    def predictions(self, candidate: Candidate, split: Split) -> Predictions:
        """The logits of a model or an ensemble of any kind on `split`."""
        if split.objective and split.objective.kind == "retrieval":
            return self._embeddings(candidate, split)
        if isinstance(candidate, OutputEnsemble):
            blender = self._blenders.setdefault(
                split.digest, Blender(lambda member: self._logits(member, split).logits)
            )
            logits = blender.logits(candidate)
        elif isinstance(candidate, VRFEnsemble):
            distances = self._distances(
                Distances(
                    fine_tuned=candidate.fine_tuned, failures=candidate.failures, k=candidate.k
                ),
                split,
            )
            ft, ref = (self._logits(m, split).logits for m in candidate.members)
            omega = trust(distances, candidate.a, candidate.b)
            logits = vrf_logits(ft, ref, candidate.temperatures, omega)
        elif isinstance(candidate, EntropyEnsemble):
            each = [self._logits(member, split).logits for member in candidate.members]
            logits = entropy_logits(each, [t for _, t in candidate.parts])
        else:
            return self._logits(candidate, split)
        labels = self._logits(candidate.members[0], split).labels
        return Predictions(split=split, logits=logits, labels=labels)

    def _embeddings(self, candidate: Candidate, split: Split) -> Predictions:
        """The embeddings of a model, or those of an ensemble side by side."""
        if not isinstance(candidate, OutputCandidate):
            return self._logits(candidate, split)
        if not isinstance(candidate, OutputEnsemble) or candidate.space != "logits":
            raise EvaluationError(
                f"{candidate.digest[:12]} mixes class probabilities, which embeddings do not have: "
                "in retrieval an ensemble is the mean of similarities"
            )
        known = [self._logits(member, split) for member, _, _ in candidate.parts]
        shares = [n / candidate.denominator / t for _, n, t in candidate.parts]
        logits = side_by_side([(p.logits, s) for p, s in zip(known, shares, strict=True)])
        return Predictions(split=split, logits=logits, labels=known[0].labels)

    def first_reaching(
        self,
        candidates: Sequence[Candidate],
        split: Split,
        bound: int,
        accept: Accept,
        hints: Hints | None = None,
    ) -> Reached:
        """Find the first candidate whose correct count reaches `bound`.

        Ensembles are decided from stored logits. See `ports.Evaluator.first_reaching`.
        """
        hints = hints or Hints(lambda candidate: tuple(range(split.size)), None)
        results: list[Scores | Tally | Rejected] = []
        for position, candidate in enumerate(candidates):
            result = self._known_or_cheap(candidate, split, (bound, accept, hints.tau))
            if result is None:
                rest = candidates[position:]
                reached = self._decide(rest, split, (bound, accept), hints)
                return Reached(results=(*results, *reached.results), hit=reached.hit)
            results.append(result)
            self.on_result(1)
            if reaches(result, bound, accept):
                return Reached(results=tuple(results), hit=True)
        return Reached(results=tuple(results), hit=False)

    def _known_or_cheap(
        self, candidate: Candidate, split: Split, against: Against
    ) -> Scores | Tally | Rejected | None:
        if isinstance(candidate, OutputCandidate):
            return self.scores([candidate], split)[0]
        cache = self._of(candidate).cache
        # The decision is read first: a repeated run then has the same records as the first run.
        decision = cache.decision(candidate, split, against)
        if decision is not None:
            return decision
        evaluation = cache.find(candidate, split)
        return evaluation.scores if evaluation else None

    def _decide(
        self,
        candidates: Sequence[Candidate],
        split: Split,
        goal: tuple[int, Accept],
        hints: Hints,
    ) -> Reached:
        models = [c for c in candidates if not isinstance(c, OutputCandidate)]
        assert len(models) == len(candidates), "weight soups and ensembles in one call"
        site = self._of(models[0])
        precision: Precision = site.setting.precision if hints.tau is None else "cascade"
        schedule = FirstReaching(
            len(models),
            lambda index: hints.order(models[index]),
            site.setting.batch_size,
            Goal(*goal, graded_by(split)),
            precision,
        )
        reached = site.workers.decide(schedule, models, split, hints.tau)
        for candidate, result in zip(models, reached.results, strict=False):
            assert not isinstance(result, Scores)
            site.cache.put_decision(candidate, split, (*goal, hints.tau), result)
            self.on_result(1)
        return reached

    def measure(self, requests: Sequence[Request[T]], split: Split) -> list[T]:
        """The answer to each request on `split`, in the order of `requests`.

        Equal requests are answered once. Stored answers are not computed again.
        """
        unique: list[Request[T]] = list(dict.fromkeys(requests))
        with ThreadPoolExecutor(16) as threads:
            known = list(threads.map(lambda r: self._known(r, split), unique))
        answers: dict[Request[T], Any] = dict(zip(unique, known, strict=True))
        todo: dict[Site, list[Request[T]]] = {}
        for request in unique:
            if answers[request] is None:
                answers[request] = self._composed(request, split)
            if answers[request] is None:
                todo.setdefault(self._site(request.about), []).append(request)
        for site, asked in todo.items():
            answers |= dict(zip(asked, site.workers.measure(asked, split), strict=True))
        return [answers[request] for request in requests]

    def features(self, model: WeightCandidate, rows: Mask, split: Split) -> Float32:
        """The features [n, D] of a model on the samples of `split` that `rows` marks."""
        (ref,) = self.measure([Embedding(model=model, rows=pack_right(rows))], split)
        return self._of(model).cache.features(ref)

    def _known(self, request: Request[Any], split: Split) -> Any:
        """The stored answer, or None."""
        if not type(request).kept:
            return None
        return self._site(request.about).cache.answer(request, split)

    @functools.singledispatchmethod
    def _composed(self, request: Request[Any], split: Split) -> Any:
        """The answer to a request that follows from other answers. None: workers measure it."""
        return None

    @_composed.register
    def _(self, request: Temperature, split: Split) -> float:
        self.fill([request.candidate], [split])
        p = self.predictions(request.candidate, split)
        return fit_temperature(p.logits, p.labels)

    @_composed.register
    def _(self, request: Margins, split: Split) -> tuple[float, ...]:
        stored = self._site(request.about).cache.predictions(request.logits, split)
        return tuple(margins(stored).tolist())

    @_composed.register
    def _(self, request: Failures, split: Split) -> FailureSet:
        """The failure set: VRF, algorithm 1, step 1. The two models may have different sites."""
        asked = [Right(model=request.fine_tuned), Right(model=request.reference)]
        right, reference = (unpack_right(r, split.size) for r in self.measure(asked, split))
        rows = right & ~reference
        if not rows.any():
            return FailureSet(features=None, size=0)
        wanted = Features(model=request.fine_tuned, rows=pack_right(rows))
        (features,) = self.measure([wanted], split)
        return FailureSet(features=features, size=int(rows.sum()))

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """Store the candidate's weights if they are not stored, and return their reference."""
        site = self._of(candidate)
        return site.cache.saved(candidate) or site.workers.save(candidate)

    def statistics(self, candidates: Iterable[Candidate]) -> dict[str, BlobRef]:
        """The stored BatchNorm statistics of the soups in `candidates`, by the soup's digest."""
        members = dict.fromkeys(m for c in candidates for m in c.members)
        found = {m.digest: self._of(m).cache.statistics(m) for m in members}
        return {name: ref for name, ref in found.items() if ref is not None}

    def _load(self, candidate: WeightCandidate, split: Split) -> Predictions:
        cache = self._of(candidate).cache
        evaluation = cache.find(candidate, split)
        if evaluation is None:
            self.fill([candidate], [split])
            evaluation = cache.find(candidate, split)
            assert evaluation is not None
        return cache.predictions(evaluation.logits, split)

    def _find_distances(self, request: Distances, split: Split) -> Any:
        return np.asarray(self.measure([request], split)[0])


def reaches(result: Scores | Tally | Rejected, bound: int, accept: Accept) -> bool:
    """Whether the correct count of a result reaches `bound`. A `Rejected` never does.

    Args:
        result: of one candidate.
        bound: a number of samples; of a graded metric a sum of values, in units.
        accept: "ge": the count must be at least `bound`. "gt": it must be larger.
    """
    if isinstance(result, Rejected):
        return False
    return result.correct > bound if accept == "gt" else result.correct >= bound
