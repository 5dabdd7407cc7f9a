"""Workers that count what they run, for the benchmarks of the greedy soup."""

from collections.abc import Iterator
from contextlib import contextmanager

from soupray.evaluation import live_model as network
from soupray.evaluation.local import LocalWorkers


class Counting:
    """Local workers that count the samples that decisions take.

    Held-out samples of each precision, and training samples for the BatchNorm statistics of soups.
    """

    def __init__(self, workers: LocalWorkers) -> None:
        self._workers, self.low, self.high, self.statistics = workers, 0, 0, 0

    def decide(self, schedule, candidates, split, tau):
        run = self._workers.run

        def counted(unit, *rest):
            if unit.low:
                self.low += len(unit.rows)
            else:
                self.high += len(unit.rows)
            return run(unit, *rest)

        self._workers.run = counted
        try:
            with statistics_counted() as estimates:
                return self._workers.decide(schedule, candidates, split, tau)
        finally:
            self.statistics += sum(estimates)
            del self._workers.run

    def __getattr__(self, name):
        return getattr(self._workers, name)


@contextmanager
def statistics_counted() -> Iterator[list[int]]:
    """A list that grows: the training samples of each estimate of BatchNorm statistics."""
    estimates: list[int] = []
    estimate = network.estimate_statistics

    def counted(model, task, images, setting):
        estimates.append(len(images))
        return estimate(model, task, images, setting)

    network.estimate_statistics = counted
    try:
        yield estimates
    finally:
        network.estimate_statistics = estimate
