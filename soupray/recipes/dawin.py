"""DaWin's output version (arXiv:2410.03782): anchor and fine-tuned model by entropy.

For each sample, each model's share is proportional to exp(-H), H the entropy of its calibrated
probabilities. Nothing is chosen but the temperatures. The paper's main version interpolates the
weights anew for each sample, which needs a model of its own for each.
"""

from __future__ import annotations

from soupray.core.candidates import EntropyEnsemble, Outcome
from soupray.core.ports import Selection
from soupray.core.requests import Temperature
from soupray.recipes.recipe import ENSEMBLE, ONE_CLASS, Earlier, Options, Recipe
from soupray.recipes.starts import anchor_of, starts


def _dawin(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the mixture for the best single model and for the best soup."""
    anchor = anchor_of(selection)
    outcomes = []
    for name, fine_tuned in starts(selection, earlier):
        models = (fine_tuned, anchor)
        temperatures = selection.measure([Temperature(candidate=model) for model in models])
        candidate = EntropyEnsemble(parts=tuple(zip(models, temperatures, strict=True)))
        (scores,) = selection.scores([candidate])
        outcomes.append(
            Outcome(
                name=f"dawin({name})",
                recipe="dawin",
                options={"theta_1": name},
                candidate=candidate,
                held_out=scores,
            )
        )
    return outcomes


DAWIN = Recipe(
    name="dawin",
    summary="as ose, but for each sample the surer model has the larger share",
    when="As `vrf`, without training data: two forward passes, and nothing to choose.",
    paper="Oh et al. 2024, arXiv:2410.03782",
    kind="ensemble",
    costs="0: from stored logits",
    uses="held-out NLL",
    passes="2",
    choose=_dawin,
    objectives=(ONE_CLASS,),  # entropies of class probabilities
    style=ENSEMBLE,
)
