"""Print what each claim of the papers is worth on some pools, as a table in Markdown.

    python scripts/claims.py digits=results/digits ...

Reads what `soupray diagnose` wrote. A claim holds if its test says so (p < .05, or an interval
without 0), does not hold if the opposite is as sure, and else nobody can tell.
docs/papers.md has the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import binomtest

from soupray.maths.associations import association
from soupray.reporting.notes import p_value

HOLDS, FAILS, UNSURE = "holds", "does not hold", "cannot tell"
LEVEL = 0.05


class Claim(NamedTuple):
    """A claim of a paper.

    Attributes:
        text: what the paper says.
        paper: its number at arXiv.
        measure: that tests it.
        test: from its numbers to (holds, does not hold, cannot tell; the numbers in words).
    """

    text: str
    paper: str
    measure: str
    test: Callable[[dict[str, Any]], tuple[str, str]]


def p_words(p: float) -> str:
    """`p = .031`, or `p < .001`."""
    words = p_value(p)
    return f"p {words[0]} {words[1:]}" if words.startswith("<") else f"p = {words}"


def correlated(xs: list[float], ys: list[float], sign: int) -> tuple[str, str]:
    """Whether two numbers go together in the direction `sign`."""
    found = association(xs, ys)
    if found is None:
        return UNSURE, f"{len(xs)} pairs are too few"
    words = f"{found.rho:+.2f}, {p_words(found.p)}, n = {found.n}"
    if found.p >= LEVEL:
        return UNSURE, words
    return (HOLDS if found.rho * sign > 0 else FAILS), words


def counted(good: int, n: int, what: str) -> tuple[str, str]:
    """Whether more than half of n are good: sign test."""
    if not n:
        return UNSURE, "none"
    p = float(binomtest(good, n).pvalue)
    words = f"{good} of {n} {what}, {p_words(p)}"
    return (UNSURE if p >= LEVEL else HOLDS if 2 * good > n else FAILS), words


def pairs_gain(made: dict[str, Any]) -> tuple[str, str]:
    """The mean of weights against the mean of the two: sign test over pairs."""
    gains = [p["soup"]["advantage"] for p in made["pairs"]]
    apart = [g for g in gains if g]
    verdict, words = counted(sum(g > 0 for g in apart), len(apart), "pairs")
    return verdict, f"{words}, {100 * sum(gains) / len(gains):+.1f} points"


def angles(made: dict[str, Any]) -> tuple[str, str]:
    """Angle against the advantage of the soup, over pairs."""
    known = [p for p in made["pairs"] if p["angle"] is not None]
    return correlated([p["angle"] for p in known], [p["soup"]["advantage"] for p in known], 1)


def identity(made: dict[str, Any]) -> tuple[str, str]:
    """Predicted against measured L_soup - L_ensemble, in the nearer half of the pairs."""
    near = sorted(made["pairs"], key=lambda p: p["distance"])
    near = near[: (len(near) + 1) // 2]
    return correlated([p["predicted"] for p in near], [p["measured"] for p in near], 1)


def wise_ft(made: dict[str, Any]) -> tuple[str, str]:
    """Mean rho of the best WiSE-FT point against that of its end: intervals that do not touch."""
    by_name = {m["name"]: m for m in made["means"]}
    single = by_name.get("best_single")
    lines = [m for n, m in by_name.items() if n.startswith("wise_ft(best_single")]
    if single is None or not lines:
        return UNSURE, "no WiSE-FT of the best single model"
    best = max(lines, key=lambda m: m["rho"])
    words = f"{100 * best['rho']:+.1f} against {100 * single['rho']:+.1f}"
    if best["low"] > single["high"]:
        return HOLDS, words
    return (FAILS if best["high"] < single["low"] else UNSURE), words


def soups(made: dict[str, Any]) -> tuple[str, str]:
    """Mean rho of the uniform and the greedy soup: intervals above 0."""
    by_name = {m["name"]: m for m in made["means"]}
    found = [by_name[n] for n in ("uniform", "greedy") if n in by_name]
    words = ", ".join(
        f"{m['name']} {100 * m['rho']:+.1f} [{100 * m['low']:+.1f}, {100 * m['high']:+.1f}]"
        for m in found
    )
    if found and all(m["low"] > 0 for m in found):
        return HOLDS, words
    return (FAILS if found and all(m["high"] < 0 for m in found) else UNSURE), words


def inconsistent(made: dict[str, Any]) -> tuple[str, str]:
    """Inconsistency of two models against the gain of their ensemble."""
    ends = [p["models"] for p in made["pairs"]]
    apart = [made["inconsistency"][i][j] for i, j in ends]
    return correlated(apart, [p["gain"] for p in made["pairs"]], 1)


def low_accuracy(made: dict[str, Any]) -> tuple[str, str]:
    """Trials below the median that lower the loss of the champion as one more member."""
    ranked = sorted(t["accuracy"] for t in made["trials"])
    middle = ranked[len(ranked) // 2]
    low = [t for t in made["trials"] if t["accuracy"] < middle]
    good = [t for t in low if t["loss_high"] < 0]
    words = f"{len(good)} of the {len(low)} trials below the middle lower the loss"
    if good:
        return HOLDS, words
    return (FAILS if all(t["loss_low"] > 0 for t in low) else UNSURE), words


def both_wrong(made: dict[str, Any]) -> tuple[str, str]:
    """Mixtures with more of one kind than of the other: sign test."""
    more = sum(m["low"] > 0 for m in made["mixtures"])
    fewer = sum(m["high"] < 0 for m in made["mixtures"])
    return counted(more, more + fewer, f"mixtures (of {len(made['mixtures'])})")


def distances(made: dict[str, Any]) -> tuple[str, str]:
    """The bucket of distances against the ratio of accuracies, on ID test."""
    start = made["starts"][0]
    test = next(p for p in start["places"] if p["split"] == "test")
    ratios = [b["ratio"] for b in test["buckets"] if b["ratio"] is not None]
    verdict, words = correlated([float(k) for k in range(len(ratios))], ratios, -1)
    return verdict, f"{words}; {ratios[0]:.2f} to {ratios[-1]:.2f}"


def alone(made: dict[str, Any]) -> tuple[str, str]:
    """Each of the two numbers against held-out accuracy."""
    found = [t for t in made["together"] if t["what"] == "held-out accuracy"]
    words = ", ".join(f"{t['of']} {t['rho']:+.2f} ({p_words(t['p'])})" for t in found)
    if not found:
        return UNSURE, "no variation"
    return (FAILS if any(t["p"] < LEVEL for t in found) else UNSURE), words


def smoother(name: str) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """High frequencies of a mixture against the mean of its parts, within and between."""

    def test(made: dict[str, Any]) -> tuple[str, str]:
        found = [d for d in made["differences"] if d["name"] == f"{name} of these"]
        words = "; ".join(
            f"{d['where'].split()[0]} {100 * d['difference']:+.1f} "
            f"[{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
            for d in found
        )
        if not found:
            return UNSURE, "one trial"
        if all(d["low"] > 0 for d in found):
            return FAILS, words
        sure = [d["high"] < 0 for d in found]
        return (HOLDS if all(sure) else f"{HOLDS} {found[sure.index(True)]['where']}"
                if any(sure) else UNSURE), words  # fmt: skip

    return test


def across(field: str) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """A number of pairs across two specs minus that within each: an interval without 0."""

    def test(made: dict[str, Any]) -> tuple[str, str]:
        value, low, high = made["contrasts"][0][field]
        words = f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
        return (HOLDS if low > 0 else FAILS if high < 0 else UNSURE), words

    return test


def noise(made: dict[str, Any]) -> tuple[str, str]:
    """Frequency against noise fitting beyond that of the clean trial."""
    rows = made["trials"]
    values = [t["fitting"] - (t["reference"] or 0.0) for t in rows]
    return correlated([t["frequency"] for t in rows], values, -1)


CLAIMS = (
    Claim("The mean of two trials' weights is better than the two on average",
          "2203.05482", "pairs", pairs_gain),
    Claim("It gains more, the larger the angle between the ways from theta_0",
          "2203.05482", "pairs", angles),
    Claim("For models near each other, curvature and confidence predict the loss of the soup minus "
          "that of the ensemble", "2203.05482", "pairs", identity),
    Claim("Interpolation with the anchor has effective robustness over the fine-tuned model",
          "2109.01903", "robustness", wise_ft),
    Claim("Soups are above the line of single trials", "2203.05482", "robustness", soups),
    Claim("The gain of an ensemble grows with the error inconsistency of its two models",
          "2110.12899", "inconsistency", inconsistent),
    Claim("Models of another family err more differently than models of one",
          "2110.12899", "families", across("inconsistency")),
    Claim("Ensembles across families gain more over the mean of their two models",
          "2110.12899", "families", across("gain")),
    Claim("Models of low accuracy help a better one in an ensemble",
          "2110.12899", "additions", low_accuracy),
    Claim("A mixture is right where all its ends are wrong more often than the reverse",
          "2309.17230", "both_wrong", both_wrong),
    Claim("The lead of the fine-tuned model shrinks with the distance to the failure set (ID test)",
          "2411.06966", "failure_distance", distances),
    Claim("Neither Affinity nor Diversity alone says which training is good",
          "2002.08973", "augmentations", alone),
    Claim("Soups are smoother than their ingredients (not in the paper, which has ensembles)",
          "2110.02424", "frequencies", smoother("soup")),
    Claim("Ensembles are smoother than their ingredients",
          "2110.02424", "frequencies", smoother("ensemble")),
    Claim("Label noise of low frequency is fitted more than that of high frequency",
          "2110.02424", "noise_fitting", noise),
)  # fmt: skip


def main(arguments: list[str]) -> None:
    """Print the table for NAME=FOLDER, .... A name may stand several times, for several sweeps."""
    pools: dict[str, dict[str, Any]] = {}
    for one in arguments:
        name, _, folder = one.partition("=")
        made = json.loads(Path(folder, "diagnostics.json").read_text())
        pools.setdefault(name, {}).update(made["measures"])
    print(f"| claim | {' | '.join(pools)} |")
    print(f"|---|{'---|' * len(pools)}")
    for claim in CLAIMS:
        cells = []
        for measures in pools.values():
            if claim.measure in measures:
                verdict, words = claim.test(measures[claim.measure])
                cells.append(f"**{verdict}**: {words}")
            else:
                cells.append("-")
        link = f"[{claim.paper}](https://arxiv.org/abs/{claim.paper})"
        measure = f"[`{claim.measure}`](guide/diagnose.md#{claim.measure})"
        print(f"| {claim.text} ({link}; {measure}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
