"""Retrieval: at which place is the right document of each query, and the losses of that.

A sample is a pair of a query and its document. Outputs are two embeddings, [N, 2 D]: the query's,
then the document's. Targets are two numbers, [N, 2]: equal queries have equal first numbers, equal
documents equal second ones. The gallery has each document of the samples once. Similarities are
inner products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from soupray.core.arrays import Float64, Logits

Targets = npt.NDArray[np.int64]

PLACES = (1, 5, 10)
"""The places k of the metrics recall_at_k."""

BLOCK = 2**22
"""Similarities that are in memory at a time, where one pass over them is enough: 32 MiB."""

ROUNDING = 1e-9
"""Similarities that differ by less than this share of the product of their lengths are equal: sums
in float64 depend in the last digits on the order, which differs between machines."""

LEFT_OUT = -1e300
"""The similarity of a document that is neither right nor wrong: below any sum of products of
float32, and finite, so that it can be added and subtracted."""


class _Block(NamedTuple):
    """Some queries against the whole gallery.

    Attributes:
        rows: positions of the M queries.
        similar: to each document, float64 [M, G]; see LEFT_OUT.
        own: column of each query's own document, [M].
        near: similarities that differ by less are equal, [M].
    """

    rows: slice
    similar: Float64
    own: npt.NDArray[np.int64]
    near: Float64


def towers(outputs: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The embeddings [N, D] of the queries, and those of the documents.

    Args:
        outputs: [N, 2 D].

    Raises:
        ValueError: the width is odd.
    """
    width = outputs.shape[1]
    if width % 2:
        raise ValueError(
            f"{width} outputs are not two embeddings of one width: a query and its document have "
            "equally many numbers"
        )
    return outputs[:, : width // 2], outputs[:, width // 2 :]


def places(outputs: Logits, targets: Targets) -> npt.NDArray[np.int64]:
    """The place of each query's document in the gallery, from 1, [N].

    It is 1 plus the number of other documents that are at least as similar: ties count against the
    model. Documents that are paired with an equal query are left out, as in the filtered setting
    of link prediction (Bordes et al. 2013, "Translating embeddings", section 4.2).

    Args:
        outputs: two embeddings of each sample, [N, 2 D].
        targets: the numbers of its query and its document, [N, 2].
    """
    found = np.zeros(len(outputs), np.int64)
    for block in _blocks(outputs, targets):
        least = np.take_along_axis(block.similar, block.own[:, None], 1) - block.near[:, None]
        found[block.rows] = (block.similar >= least).sum(axis=1)  # its own document is one of them
    return found


def retrieval_metrics(at: npt.NDArray[np.int64]) -> dict[str, float]:
    """Recall at each of PLACES, and the mean reciprocal rank, by name.

    Args:
        at: the place of each query's document, [N].
    """
    found = {f"recall_at_{k}": int((at <= k).sum()) / len(at) for k in PLACES}
    return {**found, "mrr": float((1 / at).mean())}


def retrieval_loss(outputs: Logits | Float64, targets: Targets, scale: float) -> float:
    """The mean over queries of -log p(document | query), in nats.

    p is the softmax over the gallery of `scale` times the similarities: InfoNCE (arXiv:1807.03748,
    equation 4) whose negatives are all other documents of the split. Documents that are paired with
    an equal query are left out.

    Args:
        outputs: two embeddings of each sample, [N, 2 D].
        targets: the numbers of its query and its document, [N, 2].
        scale: factor on similarities, 1 / temperature.
    """
    parts = (_losses(block.similar, block.own, scale) for block in _blocks(outputs, targets))
    return sum(float(losses.sum()) for losses in parts) / len(outputs)


def similarities(outputs: Logits, targets: Targets) -> Float64:
    """The similarity of each query to each document of the gallery, [N, G]; see LEFT_OUT.

    Args:
        outputs: two embeddings of each sample, [N, 2 D].
        targets: the numbers of its query and its document, [N, 2].
    """
    return np.concatenate([block.similar for block in _blocks(outputs, targets)])


def gallery_losses(similar: Float64, targets: Targets, scale: float) -> Float64:
    """The loss of each query, [N]: their mean is `retrieval_loss`.

    Args:
        similar: of each query to each document, [N, G], or a mean of those of several models.
        targets: the numbers of each sample's query and document, [N, 2].
        scale: factor on similarities.
    """
    return _losses(similar, _gallery(targets)[1], scale)


def side_by_side(
    parts: Sequence[tuple[Logits | Float64, float]], pairs: bool = True
) -> npt.NDArray[np.float32]:
    """Embeddings whose inner products are a weighted mean of those of several models.

    The space of one model is not that of another, so that a mean of embeddings means nothing. Side
    by side, each times the root of its share, their inner products are sum_k share_k <q_k, d_k>.
    One model alone keeps its bits.

    Args:
        parts: the embeddings of each model, [N, W_k], and its share.
        pairs: embeddings are two of each sample, W_k = 2 D_k; else one.

    Returns:
        [N, sum of W_k]; of pairs, all of the queries come first.
    """
    scaled = [(rows * np.float64(np.sqrt(share))).astype(np.float32) for rows, share in parts]
    if not pairs:
        return np.concatenate(scaled, axis=1)
    both = [towers(rows) for rows in scaled]
    return np.concatenate([side[half] for half in (0, 1) for side in both], axis=1)


def _losses(similar: Float64, own: npt.NDArray[np.int64], scale: float) -> Float64:
    from scipy.special import logsumexp

    mine = np.take_along_axis(similar, own[:, None], 1)[:, 0]
    losses: Float64 = logsumexp(scale * similar, axis=1) - scale * mine
    return losses


def _gallery(targets: Targets) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first sample with each document, [G], and the column of each sample's document, [N]."""
    _, first, own = np.unique(targets[:, 1], return_index=True, return_inverse=True)
    return first, own.reshape(-1)


def _blocks(outputs: Logits | Float64, targets: Targets) -> Iterator[_Block]:
    queries, documents = (half.astype(np.float64) for half in towers(outputs))
    first, own = _gallery(targets)
    gallery = documents[first]
    longest = float(np.sqrt((gallery**2).sum(axis=1)).max())
    paired: dict[int, set[int]] = {}
    for query, column in zip(targets[:, 0].tolist(), own.tolist(), strict=True):
        paired.setdefault(query, set()).add(column)
    step = max(1, BLOCK // len(gallery))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        similar = queries[rows] @ gallery.T
        both = zip(targets[rows, 0].tolist(), own[rows].tolist(), strict=True)
        for row, (query, column) in enumerate(both):
            if others := paired[query] - {column}:
                similar[row, sorted(others)] = LEFT_OUT
        near = ROUNDING * longest * np.sqrt((queries[rows] ** 2).sum(axis=1))
        yield _Block(rows, similar, own[rows], near)
