"""Load the model of a leaderboard entry as a function: a soup, an ensemble or VRF."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from soupray.core.arrays import Logits, Probabilities
from soupray.core.candidates import OutputEnsemble, VRFEnsemble, WeightCandidate
from soupray.core.errors import CheckpointError, ConfigError
from soupray.core.ports import Task
from soupray.core.texts import pack
from soupray.maths.neighbours import kth_distances
from soupray.maths.outputs import Blender, trust, vrf_logits
from soupray.reporting.recipe_file import RecipeFile, read_recipe, spec_of, specs_of, weights_of
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.checkpoints import Checkpoints
from soupray.tasks import task_of


def load(recipe: str | Path, home: Path | None = None) -> Callable[[Any], Probabilities]:
    """Load the model of a leaderboard entry as a function from a batch to probabilities.

    Args:
        recipe: path of a `*.recipe.json` file.
        home: folder with the embedded store, if the sweep used it; None for the default home.

    Returns:
        A function of uint8 images [N, 1 or 3, H, W] (array or tensor), or of a list of N texts. It
        returns float32 probabilities [N, C], with classes in the order of the spec. N can be any
        number.

    Raises:
        ConfigError: the file is not a recipe file.
        NotFound: a checkpoint is no longer in the store, or the store is not on this machine.
        ChecksumMismatch: the stored bytes of a checkpoint have changed, or the weights of the soup
            differ from those that the recipe recorded.
        CheckpointError: the weights are not finite, or do not fit the model.
    """
    from soupray.services.home import default_home
    from soupray.services.place import find_place

    read = read_recipe(Path(recipe))
    home = home or default_home()

    @functools.cache
    def source(spec: SweepSpec) -> ModelSource:
        place = find_place(spec, home)
        weights = Checkpoints(place.open_store(), place.folder / "weights")
        return ModelSource(task_of(spec.task), weights, spec.setting.precision)

    sources = {digest: source(spec) for digest, spec in specs_of(read).items()}
    return Predictor(read, sources, _texts if spec_of(read).data.kind == "text" else _images)


def _images(batch: Any) -> torch.Tensor:
    """Return a batch of images in the form of the data cache. Raises ConfigError."""
    images = torch.as_tensor(np.asarray(batch))
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ConfigError(
            f"a batch is uint8 images [N, 1 or 3, H, W], not {images.dtype} {list(images.shape)}."
        )
    return images


def _texts(batch: Any) -> torch.Tensor:
    """Return a batch of texts in the form of the data cache. Raises ConfigError."""
    if isinstance(batch, str) or not all(isinstance(text, str) for text in batch):
        raise ConfigError(f"a batch is a list of texts, not {str(batch)[:60]!r}.")
    return torch.from_numpy(pack(list(batch)))


class ModelSource(NamedTuple):
    """The task, the checkpoints and the precision of the models of one spec."""

    task: Task
    checkpoints: Checkpoints
    precision: str


class _Model(NamedTuple):
    """A member of a recipe. Members that differ only in the head share one `body`."""

    task: Any
    body: Any
    head: Any


class Predictor:
    """The model of a recipe; each of its members is loaded once.

    `sources` has the source of each checkpoint of another spec; the key "" has that of all others.
    """

    def __init__(
        self,
        recipe: RecipeFile,
        sources: dict[str, ModelSource],
        samples: Callable[[Any], torch.Tensor],
    ) -> None:
        self._candidate, self._samples = recipe.candidate, samples
        self.models: dict[WeightCandidate, _Model] = {}
        for member in recipe.candidate.members:
            source = sources.get(member.checkpoints[0], sources[""])
            model = _loaded(member, recipe, source)
            like = (m.body for m in self.models.values() if m.task is source.task)
            body = next((other for other in like if _same_body(other, model)), model)
            self.models[member] = _Model(source.task, body, model.head)
        if isinstance(recipe.candidate, VRFEnsemble):
            home = sources.get(recipe.candidate.fine_tuned.checkpoints[0], sources[""])
            failures = home.checkpoints.load_blob(recipe.candidate.failures.sha256)
            if "features" not in failures or failures["features"].ndim != 2:
                raise CheckpointError(
                    f"{recipe.name}: {recipe.candidate.failures.sha256} has no features of a "
                    "failure set. Use the recipe file as soupray wrote it."
                )
            self._failures = failures["features"].numpy()

    @torch.inference_mode()
    def __call__(self, batch: Any) -> Probabilities:
        """Return the probabilities [N, C] of a batch of N images or texts."""
        logits = torch.from_numpy(self.logits(self._samples(batch)))
        answer: Probabilities = logits.softmax(dim=1).numpy()
        return answer

    def logits(self, samples: torch.Tensor) -> Logits:
        """Return the logits [N, C] of the model.

        Args:
            samples: N samples in the form of the data cache.
        """
        candidate = self._candidate

        @functools.cache
        def features(task: Any, body: Any) -> torch.Tensor:
            """Return the features [N, D]; all heads of a body share them."""
            inputs = task.inputs(samples)
            if inputs.is_floating_point():
                inputs = inputs.to(next(body.parameters()).dtype)
            found: torch.Tensor = body.features(inputs)
            return found

        def run(member: WeightCandidate) -> Logits:
            """Return the logits [N, C] of a member."""
            task, body, head = self.models[member]
            logits: Logits = head(features(task, body)).float().numpy()
            return logits

        if isinstance(candidate, OutputEnsemble):
            return Blender(run).logits(candidate)
        if isinstance(candidate, VRFEnsemble):
            task, body, _ = self.models[candidate.fine_tuned]
            found = features(task, body).float().numpy()
            length = np.linalg.norm(found, axis=1, keepdims=True)
            normalised = found / np.maximum(length, np.finfo(np.float32).tiny)
            distances = kth_distances(normalised, self._failures, candidate.k)
            omega = trust(distances.astype(np.float64), candidate.a, candidate.b)
            both = run(candidate.fine_tuned), run(candidate.reference)
            return vrf_logits(*both, candidate.temperatures, omega)
        return run(candidate)


def _loaded(member: WeightCandidate, recipe: RecipeFile, source: ModelSource) -> Any:
    """Return the module of a member. Raises CheckpointError if the weights do not fit."""
    model = source.task.model()
    try:
        model.load_state_dict(weights_of(member, recipe, source.checkpoints))
    except RuntimeError as error:
        raise CheckpointError(
            f"{recipe.name}: the weights do not fit the model: {error}"
        ) from error
    return model.to(torch.bfloat16 if source.precision == "bf16" else torch.float32).eval()


def _same_body(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Return whether two models have equal tensors, bit for bit, except in their heads."""
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[n], theirs[n]) for n in mine if not n.startswith("head."))
