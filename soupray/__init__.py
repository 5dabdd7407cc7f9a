"""Hyperparameter sweeps on Ray whose trials become model soups, WiSE-FT models and ensembles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soupray.inference.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`soupray.load` on first use: importing soupray imports no torch."""
    if name == "load":
        from soupray.inference.load import load

        return load
    raise AttributeError(f"module 'soupray' has no attribute {name!r}")
