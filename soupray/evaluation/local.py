"""Workers in this process: one live model, the memory-mapped ingredients, and the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from soupray.core.candidates import WeightCandidate
from soupray.core.ports import Reached, Task
from soupray.core.records import CheckpointRef, Predictions, Setting, Split
from soupray.core.requests import Request
from soupray.data.cache import Data
from soupray.evaluation.cache import EvaluationCache
from soupray.evaluation.live_model import LiveModel, about
from soupray.evaluation.measures import Bench, answer
from soupray.evaluation.schedule import Answer, FirstReaching, Unit
from soupray.maths.metrics import sample_values
from soupray.store.checkpoints import AHEAD, Checkpoints


class LocalWorkers:
    """The `evaluator.Workers` of this process. Each actor of Ray has one.

    They compute and store every result of a call. The evaluator calls them only for results that
    are not stored.
    """

    def __init__(self, task: Task, data: Data, checkpoints: Checkpoints, setting: Setting) -> None:
        self._data, self._checkpoints, self._setting = data, checkpoints, setting
        train = data.split("train")
        self.live = LiveModel(task, checkpoints, setting, (train, data.samples(train)[0]))
        self.cache = EvaluationCache(checkpoints, setting, train)

    def evaluate(
        self,
        candidates: Sequence[WeightCandidate],
        splits: Sequence[Split],
        done: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Evaluate every candidate on every split, and store logits and scores."""
        for candidate in candidates:
            for split in splits:
                self.cache.put(candidate, self.predictions(candidate, split))
                done(1)

    def predictions(self, candidate: WeightCandidate, split: Split) -> Predictions:
        """The logits of a candidate on `split`, by a forward pass. They are not stored."""
        images, labels = self._data.samples(split)
        logits, _ = self.live.predict(candidate, images, self.live.low)
        return Predictions(split=split, logits=logits, labels=np.asarray(labels))

    def decide(
        self,
        schedule: FirstReaching,
        candidates: Sequence[WeightCandidate],
        split: Split,
        tau: float | None,
    ) -> Reached:
        """Run units of the schedule, one at a time, until its answer is certain."""
        while (reached := schedule.answer()) is None:
            unit = schedule.next()
            assert unit is not None
            coming = ahead(candidates, unit.candidate)
            schedule.take(unit, self.run(unit, candidates[unit.candidate], split, tau, coming))
        return reached

    def run(
        self,
        unit: Unit,
        candidate: WeightCandidate,
        split: Split,
        tau: float | None,
        coming: Sequence[str],
    ) -> Answer:
        """Run one batch of one candidate.

        Args:
            unit: which samples, and in which precision.
            candidate: the model.
            split: the data.
            tau: a bfloat16 result with a smaller margin is unsure.
            coming: SHA-256 of checkpoints to fetch in the background.
        """
        images, labels = self._data.samples(split)
        self.live.load(candidate, torch.bfloat16 if unit.low else torch.float32)
        # The candidate's own checkpoints are fetched first: all share one network card.
        self._checkpoints.expect(coming)
        rows = np.asarray(unit.rows)
        logits, _ = self.live.predict(candidate, images[rows], unit.low)
        said = Predictions(split=split, logits=logits, labels=np.asarray(labels[rows]))
        values = sample_values(said)
        if not unit.low or tau is None:
            return Answer(values, np.zeros(len(rows), bool))
        top = np.partition(logits, -2, axis=1)[:, -2:]
        return Answer(values, top[:, 1] - top[:, 0] < tau)

    def measure(self, requests: Sequence[Request[Any]], split: Split) -> list[Any]:
        """The answer to each request on `split`, in the order of `requests`."""
        images, labels = self._data.samples(split)
        bench = Bench(self.live, self._checkpoints, images, labels, split)
        return [self._measure(request, split, bench) for request in requests]

    def _measure(self, request: Request[Any], split: Split, bench: Bench) -> Any:
        made = answer(request, bench)
        return self.cache.put_answer(request, split, made) if type(request).kept else made

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """Store the candidate's weights as one checkpoint, and return its reference."""
        saved = self._checkpoints.save(self.live.tensors(candidate), about(candidate))
        return self.cache.put_saved(candidate, saved)


def ahead(candidates: Sequence[WeightCandidate], at: int) -> list[str]:
    """SHA-256 of the checkpoints that the next AHEAD candidates need in addition.

    Args:
        candidates: all candidates, in the order of evaluation.
        at: position of the candidate that runs now.
    """
    here = set(candidates[at].checkpoints)
    following = (c.checkpoints for c in candidates[at + 1 : at + 1 + AHEAD])
    return [sha for shas in following for sha in shas if sha not in here]
