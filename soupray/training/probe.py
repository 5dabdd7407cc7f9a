"""The linear probe: a head on the features of a body that does not move.

Features are computed once, in the order of the split and without augmentation. `probed` fits the
head exactly (a convex problem); it is theta_0 of LP-FT (arXiv:2202.10054), where fine-tuning starts
from a head that fits the pre-trained features, and so distorts them less. `frozen` is the world of
a trial that trains the head alone, with the optimiser of every other trial.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from soupray.core.errors import TrialError
from soupray.core.ports import Task
from soupray.core.records import Setting, Split
from soupray.data.cache import Data
from soupray.data.splits import Labels
from soupray.evaluation.live_model import STATISTICS_SAMPLES, estimate_statistics, predict
from soupray.spec.task import Probe
from soupray.store.checkpoints import Checkpoints
from soupray.store.weights_file import Weights

Features = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
HEAD = "head."
ITERATIONS = 2000
"""Of L-BFGS, at most; the problems here take 50 to 500."""


def probed(task: Task, data: Data, weights: Weights, probe: Probe, setting: Setting) -> Weights:
    """`weights` with a head that is fitted to the train split's features.

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
) -> tuple[Array, Array]:
    """(W [C, D], b [C]): minimises mean CE(W x + b, y) + l2 / 2 |W|^2, in float64, from zero.

    That is logistic regression with C = 1 / (l2 N) where the penalised loss is a sum, as
    scikit-learn writes it. The bias is not penalised; without one, b is zero.

    Raises:
        TrialError: L-BFGS stopped before it converged.
    """
    x, (n, d) = features.astype(np.float64), features.shape
    wanted = np.eye(classes)[labels]

    def loss(flat: Array) -> tuple[float, Array]:
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
            f"init.probe: the fit did not converge ({found.message}): the classes can be told "
            f"apart too easily for l2 = {l2:g}. Raise it."
        )
    return found.x[: classes * d].reshape(classes, d), found.x[classes * d :]


class Head(torch.nn.Module):
    """logits = head(inputs), where inputs [N, D] are features already."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """[N, D], as they are."""
        return inputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[N, C]."""
        logits: torch.Tensor = self.head(inputs)
        return logits


class HeadTask:
    """What `Loop` needs of a task: the head of `whole`, on features for samples."""

    def __init__(self, whole: Task, weights: Weights) -> None:
        self._whole, self._weights = whole, weights

    def model(self) -> torch.nn.Module:
        """The head alone."""
        whole: torch.nn.Module = self._whole.model()
        return Head(whole.get_submodule("head"))

    def init(self) -> Weights:
        """The head of theta_0."""
        return {n: t for n, t in self._weights.items() if n.startswith(HEAD)}

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """[N, D] float32, as they are."""
        return samples


class FeatureData(Data):
    """Features [N, D] float32 in place of the samples of the train and held-out splits."""

    def __init__(self, whole: Data, samples: dict[str, tuple[Features, Labels]]) -> None:
        self.splits = whole.splits
        self._samples = samples

    def samples(self, split: Split) -> tuple[Features, Labels]:  # type: ignore[override]
        """(features [N, D], labels [N])."""
        return self._samples[split.name]


@functools.lru_cache(maxsize=1)  # one theta_0 a sweep: its trials share the features
def frozen(
    task: Task, data: Data, checkpoints: Checkpoints, init: str, setting: Setting
) -> tuple[HeadTask, FeatureData]:
    """Task and data whose model is the head of theta_0 `init` (its SHA-256): see `Loop`."""
    weights = checkpoints.load(init)
    samples = {
        name: _features(task, data, weights, data.split(name), setting)
        for name in ("train", "held_out")
    }
    return HeadTask(task, weights), FeatureData(data, samples)


def _statistics(task: Task, data: Data, weights: Weights, setting: Setting) -> Weights:
    """Of every BatchNorm layer, estimated on the train split; nothing where there is none."""
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
    model = task.model()
    model.load_state_dict(weights)
    samples, labels = data.samples(split)
    _, features = predict(model.to(setting.device), task, samples, setting)
    return features, np.asarray(labels)
