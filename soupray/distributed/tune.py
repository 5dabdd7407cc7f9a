"""Run the trials of a sweep with Ray Tune; one actor per slot, which is reused."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

# Read when ray.tune is imported. Our own table replaces Tune's reports and loggers, and workers
# stay in their directory, so that relative paths mean the same everywhere.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
# the last result of a trial has no score
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the sweep, not Tune's loop
os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "60")

from ray import tune
from ray.tune.error import TuneError
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from soupray.core.errors import TRIAL_FAILED, ConfigError, RayLost, TrialError, mask, one_line
from soupray.core.imports import importing
from soupray.core.records import decode, encode
from soupray.core.trials import EpochRecord, Ingredient, Trial
from soupray.distributed.cluster import Vigil, at_a_time
from soupray.distributed.nodes import wanted
from soupray.search.plugged import PluginSearch
from soupray.search.tpe import TpeSearch
from soupray.services.place import Place
from soupray.spec.space import Dimension
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.lease import is_draining

if TYPE_CHECKING:
    from soupray.training.trial import Training

log = logging.getLogger(__name__)

# `_Reporter` reports errors in one line, and Tune's own state is never read.
logging.getLogger("ray.tune.execution").setLevel(logging.CRITICAL)
# Tune would copy variables of the driver into the environment of each trial: keys too, which Ray
# writes to its logs. Nodes have their own keys, and set the variables above as they import this.
# With no environment of its own, a trial takes a worker that runs already.
class_cache.ENV_VARS_TO_PROPAGATE.clear()
class_cache.DEFAULT_ENV_VARS.clear()

RETRIES = 3
"""How often a trial is repeated whose worker died; errors of the trial itself are not repeated."""


class TrialEvents(Protocol):
    """Receives the events of a sweep in the driver; `key` is always the key of a trial."""

    def started(self, key: str) -> None:
        """A trial has started."""
        ...

    def epoch(self, key: str, record: EpochRecord) -> None:
        """An epoch of the trial is over."""
        ...

    def finished(self, key: str, complete: bool) -> None:
        """The manifest of the trial is stored: an ingredient if `complete`, else a tombstone."""
        ...

    def suggested(self, trial: Trial) -> None:
        """An adaptive search has suggested this trial; called before `started`."""
        ...

    def spared(self, key: str) -> None:
        """The trial did not start, because no further one may: see `store.lease.Drain`."""
        ...

    def repeated(self, key: str, reason: str) -> None:
        """The worker of the trial died; another worker trains the trial."""
        ...

    def stopped(self, key: str) -> None:
        """The scheduler has stopped the trial, and this is stored."""
        ...

    def failed(self, key: str, reason: str) -> None:
        """The worker of the trial died or raised an error; nothing is stored."""
        ...


class _Trainable(tune.Trainable):  # type: ignore[misc]
    """A trial in the form of Tune: each step is an epoch; the last step stores the manifest."""

    def setup(self, config: dict[str, Any]) -> None:
        self._spec = SweepSpec.model_validate_json(config["spec"])
        self._place = decode(config["place"].encode(), Place)
        self._driver = config["driver"]
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial = decode(new_config["trial"].encode(), Trial)
        self._training: Training | None = None
        return True

    def step(self) -> dict[str, Any]:
        try:
            if self._training is None:
                if self._is_spared():
                    return {"spared": True, "done": True}
                self._training = self._begin()
            record = next(self._training)
            said: dict[str, Any] = {"epoch": encode(record).decode(), "done": False}
            if record.epoch == self._trial.hparams["epochs"]:
                return said  # no score: the scheduler must not stop a trial that is fully trained
            return {
                **said,
                "epochs": record.epoch,
                "held_out": record.rank,
            }
        except StopIteration as end:
            said = {"complete": isinstance(end.value, Ingredient), "done": True}
            return said | self._measure_prefixes()
        except Exception as error:  # noqa: BLE001 - whatever it is would come again in a retry
            # Into the log of this worker, where `soupray logs` looks.
            first = TRIAL_FAILED.format(self._trial.key)
            sys.stderr.write(f"{first}\n{mask(traceback.format_exc())}")
            told = (str(error) or "no message").splitlines()[0][:500]
            return {"failed": f"{type(error).__name__}: {told}", "done": True}

    def _is_spared(self) -> bool:
        if self._spec.search.stop is None and self._spec.budget is None:
            return False
        return is_draining(self._place.open_store(), self._spec.name, self._driver)

    def _measure_prefixes(self) -> dict[str, str]:
        """Measure what this trial completes; a failure is told, and the trial stays complete."""
        if self._trial.training.workers > 1:
            return {}  # this process has neither the data nor the device
        try:
            with importing():
                from soupray.distributed.anytime import measure_prefixes
                from soupray.training.worker import worker_context

            measure_prefixes(worker_context(self._spec, self._place), self._trial)
        except Exception as error:  # noqa: BLE001 - no trial is lost for it
            sys.stderr.write(mask(traceback.format_exc()))
            return {"unmeasured": f"{type(error).__name__}: {one_line(str(error))}"}
        return {}

    def _begin(self) -> Training:
        if self._trial.training.workers > 1:
            from soupray.distributed.train import train_together

            return train_together(self._spec, self._place, self._trial)
        # Here, because the driver has this class too, and needs no torch.
        with importing():
            from soupray.training.trial import fine_tune
            from soupray.training.worker import worker_context

        here = worker_context(self._spec, self._place)
        return fine_tune(self._trial, here.task, here.data, here.checkpoints)


class _Reporter(tune.Callback):  # type: ignore[misc]
    """Passes Tune's events to `TrialEvents`, by the key of the trial."""

    def __init__(self, events: TrialEvents) -> None:
        self._watcher = events
        self.running: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks to resume a run, which is not used here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.add(_key_of(trial))
        self._watcher.started(_key_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:
            self._watcher.epoch(_key_of(trial), decode(result["epoch"].encode(), EpochRecord))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.discard(_key_of(trial))
        result = trial.last_result
        if "spared" in result:
            self._watcher.spared(_key_of(trial))
        elif "failed" in result:
            self._watcher.failed(_key_of(trial), result["failed"])
        elif "complete" in result:
            self._watcher.finished(_key_of(trial), result["complete"])
            if "unmeasured" in result:
                why = result["unmeasured"]
                log.warning(f"the soup of the trials up to {_key_of(trial)} is unknown: {why}")
        # Tune keeps every trial, with statistics of each number it reported: 18 kB, never read.
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.discard(_key_of(trial))
        self._watcher.repeated(_key_of(trial), _last_line(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.discard(_key_of(trial))
        if trial.status == "ERROR":
            self._watcher.failed(_key_of(trial), _last_line(trial))


AdaptiveSearch = TpeSearch | PluginSearch


class _Searcher(Searcher):  # type: ignore[misc]
    """An adaptive search in the form of Tune; its state is in the store, so Tune saves nothing."""

    def __init__(
        self,
        search: AdaptiveSearch,
        shared: dict[str, str],
        tell: Callable[[Trial], None],
        drained: Callable[[], bool],
    ) -> None:
        """Wrap a search.

        Args:
            search: the search.
            shared: the configuration that all trials share.
            tell: called with each trial before it runs.
            drained: whether no further trial may start.
        """
        super().__init__()
        self._search, self._shared, self._tell, self._drained = search, shared, tell, drained
        self._keys: dict[str, str] = {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Accept any properties: Tune's space is empty, because the search gives the points."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the configuration of the next trial, or Tune's mark for the end."""
        trial = None if self._drained() else self._search.next()
        if trial is None:
            return str(Searcher.FINISHED)
        self._tell(trial)
        self._keys[trial_id] = trial.key
        return {**self._shared, "trial": encode(trial).decode()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the search that a trial is over; the search reads the score from the store."""
        self._search.over(self._keys.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, because the store has the state of the search."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher to resume a run, which is not used here."""
        return {}


class Planned(NamedTuple):
    """The work of a sweep: trials that are known, or a search that suggests them."""

    trials: list[Trial]
    search: AdaptiveSearch | None = None


class Control(NamedTuple):
    """How a sweep ends before all its trials are trained.

    Attributes:
        stop: called after every result; the sweep ends now if it returns True.
        drained: likewise; the sweep ends as soon as no trial runs, and a search is asked no more.
        give_up: records a trial that the scheduler stops.
        driver: the holder of the lease, whose word trials hear as they start: `store.lease.Drain`.
    """

    stop: Callable[[], bool] = lambda: False
    drained: Callable[[], bool] = lambda: False
    give_up: Callable[[Trial, EpochRecord], None] = lambda trial, last: None
    driver: str = ""


def run_trials(
    spec: SweepSpec,
    place: Place,
    planned: Planned,
    events: TrialEvents,
    control: Control = Control(),  # noqa: B008 - a record, and frozen
) -> None:
    """Run the planned trials and report to `events`.

    Tune's own files stay on this machine's disk. A later run resumes from the records in the store.

    Args:
        spec: the sweep.
        place: where the sweep stores its data.
        planned: the work.
        events: receives the events.
        control: how the sweep ends early.

    Raises:
        TrialError: Tune itself cannot continue.
        RayLost: the node of this machine died.
        ConfigError: there was no room for a trial for too long.
    """
    reporter = _Reporter(events)
    vigil = Vigil(wanted(spec.resources, spec.training.workers))
    stopper = _Stopper(control, vigil, reporter)
    space, settings = _search((spec, place, control), planned, events)
    scheduler = _scheduler(spec, events, control.give_up)
    tuner = tune.Tuner(
        tune.with_resources(_Trainable, _holds(spec)),
        param_space=space,
        tune_config=_tune_config(scheduler, settings),
        run_config=_run_config(spec, place, reporter, stopper),
    )
    try:
        tuner.fit()
    except TuneError as error:
        if stopper.lost:
            raise stopper.lost from error
        last = str(error).strip().splitlines()[-1]
        raise TrialError(
            f"Ray Tune stopped: {last}. Run the same command again: finished trials are kept."
        ) from error
    if stopper.lost:
        raise stopper.lost
    if isinstance(planned.search, PluginSearch) and planned.search.problem is not None:
        raise planned.search.problem


def _holds(spec: SweepSpec) -> dict[str, float]:
    """What a trial reserves. Several workers reserve their own; Tune needs at least a byte."""
    if spec.training.workers > 1:
        return {"memory": 1}
    return {"cpu": spec.resources.cpu, "gpu": spec.resources.gpu}


def _tune_config(scheduler: _Asha | None, settings: dict[str, Any]) -> tune.TuneConfig:
    return tune.TuneConfig(
        reuse_actors=True,
        scheduler=scheduler,
        trial_dirname_creator=lambda trial: _key_of(trial),
        trial_name_creator=lambda trial: _key_of(trial),
        **settings,
    )


def _run_config(
    spec: SweepSpec, place: Place, reporter: _Reporter, stopper: _Stopper
) -> tune.RunConfig:
    return tune.RunConfig(
        name=spec.name,
        storage_path=str(place.folder / "tune"),
        callbacks=[reporter],
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        failure_config=tune.FailureConfig(max_failures=RETRIES),
        verbose=0,
        # In a notebook, Tune's own reporter would clear the cell, and what we said there.
        progress_reporter=tune.CLIReporter(),
        stop=stopper,
    )


def _search(
    sweep: tuple[SweepSpec, Place, Control], planned: Planned, events: TrialEvents
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Tune's search space, and the settings of the search."""
    spec, place, control = sweep
    shared = {
        "spec": spec.model_dump_json(),
        "place": encode(place).decode(),
        "driver": control.driver,
    }
    if planned.search is None:
        grid = tune.grid_search([encode(t).decode() for t in planned.trials])
        return {**shared, "trial": grid}, {"max_concurrent_trials": at_a_time(spec)}
    # With a searcher, Tune lets only one trial wait unless a limit is given.
    return {}, {
        "search_alg": _Searcher(planned.search, shared, events.suggested, control.drained),
        "num_samples": planned.search.left,
        "max_concurrent_trials": at_a_time(spec) or spec.search.trials,
    }


def _scheduler(
    spec: SweepSpec, events: TrialEvents, give_up: Callable[[Trial, EpochRecord], None]
) -> _Asha | None:
    def stopped(trial: Trial, last: EpochRecord) -> None:
        give_up(trial, last)
        events.stopped(trial.key)

    return _Asha(_most_epochs(spec), stopped) if spec.search.scheduler == "asha" else None


def _most_epochs(spec: SweepSpec) -> int:
    epochs: Any = spec.search.space.epochs  # type: ignore[attr-defined]  # of the table
    return max(map(int, epochs.ends())) if isinstance(epochs, Dimension) else int(epochs)


class _Asha(ASHAScheduler):  # type: ignore[misc]
    """Asynchronous successive halving by the metric of the trials; a quarter passes each rung.

    The rungs are in memory only: after a crash they start empty.
    """

    def __init__(self, most: int, stopped: Callable[[Trial, EpochRecord], None]) -> None:
        # One more than the longest trial: a fully trained trial is stored, not stopped.
        super().__init__(
            time_attr="epochs",
            metric="held_out",
            mode="max",
            max_t=most + 1,
            stop_last_trials=False,
        )
        self._stopped = stopped

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = str(super().on_trial_result(tune_controller, trial, result))
        if action == TrialScheduler.STOP:
            last = decode(result["epoch"].encode(), EpochRecord)
            self._stopped(decode(trial.config["trial"].encode(), Trial), last)
        return action

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its scheduler to resume a run, which is not used here


class _Stopper(tune.Stopper):  # type: ignore[misc]
    """Tune asks it about ten times a second whether the sweep ends. `lost` says why it had to."""

    def __init__(self, control: Control, vigil: Vigil, reporter: _Reporter) -> None:
        self._control, self._vigil, self._reporter = control, vigil, reporter
        self.lost: RayLost | ConfigError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it to resume a run, which is not used here

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        try:
            self._vigil.look(len(self._reporter.running))
        except (RayLost, ConfigError) as lost:
            self.lost = lost
            return True
        if not self._reporter.running and self._control.drained():
            return True
        return self._control.stop()


def _last_line(trial: Any) -> str:
    """Return the last line of the error of the last attempt."""
    text = str(trial.get_error() or "").strip() or "its worker died"
    return text.splitlines()[-1][:300]


def _key_of(trial: Any) -> str:
    return decode(trial.config["trial"].encode(), Trial).key
