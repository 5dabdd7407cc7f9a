"""What is known already: evaluations, decisions and measures in the store, by their contents.

    evaluations/<key>.json    Evaluation: scores and logits of one model on one split
    decisions/<key>.json      Tally or Rejected: a candidate against a bound
    answers/<key>.json        answers to requests, each in an object

A key is made of digests: the candidate's (which names its weights), the split's, the setting, and
for whatever BatchNorm statistics may be estimated for, that of the training data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from soupray.core.candidates import Candidate, WeightCandidate, mean_of
from soupray.core.ports import Accept
from soupray.core.records import (
    BlobRef,
    CheckpointRef,
    Evaluation,
    Ingredient,
    Predictions,
    Rejected,
    Setting,
    Split,
    Tally,
    digest,
)
from soupray.core.requests import Request
from soupray.evaluation.live_model import EVALUATION_VERSION, statistics_path
from soupray.maths.metrics import score
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import create_record, find_record

Decision = Tally | Rejected
Against = tuple[int, Accept, float | None]
"""What a candidate is compared with: bound, accept, and tau (None: float32 only)."""


class EvaluationCache:
    """Finds and keeps results. Create-only: whoever comes second adopts the first's."""

    def __init__(self, checkpoints: Checkpoints, setting: Setting, train: Split) -> None:
        """`train`: BatchNorm statistics of soups are estimated on it."""
        self._checkpoints, self._store, self._setting = checkpoints, checkpoints.store, setting
        self._train = train
        self._known: dict[tuple[str, ...], Evaluation] = {}

    def add(self, ingredients: tuple[Ingredient, ...]) -> None:
        """Ingredients were evaluated on held-out data when they were trained."""
        for i in ingredients:
            if i.trial.setting == self._setting:
                key = self._key(mean_of([i.checkpoint.sha256]), i.held_out.split)
                self._known[key] = Evaluation(scores=i.held_out, logits=i.logits)

    def find(self, candidate: WeightCandidate, split: Split) -> Evaluation | None:
        """The evaluation of a model, if there is one."""
        key = self._key(candidate, split.digest)
        if key not in self._known:
            found = find_record(self._store, self._path("evaluations", *key), Evaluation)
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]

    def put(self, candidate: WeightCandidate, predictions: Predictions) -> Evaluation:
        """Store logits and scores."""
        logits = save_logits(self._checkpoints, predictions)
        made = Evaluation(scores=score(predictions), logits=logits)
        path = self._path("evaluations", *self._key(candidate, predictions.split.digest))
        return create_record(self._store, path, made)

    def predictions(self, logits: BlobRef, split: Split) -> Predictions:
        """The stored logits."""
        stored = self._checkpoints.load_blob(logits.sha256)
        return Predictions(
            split=split, logits=stored["logits"].numpy(), labels=stored["labels"].numpy()
        )

    def decision(self, candidate: Candidate, split: Split, against: Against) -> Decision | None:
        """What is known of a candidate against a bound."""
        path = self._path("decisions", *self._key(candidate, split.digest), *against)
        found: Decision | None = find_record(self._store, path, Decision)
        return found

    def put_decision(
        self, candidate: Candidate, split: Split, against: Against, made: Decision
    ) -> None:
        """Store what came out of a comparison with a bound."""
        path = self._path("decisions", *self._key(candidate, split.digest), *against)
        create_record(self._store, path, made, Decision)

    def answer(self, request: Request[Any], split: Split) -> Any:
        """The answer to an earlier request, or None."""
        path = self._path("answers", request, split.digest, self._train.digest)
        found = find_record(self._store, path, _object(request.answer))
        return None if found is None else found["answer"]

    def put_answer(self, request: Request[Any], split: Split, answer: Any) -> Any:
        """Store an answer."""
        path = self._path("answers", request, split.digest, self._train.digest)
        kept = create_record(self._store, path, {"answer": answer}, _object(request.answer))
        return kept["answer"]

    def saved(self, candidate: WeightCandidate) -> CheckpointRef | None:
        """The candidate's weights, if somebody put them into the store."""
        ref: CheckpointRef | None = find_record(self._store, self._saved(candidate), CheckpointRef)
        return ref

    def put_saved(self, candidate: WeightCandidate, ref: CheckpointRef) -> CheckpointRef:
        """Store where the candidate's weights are."""
        return create_record(self._store, self._saved(candidate), ref)

    def _saved(self, candidate: WeightCandidate) -> str:
        # The statistics that are in the file depend on setting and training data.
        return self._path("soups", candidate.digest, self._train.digest)

    def statistics(self, model: WeightCandidate) -> BlobRef | None:
        """The BatchNorm statistics that a soup was evaluated with, if it has any."""
        if len(model.checkpoints) < 2:
            return None
        path = statistics_path(model, self._train, self._setting)
        ref: BlobRef | None = find_record(self._store, path, BlobRef)
        return ref

    def _key(self, candidate: Candidate, split: str) -> tuple[str, ...]:
        """What a model's outputs follow from, beside the setting.

        A soup's BatchNorm statistics depend on the training data; a single model has its own, and
        is known whatever else it is asked with.
        """
        train = (self._train.digest,) if len(candidate.checkpoints) > 1 else ()
        return (candidate.digest, split, *train)

    def _path(self, folder: layout.Results, *parts: object) -> str:
        return layout.result(folder, digest([*parts, self._setting, EVALUATION_VERSION])[:32])


def _object(answer: Any) -> Any:
    """The type of an object that holds an answer: 1.2345 alone, cut short, is another number."""
    objects: Any = dict
    return objects[str, answer]


def save_logits(checkpoints: Checkpoints, predictions: Predictions) -> BlobRef:
    """Logits [N, C] and labels [N] as one object."""
    tensors = {
        "logits": torch.from_numpy(np.ascontiguousarray(predictions.logits)),
        "labels": torch.from_numpy(np.array(predictions.labels)),
    }
    return checkpoints.save_blob(tensors, {"split": predictions.split.digest})
