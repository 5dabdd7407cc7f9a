"""The MLflow tracker; it runs in the driver only, with a few batched requests for each run."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Read at import. Two attempts of ten seconds instead of MLflow's four minutes per request.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # stdout is for results

import mlflow.artifacts
import mlflow.pyfunc
import msgspec
import pandas as pd
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from soupray.core.errors import SouprayError, TrackingError, mask
from soupray.core.names import plain
from soupray.core.ports import CURRENT, Deployable, Registered, TrackedRun
from soupray.core.records import digest

logging.getLogger("alembic").setLevel(logging.WARNING)  # they log every migration
logging.getLogger("mlflow").setLevel(logging.WARNING)

KEY, TYPE, DIGEST = "soupray.key", "soupray.kind", "soupray.digest"
CANDIDATE, RECIPE = "soupray.candidate", "soupray.recipe"
EXTERNAL = "mlflow.model.is_external"
"""Tag of a version that an older soupray registered, whose files are not in MLflow."""
MODEL = "model"
CODE = Path(__file__).parents[1] / "assets" / "registered_model.py"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens with training runs
TRAINING = "machine_learning"
"""What MLflow's sidebar is about, in its address (3.17); otherwise it shows pages for chats."""
VIEW = "soupray"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = (
    *("rank", "accuracy/test", "gain/test", "accuracy/shift_mean", "gain/shift_mean"),
    *("forward_passes_per_sample", "size_mb", "accuracy/held_out"),
)
"""Metrics that the table of runs shows."""

VIEW_STATE = json.dumps(
    {
        "searchFilter": f"tags.`{CURRENT}` = 'yes'",
        "orderByKey": "metrics.`rank`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "columnOrder": [f"metrics.`{name}`" for name in COLUMNS],
        "selectedColumns": [*(f"metrics.`{name}`" for name in COLUMNS), "params.`ingredients`"],
    }
)
"""The table of runs as `soupray ui` opens it: what MLflow's "Share view" writes (3.17)."""

PAGE, BATCH = 1000, 800
FEW = 20
"""Up to this number, runs are searched one by one: listing all runs gets slower in a sweep."""


class MlflowTracker:
    """A `ports.Tracker` that writes into one MLflow experiment.

    Each run has a key and the digest of its content. If the digest is equal, a second write does
    nothing. An incomplete run is completed, because MLflow ignores rows that it already has. MLflow
    never changes a parameter and keeps the points of old curves; therefore a run with changed
    parameters or tags is deleted and written again. The tag `CURRENT` alone changes in place: it
    says whether a later run of `soup` has made a leaderboard.
    """

    def __init__(self, url: str, experiment: str, artifacts: str | None = None) -> None:
        self._url = url
        self._parents: dict[str, Run] = {}
        self._open: dict[str, Run] = {}
        with _mapped(self._url):
            self._client = MlflowClient(tracking_uri=url)
            found = self._client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"MLflow's experiment {experiment!r} is deleted, and its name is still taken. "
                    f"Restore it (mlflow experiments restore -x {found.experiment_id}), or remove "
                    "it for good (mlflow gc), then run `soupray publish`"
                )
            self._experiment: str = (
                found.experiment_id
                if found
                else self._client.create_experiment(
                    experiment, artifact_location=artifacts, tags=KIND
                )
            )
            if found is None or found.tags.get(VIEW_TAG) != VIEW_STATE:
                self._client.set_experiment_tag(self._experiment, VIEW_TAG, VIEW_STATE)

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """Create or complete `runs`, parents first. Raises TrackingError.

        Args:
            runs: the runs; a second call with equal runs changes nothing.
        """
        runs = [_shown(run) for run in runs]
        with _mapped(self._url):
            named = {run.parent for run in runs if run.parent}
            named |= {key for run in runs for _, key in run.links}
            here = self._parents | self._open
            wanted = ({run.key for run in runs} - self._open.keys()) | (named - here.keys())
            known = here | self._known(wanted)
            for run in runs:
                there = known.get(run.key)
                if there is not None and _contradicts(there, run):
                    self._client.delete_run(there.info.run_id)
                    there = None
                if there is None:
                    there = self._create(run, known)
                    known[run.key] = there
                self._link(there, run, known)
                if there.data.tags.get(DIGEST) != digest(run):
                    self._fill(there, run, known)
                self._keep_open(run, there)
            self._parents = {key: known[key] for key in {r.parent for r in runs if r.parent}}

    def _keep_open(self, run: TrackedRun, there: Run) -> None:
        """Remember a run that is not finished: it is written again and again while it runs."""
        if _runs_now(run):
            self._open[run.key] = there
        else:
            self._open.pop(run.key, None)

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """Attach local files to a run. Raises TrackingError.

        Args:
            key: key of the run.
            files: the files, which keep their names.
        """
        with _mapped(self._url):
            run_id = self._known({key})[key].info.run_id
            for path in files:
                self._client.log_artifact(run_id, str(path))

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """Delete the runs of this kind whose key is not in `keys`. Raises TrackingError.

        MLflow only marks runs as deleted; its UI can restore them.
        """
        with _mapped(self._url):
            for key, run in self._all().items():
                if run.data.tags.get(TYPE) == kind and key not in keys:
                    self._client.delete_run(run.info.run_id)

    def register(self, champion: Registered, model: Deployable) -> None:
        """Make `champion` the champion of its registered model. Raises TrackingError.

        A candidate that has a version already gets no new version.

        Args:
            champion: the champion.
            model: its files, which are written into MLflow's artifacts. See docs/decisions/0011.
        """
        with _mapped(self._url):
            name, client = champion.model, self._client
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(
                    name,
                    description="Each version is a model that a leaderboard said to take; the "
                    "alias `champion` is that of the newest one.",
                )
            for one in client.search_model_versions(f"name = '{name}'"):
                if one.tags.get(CANDIDATE) == champion.candidate and EXTERNAL not in one.tags:
                    version = one
                    if champion.description and one.description != champion.description:
                        client.update_model_version(name, one.version, champion.description)
                    break
            else:
                version = self._new_version(champion, model)
            client.set_registered_model_alias(name, "champion", version.version)

    def _new_version(self, champion: Registered, model: Deployable) -> ModelVersion:
        run_id = self._known({champion.entry})[champion.entry].info.run_id
        known = {"soupray.sha256": champion.sha256, RECIPE: champion.recipe}
        tags = {
            CANDIDATE: champion.candidate,
            "soupray.size_bytes": str(champion.size_bytes),
            **{tag: value for tag, value in known.items() if value is not None},
        }
        logged = self._client.create_logged_model(
            self._experiment, name=champion.model, source_run_id=run_id, tags=tags
        )
        with tempfile.TemporaryDirectory() as folder:
            model.write(Path(folder, MODEL))
            _save(Path(folder, "mlflow"), Path(folder, MODEL), model, logged.model_id)
            self._client.log_model_artifacts(logged.model_id, str(Path(folder, "mlflow")))
        self._client.finalize_logged_model(logged.model_id, "READY")
        return self._client.create_model_version(
            champion.model,
            logged.artifact_location,  # MLflow looks models:/ID up at its global tracking URI
            run_id=run_id,
            model_id=logged.model_id,
            tags=tags,
            description=champion.description or None,
        )

    def _known(self, keys: Collection[str]) -> dict[str, Run]:
        """Return the runs with these keys that soupray has written."""
        if len(keys) > FEW:
            return {key: run for key, run in self._all().items() if key in keys}
        found = {}
        for key in keys:
            which = f"tags.`{KEY}` = '{key}'"
            for run in self._client.search_runs([self._experiment], which, max_results=1):
                found[key] = run
        return found

    def _all(self) -> dict[str, Run]:
        """Return all runs of the experiment that soupray has written, by key."""
        known: dict[str, Run] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                run_view_type=ViewType.ACTIVE_ONLY,
                max_results=PAGE,
                page_token=token,
            )
            known |= {r.data.tags[KEY]: r for r in page if KEY in r.data.tags}
            token = page.token
            if not token:
                return known

    def _create(self, run: TrackedRun, known: dict[str, Run]) -> Run:
        tags = {KEY: run.key, TYPE: run.kind}
        if run.parent is not None:
            tags[PARENT] = known[run.parent].info.run_id
        return self._client.create_run(
            self._experiment, start_time=int(run.started * 1000), tags=tags, run_name=run.name
        )

    def _link(self, there: Run, run: TrackedRun, known: dict[str, Run]) -> None:
        """Update the parent of a run, which may have been deleted and written again."""
        if run.parent is not None:
            parent = known[run.parent].info.run_id
            if there.data.tags.get(PARENT) != parent:
                self._client.set_tag(there.info.run_id, PARENT, parent)

    def _fill(self, there: Run, run: TrackedRun, known: dict[str, Run]) -> None:
        """Write the content of a run in batches; the digest comes last and marks it as complete.

        MLflow writes the tags of a batch after its metrics and parameters.
        """
        run_id = there.info.run_id
        when = int((run.finished or run.started) * 1000)
        metrics = [Metric(k, v, when, 0) for k, v in run.metrics.items()]
        for name, points in run.curves.items():
            # MLflow ignores a row that it has. So a point has the same time whenever it is written.
            begun = there.info.start_time
            metrics += [Metric(name, value, begun + step, step) for step, value in points]
        params = [Param(k, v) for k, v in run.params.items()]
        notes = {NOTE: note} if (note := self._note(run, known)) else {}
        mark = {} if _runs_now(run) else {DIGEST: digest(run)}
        tags = [RunTag(k, v) for k, v in (run.tags | notes | mark).items()]
        if _runs_now(run) and there.info.status != "RUNNING":  # of a driver that was killed
            self._client.update_run(run_id, status="RUNNING")
        if run.finished is not None:
            status = "FAILED" if run.failed else "FINISHED"
            self._client.set_terminated(run_id, status, end_time=when)
        while len(metrics) > BATCH:
            self._client.log_batch(run_id, metrics=metrics[:BATCH])
            metrics = metrics[BATCH:]
        self._client.log_batch(run_id, metrics=metrics, params=params, tags=tags)

    def _note(self, run: TrackedRun, known: dict[str, Run]) -> str:
        """Return the note of a run, with links to the pages of the runs that it names."""

        def link(text: str, key: str) -> str:
            if key not in known:
                return text
            return f"[{text}](#/experiments/{self._experiment}/runs/{known[key].info.run_id})"

        links = ", ".join(link(text, key) for text, key in run.links)
        return "\n\n".join(part for part in (run.note, links) if part)


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    """Turn the exceptions of MLflow and its libraries into TrackingError."""
    try:
        yield
    except SouprayError:  # of the model's files
        raise
    except Exception as error:  # MLflow raises its own errors, and those of requests and SQLAlchemy
        # Messages of the library requests contain the URL with its password.
        said = str(error).replace(url.rstrip("/"), mask(url).rstrip("/"))
        first = (said.strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
        raise TrackingError(f"MLflow at {mask(url)}: {first}") from error


def _shown(run: TrackedRun) -> TrackedRun:
    """Return a run whose texts have no control characters."""
    return msgspec.structs.replace(
        run,
        name=plain(run.name),
        params={k: plain(v) for k, v in run.params.items()},
        tags={k: plain(v) for k, v in run.tags.items()},
        note="\n".join(map(plain, run.note.split("\n"))),
        links=tuple((plain(text), key) for text, key in run.links),
    )


def _runs_now(run: TrackedRun) -> bool:
    """Whether this is a trial that runs: more of it will be written soon."""
    return run.finished is None and run.parent is not None


def _contradicts(there: Run, run: TrackedRun) -> bool:
    """Return whether an existing run has other values for a parameter or tag."""
    params, tags = there.data.params, there.data.tags
    return any(params.get(k, v) != v for k, v in run.params.items()) or any(
        tags.get(k, v) != v for k, v in run.tags.items() if k != CURRENT
    )


_TYPES = {
    str: DataType.string, float: DataType.double, int: DataType.long, bool: DataType.boolean
}  # fmt: skip
"""The types of columns and parameters, as MLflow calls them."""


def _save(folder: Path, files: Path, model: Deployable, model_id: str) -> None:
    """Write a model of MLflow's pyfunc flavour, whose code is `CODE`."""
    inputs = [ColSpec(DataType.binary if model.reads == "image" else DataType.string, model.reads)]
    outputs = [ColSpec(_TYPES[kind], name) for name, kind in model.answers.items()]
    params = [ParamSpec(name, _TYPES[type(value)], value) for name, value in model.params.items()]
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(CODE),
        artifacts={MODEL: str(files)},
        signature=ModelSignature(
            Schema(inputs), Schema(outputs), ParamSchema(params) if params else None
        ),
        input_example=pd.DataFrame({model.reads: [model.example]}),
        pip_requirements=model.requirements,
        metadata=model.facts,
        mlflow_model=Model(model_id=model_id),
    )


def _version(client: MlflowClient, name: str, which: str) -> ModelVersion:
    """Return a version of a registered model: `@ALIAS`, or `/VERSION`."""
    if which.startswith("@"):
        return client.get_model_version_by_alias(name, which[1:])
    return client.get_model_version(name, which[1:])


def registered_recipe(url: str, name: str, which: str) -> str | None:
    """Return the address of the recipe file of a registered model; None if it records none.

    Args:
        url: of MLflow.
        name: of the registered model.
        which: `@ALIAS`, or `/VERSION`.

    Raises:
        TrackingError: MLflow cannot be reached, or has no such model.
    """
    with _mapped(url):
        version = _version(MlflowClient(tracking_uri=url), name, which)
        found: str | None = version.tags.get(RECIPE)
        return found


def registered_folder(url: str, name: str, which: str, cache: Path) -> Path | None:
    """Return the model folder of a registered model, fetched from MLflow's artifacts.

    Args:
        url: of MLflow.
        name: of the registered model.
        which: `@ALIAS`, or `/VERSION`.
        cache: folder for what is fetched.

    Returns:
        The folder; None if an older soupray registered the model, without files.

    Raises:
        TrackingError: MLflow cannot be reached, or has no such model.
    """
    with _mapped(url):
        version = _version(MlflowClient(tracking_uri=url), name, which)
        if EXTERNAL in version.tags:
            return None
        kept = cache / digest(version.source)[:32]
        if not kept.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as part:
                where = f"{version.source}/artifacts/{MODEL}"
                mlflow.artifacts.download_artifacts(where, dst_path=part, tracking_uri=url)
                Path(part, MODEL).rename(kept)
        return kept


def view_of(url: str, experiment: str) -> str:
    """Return the part of a URL of MLflow after the host: the runs of an experiment, by rank.

    Args:
        url: for MLflow's client.
        experiment: its name.

    Returns:
        The part; empty if there is no such experiment yet.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    with _mapped(url):
        found = MlflowClient(tracking_uri=url).get_experiment_by_name(experiment)
        if found is None:
            return ""
        about = f"workflowType={TRAINING}&viewStateShareKey={VIEW}"
        return f"/#/experiments/{found.experiment_id}/runs?{about}"


def ping(url: str) -> str:
    """Read from MLflow once, for `doctor`; return the number of experiments as text.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    with _mapped(url):
        return f"{len(MlflowClient(tracking_uri=url).search_experiments())} experiments"
