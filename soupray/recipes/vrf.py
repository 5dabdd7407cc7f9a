"""VRF, variance reduction fine-tuning (arXiv:2411.06966, algorithm 1): an ensemble per sample.

The zero-shot failure set are training samples that the fine-tuned model gets right and the anchor
gets wrong. The larger the distance d of a sample from this set, the larger the weight of the
anchor: the fine-tuned model has weight omega = sigmoid(-(d - a) / b). a, b and k are chosen on
held-out data, from a grid that covers the distances seen there. Constant values of omega, which
give an output-space ensemble (OSE), are also candidates; so VRF is never worse than OSE of
probabilities on held-out data.
"""

from __future__ import annotations

from soupray.core.candidates import Candidate, Outcome, Step, VRFEnsemble, WeightCandidate
from soupray.core.ports import Selection
from soupray.core.requests import Distances, Failures, FailureSet, Temperature
from soupray.recipes.ose import GRID, mixed
from soupray.recipes.recipe import ENSEMBLE, ONE_CLASS, Cost, Earlier, Options, Recipe
from soupray.recipes.starts import LINES, anchor_of, starts

NEIGHBOURS = (0.001, 0.01, 0.1)
"""Values of k, as fractions of the size of the failure set; the paper uses 0.001."""

QUANTILES = tuple(q / 10 for q in range(11))
"""Values of a, as quantiles of the held-out distances."""

WIDTHS = (0.1, 0.3, 1.0, 3.0)
"""Values of b, as multiples of the spread between the 10 % and the 90 % quantile."""


def _vrf(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the VRF ensemble for the best single model and for the best soup."""
    return [
        _outcome(selection, name, fine_tuned) for name, fine_tuned in starts(selection, earlier)
    ]


def _outcome(selection: Selection, name: str, fine_tuned: WeightCandidate) -> Outcome:
    anchor = anchor_of(selection)
    hot, cold = selection.measure(
        [Temperature(candidate=fine_tuned), Temperature(candidate=anchor)]
    )
    (found,) = selection.measure([Failures(fine_tuned=fine_tuned, reference=anchor)])
    candidates: list[Candidate] = [
        mixed(fine_tuned, anchor, (hot, cold), k, "probabilities") for k in range(GRID + 1)
    ]
    notes = []
    if found.features is None:
        notes.append(
            f"vrf({name}): the zero-shot failure set is empty (no training sample that the model "
            "gets right and the anchor wrong): omega is constant"
        )
    else:
        candidates += _grid(selection, fine_tuned, anchor, (hot, cold), found)
    scores = selection.scores(candidates)
    # Many candidates make the same decisions: the lower NLL breaks ties, then the order.
    values = [selection.value(s) for s in scores]
    best = max(range(len(candidates)), key=lambda i: (values[i], -scores[i].nll, -i))
    chosen = candidates[best]
    options: dict[str, str | int | float] = {"theta_1": name, "failures": found.size}
    if isinstance(chosen, VRFEnsemble):
        options |= {"k": chosen.k, "a": chosen.a, "b": chosen.b}
    else:
        options |= {"omega": best / GRID}
    return Outcome(
        name=f"vrf({name})",
        recipe="vrf",
        options=options,
        candidate=chosen,
        held_out=scores[best],
        trace=(Step(candidate=chosen, result=scores[best], accepted=True),),
        notes=tuple(notes),
    )


def _grid(
    selection: Selection,
    fine_tuned: WeightCandidate,
    anchor: WeightCandidate,
    temperatures: tuple[float, float],
    found: FailureSet,
) -> list[Candidate]:
    assert found.features is not None
    ks = list(dict.fromkeys(max(1, int(p * found.size)) for p in NEIGHBOURS))
    asked = [Distances(fine_tuned=fine_tuned, failures=found.features, k=k) for k in ks]
    candidates: list[Candidate] = []
    for k, distances in zip(ks, selection.measure(asked), strict=True):
        levels = sorted(set(quantiles(distances)))
        low, high = quantiles(distances)[1], quantiles(distances)[-2]
        spread = (high - low) or high or 1.0
        candidates += [
            VRFEnsemble(
                fine_tuned=fine_tuned,
                reference=anchor,
                temperatures=temperatures,
                failures=found.features,
                k=k,
                a=a,
                b=width * spread,
            )
            for a in levels
            for width in WIDTHS
        ]
    return candidates


def quantiles(values: tuple[float, ...]) -> list[float]:
    """Return the values at QUANTILES, without interpolation."""
    ranked = sorted(values)
    return [ranked[round(q * (len(ranked) - 1))] for q in QUANTILES]


VRF = Recipe(
    name="vrf",
    summary="as ose, but sample by sample, by the distance to the zero-shot failure set",
    when="As `ose`, where the share should depend on how familiar a sample is.",
    paper="Zhu et al. 2024, arXiv:2411.06966",
    kind="ensemble",
    costs="1, and 2 passes over train",
    uses="training answers, held-out counts and NLL",
    passes="2",
    objectives=(ONE_CLASS,),  # class probabilities
    choose=_vrf,
    # Anchor: one pass for answers. Each start: one for answers, at most one for features.
    cost=lambda pool, options: Cost(decided=LINES * len(NEIGHBOURS), train_passes=1 + 2 * LINES),
    style=ENSEMBLE,
)
