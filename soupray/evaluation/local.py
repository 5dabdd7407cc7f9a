"""The evaluator in this process: builds a candidate's weights, runs it over a split, counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from soupray.checkpoints import Checkpoints
from soupray.data.cache import Data
from soupray.errors import EvaluationError
from soupray.maths.metrics import score
from soupray.maths.weights import Mixer
from soupray.ports import Accept, Reached, Task
from soupray.records import Candidate, CheckpointRef, Predictions, Scores, Setting, Split


class LocalEvaluator:
    """Holds one live model, one running sum and the memory-mapped ingredients, however many."""

    def __init__(self, task: Task, data: Data, checkpoints: Checkpoints, setting: Setting) -> None:
        self._task, self._data, self._setting = task, data, setting
        self._checkpoints = checkpoints
        self._mixer = Mixer(checkpoints.open)
        self._model: torch.nn.Module | None = None
        self._loaded: Candidate | None = None

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        """See `ports.Evaluator`."""
        return [score(self.predictions(candidate, split)) for candidate in candidates]

    def first_reaching(
        self, candidates: Sequence[Candidate], split: Split, bound: int, accept: Accept
    ) -> Reached:
        """See `ports.Evaluator`."""
        results: list[Scores] = []
        for candidate in candidates:
            results += self.scores([candidate], split)
            if reaches(results[-1], bound, accept):
                return Reached(results=tuple(results), hit=True)
        return Reached(results=tuple(results), hit=False)

    def predictions(self, candidate: Candidate, split: Split) -> Predictions:
        """See `ports.Evaluator`. Raises EvaluationError if a logit is not finite."""
        images, labels = self._data.samples(split)
        logits = predict(self._load(candidate), self._task, images, self._setting)
        if not np.isfinite(logits).all():
            raise EvaluationError(
                f"candidate {candidate.digest[:12]} gives logits that are not finite on "
                f"{split.name}: one of its ingredients "
                f"({', '.join(sha[:12] for sha in candidate.checkpoints)}) is broken."
            )
        return Predictions(split=split, logits=logits, labels=np.asarray(labels))

    def save(self, candidate: Candidate) -> CheckpointRef:
        """See `ports.Evaluator`."""
        return self._checkpoints.save(dict(self._mixer.tensors(candidate)), about(candidate))

    def _load(self, candidate: Candidate) -> torch.nn.Module:
        """The live model with the candidate's weights, copied in tensor by tensor."""
        if self._model is None:
            self._model = self._task.model().to(self._setting.device)
        if self._loaded != candidate:
            self._loaded = None
            slots = self._model.state_dict()
            seen = set()
            for name, tensor in self._mixer.tensors(candidate):
                if name not in slots or slots[name].shape != tensor.shape:
                    raise EvaluationError(
                        f"tensor {name!r} {list(tensor.shape)} of candidate "
                        f"{candidate.digest[:12]} does not fit the model of this spec."
                    )
                slots[name].copy_(tensor)
                seen.add(name)
            if seen != set(slots):
                missing = sorted(set(slots) - seen)[0]
                raise EvaluationError(
                    f"candidate {candidate.digest[:12]} has no tensor {missing!r}, which the "
                    "model of this spec needs."
                )
            self._loaded = candidate
        return self._model


def about(candidate: Candidate) -> dict[str, str]:
    """What a soup's file says of itself."""
    return {"candidate": candidate.digest}


def reaches(scores: Scores, bound: int, accept: Accept) -> bool:
    """Whether a count is accepted against `bound`."""
    return scores.correct > bound if accept == "gt" else scores.correct >= bound


@torch.inference_mode()
def predict(
    model: torch.nn.Module, task: Task, images: npt.NDArray[np.uint8], setting: Setting
) -> npt.NDArray[np.float32]:
    """Logits [N, C] float32 of `images` [N, ...].

    A short last batch is padded with zeros: the batch shape changes the low bits of every logit,
    so that it must be the same for all models and shards.
    """
    model.eval()
    parts = []
    for start in range(0, len(images), setting.batch_size):
        batch = torch.from_numpy(np.array(images[start : start + setting.batch_size]))
        real = len(batch)
        if real < setting.batch_size:
            padding = batch.new_zeros((setting.batch_size - real, *batch.shape[1:]))
            batch = torch.cat([batch, padding])
        logits = model(task.inputs(batch.to(setting.device)))
        parts.append(logits[:real].to(torch.float32).cpu().numpy())
    return np.concatenate(parts)
