"""The sweep on Ray Tune: the unfinished part of the plan, one actor a slot, actors reused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

# Read when ray.tune is imported. Our own table replaces Tune's reports and loggers, and workers
# stay in their directory, so that relative paths mean the same everywhere.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the sweep, not Tune's loop
os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "60")

from ray import tune

from soupray.checkpoints import find_record
from soupray.distributed.cluster import slots
from soupray.evaluation.pool import manifest_path
from soupray.records import EpochRecord, Ingredient, Manifest, Trial, decode, encode
from soupray.spec import SweepSpec
from soupray.training.fine_tune import Training, fine_tune
from soupray.wiring import Place, world

RETRIES = 3
"""Of a trial whose worker died. What the trial itself raises is told, not repeated."""


class Watcher(Protocol):
    """Told what happens in the sweep, in the driver."""

    def started(self, key: str) -> None:
        """The trial runs."""
        ...

    def epoch(self, key: str, record: EpochRecord) -> None:
        """An epoch of it is over."""
        ...

    def finished(self, key: str, complete: bool) -> None:
        """Its manifest is in the store: an ingredient if `complete`, else a tombstone."""
        ...

    def failed(self, key: str, reason: str) -> None:
        """Its worker died or raised; nothing is stored."""
        ...


class _Trainable(tune.Trainable):  # type: ignore[misc]
    """A trial as Tune sees it: a step is an epoch; the last step stores the manifest."""

    def setup(self, config: dict[str, Any]) -> None:
        self._spec = SweepSpec.model_validate_json(config["spec"])
        self._place = decode(config["place"].encode(), Place)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial = decode(new_config["trial"].encode(), Trial)
        self._training: Training | None = None
        return True

    def step(self) -> dict[str, Any]:
        try:
            if self._trial.training.workers > 1:
                return self._together()
            if self._training is None:
                here = world(self._spec, self._place)
                self._training = fine_tune(self._trial, here.task, here.data, here.checkpoints)
            return {"epoch": encode(next(self._training)).decode(), "done": False}
        except StopIteration as end:
            return {"complete": isinstance(end.value, Ingredient), "done": True}
        except Exception as error:  # noqa: BLE001 - whatever it is would come again in a retry
            said = (str(error) or "no message").splitlines()[0][:500]
            return {"failed": f"{type(error).__name__}: {said}", "done": True}

    def _together(self) -> dict[str, Any]:
        """The whole trial in one step: its epochs happen in Ray Train's workers."""
        from soupray.distributed.train import train_together

        train_together(self._spec, self._place, self._trial)
        checkpoints = world(self._spec, self._place).checkpoints
        manifest = find_record(checkpoints.store, manifest_path(self._trial.key), Manifest)
        return {"complete": isinstance(manifest, Ingredient), "done": True}


class _Reporter(tune.Callback):  # type: ignore[misc]
    """Passes Tune's events on, by trial key."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to resume from, and we never resume from that."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watcher.started(_key_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:
            self._watcher.epoch(_key_of(trial), decode(result["epoch"].encode(), EpochRecord))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        if "failed" in result:
            self._watcher.failed(_key_of(trial), result["failed"])
        elif "complete" in result:
            self._watcher.finished(_key_of(trial), result["complete"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.status == "ERROR":
            text = str(trial.get_error() or "its worker died").strip()
            self._watcher.failed(_key_of(trial), text.splitlines()[-1][:300])


def run_trials(
    spec: SweepSpec,
    place: Place,
    trials: list[Trial],
    watcher: Watcher,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run `trials` and tell `watcher`; `stop` is asked after every result.

    Tune's own files stay on this machine's disk: the store's manifests are what is resumed from.
    """
    shared = {"spec": spec.model_dump_json(), "place": encode(place).decode()}
    # A trial of several workers holds nothing itself (a byte: Tune takes no less): they do.
    alone = spec.training.workers == 1
    holds = {"cpu": spec.resources.cpu, "gpu": spec.resources.gpu} if alone else {"memory": 1}
    tuner = tune.Tuner(
        tune.with_resources(_Trainable, holds),
        param_space={**shared, "trial": tune.grid_search([encode(t).decode() for t in trials])},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=slots(spec.resources, spec.training.workers),
            trial_dirname_creator=lambda trial: _key_of(trial),
            trial_name_creator=lambda trial: _key_of(trial),
        ),
        run_config=tune.RunConfig(
            name=spec.name,
            storage_path=str(Path(place.cache) / "tune"),
            callbacks=[_Reporter(watcher)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
            stop=_Stopper(stop),
        ),
    )
    tuner.fit()


class _Stopper(tune.Stopper):  # type: ignore[misc]
    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as above

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop()


def _key_of(trial: Any) -> str:
    return decode(trial.config["trial"].encode(), Trial).key
