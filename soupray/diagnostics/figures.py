"""Figures of a diagnosis: angle and advantage, errors and conversion, soup and ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soupray.diagnostics.diversity import Diagnosis
from soupray.recipes.greedy import GREEDY
from soupray.recipes.recipe import INK
from soupray.recipes.wise_ft import WISE_FT
from soupray.reporting.plots import MUTED, pyplot

SOUP, ENSEMBLE = GREEDY.style.colour, WISE_FT.style.colour


def draw_diagnosis(made: Diagnosis, folder: Path) -> list[Path]:
    """Draw the three figures as PNG files in `folder` and return their paths."""
    plt = pyplot()
    drawn = []
    for name, draw in (
        ("interpolation", _interpolation),
        ("diversity", _diversity),
        ("soup_against_ensemble", _against_ensemble),
    ):
        figure, axes = plt.subplots(figsize=(7.2, 5.0), layout="constrained")
        draw(made, axes)
        drawn.append(folder / f"{name}.png")
        figure.savefig(drawn[-1], dpi=150)
        plt.close(figure)
    return drawn


def interpolation_points(made: Diagnosis) -> list[tuple[float, float, float]]:
    """Return (angle in degrees, advantage in points, mean accuracy of the two in %) per pair."""
    return [
        (d.angle, 100 * d.soup.advantage, 100 * sum(d.accuracies) / 2)
        for d in made.pairs
        if d.angle is not None
    ]


def _interpolation(made: Diagnosis, axes: Any) -> None:
    points = interpolation_points(made)
    if points:
        x, y, colour = zip(*points, strict=True)
        shown = axes.scatter(x, y, c=colour, s=46, cmap="viridis", edgecolor="white", zorder=3)
        _bar(axes, shown, "mean accuracy of the two (%)")
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xlabel("angle between the two ways from theta_0 (degrees)")
    axes.set_ylabel("accuracy of the mean of weights\nminus mean of the accuracies (points)")
    axes.set_title(_title("Interpolation advantage against angle", made), loc="left", fontsize=11)


def diversity_points(made: Diagnosis) -> dict[str, list[tuple[float, float]]]:
    """Return (error inconsistency, conversion rate) in % per pair, for soup and ensemble."""
    return {
        name: [
            (100 * d.error_inconsistency, 100 * mixed.conversion)
            for d in made.pairs
            if (mixed := getattr(d, name)).conversion is not None
        ]
        for name in ("soup", "ensemble")
    }


def _diversity(made: Diagnosis, axes: Any) -> None:
    styles = (
        ("soup", "o", SOUP, "mean of weights (soup)"),
        ("ensemble", "D", ENSEMBLE, "mean of logits (ensemble)"),
    )
    points = diversity_points(made)
    for name, marker, colour, label in styles:
        axes.scatter(
            [x for x, _ in points[name]],
            [y for _, y in points[name]],
            s=44, marker=marker, color=colour, alpha=0.85, edgecolor="white", label=label, zorder=3,
        )  # fmt: skip
    # If samples that both get right stay right, advantage = inconsistency x (conversion - 1/2).
    axes.axhline(50, color=INK, lw=0.8, ls="--", label="no better than the mean of the two")
    axes.set_ylim(0, 104)
    axes.set_xlim(left=0)
    axes.set_xlabel("error inconsistency: exactly one of the two is right (% of samples)")
    axes.set_ylabel("conversion rate: of these samples, right together (%)")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.set_title(
        _title("What averaging makes of different errors", made), loc="left", fontsize=11
    )


def ensemble_points(made: Diagnosis) -> list[tuple[float, float, float]]:
    """Return (predicted, measured L_soup - L_ensemble in nats, |theta_i - theta_j|) per pair."""
    return [(d.predicted, d.measured, d.distance) for d in made.pairs]


def _against_ensemble(made: Diagnosis, axes: Any) -> None:
    points = ensemble_points(made)
    x, y, colour = zip(*points, strict=True)
    axes.axhline(0, color=INK, lw=0.8)
    axes.axline((0, 0), slope=1, color=MUTED, ls="--", lw=1.2, label="predicted = measured")
    shown = axes.scatter(x, y, c=colour, s=46, cmap="viridis_r", edgecolor="white", zorder=3)
    _bar(axes, shown, "distance of the two, |theta_i - theta_j|")
    axes.set_xlabel("predicted L(soup) - L(ensemble) (nats)")
    axes.set_ylabel("measured L(soup) - L(ensemble) (nats)")
    below = "below 0: the soup of the two has the lower loss"
    axes.annotate(below, (0.99, 0.01), xycoords="axes fraction", ha="right", fontsize=8, color=INK)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.set_title(_title("Soup against ensemble", made), loc="left", fontsize=11)


def _bar(axes: Any, shown: Any, label: str) -> None:
    bar = axes.figure.colorbar(shown, ax=axes, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _title(what: str, made: Diagnosis) -> str:
    return f"{what} ({len(made.pairs)} pairs, held-out, n = {made.n})"
