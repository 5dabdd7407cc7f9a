"""The stop rule of a sweep: it decides, on finished prefixes, that no more trials are needed."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

import numpy as np

from soupray.core.arrays import Labels, Logits
from soupray.core.errors import SouprayError
from soupray.core.records import Split
from soupray.core.trials import Ingredient, Manifest, Trial
from soupray.maths.prefixes import chance_of_gain
from soupray.maths.terms import terms_of
from soupray.search.prefixes import Enough, create_enough, finished
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.checkpoints import Checkpoints

log = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""Seconds that the end of a sweep waits for the rule, which has then nothing more to stop."""

NUMBERS = 1_000_000
"""Logits of a trial that the rule looks at: at most this many, of samples drawn once. ImageNet has
1000 a sample: the rule sees 1000 samples, and decides about 72 trials in 20 s."""


class StopRule:
    """Applies the stop rule of a spec in its own thread while trials finish.

    The rule is applied to the prefixes of the plan in order, from `stop.after` trials on, and to
    each of them once all its trials are over. The decision therefore depends on the plan alone, not
    on the order in which trials finish, nor on crashes.
    """

    def __init__(
        self,
        spec: SweepSpec,
        checkpoints: Checkpoints,
        world: tuple[list[Trial], Split],
        read: Callable[[str], Manifest],
        tell: Callable[[Enough], None],
    ) -> None:
        """Start nothing yet. Without a rule in the spec, nothing happens.

        Args:
            spec: the sweep.
            checkpoints: reads the logits of trials.
            world: the trials of the plan in order, and the held-out split.
            read: returns the manifest of a trial from its key.
            tell: called once, with the decision.
        """
        self._spec, self._checkpoints, self._read, self._tell = spec, checkpoints, read, tell
        self._plan, self._held_out = world
        self._over: dict[str, Manifest] = {}
        self._seen: dict[str, tuple[Logits, Labels]] = {}
        rule = spec.search.stop
        self._next = len(self._plan) if rule is None else rule.after
        self._keys: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="stop rule")

    def __enter__(self) -> StopRule:
        if self._spec.search.stop is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._spec.search.stop is not None:
            self._keys.put(None)
            self._thread.join(PATIENCE_S)

    def add(self, key: str) -> None:
        """Hear that a trial is complete or diverged."""
        self._keys.put(key)

    def _work(self) -> None:
        try:
            while (key := self._keys.get()) is not None:
                self._over[key] = self._read(key)
                self._decide()
        except SouprayError as error:
            log.warning(f"the stop rule decides nothing more: {error} All trials are trained.")

    def _decide(self) -> None:
        """Apply the rule to each prefix that is newly finished."""
        rule, plan = self._spec.search.stop, self._plan
        assert rule is not None
        while self._next <= min(finished(plan, self._over), len(plan) - 1):
            size, self._next = self._next, self._next + 1
            chance = self._chance(size, rule.gain)
            if chance < rule.probability:
                made = Enough(
                    size=size, chance=chance, gain=rule.gain, probability=rule.probability
                )
                self._next = len(plan)
                self._tell(create_enough(self._checkpoints.store, self._spec, plan, made))

    def _chance(self, size: int, gain: float) -> float:
        """The chance of a gain after the first `size` trials; 1 if they are too few to say."""
        over = [self._over[trial.key] for trial in self._plan[:size]]
        seen = [self._logits(one) for one in over if isinstance(one, Ingredient)]
        if len(seen) < 2:
            return 1.0
        terms = terms_of(seen[0][1], self._held_out.objective)
        each = [terms.of(logits) for logits, _ in seen]
        return chance_of_gain(len(each), each.__getitem__, terms.loss, gain)

    def _logits(self, ingredient: Ingredient) -> tuple[Logits, Labels]:
        """The logits and labels of the samples that the rule looks at."""
        key = ingredient.trial.key
        if key not in self._seen:
            stored = self._checkpoints.load_blob(ingredient.logits.sha256)
            logits, labels = stored["logits"].numpy(), stored["labels"].numpy()
            rows = np.random.default_rng(0).permutation(len(logits))
            rows = np.sort(rows[: max(1, NUMBERS // logits.shape[1])])
            self._seen[key] = logits[rows], labels[rows]
        return self._seen[key]
