"""The linear probe: a head is trained on the features of a frozen body.

Features are computed once, in the order of the split and without augmentation. `probed` fits the
head exactly (a convex problem). The result is theta_0 of LP-FT (arXiv:2202.10054): fine-tuning from
a head that fits the pre-trained features distorts these features less. `frozen` gives the task and
the data of a trial that trains only the head, with the optimizer of all other trials.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from soupray.core.arrays import Features, Float64, Labels
from soupray.core.errors import TrialError
from soupray.core.ports import Task
from soupray.core.records import Setting, Split
from soupray.data.cache import Data
from soupray.evaluation.live_model import STATISTICS_SAMPLES, estimate_statistics, predict
from soupray.spec.task import Probe
from soupray.store.checkpoints import Checkpoints
from soupray.store.weights_file import Weights

HEAD = "head."
ITERATIONS = 2000
"""The largest number of iterations of L-BFGS. Typical problems take 50 to 500."""


def probed(task: Task, data: Data, weights: Weights, probe: Probe, setting: Setting) -> Weights:
    """Weights with a head that is fitted to the features of the train split.

    Args:
        task: makes the model and its inputs.
        data: with the train split.
        weights: a full state dict of the model.
        probe: the strength of the penalty, and the source of BatchNorm statistics.
        setting: how features are computed.

    Returns:
        `weights` with a new head, and with new BatchNorm statistics if `probe` says so.

    Raises:
        TrialError: the fit did not converge.
    """
    train = data.split("train")
    if probe.statistics == "train":
        weights = weights | _statistics(task, data, weights, setting)
    features, labels = _features(task, data, weights, train, setting)
    bias = f"{HEAD}bias" in weights
    w, b = fit_head(features, labels, train.classes, probe.l2, bias)
    head = {f"{HEAD}weight": torch.from_numpy(w).float()}
    if bias:
        head[f"{HEAD}bias"] = torch.from_numpy(b).float()
    return weights | head


def fit_head(
    features: Features, labels: Labels, classes: int, l2: float, bias: bool
) -> tuple[Float64, Float64]:
    """Fit a linear head: minimise mean CE(W x + b, y) + l2 / 2 |W|^2.

    The fit is in float64 and starts at zero. It equals the logistic regression of scikit-learn with
    the parameter C = 1 / (l2 N): there, the loss is a sum. The bias is not penalised.

    Args:
        features: x, [N, D].
        labels: y, [N].
        classes: number of classes.
        l2: strength of the penalty.
        bias: fit b. Without it, b is zero.

    Returns:
        W [C, D] and b [C].

    Raises:
        TrialError: L-BFGS stopped before it converged.
    """
    x, (n, d) = features.astype(np.float64), features.shape
    wanted = np.eye(classes)[labels]

    def loss(flat: Float64) -> tuple[float, Float64]:
        w, b = flat[: classes * d].reshape(classes, d), flat[classes * d :]
        log_p = log_softmax(x @ w.T + b, axis=1)
        slope = (np.exp(log_p) - wanted) / n
        value = -(log_p * wanted).sum() / n + l2 / 2 * (w * w).sum()
        by_bias = slope.sum(axis=0) * bias
        return value, np.concatenate([(slope.T @ x + l2 * w).ravel(), by_bias])

    start = np.zeros(classes * (d + 1))
    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "ftol": 1e-14, "gtol": 1e-7}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    if not found.success or not np.isfinite(found.fun):
        raise TrialError(
            f"init.probe: the fit did not converge ({found.message}): the classes are too easy to "
            f"separate for l2 = {l2:g}. Write a larger l2."
        )
    return found.x[: classes * d].reshape(classes, d), found.x[classes * d :]


class Head(torch.nn.Module):
    """logits = head(inputs), with features [N, D] as inputs."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """The inputs [N, D], unchanged: they are features."""
        return inputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [N, C] of features [N, D]."""
        logits: torch.Tensor = self.head(inputs)
        return logits


class HeadTask:
    """A task for `Loop` whose model is the head of another task, and whose samples are features."""

    def __init__(self, whole: Task, weights: Weights) -> None:
        self._whole, self._weights = whole, weights

    def model(self) -> torch.nn.Module:
        """A new head. The values of its weights are not defined."""
        whole: torch.nn.Module = self._whole.model()
        return Head(whole.get_submodule("head"))

    def init(self) -> Weights:
        """The head's weights in theta_0."""
        return {n: t for n, t in self._weights.items() if n.startswith(HEAD)}

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """The samples, float32 [N, D], unchanged."""
        return samples


class FeatureData(Data):
    """The data of a sweep, with features in place of the train and held-out samples."""

    def __init__(self, whole: Data, samples: dict[str, tuple[Features, Labels]]) -> None:
        self.splits = whole.splits
        self._samples = samples

    def samples(self, split: Split) -> tuple[Features, Labels]:  # type: ignore[override]
        """The features and labels of the train or the held-out split."""
        return self._samples[split.name]


@functools.lru_cache(maxsize=1)  # a sweep has one theta_0: all its trials share the features
def frozen(
    task: Task, data: Data, checkpoints: Checkpoints, init: str, setting: Setting
) -> tuple[HeadTask, FeatureData]:
    """The task and the data for trials that train only the head.

    Args:
        task: the task of the sweep.
        data: the data of the sweep.
        checkpoints: the store of weights.
        init: SHA-256 (hex) of theta_0.
        setting: how features are computed.
    """
    weights = checkpoints.load(init)
    samples = {
        name: _features(task, data, weights, data.split(name), setting)
        for name in ("train", "held_out")
    }
    return HeadTask(task, weights), FeatureData(data, samples)


def _statistics(task: Task, data: Data, weights: Weights, setting: Setting) -> Weights:
    """BatchNorm statistics, estimated on the train split. Empty: the model has no such layer."""
    model = task.model()
    model.load_state_dict(weights)
    samples, _ = data.samples(data.split("train"))
    if not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return {}
    rows = np.unique(np.linspace(0, len(samples) - 1, STATISTICS_SAMPLES).astype(int))
    return estimate_statistics(model.to(setting.device), task, samples[rows], setting)


def _features(
    task: Task, data: Data, weights: Weights, split: Split, setting: Setting
) -> tuple[Features, Labels]:
    """The features of all samples of a split, and their labels."""
    model = task.model()
    model.load_state_dict(weights)
    samples, labels = data.samples(split)
    _, features = predict(model.to(setting.device), task, samples, setting)
    return features, np.asarray(labels)
