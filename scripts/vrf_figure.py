"""Draws the sketch of VRF in docs/concepts.md: made-up features, and the formula itself.

    python scripts/vrf_figure.py docs/images/vrf-sketch.png

Left: the failure set (training samples that the zero-shot model got wrong and the fine-tuned one
right), and how far the fine-tuned model is trusted at every place. Right: omega by the distance d.
"""

import sys

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from soupray.maths.outputs import trust
from soupray.recipes.recipe import INK, TEAL

K, A, B = 3, 1.6, 0.35
SAMPLES = {"near": (-0.4, 0.15), "between": (0.62, -0.1), "far": (1.0, 0.6)}
MUTED, ZERO_SHOT = "#9aa0b4", "#c8553d"


def squared_distances(points: np.ndarray, failures: np.ndarray) -> np.ndarray:
    """The squared distance of each point [N, 2] to its K-th nearest failure [M, 2]: [N]."""
    apart = ((points[:, None] - failures[None]) ** 2).sum(axis=2)
    return np.sort(apart, axis=1)[:, K - 1]


def main(target: str) -> None:
    """Write the figure to `target`."""
    draw = np.random.default_rng(3)
    failures = np.array([-1.1, -0.6]) + draw.normal(scale=(0.42, 0.3), size=(22, 2))
    mpl.rcParams.update({"font.size": 10, "text.color": INK, "axes.labelcolor": INK})
    figure, (place, curve) = plt.subplots(1, 2, figsize=(9.6, 3.9), dpi=150, layout="constrained")

    across, up = np.linspace(-2.6, 2.6, 400), np.linspace(-1.7, 1.7, 260)
    grid = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    omega = trust(squared_distances(grid, failures), A, B).reshape(len(up), len(across))
    colours = mpl.colors.LinearSegmentedColormap.from_list("", ["#f6d9d2", "#ffffff", "#cfe9e6"])
    place.pcolormesh(across, up, omega, cmap=colours, vmin=0, vmax=1, rasterized=True)
    half = place.contour(across, up, omega, levels=[0.5], colors=MUTED, linestyles="--")
    place.clabel(half, fmt=r"$\omega$ = 0.5", fontsize=9)
    place.scatter(*failures.T, s=16, color=TEAL, marker="x", label="failure set")
    place.set(xticks=[], yticks=[], xlabel="features of the fine-tuned model (made up)")
    place.legend(loc="lower right", frameon=True, edgecolor="none")

    d = np.linspace(0, 5, 400)
    curve.plot(d, trust(d, A, B), color=INK)
    curve.axvline(A, color=MUTED, linestyle="--", linewidth=1)
    curve.text(A + 0.06, 0.03, "a", color=MUTED)
    for name, at in SAMPLES.items():
        (far,) = squared_distances(np.array([at]), failures)
        (share,) = trust(np.array([far]), A, B)
        said = f"{name}: $\\omega$ = {share:.2f}"
        place.plot(*at, "o", color=INK)
        place.annotate(said, at, xytext=(6, 6), textcoords="offset points")
        curve.plot(far, share, "o", color=INK)
        curve.annotate(said, (far, share), xytext=(9, 5), textcoords="offset points")
    curve.set(
        xlabel="d: squared distance to the failure set",
        ylabel=r"$\omega$: share of the fine-tuned model",
        xlim=(0, 5),
        ylim=(-0.12, 1.15),
    )
    curve.text(2.7, 0.62, r"$p = \omega\,p_{ft} + (1 - \omega)\,p_{zs}$", fontsize=12)
    curve.text(0.08, 1.07, "the fine-tuned model answers", color=TEAL)
    curve.text(4.95, -0.09, "the zero-shot model answers", color=ZERO_SHOT, ha="right")
    curve.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1])
