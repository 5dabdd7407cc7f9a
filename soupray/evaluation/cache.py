"""Stored results: evaluations, decisions and answers, by the digest of what they depend on.

    evaluations/<key>.json    Evaluation: scores and logits of one model on one split
    decisions/<key>.json      Tally or Rejected: a candidate against a bound
    answers/<key>.json        answers to requests, each in an object

A key is made of digests: of the candidate (which names its weights), of the split and of the
setting. If BatchNorm statistics may be estimated for it (soups, `candidates.estimated`), the digest
of the training data is added: they are estimated on that data.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np
import torch

from soupray.core.arrays import Features
from soupray.core.candidates import WeightCandidate, as_trained, mean_of
from soupray.core.errors import CheckpointError
from soupray.core.ports import Accept
from soupray.core.records import (
    BlobRef,
    CheckpointRef,
    Evaluation,
    Predictions,
    Rejected,
    Setting,
    Split,
    Tally,
    digest,
)
from soupray.core.requests import Request
from soupray.core.trials import Ingredient
from soupray.evaluation.live_model import EVALUATION_VERSION, statistics_path
from soupray.maths.metrics import score
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import create_record, find_record

Decision = Tally | Rejected
Against = tuple[int, Accept, float | None]
"""The terms of a decision: bound, accept, and tau (None: float32 only). See `ports.Hints`."""


class EvaluationCache:
    """Finds and stores results.

    Writes are create-only: if two processes store the same result, both use the first one.
    """

    def __init__(self, checkpoints: Checkpoints, setting: Setting, train: Split) -> None:
        """`train`: the split on which BatchNorm statistics of soups are estimated."""
        self._checkpoints, self._store, self._setting = checkpoints, checkpoints.store, setting
        self._train = train
        self._known: dict[tuple[str, ...], Evaluation] = {}

    def add(self, ingredients: tuple[Ingredient, ...]) -> None:
        """Add the held-out results of ingredients. Each trial has stored its own."""
        for i in ingredients:
            if i.trial.setting == self._setting:
                key = self.key(mean_of([i.checkpoint.sha256]), i.held_out.split)
                self._known[key] = Evaluation(scores=i.held_out, logits=i.logits)

    def find(self, candidate: WeightCandidate, split: Split) -> Evaluation | None:
        """The stored evaluation of a model on a split, or None."""
        key = self.key(candidate, split.digest)
        if key not in self._known:
            found = find_record(self._store, self.path("evaluations", *key), Evaluation)
            if found is None:
                return None
            if found.scores.split != split.digest:
                raise CheckpointError(
                    f"{self.path('evaluations', *key)} in {self._store.url} is about other data "
                    f"than split {split.name}: it was copied there, or edited. Delete it and run "
                    "again."
                )
            self._known[key] = found
        return self._known[key]

    def put(self, candidate: WeightCandidate, predictions: Predictions) -> Evaluation:
        """Store a model's logits, and the scores that are computed from them."""
        logits = save_logits(self._checkpoints, predictions)
        made = Evaluation(scores=score(predictions), logits=logits)
        path = self.path("evaluations", *self.key(candidate, predictions.split.digest))
        return create_record(self._store, path, made)

    def predictions(self, logits: BlobRef, split: Split) -> Predictions:
        """Load stored logits, with the labels of `split`."""
        stored = self._checkpoints.load_blob(logits.sha256)
        if not {"logits", "labels"} <= stored.keys() or len(stored["labels"]) != split.size:
            raise CheckpointError(
                f"{layout.blob(logits.sha256)} in {self._store.url} does not have the logits of "
                f"the {split.size} samples of split {split.name}. The record that names it was "
                "copied or edited: delete that record and run again."
            )
        return Predictions(
            split=split, logits=stored["logits"].numpy(), labels=stored["labels"].numpy()
        )

    def features(self, ref: BlobRef) -> Features:
        """Load stored features, [n, D]."""
        found: Features = self._checkpoints.load_blob(ref.sha256)["features"].numpy()
        return found

    def decision(
        self, candidate: WeightCandidate, split: Split, against: Against
    ) -> Decision | None:
        """The stored decision about a candidate on `split`, with the terms `against`, or None."""
        path = self.path("decisions", *self.key(candidate, split.digest), *against)
        found: Decision | None = find_record(self._store, path, Decision)
        return found

    def put_decision(
        self, candidate: WeightCandidate, split: Split, against: Against, made: Decision
    ) -> None:
        """Store the decision `made` about a candidate on `split`, with the terms `against`."""
        path = self.path("decisions", *self.key(candidate, split.digest), *against)
        create_record(self._store, path, made, Decision)

    def answer(self, request: Request[Any], split: Split) -> Any:
        """The stored answer to a request, or None."""
        path = self.path("answers", request, split.digest, self._train.digest)
        found = find_record(self._store, path, _object(request.answer))
        return None if found is None else found.answer

    def put_answer(self, request: Request[Any], split: Split, answer: Any) -> Any:
        """Store an answer, and return the answer that is stored under its key."""
        path = self.path("answers", request, split.digest, self._train.digest)
        kept: Any = create_record(self._store, path, {"answer": answer}, _object(request.answer))
        return kept.answer

    def saved(self, candidate: WeightCandidate) -> CheckpointRef | None:
        """The reference of the candidate's weights if they are stored, or None."""
        ref: CheckpointRef | None = find_record(self._store, self._saved(candidate), CheckpointRef)
        return ref

    def put_saved(self, candidate: WeightCandidate, ref: CheckpointRef) -> CheckpointRef:
        """Store the reference of the candidate's weights."""
        return create_record(self._store, self._saved(candidate), ref)

    def _saved(self, candidate: WeightCandidate) -> str:
        # The file contains BatchNorm statistics, which depend on the setting and on training data.
        return self.path("soups", candidate.digest, self._train.digest)

    def statistics(self, model: WeightCandidate) -> BlobRef | None:
        """The BatchNorm statistics that were estimated for a model, or None: it has its own."""
        if as_trained(model):
            return None
        path = statistics_path(model, self._train, self._setting)
        ref: BlobRef | None = find_record(self._store, path, BlobRef)
        return ref

    def key(self, candidate: WeightCandidate, split: str) -> tuple[str, ...]:
        """The digests on which a model's outputs depend, except the setting.

        Estimated BatchNorm statistics depend on the training data. A single model as trained has
        its own statistics, so that its results are found for any training data.
        """
        return result_key(candidate, split, self._train.digest)

    def path(self, folder: layout.Results, *parts: object) -> str:
        """The object of a result that depends on `parts`, the setting and the version."""
        return result_path(folder, self._setting, *parts)


def result_key(candidate: WeightCandidate, split: str, train: str) -> tuple[str, ...]:
    """See `EvaluationCache.key`.

    Args:
        candidate: the model.
        split: digest of the split.
        train: digest of the training data.
    """
    return (candidate.digest, split, *(() if as_trained(candidate) else (train,)))


def result_path(folder: layout.Results, setting: Setting, *parts: object) -> str:
    """See `EvaluationCache.path`.

    Args:
        folder: the kind of the record.
        setting: how the model is evaluated.
        *parts: what else the result depends on.
    """
    return layout.result(folder, digest([*parts, setting, EVALUATION_VERSION])[:32])


@functools.cache
def _object(answer: Any) -> Any:
    """The type of a JSON object with an answer in it.

    The object shows that a file is complete: 1.2345 alone, cut short, would be another number.
    """
    return msgspec.defstruct("Answered", [("answer", answer)], forbid_unknown_fields=True)


def save_logits(checkpoints: Checkpoints, predictions: Predictions) -> BlobRef:
    """Store logits and labels as one object, and return its reference."""
    tensors = {
        "logits": torch.from_numpy(np.ascontiguousarray(predictions.logits)),
        "labels": torch.from_numpy(np.array(predictions.labels)),
    }
    return checkpoints.save_blob(tensors, {"split": predictions.split.digest})
