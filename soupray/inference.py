"""A leaderboard entry as a function: soups, ensembles and VRF alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from soupray.candidates import OutputEnsemble, VRFEnsemble, WeightCandidate
from soupray.checkpoints import Checkpoints
from soupray.errors import CheckpointError, ConfigError
from soupray.maths.neighbours import kth_distances
from soupray.maths.outputs import Blender, trust, vrf_logits
from soupray.ports import Task
from soupray.recipe_file import RecipeFile, read_recipe, spec_of, specs_of, weights_of
from soupray.spec import SweepSpec
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
    home = home or default_home()

    @functools.cache
    def source(spec: SweepSpec) -> _Source:
        place = settle(spec, home).place
        weights = Checkpoints(place.open_store(), place.folder / "weights")
        return _Source(task_of(spec.task), weights, spec.setting.precision)

    sources = {digest: source(spec) for digest, spec in specs_of(read).items()}
    return _Predictor(read, sources, _texts if spec_of(read).data.kind == "text" else _images)


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


class _Source(NamedTuple):
    """What makes the models of one spec."""

    task: Task
    checkpoints: Checkpoints
    precision: str


class _Predictor:
    """Holds each of the recipe's models once. `sources`: by checkpoint, of the others by ""."""

    def __init__(
        self,
        recipe: RecipeFile,
        sources: dict[str, _Source],
        samples: Callable[[Any], torch.Tensor],
    ) -> None:
        self._candidate, self._samples = recipe.candidate, samples
        self._models: dict[WeightCandidate, tuple[Task, torch.nn.Module]] = {}
        for member in recipe.candidate.members:
            task, checkpoints, precision = sources.get(member.checkpoints[0], sources[""])
            model = task.model()
            try:
                model.load_state_dict(weights_of(member, recipe, checkpoints))
            except RuntimeError as error:
                raise CheckpointError(
                    f"{recipe.name}: the weights do not fit the model: {error}"
                ) from error
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            self._models[member] = (task, model.to(dtype).eval())
        if isinstance(recipe.candidate, VRFEnsemble):
            home = sources.get(recipe.candidate.fine_tuned.checkpoints[0], sources[""])
            failures = home.checkpoints.load(recipe.candidate.failures.sha256)
            self._failures = failures["features"].numpy()

    @torch.inference_mode()
    def __call__(self, batch: Any) -> Array:
        logits = torch.from_numpy(self._logits(self._samples(batch)))
        answer: Array = logits.softmax(dim=1).numpy()
        return answer

    def _logits(self, images: torch.Tensor) -> Array:
        candidate = self._candidate
        if isinstance(candidate, OutputEnsemble):
            return Blender(lambda member: self._run(member, images)[0]).logits(candidate)
        if isinstance(candidate, VRFEnsemble):
            fine_tuned, features = self._run(candidate.fine_tuned, images)
            length = np.linalg.norm(features, axis=1, keepdims=True)
            normalised = features / np.maximum(length, np.finfo(np.float32).tiny)
            distances = kth_distances(normalised, self._failures, candidate.k)
            omega = trust(distances.astype(np.float64), candidate.a, candidate.b)
            reference, _ = self._run(candidate.reference, images)
            return vrf_logits(fine_tuned, reference, candidate.temperatures, omega)
        return self._run(candidate, images)[0]

    def _run(self, member: WeightCandidate, images: torch.Tensor) -> tuple[Array, Array]:
        """(logits [N, C], features [N, D])."""
        task, module = self._models[member]
        model: Any = module
        inputs = task.inputs(images)
        if inputs.is_floating_point():
            inputs = inputs.to(next(module.parameters()).dtype)
        features = model.features(inputs)
        return model.head(features).float().numpy(), features.float().numpy()
