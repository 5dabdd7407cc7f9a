"""A leaderboard entry as a function: soups, ensembles and VRF alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from soupray.candidates import OutputEnsemble, VRFEnsemble, WeightCandidate
from soupray.checkpoints import Checkpoints
from soupray.errors import CheckpointError, ConfigError
from soupray.maths.neighbours import kth_distances
from soupray.maths.outputs import Blender, trust, vrf_logits
from soupray.ports import Task
from soupray.recipe_file import RecipeFile, read_recipe, spec_of, weights_of
from soupray.subject import TransformersSpec
from soupray.tasks import task_of
from soupray.texts import pack

Array = npt.NDArray[np.float32]


def load(recipe: str | Path, home: Path | None = None) -> Callable[[Any], Array]:
    """The model of a leaderboard entry, as a function from a batch to probabilities.

    Args:
        recipe: a `*.recipe.json`.
        home: where the embedded store is, if the sweep used it; default as everywhere.

    Returns:
        A function of uint8 images [N, 1 or 3, H, W] (array or tensor), or of a list of N texts,
        that returns float32 probabilities [N, C]. Batches of any size; the classes are in the
        spec's order.

    Raises:
        ConfigError, NotFound, ChecksumMismatch: as `rebuild`.
    """
    from soupray.home import default_home
    from soupray.settling import settle

    read = read_recipe(Path(recipe))
    spec = spec_of(read)
    place = settle(spec, home or default_home()).place
    checkpoints = Checkpoints(place.open_store(), Path(place.cache) / "weights")
    samples = _texts if isinstance(spec.task, TransformersSpec) else _images
    return _Predictor(read, task_of(spec.task), checkpoints, samples)


def _images(batch: Any) -> torch.Tensor:
    """A batch of images as the data cache would hold it. Raises ConfigError."""
    images = torch.as_tensor(np.asarray(batch))
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ConfigError(
            f"a batch is uint8 images [N, 1 or 3, H, W], not {images.dtype} {list(images.shape)}."
        )
    return images


def _texts(batch: Any) -> torch.Tensor:
    """A batch of texts as the data cache would hold it. Raises ConfigError."""
    if isinstance(batch, str) or not all(isinstance(text, str) for text in batch):
        raise ConfigError(f"a batch is a list of texts, not {str(batch)[:60]!r}.")
    return torch.from_numpy(pack(list(batch)))


class _Predictor:
    """Holds each of the recipe's models once."""

    def __init__(
        self,
        recipe: RecipeFile,
        task: Task,
        checkpoints: Checkpoints,
        samples: Callable[[Any], torch.Tensor],
    ) -> None:
        self._candidate, self._task, self._samples = recipe.candidate, task, samples
        self._models: dict[WeightCandidate, torch.nn.Module] = {}
        for member in recipe.candidate.members:
            model = task.model()
            try:
                model.load_state_dict(weights_of(member, recipe, checkpoints))
            except RuntimeError as error:
                raise CheckpointError(
                    f"{recipe.name}: the weights do not fit the model: {error}"
                ) from error
            self._models[member] = model.eval()
        if isinstance(recipe.candidate, VRFEnsemble):
            failures = checkpoints.load(recipe.candidate.failures.sha256)
            self._failures = failures["features"].numpy()

    @torch.inference_mode()
    def __call__(self, batch: Any) -> Array:
        inputs = self._task.inputs(self._samples(batch))
        logits = torch.from_numpy(self._logits(inputs))
        answer: Array = logits.softmax(dim=1).numpy()
        return answer

    def _logits(self, inputs: torch.Tensor) -> Array:
        candidate = self._candidate
        if isinstance(candidate, OutputEnsemble):
            return Blender(lambda member: self._run(member, inputs)[0]).logits(candidate)
        if isinstance(candidate, VRFEnsemble):
            fine_tuned, features = self._run(candidate.fine_tuned, inputs)
            length = np.linalg.norm(features, axis=1, keepdims=True)
            normalised = features / np.maximum(length, np.finfo(np.float32).tiny)
            distances = kth_distances(normalised, self._failures, candidate.k)
            omega = trust(distances.astype(np.float64), candidate.a, candidate.b)
            reference, _ = self._run(candidate.reference, inputs)
            return vrf_logits(fine_tuned, reference, candidate.temperatures, omega)
        return self._run(candidate, inputs)[0]

    def _run(self, member: WeightCandidate, inputs: torch.Tensor) -> tuple[Array, Array]:
        """(logits [N, C], features [N, D])."""
        model: Any = self._models[member]
        features = model.features(inputs)
        return model.head(features).numpy(), features.numpy()
