"""Averages of weights that do not depend on the order of computation.

Each tensor is summed in float64 in the candidate's order, divided once, and rounded once to the
storage type. In float32, the mean of K equal models differs from that model in up to two thirds of
its elements. In float64, an incremental sum and a fresh sum give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from msgspec import structs

from soupray.core.candidates import FisherSoup, LayerSoup, WeightCandidate, WeightSoup
from soupray.core.errors import IncompatibleWeights
from soupray.core.task_vectors import TaskVectorSoup
from soupray.core.trials import STATISTICS
from soupray.maths.task_vectors import direction, moved

Parts = tuple[tuple[str, int], ...]

CHUNK = 2**16
"""Elements that are converted and summed at a time. They stay in the processor's cache: a mean is
ten times as fast as with float64 copies of whole tensors (benchmarks/wise_ft_grid.py)."""

NOTHING = -0.0
"""The start of a sum. -0.0 + x is x for every x. 0.0 is no such start: 0.0 + -0.0 is 0.0."""

FISHER_FLOOR = 1e-8
"""The smallest Fisher information of an element: a smaller one is replaced by it
(arXiv:2111.09832, section 3)."""


class ReadableWeights(Protocol):
    """A checkpoint that is read tensor by tensor, so that not all of it is in memory at once."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        ...

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor with this name."""
        ...


def distance(weights: ReadableWeights, origin: ReadableWeights) -> float:
    """Return |theta - theta_0|, in float64, a chunk of a tensor at a time.

    Integer tensors and BatchNorm statistics are left out: no gradient trains them.

    Args:
        weights: theta.
        origin: theta_0, with the same tensors.
    """
    squared = 0.0
    for name in origin.names:
        if not origin[name].is_floating_point() or name.endswith(STATISTICS):
            continue
        ours, theirs = weights[name].reshape(-1), origin[name].reshape(-1)
        for part, start in zip(ours.split(CHUNK), theirs.split(CHUNK), strict=True):
            squared += float((part.double() - start.double()).square().sum())
    return math.sqrt(squared)


class Mixer:
    """Makes the tensors of weight soups, one at a time.

    Its own memory is one float64 sum and one tensor. The sum is over the parts that one soup and
    the next have in common. A greedy recipe needs mean(S + i) for many ingredients i: the sum of S
    is kept, and each i is read once. An accepted i is read a second time.

    Soups of task vectors that differ only in their scale have the merged task vector in common: it
    is kept in place of the sum.
    """

    def __init__(self, open_weights: Callable[[str], ReadableWeights]) -> None:
        self._open = open_weights
        self._parts: Parts = ()
        self._sums: dict[str, torch.Tensor] = {}
        self._merge: TaskVectorSoup | None = None
        self._directions: dict[str, torch.Tensor] = {}

    def tensors(self, soup: WeightCandidate) -> Iterator[tuple[str, torch.Tensor]]:
        """Make the tensors of a soup.

        Returns:
            (name, tensor), one at a time, with the dtype of the first ingredient.

        Raises:
            IncompatibleWeights: the ingredients differ in names, shapes, dtypes or integer buffers.
        """
        if isinstance(soup, LayerSoup):
            return self._by_layer(soup)
        if isinstance(soup, FisherSoup):
            return self._by_fisher(soup)
        if isinstance(soup, TaskVectorSoup):
            return self._by_task_vector(soup)
        return self._mean(soup)

    def _mean(self, soup: WeightSoup) -> Iterator[tuple[str, torch.Tensor]]:
        *head, last = soup.parts
        if self._worth_keeping(tuple(head)):
            self._advance(tuple(head))
            parts: Parts = (last,)
            sums = self._sums
        else:
            parts, sums = soup.parts, {}
        sources = [(sha, n, self._open(sha)) for sha, n in parts]
        like = self._open(soup.parts[0][0])
        for name in like.names:
            terms = [(n, _checked(source, sha, name, like)) for sha, n, source in sources]
            yield name, _mean(terms, soup.denominator, sums.get(name))

    def _by_layer(self, soup: LayerSoup) -> Iterator[tuple[str, torch.Tensor]]:
        sources = [(sha, self._open(sha)) for sha in soup.checkpoints]
        like, numerators = sources[0][1], soup.numerators()
        for name in like.names:
            shares = numerators.get(name, soup.rest)
            terms = [
                (n, _checked(source, sha, name, like))
                for (sha, source), n in zip(sources, shares, strict=True)
                if n != 0
            ]
            yield name, _mean(terms, soup.denominator)

    def _by_fisher(self, soup: FisherSoup) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors of a Fisher soup. Buffers have no Fisher information: they are plain means."""
        sources = [(sha, self._open(sha), self._open(fisher)) for sha, fisher, _ in soup.parts]
        like, known = sources[0][1], set(sources[0][2].names)
        for name in like.names:
            total, share = None, None
            for sha, source, fisher in sources:
                term = _checked(source, sha, name, like)
                if term.is_floating_point():
                    term = term.to(torch.float64, copy=True)
                if name in known:
                    own = fisher[name].to(torch.float64).clamp_min(FISHER_FLOOR)
                    term = term * own
                    share = own if share is None else share.add_(own)
                total = term if total is None or not term.is_floating_point() else total.add_(term)
            assert total is not None
            if total.is_floating_point():
                total = (total / (len(sources) if share is None else share)).to(like[name].dtype)
            yield name, total

    def _by_task_vector(self, soup: TaskVectorSoup) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors of a soup of task vectors. BatchNorm statistics are plain means of the models."""
        merge = structs.replace(soup, scale=1.0)
        if merge != self._merge:
            self._merge, self._directions, self._parts, self._sums = merge, {}, (), {}
        known = self._directions
        origin = self._open(soup.origin)
        sources = [(sha, self._open(sha)) for sha in soup.models]
        for name in origin.names:
            if name not in known:
                start = origin[name]
                models = [_checked(source, sha, name, origin) for sha, source in sources]
                if not start.is_floating_point() or name.endswith(STATISTICS):
                    yield name, _mean([(1, model) for model in models], len(models))
                    continue
                known[name] = direction(soup, name, start, models)
            yield name, moved(origin[name], known[name], soup.scale)

    def _worth_keeping(self, head: Parts) -> bool:
        # The next mean often has one part more. Successive interpolations have no sum in common.
        return len(head) > 0 and all(n == 1 for _, n in head)

    def _advance(self, head: Parts) -> None:
        """Make `self._sums` the sum of `head`. If it is the sum of a prefix, only add the rest."""
        self._merge, self._directions = None, {}
        if head[: len(self._parts)] != self._parts:
            self._parts, self._sums = (), {}
        try:
            like = self._open(head[0][0])
            for sha, n in head[len(self._parts) :]:
                source = self._open(sha)
                for name in like.names:
                    tensor = _checked(source, sha, name, like)
                    if tensor.is_floating_point():
                        if name not in self._sums:
                            self._sums[name] = torch.full(
                                (tensor.numel(),), NOTHING, dtype=torch.float64
                            )
                        _add(self._sums[name], n, tensor)
                self._parts += ((sha, n),)
        except BaseException:
            self._parts, self._sums = (), {}  # an incomplete sum would give wrong soups later
            raise


def _checked(source: ReadableWeights, sha: str, name: str, like: ReadableWeights) -> torch.Tensor:
    """The tensor with this name, if it fits the tensor of `like`. Integers must be equal."""
    if source.names != like.names:
        odd = sorted(set(source.names) ^ set(like.names))[0]
        raise IncompatibleWeights(f"{sha[:12]}: tensor {odd!r} is in one model but not the other.")
    tensor, wanted = source[name], like[name]
    if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
        raise IncompatibleWeights(
            f"{sha[:12]}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, but "
            f"{wanted.dtype} {list(wanted.shape)} in the first model. Only models of one "
            "architecture can be averaged."
        )
    if not tensor.is_floating_point() and not torch.equal(tensor, wanted):
        raise IncompatibleWeights(
            f"{sha[:12]}: the integer buffer {name!r} differs from the first model's buffer. "
            "Integers have no meaningful average."
        )
    return tensor


def _mean(
    terms: list[tuple[int, torch.Tensor]], denominator: int, start: torch.Tensor | None = None
) -> torch.Tensor:
    """(start + sum of n * tensor) / denominator, in the dtype of the tensors.

    Integer tensors are equal, and the first is returned. `start` is a flat float64 sum. For
    float32 tensors, a product n * tensor is exact if n < 2**29. Larger n occur on the way to a
    learned soup: their products are rounded to float64.
    """
    like = terms[0][1]
    if not like.is_floating_point():
        return like
    mean = torch.empty(like.shape, dtype=like.dtype)
    out, flat = mean.view(-1), [(n, t.reshape(-1)) for n, t in terms]
    total, term = torch.empty(2, min(CHUNK, out.numel()), dtype=torch.float64)
    for at in range(0, out.numel(), CHUNK):
        rows = slice(at, min(at + CHUNK, out.numel()))
        t, d = (x[: rows.stop - at] for x in (total, term))
        if start is None:
            t.fill_(NOTHING)
        else:
            t.copy_(start[rows])
        for n, tensor in flat:
            t.add_(d.copy_(tensor[rows]), alpha=n)
        out[rows].copy_(t.div_(denominator))
    return mean


def _add(total: torch.Tensor, n: int, tensor: torch.Tensor) -> None:
    """Add n * tensor to the flat float64 `total`."""
    flat = tensor.reshape(-1)
    term = torch.empty(min(CHUNK, flat.numel()), dtype=torch.float64)
    for at in range(0, flat.numel(), CHUNK):
        rows = slice(at, min(at + CHUNK, flat.numel()))
        total[rows].add_(term[: rows.stop - at].copy_(flat[rows]), alpha=n)
