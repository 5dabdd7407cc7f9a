"""Scores and soups kept in the store: nothing is evaluated twice, whoever did it first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from soupray.checkpoints import create_record, find_record
from soupray.evaluation.local import reaches
from soupray.ports import Accept, Evaluator, Reached
from soupray.records import (
    Candidate,
    CheckpointRef,
    Predictions,
    Rejected,
    Scores,
    Setting,
    Split,
    digest,
)
from soupray.storage import Store


class Remembered:
    """An `ports.Evaluator` around another one: looks scores up, and stores what it must ask for.

    On Ray it stands twice: in each actor around the local evaluator, so that a score is stored as
    soon as there is one, and in the driver, so that no actor is started for what is known.
    The key is made of contents: the candidate's digest (which names its weights), the split's
    digest, and the setting.
    """

    def __init__(
        self,
        inner: Evaluator,
        store: Store,
        setting: Setting,
        on_result: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner, self._store, self._setting = inner, store, setting
        self.on_result = on_result

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        """See `ports.Evaluator`."""
        known = {c: self._find(c, split) for c in dict.fromkeys(candidates)}
        missing = [c for c, scores in known.items() if scores is None]
        if missing:
            for candidate, scores in zip(missing, self._inner.scores(missing, split), strict=True):
                known[candidate] = self._keep(candidate, split, scores)
        found = [known[c] for c in candidates]
        return [scores for scores in found if scores is not None]

    def first_reaching(
        self, candidates: Sequence[Candidate], split: Split, bound: int, accept: Accept
    ) -> Reached:
        """See `ports.Evaluator`."""
        results: list[Scores | Rejected] = []
        for candidate in candidates:
            scores = self._find(candidate, split)
            if scores is None:
                break
            results.append(scores)
            if reaches(scores, bound, accept):
                return Reached(results=tuple(results), hit=True)
        rest = list(candidates[len(results) :])
        if not rest:
            return Reached(results=tuple(results), hit=False)
        reached = self._inner.first_reaching(rest, split, bound, accept)
        for candidate, result in zip(rest, reached.results, strict=False):
            if isinstance(result, Scores):
                result = self._keep(candidate, split, result)
            results.append(result)
        return Reached(results=tuple(results), hit=reached.hit)

    def predictions(self, candidate: Candidate, split: Split) -> Predictions:
        """See `ports.Evaluator`."""
        return self._inner.predictions(candidate, split)

    def save(self, candidate: Candidate) -> CheckpointRef:
        """See `ports.Evaluator`."""
        path = f"soups/{candidate.digest}.json"
        ref: CheckpointRef | None = find_record(self._store, path, CheckpointRef)
        return ref or create_record(self._store, path, self._inner.save(candidate))

    def _path(self, candidate: Candidate, split: Split) -> str:
        key = digest([candidate.digest, split.digest, self._setting])
        return f"evaluations/{key[:32]}.json"

    def _find(self, candidate: Candidate, split: Split) -> Scores | None:
        found: Scores | None = find_record(self._store, self._path(candidate, split), Scores)
        if found is not None:
            self.on_result()
        return found

    def _keep(self, candidate: Candidate, split: Split, scores: Scores) -> Scores:
        return create_record(self._store, self._path(candidate, split), scores)
