"""Answers to requests about weights.

`answer` has one implementation for each type of request.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from soupray.core.arrays import Float32, Images, Labels
from soupray.core.candidates import WeightCandidate, mean_of
from soupray.core.errors import EvaluationError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import BlobRef, Predictions, Split, digest, pack_right, unpack_right
from soupray.core.requests import (
    Augmented,
    Body,
    Defect,
    Deviation,
    Distances,
    Embedding,
    Features,
    FileDigest,
    Fisher,
    Gradient,
    Gram,
    Health,
    Losses,
    Matrix,
    Nearby,
    NoisyLabels,
    Paths,
    Request,
    Right,
    Seen,
    Slope,
    Surroundings,
    TensorNames,
    Threshold,
)
from soupray.core.trials import STATISTICS
from soupray.data.augment import augmented, draw
from soupray.data.label_noise import noise_shares, noisy_losses
from soupray.evaluation.live_model import LiveModel, about
from soupray.maths.geometry import cross_entropy
from soupray.maths.losses import loss_sum
from soupray.maths.metrics import right_mask
from soupray.maths.neighbours import kth_distances
from soupray.maths.outputs import fit_temperature
from soupray.maths.task_vectors import magnitudes, threshold_of
from soupray.store.checkpoints import Checkpoints
from soupray.store.weights_file import digest_of, tensor_digests

GRAM_CHUNK = 2**18
"""Elements of a tensor whose differences from theta_0 are in memory at a time, for each model."""

GRADIENT_CHUNK = 2**22
"""Elements of a gradient that are multiplied in float64 at a time: 100 MB with the products."""

FISHER_BYTES = 2**28
"""Bytes of per-sample gradients in memory at a time."""


PATHS_AT_ONCE = 8
"""Paths whose points are in memory at a time: 150 MB for images of 224 x 224 pixels, 32 steps."""

TRAIN_CHUNK = 20
"""Batches of training data whose logits are in memory at a time."""


class Bench(NamedTuple):
    """The tools for an answer: the live model, the weights, and the samples of a split."""

    live: LiveModel
    checkpoints: Checkpoints
    images: Images
    labels: Labels
    split: Split


@functools.singledispatch
def answer(request: Request[Any], bench: Bench) -> Any:
    """The answer to `request`, of the type `request.answer`.

    Raises:
        EvaluationError: a model gives results that are not finite.
    """
    raise TypeError(f"workers do not answer a {type(request).__name__}")


@answer.register
def right(request: Right, bench: Bench) -> str:
    """Which samples a model gets right: VRF, algorithm 1, step 1.

    The pass over the training data uses the order of the split, and no augmentation.
    """
    images, labels = bench.images, bench.labels
    chunk = TRAIN_CHUNK * bench.live.batch_size
    found = []
    for at in range(0, len(labels), chunk):
        rows = slice(at, at + chunk)
        logits, _ = bench.live.predict(request.model, images[rows], bench.live.low)
        some = Predictions(split=bench.split, logits=logits, labels=np.asarray(labels[rows]))
        found.append(right_mask(some))
    return pack_right(np.concatenate(found))


@answer.register
def file_digest(request: FileDigest, bench: Bench) -> str:
    """Make the weights, and hash the file that they would be in. Nothing is written."""
    return digest_of(bench.live.tensors(request.model), about(request.model))


@answer.register
def features(request: Features, bench: Bench) -> BlobRef:
    """Store the normalised features of the samples in `request.rows`."""
    images, labels = bench.images, bench.labels
    rows = np.flatnonzero(unpack_right(request.rows, len(labels)))
    _, found = bench.live.predict(request.model, images[rows], bench.live.low)
    chosen = {"features": torch.from_numpy(_normalised(found))}
    return bench.checkpoints.save_blob(chosen, {"features_of": request.model.digest})


def _normalised(features: Float32) -> Float32:
    """Features [N, D] with rows of length one."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    normalised: Float32 = features / np.maximum(length, np.finfo(np.float32).tiny)
    return normalised


@answer.register
def distances(request: Distances, bench: Bench) -> tuple[float, ...]:
    """The distance of every sample to the failure set: VRF, algorithm 1, step 2."""
    _, features = bench.live.predict(request.fine_tuned, bench.images, bench.live.low)
    points = bench.checkpoints.load_blob(request.failures.sha256)["features"].numpy()
    found = kth_distances(
        _normalised(features), points, request.k, bench.live.threads, bench.live.device == "cuda"
    )
    return tuple(found.astype(np.float64).tolist())


@answer.register
def embedding(request: Embedding, bench: Bench) -> BlobRef:
    """Store the features of the samples in `request.rows`, as the head gets them."""
    rows = np.flatnonzero(unpack_right(request.rows, len(bench.labels)))
    _, found = bench.live.predict(request.model, bench.images[rows], bench.live.low)
    features = {"features": torch.from_numpy(np.ascontiguousarray(found))}
    return bench.checkpoints.save_blob(features, {"embedding_of": request.model.digest})


@answer.register
def augmented_samples(request: Augmented, bench: Bench) -> Seen:
    """Augment the samples as a trial does, and run the model on them."""
    wanted = Hyperparameters(lr=1, epochs=1, **dict(request.augmentation))  # type: ignore[arg-type]
    rows = np.asarray(request.rows or range(len(bench.labels)))
    generator = torch.Generator().manual_seed(request.seed)
    right, loss = 0, 0.0
    for at in range(0, len(rows), bench.live.batch_size):
        part = rows[at : at + bench.live.batch_size]
        images = torch.from_numpy(np.array(bench.images[part]))
        images = augmented(images, draw(len(part), wanted, generator), wanted)
        logits, _ = bench.live.predict(request.model, images.numpy())
        labels = np.asarray(bench.labels[part])
        right += int((logits.argmax(axis=1) == labels).sum())
        loss += cross_entropy(logits, labels) * len(part)
    return Seen(n=len(rows), accuracy=right / len(rows), loss=loss / len(rows))


@answer.register
def noisy_labels(request: NoisyLabels, bench: Bench) -> Losses:
    """Make the noise of the split, and compare the model's answers with both kinds of labels."""
    wanted = Hyperparameters(lr=1, epochs=1, **dict(request.noise))  # type: ignore[arg-type]
    shares = noise_shares(lambda x: bench.live.inputs(x.numpy()).cpu(), bench.images, wanted)
    logits, _ = bench.live.predict(request.model, bench.images)
    wide, labels = torch.from_numpy(logits).double(), torch.from_numpy(np.array(bench.labels))
    clean, noisy = (float(noisy_losses(wide, labels, some).mean()) for some in (0 * shares, shares))
    return Losses(clean=clean, noisy=noisy)


@answer.register
def paths(request: Paths, bench: Bench) -> tuple[Matrix, ...]:
    """Run the models along each path; probabilities are the softmax over classes."""
    each = [_along(model, request, bench) for model in request.models]
    if len(each) > 1:
        each.append(torch.stack(each).mean(dim=0))
    return tuple(_far(logits) for logits in each)


def _far(logits: torch.Tensor) -> Matrix:
    """|p(t) - p(0)| of logits [paths, steps, C]."""
    p = torch.softmax(logits, dim=2)
    return tuple(tuple(row) for row in (p - p[:, :1]).norm(dim=2).tolist())


def _along(model: WeightCandidate, request: Paths, bench: Bench) -> torch.Tensor:
    """The logits of a model at all points of all paths, float64 [paths, steps, C]."""
    share = torch.linspace(0, 1, request.steps)
    found = []
    for at in range(0, len(request.ends), PATHS_AT_ONCE):
        ends = np.array(request.ends[at : at + PATHS_AT_ONCE])
        if bench.images.ndim == 4:
            first, last = (torch.from_numpy(np.array(bench.images[rows])) for rows in ends.T)
            weights = share.view(1, -1, 1, 1, 1)
            lines = (1 - weights) * first[:, None].float() + weights * last[:, None].float()
            logits, _ = bench.live.predict(model, lines.flatten(0, 1).numpy())
        else:
            both = [torch.from_numpy(np.array(bench.images[rows])) for rows in ends]
            logits = np.concatenate([bench.live.between_texts(model, two, share) for two in both])
        found.append(torch.from_numpy(logits).double())
    return torch.cat(found).view(len(request.ends), request.steps, -1)


@answer.register
def surroundings(request: Surroundings, bench: Bench) -> Nearby:
    """The losses along a random direction. In memory are two models and the direction.

    BatchNorm statistics are those of the soup at every point: no gradient trains them.

    Raises:
        EvaluationError: a loss is not finite.
    """
    model = bench.live.load(request.soup, torch.float32)
    ends = [bench.checkpoints.open(sha) for sha in request.ends]
    generator = torch.Generator().manual_seed(request.seed)
    ways = {}
    for name, parameter in sorted(model.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        length = (ends[0][name].double() - ends[1][name].double()).norm() / drawn.double().norm()
        ways[name] = (drawn * float(length)).to(parameter.device)
    parts, labels = range(0, len(bench.labels), bench.live.batch_size), np.asarray(bench.labels)
    weights = dict(model.named_parameters())

    def logits(s: float) -> Float32:
        moved = {name: weights[name] + s * ways[name] for name in ways}
        found = []
        with torch.inference_mode():
            for at in parts:
                inputs = bench.live.inputs(bench.images[at : at + bench.live.batch_size])
                found.append(torch.func.functional_call(model, moved, (inputs,)).cpu().numpy())
        return np.concatenate(found)

    beta = 1 / fit_temperature(logits(0.0), labels)
    losses = tuple(cross_entropy(logits(s), labels, beta) for s in request.at)
    if not np.isfinite(losses).all():
        raise EvaluationError(
            f"soup {request.soup.digest[:12]}: a loss near it is not finite. `soupray check` names "
            "an ingredient that is broken."
        )
    return Nearby(beta=beta, losses=losses)


@answer.register
def gram(request: Gram, bench: Bench) -> dict[str, Matrix]:
    """The Gram matrix of each tensor, in float64, a chunk of the tensor at a time.

    Integer tensors and BatchNorm statistics are left out: no gradient trains them.
    """
    origin = bench.checkpoints.open(request.origin)
    models = [bench.checkpoints.open(sha) for sha in request.checkpoints]
    grams: dict[str, Matrix] = {}
    for name in origin.names:
        start = origin[name]
        if not start.is_floating_point() or name.endswith(STATISTICS):
            continue
        flat = start.reshape(-1)
        tensors = [model[name].reshape(-1) for model in models]
        total = torch.zeros(len(models), len(models), dtype=torch.float64)
        for at in range(0, flat.numel(), GRAM_CHUNK):
            rows = slice(at, at + GRAM_CHUNK)
            delta = torch.stack([t[rows].double() for t in tensors]) - flat[rows].double()
            total += delta @ delta.T
        grams[name] = tuple(tuple(row) for row in total.tolist())
    return grams


@answer.register
def threshold(request: Threshold, bench: Bench) -> float:
    """The threshold of TIES, step 1. Integers and BatchNorm statistics are left out."""
    origin = bench.checkpoints.open(request.origin)
    model = bench.checkpoints.open(request.checkpoint)
    trained = [
        n for n in origin.names if origin[n].is_floating_point() and not n.endswith(STATISTICS)
    ]
    found = (magnitudes(model[n], origin[n]) for n in trained)
    return threshold_of(found, sum(origin[n].numel() for n in trained), request.keep)


@answer.register
def gradient(request: Gradient, bench: Bench) -> Slope:
    """The gradient of the loss with respect to the coefficients alpha_gi of a soup.

    d loss / d alpha_gi = sum over the tensors t of group g of <d loss / d theta_t, theta_it>

    In memory are the live model, its gradient and a chunk in float64. The ingredients are
    memory-mapped.

    Raises:
        EvaluationError: the loss or the gradient is not finite.
    """
    images, labels = bench.images, bench.labels
    rows = np.asarray(request.rows or range(len(labels)))
    model = bench.live.load(request.soup, torch.float32, keep=False).requires_grad_(True)
    model.zero_grad(set_to_none=True)
    beta = torch.tensor(request.beta, dtype=torch.float32, requires_grad=True)
    loss = 0.0
    try:
        for start in range(0, len(rows), bench.live.batch_size):
            part = rows[start : start + bench.live.batch_size]
            inputs = bench.live.inputs(images[part])
            wanted = torch.from_numpy(np.asarray(labels[part])).to(bench.live.device)
            scaled = beta.to(inputs.device) * model(inputs)
            mean = loss_sum(scaled, wanted, bench.split.objective)
            (mean / len(rows)).backward()
            loss += float(mean.detach()) / len(rows)
        sources = [bench.checkpoints.open(sha) for sha in request.soup.checkpoints]
        products = {
            n: _inner_products(p.grad.cpu(), [source[n] for source in sources])
            for n, p in model.named_parameters()
            if p.grad is not None
        }
    finally:
        model.requires_grad_(False).zero_grad(set_to_none=True)
    named = [set(names) for names, _ in request.soup.layers]
    groups = [*named, set(products) - set().union(*named)]
    slopes = tuple(
        tuple(
            sum(products[n][i] for n in sorted(group & set(products))) for i in range(len(sources))
        )
        for group in groups
    )
    assert beta.grad is not None
    slope = Slope(loss=loss, coefficients=slopes, beta=float(beta.grad))
    if not np.isfinite([loss, slope.beta, *(g for row in slopes for g in row)]).all():
        raise EvaluationError(
            f"soup {request.soup.digest[:12]}, logits times beta = {request.beta:g}: the loss is "
            f"{loss:g}, and the loss or its gradient is not finite. Lower `lr` of the learned "
            "recipe in the spec. `soupray check` names an ingredient that is broken."
        )
    return slope


def _inner_products(gradient: torch.Tensor, tensors: list[torch.Tensor]) -> list[float]:
    """The inner product of `gradient` with each tensor, in float64, a chunk at a time."""
    flat, total = gradient.reshape(-1), [0.0] * len(tensors)
    for at in range(0, flat.numel(), GRADIENT_CHUNK):
        rows = slice(at, at + GRADIENT_CHUNK)
        wide = flat[rows].double()
        for i, tensor in enumerate(tensors):
            total[i] += float((wide * tensor.reshape(-1)[rows].double()).sum())
    return total


@answer.register
def fisher(request: Fisher, bench: Bench) -> BlobRef:
    """The diagonal Fisher information of a checkpoint, from per-sample gradients.

    F_j = E_x E_{y ~ p(y | x)} (d log p(y | x) / d theta_j)^2

    The samples x are evenly spaced in the train split. One label y is drawn for each x, as in the
    paper where there are many classes (Matena and Raffel, arXiv:2111.09832).
    """
    images = bench.images
    rows = np.unique(np.linspace(0, len(images) - 1, request.samples).astype(int))
    model = bench.live.load(mean_of([request.checkpoint]), torch.float32)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    size = sum(p.numel() for p in parameters.values()) * 4

    def log_p(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, (weights, buffers), (x[None],))
        return F.log_softmax(logits, dim=1)[0].gather(0, y[None])[0]

    one = torch.func.grad(log_p)
    at_once = torch.func.vmap(one, in_dims=(None, 0, 0))

    def one_by_one(weights: dict[str, torch.Tensor], *rows: torch.Tensor) -> Any:
        found = [one(weights, x, y) for x, y in zip(*rows, strict=True)]
        return {name: torch.stack([each[name] for each in found]) for name in weights}

    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    chunk = max(1, FISHER_BYTES // size)
    # vmap warns that attention on a CPU runs sample by sample. It is faster than a loop even so.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        for start in range(0, len(rows), chunk):
            inputs = bench.live.inputs(images[rows[start : start + chunk]])
            labels = _drawn(model, inputs, generator)
            # A text model branches on the values of its mask. vmap does not allow that.
            each = at_once if inputs.is_floating_point() else one_by_one
            for name, g in each(parameters, inputs, labels).items():
                total[name] += g.double().square_().sum(dim=0)
    information = {n: (t / len(rows)).to(torch.float32) for n, t in total.items()}
    return bench.checkpoints.save_blob(information, {"fisher_of": request.checkpoint})


@torch.no_grad()
def _drawn(
    model: torch.nn.Module, inputs: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """A label for each input, drawn from the model's probabilities, int64 [N]."""
    p = model(inputs).double().softmax(dim=1).cpu()
    return torch.multinomial(p, 1, generator=generator)[:, 0].to(inputs.device)


@answer.register
def deviation(request: Deviation, bench: Bench) -> float:
    """The largest |logit in bfloat16 - logit in float32| on evenly spaced samples."""
    images = bench.images
    rows = np.unique(np.linspace(0, len(images) - 1, request.samples).astype(int))
    low, _ = bench.live.predict(request.candidate, images[rows], low=True)
    if request.logits is None:
        high, _ = bench.live.predict(request.candidate, images[rows])
    else:
        high = bench.checkpoints.load_blob(request.logits.sha256)["logits"].numpy()[rows]
    return float(np.abs(low - high).max())


@answer.register
def body(request: Body, bench: Bench) -> str:
    """A digest of all tensors of a checkpoint except the head's."""
    weights = bench.checkpoints.open(request.checkpoint)
    return digest(
        tensor_digests({n: weights[n] for n in weights.names if not n.startswith("head.")})
    )


@answer.register
def tensor_names(request: TensorNames, bench: Bench) -> tuple[str, ...]:
    """The sorted names of the floating-point tensors. Integer buffers are left out."""
    weights = bench.checkpoints.open(request.checkpoint)
    return tuple(n for n in weights.names if weights[n].is_floating_point())


@answer.register
def health(request: Health, bench: Bench) -> tuple[Defect, ...]:
    """The tensors of a checkpoint that cannot be averaged, sorted by name."""
    model, origin = (
        bench.checkpoints.open(request.checkpoint),
        bench.checkpoints.open(request.origin),
    )
    defects = []
    for name in sorted({*model.names, *origin.names}):
        if name not in model.names or name not in origin.names:
            which = "missing" if name in origin.names else "not a tensor of theta_0"
            defects.append(Defect(tensor=name, kind="differs", problem=f"is {which}"))
        elif defect := _defect(name, model[name], origin[name]):
            defects.append(defect)
    return tuple(defects)


def _defect(name: str, tensor: torch.Tensor, start: torch.Tensor) -> Defect | None:
    """Why `tensor` cannot be averaged, or None. `start` is the same tensor of theta_0."""
    if tensor.shape != start.shape or tensor.dtype != start.dtype:
        kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (tensor, start)]
        problem = f"is {kinds[0]}, but {kinds[1]} in theta_0"
        return Defect(tensor=name, kind="differs", problem=problem)
    if not tensor.is_floating_point():
        same = torch.equal(tensor, start)
        problem = "holds integers that are not those of theta_0"
        return None if same else Defect(tensor=name, kind="integer", problem=problem)
    broken = tensor.numel() - int(torch.isfinite(tensor).sum())
    problem = f"is NaN or infinite at {broken} of its {tensor.numel()} elements"
    return Defect(tensor=name, kind="not_finite", problem=problem) if broken else None
