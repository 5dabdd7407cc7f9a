"""Greedy soup by proxy (RADIN, arXiv:2401.17790): choose on averaged logits, then average weights.

Near theta_0, the loss of averaged weights equals the loss of averaged logits to first order. The
logits of the ingredients are stored, so that no weights are averaged during the search. Ingredients
are tried in the order of their loss; one is kept if the loss of the averaged logits does not rise.
The soup of the kept ones is then evaluated once. It may be worse than the best single model.

RADIN ranks random subsets by this loss and evaluates as many soups as its budget allows. Here a
greedy search takes the place of random subsets, and the budget is one soup. The loss is used even
if the spec selects by another metric: the two losses agree better than the two accuracies.
"""

from __future__ import annotations

from soupray.core.candidates import Outcome, Step, ensemble_of
from soupray.core.ports import Selection
from soupray.recipes.recipe import Cost, Earlier, Options, Recipe, single
from soupray.recipes.starts import mean_among, singles


def _proxy(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    known = singles(selection)
    first, *rest = sorted(known, key=lambda one: one.scores.nll)
    kept, least = [first], first.scores.nll
    trace = [Step(candidate=first.model, result=first.scores, accepted=True)]
    for one in rest:
        tried = [*kept, one]
        mixed = ensemble_of([(o.model, 1, 1.0) for o in tried], len(tried), "logits")
        (scores,) = selection.scores([mixed])
        accepted = scores.nll <= least
        trace.append(Step(candidate=mixed, result=scores, accepted=accepted))
        if accepted:
            kept, least = tried, scores.nll
    soup = mean_among(known)([one.checkpoint for one in kept])
    return single(selection, "proxy", soup, {"ensemble_nll": round(least, 6)}, trace)


PROXY = Recipe(
    name="proxy",
    summary="greedy on the loss of averaged logits; only the chosen soup is evaluated",
    when="Where a forward pass over the held-out data is expensive: a greedy soup for the price of"
    " one.",
    paper="Menes and Risser-Maroix 2024, arXiv:2401.17790",
    kind="soup",
    costs="1",
    uses="held-out NLL",
    choose=_proxy,
    cost=lambda pool, options: Cost(scored=1, models=1, mixtures=1),
)
