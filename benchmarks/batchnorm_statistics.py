"""Single models and soups with BatchNorm, with statistics that are made alike and not.

    python benchmarks/batchnorm_statistics.py [STEPS]     # default: 12 steps for each trial

Three seeds: a small residual network on the UCI digits, trained a little (theta_0), then eight
trials of STEPS steps each. The statistics of the trials are running averages with torch's momentum
of .1: after twelve steps, .9 ** 12 = 28 % of them are still those of theta_0. Each model is scored
with them and with estimated ones, as soups are. `greedy, as trained first` starts with the best
model as trained and compares the means with it, as soupray did at first.

It trains and evaluates in this process: a minute or two.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from soupray.core.candidates import mean_of
from soupray.core.records import Basis
from soupray.core.trials import Ingredient, pool_of
from soupray.evaluation.selection import HeldOutSelection
from soupray.recipes import run_recipes
from soupray.recipes.greedy import Rule, add, begin, one_pass
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.services.place import Place
from soupray.spec.sweep_spec import parse
from soupray.training.trial import fine_tune
from soupray.training.worker import make_basis, worker_context

SEEDS = (0, 1, 2)
IMAGES = 1000
SPEC = """
name: statistics
seed: {seed}
threads: 1
evaluation_batch: 100
task:
  kind: timm
  model: resnet10t
  args: {{in_chans: 1, stem_width: 16, channels: [16, 32, 64, 64]}}
  classes: [zero, one, two, three, four, five, six, seven, eight, nine]
  size: 32
  mean: [0.3]
  std: [0.35]
data: {{kind: digits, train_per_class: 100, held_out: 300, shifts: [noise, thickened]}}
init: {{trained: {{lr: 3e-3, epochs: 4, batch_size: 64}}}}
anchor: init
search:
  trials: 8
  space: {{lr: {{log_uniform: [5e-3, 5e-2]}}, epochs: 1, batch_size: {batch}, rotation: 10}}
storage: file://{folder}/store
tracking: off
recipes: {{uniform: {{}}, greedy: {{}}}}
"""


def ingredients(here, basis: Basis) -> list[Ingredient]:
    """All trials of the spec, one after the other."""
    made = []
    for trial in trials_of(here.spec, basis):
        training = fine_tune(trial, here.task, here.data, here.checkpoints)
        while True:
            try:
                next(training)
            except StopIteration as end:
                made.append(end.value)
                break
    return [one for one in made if isinstance(one, Ingredient)]


def measured(seed: int, steps: int) -> list[tuple[str, int, float, float, float]]:
    """(name, checkpoints, held-out, ID test, mean of shifts) of each model."""
    with tempfile.TemporaryDirectory() as folder:
        text = SPEC.format(seed=seed, batch=IMAGES // steps, folder=folder)
        spec = parse(text, "statistics.yaml")
        Path(folder, "store").mkdir()
        place = Place(storage=spec.storage, credentials=None, cache=f"{folder}/cache")
        basis = make_basis(spec, place, basis_key(spec))
        here = worker_context(spec, place)
        pool = pool_of(basis, ingredients(here, basis))
        evaluator = here.evaluator()
        splits = [basis.split("held_out"), basis.split("train")]
        selection = HeldOutSelection(evaluator, pool, splits)
        names = ("anchor", "best_single", "update_bn", "uniform", "greedy")
        models = {o.name: o.candidate for o in run_recipes(selection, {n: {} for n in names})}
        first, *rest = pool.checkpoints
        rule = Rule(add, mean_of, "ge")
        kept = begin(selection, rule, [first], pool.ingredients[0].held_out)
        kept = one_pass(selection, rule, kept, rest)
        models["greedy, as trained first"] = mean_of(kept.checkpoints)
        rows = []
        for name, model in models.items():
            found = [evaluator.scores([model], s)[0].accuracy for s in (splits[0], *basis.reported)]
            test, *shifts = found[1:]
            mean = sum(shifts) / len(shifts)
            rows.append((name, len(model.checkpoints), found[0], test, mean))
        return rows


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    print("| seed | entry | models | held-out | test | mean of shifts |\n|---|---|---|---|---|---|")
    for seed in SEEDS:
        for name, k, *scores in measured(seed, steps):
            print(f"| {seed} | {name} | {k} | {' | '.join(f'{100 * s:.1f}' for s in scores)} |")


if __name__ == "__main__":
    main()
