"""Workers that refuse models whose weights were let go (`keep` in a spec), by name.

What is stored of such a model, scores and logits, is used as before: then no worker is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from soupray.core.candidates import WeightCandidate
from soupray.core.errors import WeightsGone
from soupray.core.ports import Reached
from soupray.core.records import CheckpointRef, Split, encode
from soupray.core.requests import Request
from soupray.evaluation.evaluator import Workers
from soupray.evaluation.schedule import FirstReaching

LISTED = 8
"""Number of trials that a message names."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Guarded:
    """An `evaluator.Workers` that raises WeightsGone before others are asked in vain."""

    def __init__(self, workers: Workers, freed: Mapping[str, str]) -> None:
        """`freed`: keys of the trials whose weights were let go, by the SHA-256 of the weights."""
        self._workers, self._freed = workers, freed

    def evaluate(
        self,
        candidates: Sequence[WeightCandidate],
        splits: Sequence[Split],
        done: Callable[[int], None],
    ) -> None:
        """See `evaluator.Workers`. Raises WeightsGone."""
        self._refuse(sha for one in candidates for sha in one.checkpoints)
        self._workers.evaluate(candidates, splits, done)

    def decide(
        self,
        schedule: FirstReaching,
        candidates: Sequence[WeightCandidate],
        split: Split,
        tau: float | None,
    ) -> Reached:
        """See `evaluator.Workers`. Raises WeightsGone."""
        self._refuse(sha for one in candidates for sha in one.checkpoints)
        return self._workers.decide(schedule, candidates, split, tau)

    def measure(self, requests: Sequence[Request[Any]], split: Split) -> list[Any]:
        """See `evaluator.Workers`. Raises WeightsGone."""
        self._refuse(sha for one in requests for sha in _SHA256.findall(encode(one).decode()))
        return self._workers.measure(requests, split)

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """See `evaluator.Workers`. Raises WeightsGone."""
        self._refuse(candidate.checkpoints)
        return self._workers.save(candidate)

    def _refuse(self, checkpoints: Iterable[str]) -> None:
        gone = sorted({self._freed[sha] for sha in checkpoints if sha in self._freed})
        if gone:
            raise WeightsGone(are_gone(gone))


def are_gone(trials: Sequence[str]) -> str:
    """Return the message about trials whose weights are needed and were let go.

    Args:
        trials: their keys.
    """
    shown = ", ".join(trials[:LISTED]) + (" ..." if len(trials) > LISTED else "")
    one = len(trials) == 1
    return (
        f"the weights of {len(trials)} trial{'' if one else 's'} are needed and were let go "
        f"(`keep` in the spec): {shown}. Run `soupray sweep` with `keep: all`, which trains "
        f"{'it' if one else 'them'} again. Or choose recipes that need only stored logits, such as "
        "ensemble and greedy_ensemble."
    )
