"""Workers that count what they run, for the benchmarks of the greedy soup."""

from soupray.evaluation.local import LocalWorkers


class Counting:
    """Local workers that count the samples of each precision."""

    def __init__(self, workers: LocalWorkers) -> None:
        self._workers, self.low, self.high = workers, 0, 0

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
            return self._workers.decide(schedule, candidates, split, tau)
        finally:
            del self._workers.run

    def __getattr__(self, name):
        return getattr(self._workers, name)
