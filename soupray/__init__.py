"""Hyperparameter sweeps on Ray whose trials become model soups, WiSE-FT models and ensembles."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from soupray.core.errors import (
    AlreadyExists,
    CheckpointError,
    ChecksumMismatch,
    ConfigError,
    Diverged,
    EvaluationError,
    IncompatibleWeights,
    InputError,
    NotFound,
    RayLost,
    Refused,
    SouprayError,
    StoreError,
    StoreUnavailable,
    TrackingError,
    TrialError,
    WeightsGone,
)

if TYPE_CHECKING:
    from soupray.api import (
        Leaderboard,
        check,
        diagnose,
        load_leaderboard,
        load_spec,
        run_soup,
        run_sweep,
        status,
    )
    from soupray.inference.load import load
    from soupray.inference.model import Model
    from soupray.spec.sweep_spec import SweepSpec
    from soupray.sweep.run import SweepReport

# Who imports this as a library hears nothing unasked: what shows the log adds its own handler.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"
__all__ = [
    "AlreadyExists",
    "CheckpointError",
    "ChecksumMismatch",
    "ConfigError",
    "Diverged",
    "EvaluationError",
    "IncompatibleWeights",
    "InputError",
    "Leaderboard",
    "Model",
    "NotFound",
    "RayLost",
    "Refused",
    "SouprayError",
    "StoreError",
    "StoreUnavailable",
    "SweepReport",
    "SweepSpec",
    "TrackingError",
    "TrialError",
    "WeightsGone",
    "__version__",
    "check",
    "diagnose",
    "load",
    "load_leaderboard",
    "load_spec",
    "run_soup",
    "run_sweep",
    "status",
]

_ELSEWHERE = {
    "Model": "soupray.inference.model",
    "SweepReport": "soupray.sweep.run",
    "SweepSpec": "soupray.spec.sweep_spec",
    "load": "soupray.inference.load",
}
"""Names that are not in `soupray.api`, and where they are."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is used first: `import soupray` itself imports no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'soupray' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "soupray.api")), name)


def __dir__() -> list[str]:
    """Return the public names, for the Tab key."""
    return __all__
