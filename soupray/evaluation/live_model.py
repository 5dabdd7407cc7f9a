"""The live model: a network that takes the weights of one candidate after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from soupray.core.arrays import Features, Images, Logits
from soupray.core.candidates import WeightCandidate, is_estimated
from soupray.core.errors import EvaluationError
from soupray.core.ports import Task
from soupray.core.records import BlobRef, Setting, Split, digest
from soupray.core.task_vectors import TaskVectorSoup
from soupray.maths.weights import Mixer
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import create_record, find_record
from soupray.store.weights_file import Weights

EVALUATION_VERSION = "2"
"""Version of the code that evaluates, measures and chooses. Raise it when the results change: old
results in the store are then not found. Trials are not trained again for it."""

STATISTICS_SAMPLES = 2000
"""Number of training samples, evenly spaced, on which BatchNorm statistics are estimated."""


class LiveModel:
    """One network in each precision, and one running sum, for any number of ingredients."""

    def __init__(
        self, task: Task, checkpoints: Checkpoints, setting: Setting, train: tuple[Split, Images]
    ) -> None:
        self._task, self._checkpoints, self._setting = task, checkpoints, setting
        self._train_split, self._train_images = train
        self._mixer = Mixer(checkpoints.open)
        self._models: dict[torch.dtype, torch.nn.Module] = {}
        self._loaded: dict[torch.dtype, WeightCandidate | None] = {}

    @property
    def batch_size(self) -> int:
        """Number of samples in each forward pass."""
        return self._setting.batch_size

    @property
    def threads(self) -> int:
        """Number of CPU threads of this process."""
        return self._setting.threads

    @property
    def device(self) -> str:
        """The device of the network: "cpu" or "cuda"."""
        return self._setting.device

    @property
    def low(self) -> bool:
        """Whether the setting evaluates models, and their features, in bfloat16."""
        return self._setting.precision == "bf16"

    def inputs(self, images: Images) -> torch.Tensor:
        """Model inputs for images or texts, on the device."""
        return self._task.inputs(torch.from_numpy(np.array(images)).to(self._setting.device))

    @torch.inference_mode()
    def between_texts(
        self, candidate: WeightCandidate, two: torch.Tensor, share: torch.Tensor
    ) -> Logits:
        """Run a candidate on the line between the embeddings of the tokens of two texts.

        Args:
            candidate: the model.
            two: the texts, in the form of the data cache, [2, L].
            share: of the second text, at each point, [T].

        Returns:
            Logits [T, C].

        Raises:
            EvaluationError: this kind of model has no embeddings of tokens.
        """
        model = self.load(candidate, torch.float32)
        if not hasattr(model, "between"):
            raise EvaluationError("this kind of model has no embeddings of tokens")
        tokens = self._task.inputs(two.to(self._setting.device))
        logits: Logits = model.between(tokens, share).float().cpu().numpy()  # type: ignore[operator]
        return logits

    def tensors(self, candidate: WeightCandidate) -> Weights:
        """All tensors of a candidate, with the BatchNorm statistics of its evaluation."""
        weights = dict(self._mixer.tensors(candidate))
        return weights | self._statistics(candidate)

    def predict(
        self, candidate: WeightCandidate, images: Images, low: bool = False
    ) -> tuple[Logits, Features]:
        """Run a candidate on samples.

        Args:
            candidate: the model.
            images: images or texts.
            low: compute in bfloat16, with weights in bfloat16.

        Returns:
            Logits [N, C] and features [N, D], float32 for both values of `low`.

        Raises:
            EvaluationError: a logit is not finite.
        """
        dtype = torch.bfloat16 if low else torch.float32
        logits, features = predict(self.load(candidate, dtype), self._task, images, self._setting)
        if not np.isfinite(logits).all():
            names = ", ".join(sha[:12] for sha in candidate.checkpoints)
            raise EvaluationError(
                f"candidate {candidate.digest[:12]} gives logits that are not finite: one of its "
                f"ingredients ({names}) is broken. `soupray check` names it."
            )
        return logits, features

    def load(
        self, candidate: WeightCandidate, dtype: torch.dtype, keep: bool = True
    ) -> torch.nn.Module:
        """Copy a candidate's weights into the network of one precision, and return the network.

        Args:
            candidate: the model.
            dtype: torch.float32 or torch.bfloat16.
            keep: store the BatchNorm statistics that are estimated for the candidate.
        """
        if dtype not in self._models:
            model = self._task.model().to(self._setting.device, dtype)
            self._models[dtype] = model.eval().requires_grad_(False)
        if self._loaded.get(dtype) != candidate:
            self._loaded[dtype] = None
            if self._loaded.get(torch.float32) == candidate:
                self._models[dtype].load_state_dict(self._models[torch.float32].state_dict())
            else:
                statistics = self._statistics(candidate, keep)
                self._fill(candidate, self._models[dtype], statistics)
            # Without stored statistics, a later call must not take the candidate as loaded.
            self._loaded[dtype] = candidate if keep else None
        return self._models[dtype]

    def _fill(
        self, candidate: WeightCandidate, model: torch.nn.Module, statistics: Weights
    ) -> None:
        slots = model.state_dict()
        seen = set()
        for name, mixed in self._mixer.tensors(candidate):
            tensor = statistics.get(name, mixed)
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

    def _statistics(self, candidate: WeightCandidate, keep: bool = True) -> Weights:
        """BatchNorm buffers of a model, stored or estimated now. Empty: it needs no new ones."""
        if not self._estimates(candidate):
            return {}
        path = statistics_path(candidate, self._train_split, self._setting)
        ref: BlobRef | None = find_record(self._checkpoints.store, path, BlobRef)
        if ref is None:
            model = self._models[torch.float32]
            self._loaded[torch.float32] = None
            self._fill(candidate, model, {})
            rows = np.linspace(0, len(self._train_images) - 1, STATISTICS_SAMPLES).astype(int)
            images = self._train_images[np.unique(rows)]
            estimated = estimate_statistics(model, self._task, images, self._setting)
            if not keep:
                return estimated
            ref = self._checkpoints.save_blob(estimated, {"statistics": candidate.digest})
            ref = create_record(self._checkpoints.store, path, ref)
        return self._checkpoints.load_blob(ref.sha256)

    def _estimates(self, candidate: WeightCandidate) -> bool:
        """Whether BatchNorm statistics are estimated for a candidate.

        They are for a soup whose models differ in them, and for a single model that asks for it.
        """
        several = sum(share != 0 for share in candidate.coefficients) > 1
        mixture = several or isinstance(candidate, TaskVectorSoup)
        if not (mixture or is_estimated(candidate)) or not self._has_batch_norm():
            return False
        return is_estimated(candidate) or not self._shared_statistics(candidate)

    def _shared_statistics(self, candidate: WeightCandidate) -> bool:
        """Whether all checkpoints have equal BatchNorm statistics, as after a linear probe."""
        first, *others = [self._checkpoints.open(sha) for sha in candidate.checkpoints]
        layers = (name for name, _ in batch_norms(self._models[torch.float32]))
        names = [f"{layer}.{kind}" for layer in layers for kind in ("running_mean", "running_var")]
        return all(torch.equal(first[n], other[n]) for n in names for other in others)

    def _has_batch_norm(self) -> bool:
        if torch.float32 not in self._models:
            model = self._task.model().to(self._setting.device)
            self._models[torch.float32] = model.eval().requires_grad_(False)
        return any(True for _ in batch_norms(self._models[torch.float32]))


def about(candidate: WeightCandidate) -> dict[str, str]:
    """The metadata of a soup's file: the digest of its candidate."""
    return {"candidate": candidate.digest}


def statistics_path(candidate: WeightCandidate, train: Split, setting: Setting) -> str:
    """The path in the store of the record about a model's estimated BatchNorm statistics."""
    key = [candidate, train.digest, setting, STATISTICS_SAMPLES, EVALUATION_VERSION]
    return layout.result("statistics", digest(key)[:32])


def batch_norms(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The name and the module of every BatchNorm layer that tracks running statistics."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            yield name, module


@torch.inference_mode()
def estimate_statistics(
    model: torch.nn.Module, task: Task, images: Images, setting: Setting
) -> Weights:
    """Estimate the running statistics of every BatchNorm layer on `images`.

    Only the BatchNorm layers are in training mode: they normalise each batch by its own statistics,
    as in training. Mean and variance are pooled over all samples, within and between batches, so
    that every sample has the same weight. Batch sizes differ by at most one: a last batch of a
    single sample would have no variance.

    Args:
        model: the network. Its weights and buffers do not change.
        task: makes the inputs.
        images: training samples.
        setting: batch size and device.

    Returns:
        The tensors `running_mean` and `running_var` of each layer, by name, float32 on the CPU.
    """
    model.eval()
    layers = dict(batch_norms(model))
    sums: dict[str, list[torch.Tensor]] = {}
    hooks = [m.register_forward_pre_hook(_summing(sums, name)) for name, m in layers.items()]
    momentum = {name: m.momentum for name, m in layers.items()}
    try:
        for layer in layers.values():
            layer.train()
            layer.momentum = 0.0  # with momentum 0, the layer does not change its buffers
        for part in np.array_split(images, -(-len(images) // setting.batch_size)):
            model(task.inputs(torch.from_numpy(np.array(part)).to(setting.device)))
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.eval()
            layer.momentum = momentum[name]
    estimated = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean * mean).clamp_min(0) * (count / (count - 1))
        estimated[f"{name}.running_mean"] = mean.to(torch.float32).cpu()
        estimated[f"{name}.running_var"] = variance.to(torch.float32).cpu()
    return estimated


def _summing(sums: dict[str, list[torch.Tensor]], name: str) -> Any:
    """A hook that adds up count, sum and sum of squares of a layer's inputs in float64."""

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        wide = inputs[0].to(torch.float64)
        over = [d for d in range(wide.ndim) if d != 1]
        count = torch.tensor(wide.numel() // wide.shape[1], dtype=torch.float64)
        new = [count.to(wide.device), wide.sum(over), (wide * wide).sum(over)]
        old = sums.get(name)
        sums[name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

    return hook


def batches(
    task: Task, images: Images, size: int, device: str, dtype: torch.dtype
) -> Iterator[tuple[torch.Tensor, int]]:
    """The model inputs for samples, one batch after another.

    A short last batch is padded with zeros: the batch shape changes the low bits of every logit,
    so that it must be the same for all models and workers.

    Args:
        task: makes the inputs.
        images: images or texts.
        size: samples in a batch.
        device: where the inputs go.
        dtype: of the model. Token ids stay integers.

    Yields:
        Inputs for `size` samples, and how many of them are no padding.
    """
    for start in range(0, len(images), size):
        batch = torch.from_numpy(np.array(images[start : start + size]))
        real = len(batch)
        if real < size:
            batch = torch.cat([batch, batch.new_zeros((size - real, *batch.shape[1:]))])
        inputs = task.inputs(batch.to(device))
        yield inputs.to(dtype) if inputs.is_floating_point() else inputs, real


@torch.inference_mode()
def predict(
    model: torch.nn.Module, task: Task, images: Images, setting: Setting
) -> tuple[Logits, Features]:
    """Run a model on images or texts, in the dtype of the model.

    Args:
        model: the network, on the device of `setting`.
        task: makes the inputs.
        images: images or texts.
        setting: batch size and device.

    Returns:
        Logits [N, C] and features [N, D].
    """
    model.eval()
    dtype = next(model.parameters()).dtype
    logits, features = [], []
    for inputs, real in batches(task, images, setting.batch_size, setting.device, dtype):
        hidden = model.features(inputs)  # type: ignore[operator]
        logits.append(model.head(hidden)[:real].to(torch.float32).cpu().numpy())  # type: ignore[operator]
        features.append(hidden[:real].to(torch.float32).cpu().numpy())
    return np.concatenate(logits), np.concatenate(features)
