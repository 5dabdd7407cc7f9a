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
from soupray.evaluation.live_model import LiveModel
from soupray.evaluation.measures import Bench, answer
from soupray.evaluation.schedule import Answer, FirstReaching, Unit
from soupray.store.checkpoints import AHEAD, Checkpoints


class LocalWorkers:
    """See `evaluator.Workers`. One of these works in each of Ray's actors.

    They compute and store whatever they are asked for: the evaluator asks for what is not known.
    """

    def __init__(self, task: Task, data: Data, checkpoints: Checkpoints, setting: Setting) -> None:
        self._data, self._checkpoints, self._setting = data, checkpoints, setting
        train = data.split("train")
        self._live = LiveModel(task, checkpoints, setting, (train, data.samples(train)[0]))
        self.cache = EvaluationCache(checkpoints, setting, train)

    def evaluate(
        self,
        candidates: Sequence[WeightCandidate],
        splits: Sequence[Split],
        done: Callable[[int], None] = lambda count: None,
    ) -> None:
        """See `evaluator.Workers`."""
        for candidate in candidates:
            for split in splits:
                self.cache.put(candidate, self.predictions(candidate, split))
                done(1)

    def predictions(self, candidate: WeightCandidate, split: Split) -> Predictions:
        """Logits on every sample, by a forward pass."""
        images, labels = self._data.samples(split)
        logits, _ = self._live.predict(candidate, images, self._live.low)
        return Predictions(split=split, logits=logits, labels=np.asarray(labels))

    def decide(
        self,
        schedule: FirstReaching,
        candidates: Sequence[WeightCandidate],
        split: Split,
        tau: float | None,
    ) -> Reached:
        """See `evaluator.Workers`."""
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
        """One batch of one candidate.

        `tau`: the margin below which bfloat16 is not believed. `coming`: checkpoints that are
        fetched meanwhile.
        """
        images, labels = self._data.samples(split)
        self._live.load(candidate, torch.bfloat16 if unit.low else torch.float32)
        self._checkpoints.expect(coming)  # after its own: they share the network card
        rows = np.asarray(unit.rows)
        logits, _ = self._live.predict(candidate, images[rows], unit.low)
        right = logits.argmax(axis=1) == labels[rows]
        if not unit.low or tau is None:
            return Answer(right, np.zeros(len(rows), bool))
        top = np.partition(logits, -2, axis=1)[:, -2:]
        return Answer(right, top[:, 1] - top[:, 0] < tau)

    def measure(self, requests: Sequence[Request[Any]], split: Split) -> list[Any]:
        """See `evaluator.Workers`."""
        images, labels = self._data.samples(split)
        bench = Bench(self._live, self._checkpoints, images, labels)
        return [self._measure(request, split, bench) for request in requests]

    def _measure(self, request: Request[Any], split: Split, bench: Bench) -> Any:
        made = answer(request, bench)
        return self.cache.put_answer(request, split, made) if type(request).kept else made

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """See `evaluator.Workers`."""
        saved = self._checkpoints.save(self._live.tensors(candidate), about(candidate))
        return self.cache.put_saved(candidate, saved)


def ahead(candidates: Sequence[WeightCandidate], at: int) -> list[str]:
    """The checkpoints that come into use with the next AHEAD candidates."""
    here = set(candidates[at].checkpoints)
    following = (c.checkpoints for c in candidates[at + 1 : at + 1 + AHEAD])
    return [sha for shas in following for sha in shas if sha not in here]


def about(candidate: WeightCandidate) -> dict[str, str]:
    """What a soup's file says of itself."""
    return {"candidate": candidate.digest}
