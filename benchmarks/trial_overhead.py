"""What a trial costs beyond its own training, beside plain Ray Tune with no-op trials.

    python benchmarks/trial_overhead.py [--trials 24]

Ours: a sweep of one-epoch trials on the embedded stack. A trial's own training is the sum of its
epochs; all else (the next trial's start, loading theta_0, storing, scoring the stored bytes, the
driver) is overhead. Steady state: the first trial of each worker, which pays for the imports, is
left out. Plain Tune: no-op function trials, with new actors and with actors reused.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from soupray.core.trials import Ingredient

ROOT = Path(__file__).parent.parent
WORKERS = 2


def ours(trials: int) -> list[float]:
    """Overhead of each trial after a worker's first, in seconds."""
    from soupray.core.trials import Manifest
    from soupray.services import embedded
    from soupray.services.place import start_services
    from soupray.spec.sweep_spec import load
    from soupray.store.objects import read_record
    from soupray.sweep.run import run_sweep

    text = (ROOT / "sweeps" / "digits.yaml").read_text()
    for old, new in {
        "name: digits\n": "name: overhead\n",
        "trials: 16": f"trials: {trials}",
        "epochs: {integer: [5, 15]}": "epochs: 1",
    }.items():
        assert old in text
        text = text.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        home, spec = Path(folder) / "home", Path(folder) / "overhead.yaml"
        spec.write_text(text)
        try:
            run_sweep(load(spec), home, None, file=spec)
            store = start_services(load(spec), home).place.open_store()
            found = [read_record(store, p, Manifest) for p in store.list("trials")]
        finally:
            embedded.down(home)
    return overheads([m for m in found if isinstance(m, Ingredient)], WORKERS)


def overheads(found: list[Ingredient], workers: int) -> list[float]:
    """What each trial took beyond its epochs, since its worker had ended the one before.

    No record says which worker that was. Taken is the one that has been free longest, in whose
    account its wait is. Their sum is that of all workers from their first trial's end to their
    last's, less the epochs, whoever took what: while trials wait, no worker is left without.
    """
    made = sorted(found, key=lambda m: m.started)
    seconds, free = [], [m.finished for m in made[:workers]]
    for trial in made[workers:]:
        before = min(free)
        assert before <= trial.started, f"more than {workers} workers"
        free.remove(before)
        free.append(trial.finished)
        seconds.append(trial.finished - before - sum(e.seconds for e in trial.history))
    return seconds


def plain_tune(trials: int, reuse: bool) -> float:
    """Seconds a trial of plain Tune with no-op trials, workers in parallel."""
    import ray
    from ray import tune

    def nothing(config: dict[str, int]) -> None:
        tune.report({"score": config["x"]})

    with tempfile.TemporaryDirectory() as folder:
        ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        started = time.perf_counter()
        tune.Tuner(
            tune.with_resources(nothing, {"cpu": 1}),
            param_space={"x": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        taken = time.perf_counter() - started
        ray.shutdown()
    return taken * WORKERS / trials


def main() -> None:
    """Print the three numbers; plain Tune in processes of its own, without our settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--plain", choices=("reused", "new"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        print(plain_tune(arguments.trials, reuse=arguments.plain == "reused"))
        return
    seconds = ours(arguments.trials)
    low, high = min(seconds), max(seconds)
    print(
        f"soupray, one real epoch          {statistics.median(seconds):.2f} s overhead a trial"
        f" (median of {len(seconds)}, {low:.2f} to {high:.2f})"
    )
    for kind in ("reused", "new"):
        command = [sys.executable, __file__, "--plain", kind, "--trials", str(arguments.trials)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = float(done.stdout.split()[-1])
        print(f"plain Tune, no-op, actors {kind:<6} {taken:.2f} s of worker time a trial")


if __name__ == "__main__":
    main()
