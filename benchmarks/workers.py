"""How well the greedy soup's scheduler uses 1, 2, 4 and 8 workers, by a simulated clock.

    python benchmarks/workers.py

The scheduler is the real one (soupray.evaluation.schedule), driven as distributed/actors.py drives
it; only models and time are made up. Ten fixed traces of 72 ingredients of which 5 are accepted
after the first, 26 000 held-out samples in batches of 250. Each soup runs its hardest samples
first, by its ingredients' margins, as in the engine: those are the first model's, with noise. A
batch takes 1, give or take 10 %; to put a candidate's weights into a worker's model takes a fifth
of that.

Utilisation is max(work / workers, chain) / time. work is what one worker does: every batch up to
each candidate's rejection, and all batches of the accepted ones. chain is what must follow one
after the other with any number of workers: one batch and one loading for each soup that is grown,
and for the last round.
"""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass

import numpy as np

from soupray.evaluation.schedule import Answer, FirstReaching, hardest_first

INGREDIENTS, ACCEPTED, SAMPLES, BATCH, LOADING = 72, 5, 26_000, 250, 0.2
NOISE = 0.2  # of an ingredient's margin on a sample, beside the first model's; assumed
WORKERS, TRACES = (1, 2, 4, 8), 10


@dataclass
class Trace:
    """Per candidate in the pool's order: who is right where, with what margin; the accepted."""

    right: np.ndarray
    accepted: set[int]
    margins: np.ndarray


def make_trace(seed: int) -> Trace:
    """A first model of 82 %; each candidate changes a few hundred answers on hard samples."""
    g = np.random.default_rng(seed)
    hardness = g.beta(0.25, 1.1, size=SAMPLES)
    lead = g.random(SAMPLES) - hardness
    first = lead > 0
    accepted = set(g.choice(np.arange(1, INGREDIENTS), ACCEPTED, replace=False).tolist())
    right = np.zeros((INGREDIENTS, SAMPLES), bool)
    right[0] = best = first
    for i in range(1, INGREDIENTS):
        gain = int(g.integers(1, 30)) if i in accepted else -int(g.integers(5, 120))
        churn = int(g.integers(150, 400))
        lost = g.choice(np.flatnonzero(best), churn, replace=False, p=_share(hardness[best]))
        won = g.choice(np.flatnonzero(~best), churn + gain, replace=False)
        right[i] = best
        right[i, lost], right[i, won] = False, True
        if i in accepted:
            best = right[i]
    noise = NOISE * g.standard_normal((INGREDIENTS, SAMPLES))
    return Trace(right, accepted, lead + noise)


def _share(weights: np.ndarray) -> np.ndarray:
    return (weights + 1e-3) / (weights + 1e-3).sum()


def question(trace: Trace, position: int, accepted: set[int], best: int) -> FirstReaching:
    """Of the candidates from `position` on, each added to the soup: which is the first as good?"""
    soup = [0, *sorted(accepted)]

    def order(index: int) -> tuple[int, ...]:
        members = [*soup, position + index]
        return hardest_first([trace.margins[i] / len(members) for i in members])

    return FirstReaching(INGREDIENTS - position, order, BATCH, best, "ge", "fp32")


def run(trace: Trace, workers: int, seed: int) -> tuple[float, float, set[int]]:
    """(time, busy time, accepted) of a greedy soup on a simulated clock."""
    chance = random.Random(seed)
    now, busy, best = 0.0, 0.0, int(trace.right[0].sum())
    accepted: set[int] = set()
    free = [0.0] * workers
    loaded: list[tuple[int, int] | None] = [None] * workers
    position = 1
    while position < INGREDIENTS:
        candidates = list(range(position, INGREDIENTS))
        schedule = question(trace, position, accepted, best)
        running: list[tuple[float, int, object]] = []
        while (reached := schedule.answer()) is None:
            idle = [w for w in range(workers) if free[w] <= now]
            for w in idle:
                unit = schedule.next()
                if unit is None:
                    break
                name = (len(accepted), candidates[unit.candidate])
                cost = chance.uniform(0.9, 1.1) + (LOADING if loaded[w] != name else 0.0)
                loaded[w], free[w] = name, now + cost
                busy += cost
                heapq.heappush(running, (now + cost, w, unit))
            # A worker that still runs something dropped comes free later: its time is spent.
            wakes = [t for t in free if t > now]
            done, _, unit = running[0] if running else (float("inf"), 0, None)
            if running and done <= min(wakes, default=done):
                heapq.heappop(running)
                now = done
                rows = list(unit.rows)
                right = trace.right[candidates[unit.candidate], rows]
                schedule.take(unit, Answer(right, np.zeros(len(rows), bool)))
            else:
                now = min(wakes)
        position += len(reached.results)
        if reached.hit:
            accepted.add(position - 1)
            best = reached.results[-1].correct
    return now, busy, accepted


def main() -> None:
    """Print the table."""
    traces = [make_trace(seed) for seed in range(TRACES)]
    rows = {w: [] for w in WORKERS}
    shares = []
    for seed, trace in enumerate(traces):
        work = None
        for workers in WORKERS:
            time, busy, accepted = run(trace, workers, seed)
            assert accepted == trace.accepted, (seed, workers)
            work = work or busy
            chain = (ACCEPTED + 1) * (1 + LOADING)
            rows[workers].append(max(work / workers, chain) / time)
        shares.append(work / ((INGREDIENTS - 1) * (SAMPLES / BATCH + LOADING)))
    print(
        f"{TRACES} traces; share of all batches that one worker runs: "
        f"{statistics.median(shares):.0%} (median)"
    )
    print("workers  utilisation: median   least")
    for workers, found in rows.items():
        print(f"{workers:>7}  {statistics.median(found):>19.0%}  {min(found):>6.0%}")


if __name__ == "__main__":
    main()
