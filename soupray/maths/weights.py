"""Averages of weights that do not depend on how they were computed.

Each tensor is summed in float64 in the candidate's order, divided once and rounded once to the
storage type. In float32 the mean of K equal models differs from that model in up to two thirds of
its elements; in float64 an incremental and a fresh sum give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from soupray.candidates import FisherSoup, LayerSoup, WeightCandidate, WeightSoup
from soupray.errors import IncompatibleWeights

Parts = tuple[tuple[str, int], ...]

FISHER_FLOOR = 1e-8
"""Fisher-weighted averaging, arXiv:2111.09832, section 3: below it an element counts as this."""


class Source(Protocol):
    """What an average needs of a checkpoint: its tensors by name, not all in memory at once."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors, sorted."""
        ...

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor called `name`."""
        ...


class Mixer:
    """Makes the tensors of weight soups, one at a time.

    Private memory: one float64 sum (of the parts that successive means share) and one tensor.
    A greedy soup asks for mean(S + i) for many i: the sum of S is kept, each i is read once, and
    only an accepted one a second time.
    """

    def __init__(self, open_weights: Callable[[str], Source]) -> None:
        self._open = open_weights
        self._parts: Parts = ()
        self._sums: dict[str, torch.Tensor] = {}

    def tensors(self, soup: WeightCandidate) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of the soup, in the storage type of its first part.

        Raises:
            IncompatibleWeights: parts differ in keys, shapes, dtypes or integer buffers.
        """
        if isinstance(soup, LayerSoup):
            return self._by_layer(soup)
        if isinstance(soup, FisherSoup):
            return self._by_fisher(soup)
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
            total = sums[name].clone() if name in sums else None
            for sha, n, source in sources:
                total = _plus(total, n, source, sha, name, like)
            assert total is not None
            yield name, _rounded(total, soup.denominator, like[name])

    def _by_layer(self, soup: LayerSoup) -> Iterator[tuple[str, torch.Tensor]]:
        sources = [(sha, self._open(sha)) for sha in soup.checkpoints]
        like, numerators = sources[0][1], soup.numerators()
        for name in like.names:
            total = None
            for (sha, source), n in zip(sources, numerators.get(name, soup.rest), strict=True):
                if n != 0:
                    total = _plus(total, n, source, sha, name, like)
            assert total is not None
            yield name, _rounded(total, soup.denominator, like[name])

    def _by_fisher(self, soup: FisherSoup) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors without Fisher information (buffers) are plain means."""
        sources = [(sha, n, self._open(sha), self._open(fisher)) for sha, fisher, n in soup.parts]
        like, total_n = sources[0][2], sum(n for _, _, n in soup.parts)
        known = set(sources[0][3].names)
        for name in like.names:
            total, share = None, None
            for sha, n, source, fisher in sources:
                term = _plus(None, n, source, sha, name, like)
                if name in known:
                    own = fisher[name].to(torch.float64).clamp_min(FISHER_FLOOR)
                    term = term * own
                    share = own.mul_(n) if share is None else share.add_(own, alpha=n)
                total = term if total is None or not term.is_floating_point() else total.add_(term)
            assert total is not None
            yield name, _rounded(total, total_n if share is None else share, like[name])

    def _worth_keeping(self, head: Parts) -> bool:
        # A plain mean is likely to grow by one; interpolations share no sum with their neighbours.
        return len(head) > 0 and all(n == 1 for _, n in head)

    def _advance(self, head: Parts) -> None:
        """Make `self._sums` the sum of `head`, going on from what is there if it is a prefix."""
        if head[: len(self._parts)] != self._parts:
            self._parts, self._sums = (), {}
        try:
            like = self._open(head[0][0])
            for sha, n in head[len(self._parts) :]:
                source = self._open(sha)
                for name in like.names:
                    self._sums[name] = _plus(self._sums.get(name), n, source, sha, name, like)
                self._parts += ((sha, n),)
        except BaseException:
            self._parts, self._sums = (), {}  # half a sum is worse than none
            raise


def _plus(
    total: torch.Tensor | None, n: int, source: Source, sha: str, name: str, like: Source
) -> torch.Tensor:
    """Add n * source[name] to `total`, in float64 and in place; integers must be equal."""
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
    if not tensor.is_floating_point():
        if not torch.equal(tensor, wanted):
            raise IncompatibleWeights(
                f"{sha[:12]}: the integer buffer {name!r} differs from the first model's, and "
                "integers have no meaningful average."
            )
        return wanted
    if total is None:
        return tensor.to(torch.float64, copy=True).mul_(n)
    return total.add_(tensor, alpha=n)  # each product is exact: n is small, the tensor float32


def _rounded(
    total: torch.Tensor, denominator: int | torch.Tensor, like: torch.Tensor
) -> torch.Tensor:
    if not like.is_floating_point():
        return total
    return (total / denominator).to(like.dtype)
