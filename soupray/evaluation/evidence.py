"""Compares the scores in manifests with the logits that are stored beside them.

A recipe chooses by the counts or the NLL in the manifests. A manifest is a small file that is easy
to edit or to damage, and its scores have no digest of their own. The logits have one, and give the
scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from msgspec import UNSET

from soupray.core.arrays import Labels, Logits
from soupray.core.errors import CheckpointError, NotFound
from soupray.core.records import UNITS, Predictions, Scores, Split, pack_right
from soupray.core.trials import Ingredient
from soupray.maths.metrics import score
from soupray.maths.own_metric import graded_by
from soupray.store.checkpoints import Checkpoints
from soupray.store.weights_file import Weights

READERS = 8
"""Number of ingredients whose logits are read and scored in parallel."""

ROWS = 500
"""Number of samples that are scored at a time: their logits stay in the processor's cache."""

TOLERANCE = 1e-4
"""The largest difference of NLLs, relative to them or in nats, that float32 and other processors
explain."""


def check_scores(ingredients: Sequence[Ingredient], split: Split, checkpoints: Checkpoints) -> None:
    """Check that the held-out scores of ingredients are those of their stored logits.

    The logits are read here, in parallel, and stay in the local cache: the recipes need them to
    order the samples, and for ensembles.

    Args:
        ingredients: a pool.
        split: the held-out data of the pool.
        checkpoints: the store of the logits.

    Raises:
        CheckpointError: scores differ from the logits, or the labels beside the logits differ from
            those of the other ingredients.
        NotFound: the logits of an ingredient are not in the store.
    """
    with ThreadPoolExecutor(READERS) as threads:
        labels = list(threads.map(lambda i: _check(i, split, checkpoints), ingredients))
    usual = max(labels, key=labels.count, default="")
    for ingredient, own in zip(ingredients, labels, strict=True):
        if own != usual:
            raise _contradicted(ingredient, "the labels beside its logits are of other data")


def _check(ingredient: Ingredient, split: Split, checkpoints: Checkpoints) -> str:
    """Check one ingredient, and return a digest of the labels beside its logits."""
    said = ingredient.held_out
    if said.split != split.digest:
        raise _contradicted(ingredient, f"its scores are of other data than {split.digest[:12]}")
    try:
        stored = checkpoints.load_blob(ingredient.logits.sha256)
    except NotFound as error:
        raise NotFound(
            f"trial {ingredient.trial.key}: {error} These are its held-out logits. Restore "
            "them, or delete the manifest of the trial and sweep again."
        ) from error
    logits, labels = _arrays(ingredient, split, stored)
    if split.objective is not UNSET or graded_by(split):
        made = score(Predictions(split=split, logits=logits, labels=labels))
        if made != said and not _close(made, said):
            raise _contradicted(ingredient, "its logits have other scores than it says")
        return hashlib.sha256(labels.tobytes()).hexdigest()
    if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= split.classes:
        raise _contradicted(ingredient, "the labels beside its logits are not classes")
    answers, nll = logits.argmax(axis=1), _nll(logits, labels)
    right = answers == labels
    counted = [np.bincount(of, minlength=split.classes) for of in (labels, answers, labels[right])]
    by_class = tuple(zip(*(counts.tolist() for counts in counted), strict=True))
    same = pack_right(right) == said.right and said.by_class in ((), by_class)
    if not (same and math.isclose(nll, said.nll, rel_tol=TOLERANCE, abs_tol=TOLERANCE)):
        raise _contradicted(
            ingredient,
            f"it says {said.correct} of {said.n} right (NLL {said.nll:.6g}), but its logits get "
            f"{right.sum()} right (NLL {nll:.6g}), or others than it says",
        )
    return hashlib.sha256(labels.astype("int64").tobytes()).hexdigest()


def _arrays(ingredient: Ingredient, split: Split, stored: Weights) -> tuple[Logits, Labels]:
    """Return logits and labels, whose shapes are those of the split's objective."""
    logits, labels = (stored[n].numpy() if n in stored else None for n in ("logits", "labels"))
    kind = None if split.objective is UNSET else split.objective.kind
    if logits is None or labels is None or logits.ndim != 2:
        raise _contradicted(ingredient, "its arrays are not logits with labels")
    if kind is None:
        wanted = logits.shape[:1]
    else:  # targets [N, C] in place of classes [N]
        wanted = (len(logits), 2) if kind == "retrieval" else logits.shape
    if labels.shape != wanted:
        raise _contradicted(ingredient, "its arrays are not logits with labels")
    if kind == "retrieval":
        fits = logits.shape[1] % 2 == 0  # two embeddings of any width
    else:  # masks have a column for each pixel
        fits = kind == "segmentation" or logits.shape[1] == split.classes
    if len(labels) != ingredient.held_out.n or not fits:
        raise _contradicted(ingredient, f"its logits are {list(logits.shape)}")
    return logits, labels


def _close(a: Scores, b: Scores) -> bool:
    """Whether two scores are equal but for low bits of means."""
    exact = ("n", "graded", "by_class", *(() if a.graded else ("correct", "right")))
    if a.n == b.n and a.graded and b.graded and np.abs(a.values() - b.values()).max() > 1.5 / UNITS:
        return False
    means = {"nll": (a.nll, b.nll)}
    for name in (a.others or {}) | (b.others or {}):
        means[name] = ((a.others or {}).get(name, math.inf), (b.others or {}).get(name, -math.inf))
    return all(getattr(a, name) == getattr(b, name) for name in exact) and all(
        math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for x, y in means.values()
    )


def _nll(logits: Logits, labels: Labels) -> float:
    """The mean negative log-likelihood in float32, in nats: a tenth of the time of `score`."""
    total = 0.0
    for start in range(0, len(labels), ROWS):
        some, own = logits[start : start + ROWS], labels[start : start + ROWS]
        shifted = some - some.max(axis=1, keepdims=True)
        total += float(np.log(np.exp(shifted).sum(axis=1)).sum(dtype=np.float64))
        total -= float(shifted[np.arange(len(own)), own].sum(dtype=np.float64))
    return total / len(labels)


def _contradicted(ingredient: Ingredient, what: str) -> CheckpointError:
    return CheckpointError(
        f"the manifest of trial {ingredient.trial.key} contradicts its stored logits: {what}. It "
        "was edited, or damaged. Restore it, or delete it and sweep again: only that trial is "
        "trained."
    )
