"""Hyperparameter sweeps on Ray whose trials become model soups, WiSE-FT models and ensembles."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soupray.inference.load import load
    from soupray.inference.model import Model

# Who imports this as a library hears nothing unasked: the command line adds a handler that shows.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`soupray.load` and `soupray.Model` on first use: importing soupray imports no torch."""
    if name == "load":
        from soupray.inference.load import load

        return load
    if name == "Model":
        from soupray.inference.model import Model

        return Model
    raise AttributeError(f"module 'soupray' has no attribute {name!r}")
