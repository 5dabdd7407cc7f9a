"""Path frequencies of texts, as `diagnose` computed them first and now: CPU time in one process.

Definitions of WordNet through MiniLM, on one thread: four models and their ensemble. Weights do not
matter for the time: the four models are one network. `make wordnet` fetches what this needs.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from soupray.diagnostics.frequencies import STEPS, TEXT_STEPS
from soupray.spec.sweep_spec import load
from soupray.tasks.transformers import TextTask

MODELS, PATHS, ROUNDS = 4, 4, 5


def before(network: torch.nn.Module, two: torch.Tensor, pad: int) -> torch.Tensor:
    """Logits at 32 points, with all positions of the two texts."""
    table = network.body.get_input_embeddings()
    ends, share = table(two), torch.linspace(0, 1, STEPS).view(-1, 1, 1)
    line = (1 - share) * ends[0] + share * ends[1]
    seen = torch.where(two[0] == pad, two[1], two[0]).expand(STEPS, -1)
    hook = table.register_forward_hook(lambda module, inputs, output: line)
    try:
        return network(seen)
    finally:
        hook.remove()


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of `work`."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print the median of ROUNDS rounds, in turns, and the largest difference of logits."""
    torch.set_num_threads(1)
    task = TextTask(load(Path("sweeps/wordnet_topics.yaml")).task)
    network, pad = task.model().eval(), task.tokenizer.pad_token_id
    with Path(".home/wordnet/topics/test.csv").open() as file:
        tokens = task._tokens([row["text"] for row in csv.DictReader(file)])
    rng = np.random.default_rng(0)
    ends = [tokens[rng.integers(len(tokens), size=2)] for _ in range(PATHS)]
    full, part = (torch.linspace(0, 1, n) for n in (STEPS, TEXT_STEPS))
    with torch.inference_mode():
        same = max(
            float((before(network, two, pad) - network.between(two, full)).abs().max())
            for two in ends
        )
        took: dict[str, list[float]] = {"before": [], "now": []}
        for _ in range(ROUNDS):
            # Before, each model ran for itself, and again for the ensemble.
            took["before"].append(
                cpu_s(
                    lambda: [before(network, two, pad) for two in ends for _ in range(2 * MODELS)]
                )
            )
            took["now"].append(
                cpu_s(lambda: [network.between(two, part) for two in ends for _ in range(MODELS)])
            )
    for name, seconds in took.items():
        each = sorted(1000 * s / PATHS for s in seconds)
        print(f"{name}: {statistics.median(each):.0f} ms of CPU for each path ({each[0]:.0f} to "
              f"{each[-1]:.0f})")  # fmt: skip
    print(f"largest difference of a logit at {STEPS} points: {same:.1e}")


if __name__ == "__main__":
    main()
