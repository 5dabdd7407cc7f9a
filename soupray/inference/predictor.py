"""The logits of a recipe's model: each member is loaded once, and members share their bodies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from soupray.core.arrays import Features, Images, Logits
from soupray.core.candidates import EntropyEnsemble, OutputEnsemble, VRFEnsemble, WeightCandidate
from soupray.core.errors import CheckpointError
from soupray.core.ports import Task
from soupray.core.records import Setting
from soupray.evaluation.live_model import batches
from soupray.maths.neighbours import kth_distances
from soupray.maths.outputs import Blender, entropy_logits, trust, vrf_logits
from soupray.maths.retrieval import side_by_side
from soupray.reporting.recipe_file import RecipeFile
from soupray.store.weights_file import Weights


class ModelSource(NamedTuple):
    """Where the models of one spec come from: the store, or a model folder.

    Attributes:
        task: makes the networks and their inputs.
        weights: returns all tensors of a model, as they were evaluated.
        blob: returns the arrays of a blob by its SHA-256.
        setting: how models are evaluated.
        embeds: their outputs are embeddings.
    """

    task: Task
    weights: Callable[[WeightCandidate], Weights]
    blob: Callable[[str], Weights]
    setting: Setting
    embeds: bool = False


class _Member(NamedTuple):
    """A model of a recipe. Members that differ only in the head share one `body`."""

    source: ModelSource
    body: Any
    head: Any


class Predictor:
    """The model of a recipe. Its logits are those of the evaluation.

    `embeds` is true if they are embeddings: those of an ensemble's members are then side by side.
    `sources` has the source of each checkpoint of another spec; the key "" has that of all others.
    Batches have the size that the evaluation had, unless `batch_size` is given.
    """

    def __init__(
        self,
        recipe: RecipeFile,
        sources: dict[str, ModelSource],
        device: str = "cpu",
        batch_size: int | None = None,
    ) -> None:
        self.candidate, self._device, self._batch_size = recipe.candidate, device, batch_size
        self.embeds = sources[""].embeds
        self.models: dict[WeightCandidate, _Member] = {}
        for member in recipe.candidate.members:
            source = sources.get(member.checkpoints[0], sources[""])
            model = _loaded(member, recipe, source).to(device)
            like = (m.body for m in self.models.values() if m.source is source)
            body = next((other for other in like if _same_body(other, model)), model)
            self.models[member] = _Member(source, body, model.head)
        if isinstance(recipe.candidate, VRFEnsemble):
            home = sources.get(recipe.candidate.fine_tuned.checkpoints[0], sources[""])
            failures = home.blob(recipe.candidate.failures.sha256)
            if "features" not in failures or failures["features"].ndim != 2:
                raise CheckpointError(
                    f"{recipe.name}: {recipe.candidate.failures.sha256} has no features of a "
                    "failure set. Use the recipe file as soupray wrote it."
                )
            self._failures = failures["features"].numpy()

    @torch.inference_mode()
    def logits(self, samples: Images) -> Logits:
        """Return the logits [N, C] of the model.

        Args:
            samples: N images or texts in the form of the data cache.
        """
        candidate = self.candidate

        @functools.cache
        def features(body: Any, source: ModelSource) -> list[tuple[torch.Tensor, int]]:
            """Return the features of each batch, and its size without padding."""
            size = self._batch_size or source.setting.batch_size
            dtype = next(body.parameters()).dtype
            found = batches(source.task, samples, size, self._device, dtype)
            return [(body.features(inputs), real) for inputs, real in found]

        def run(member: WeightCandidate) -> Logits:
            source, body, head = self.models[member]
            logits: Logits = _joined([(head(one), real) for one, real in features(body, source)])
            return logits

        if isinstance(candidate, OutputEnsemble) and self.embeds:
            shares = [(m, n / candidate.denominator / t) for m, n, t in candidate.parts]
            return side_by_side([(run(m), share) for m, share in shares], pairs=False)
        if isinstance(candidate, OutputEnsemble):
            return Blender(run).logits(candidate)
        if isinstance(candidate, VRFEnsemble):
            source, body, _ = self.models[candidate.fine_tuned]
            found: Features = _joined(features(body, source))
            length = np.linalg.norm(found, axis=1, keepdims=True)
            normalised = found / np.maximum(length, np.finfo(np.float32).tiny)
            distances = kth_distances(normalised, self._failures, candidate.k)
            omega = trust(distances.astype(np.float64), candidate.a, candidate.b)
            both = run(candidate.fine_tuned), run(candidate.reference)
            return vrf_logits(*both, candidate.temperatures, omega)
        if isinstance(candidate, EntropyEnsemble):
            each = [run(member) for member in candidate.members]
            return entropy_logits(each, [t for _, t in candidate.parts])
        return run(candidate)


def _joined(parts: list[tuple[torch.Tensor, int]]) -> Any:
    """Return the rows of all batches, float32, without padding."""
    return np.concatenate([rows[:real].float().cpu().numpy() for rows, real in parts])


def _loaded(member: WeightCandidate, recipe: RecipeFile, source: ModelSource) -> Any:
    """Return the module of a member. Raises CheckpointError if the weights do not fit."""
    model = source.task.model()
    try:
        model.load_state_dict(source.weights(member))
    except RuntimeError as error:
        raise CheckpointError(
            f"{recipe.name}: the weights do not fit the model: {error}"
        ) from error
    low = source.setting.precision == "bf16"
    return model.to(torch.bfloat16 if low else torch.float32).eval().requires_grad_(False)


def _same_body(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Return whether two models have equal tensors, bit for bit, except in their heads."""
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[n], theirs[n]) for n in mine if not n.startswith("head."))
