"""All measures, in the order in which they run and stand in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from soupray.core.errors import ConfigError
from soupray.diagnostics.additions import ADDITIONS
from soupray.diagnostics.augmentations import AUGMENTATIONS
from soupray.diagnostics.both_wrong import BOTH_WRONG
from soupray.diagnostics.failure_distance import FAILURE_DISTANCE
from soupray.diagnostics.families import FAMILIES
from soupray.diagnostics.flatness import FLATNESS
from soupray.diagnostics.frequencies import FREQUENCIES
from soupray.diagnostics.inconsistency import INCONSISTENCY
from soupray.diagnostics.measure import Measure
from soupray.diagnostics.mistakes import MISTAKES
from soupray.diagnostics.noise_fitting import NOISE_FITTING
from soupray.diagnostics.pairs import PAIRS
from soupray.diagnostics.robustness import EFFECTIVE_ROBUSTNESS
from soupray.diagnostics.specialisation import SPECIALISATION

MEASURES: tuple[Measure[Any], ...] = (
    PAIRS,
    FLATNESS,
    EFFECTIVE_ROBUSTNESS,
    INCONSISTENCY,
    FAMILIES,
    SPECIALISATION,
    ADDITIONS,
    BOTH_WRONG,
    FAILURE_DISTANCE,
    MISTAKES,
    AUGMENTATIONS,
    FREQUENCIES,
    NOISE_FITTING,
)


def find_measures(names: Sequence[str]) -> tuple[Measure[Any], ...]:
    """Return the measures with these names, in the order of MEASURES; all for no names.

    Raises:
        ConfigError: there is no such measure.
    """
    known = [m.name for m in MEASURES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"there is no measure {', '.join(map(repr, unknown))}. There are: {', '.join(known)}."
        )
    return tuple(m for m in MEASURES if m.name in names or not names)
