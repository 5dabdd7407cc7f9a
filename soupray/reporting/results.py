"""Write the results of a soup run into a folder, into the store and into the tracker."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from soupray.core.candidates import Candidate, Outcome, mean_of
from soupray.core.errors import CheckpointError, NotFound
from soupray.core.names import inside
from soupray.core.ports import Champion, TrackedRun, Tracker
from soupray.core.records import Basis, BlobRef, CheckpointRef, Pool, Scores, encode, encode_pretty
from soupray.reporting.plots import draw_all
from soupray.reporting.ranking import LEADERBOARD, Entry, as_csv, names_of
from soupray.reporting.recipe_file import Foreign, RecipeFile
from soupray.reporting.runs import entry_key, entry_run, sweep_run, trial_run
from soupray.reporting.tracker import open_tracker
from soupray.search.state import find_state
from soupray.services.place import Place, Services, find_place, start_services
from soupray.spec.files import atomic_write
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import Store, find_record, list_ours, read_record, read_view

RUNS = "runs.json"
CHAMPION = "champion.json"
SHOWN = (LEADERBOARD, "leaderboard.csv", "robustness.png", "greedy_trace.png")
"""Files that the tracker shows with the run of the sweep."""


class SoupResult(NamedTuple):
    """All results of a soup run, best entry first."""

    entries: list[Entry]
    outcomes: list[Outcome]
    pool: Pool
    basis: Basis
    reported: dict[tuple[Candidate, str], Scores]
    soup: Outcome
    weights: CheckpointRef
    statistics: dict[str, BlobRef]
    services: Services
    made: float
    foreign: dict[str, SweepSpec]


def slug(name: str) -> str:
    """Return a file name for an entry: wise_ft(greedy, best) becomes wise_ft_greedy_best."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def write_results(result: SoupResult, spec: SweepSpec, output: Path) -> list[Path]:
    """Write leaderboard, figures, recipe files and the best soup to `output` and the store.

    A later run may replace these files in the store. The choices and scores behind them are never
    overwritten. The weights are in the store already and are only copied to `output`.

    Args:
        result: the results of the run.
        spec: the spec under which the results are stored.
        output: local folder.

    Returns:
        Paths of the leaderboard, the figures and the weights.
    """
    output.mkdir(parents=True, exist_ok=True)
    earlier = recipes_in(output)
    files = {
        LEADERBOARD: encode_pretty(result.entries),
        "leaderboard.csv": as_csv(result.entries).encode(),
        RUNS: encode(tracked_runs(result, spec)),
        CHAMPION: encode(_champion(result, spec)),
    }
    for outcome in result.outcomes:
        files[f"{slug(outcome.name)}.recipe.json"] = encode_pretty(_recipe(outcome, result, spec))
    for name, data in files.items():
        atomic_write(output / name, data)
    world = (result.pool, result.basis)
    drawn = draw_all(output, result.entries, result.outcomes, world, result.reported)
    store = result.services.place.open_store()
    for name in (*files, *drawn):
        store.put(_in_store(spec, name), (output / name).read_bytes())
    for old in list_ours(store, layout.results(spec.name)):
        if old.rpartition("/")[2] not in {*files, *drawn}:
            store.delete(old)
    remove_stale(output, earlier, {*files, *drawn})
    weights = _copy_weights(result.services.place, result.weights.sha256, result.soup.name, output)
    return [output / LEADERBOARD, output / "leaderboard.csv", *drawn.values(), weights]


def recipes_in(output: Path) -> dict[Path, bytes]:
    """Return the content of the recipe files in a folder, by path."""
    return {path: path.read_bytes() for path in output.glob("*.recipe.json")}


def remove_stale(output: Path, earlier: dict[Path, bytes], current: set[str]) -> None:
    """Delete files of an earlier run with other recipes, so that they do not look current.

    Args:
        output: folder of the results.
        earlier: recipe files before this run, from `recipes_in`.
        current: names of the files of this run.
    """
    for recipe, data in earlier.items():
        if recipe.name not in current:
            recipe.unlink()
        if recipe.name not in current or recipe.read_bytes() != data:
            recipe.with_suffix("").with_suffix(".safetensors").unlink(missing_ok=True)
    for name in set(SHOWN) - current:
        (output / name).unlink(missing_ok=True)


def pull(spec: SweepSpec, home: Path, output: Path) -> list[Path]:
    """Copy the results of `spec` from the store into `output`.

    All files except the weights are read completely before the first one is written.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        output: local folder.

    Raises:
        NotFound: there are no results.
        CheckpointError: a file cannot be read.
    """
    place = find_place(spec, home)
    store = place.open_store()
    paths = list_ours(store, layout.results(spec.name))
    if not paths:
        raise NotFound(f"no results of {spec.name} in {store.url}: run `soupray soup` first.")
    views = {inside(output, path.rpartition("/")[2]): read_view(store, path) for path in paths}
    recipes = [read_record(store, p, RecipeFile) for p in paths if p.endswith(".recipe.json")]
    earlier = recipes_in(output)
    for target, data in views.items():
        atomic_write(target, data)
    remove_stale(output, earlier, {target.name for target in views})
    made = [
        _copy_weights(place, recipe.sha256, recipe.name, output)
        for recipe in recipes
        if recipe.sha256 is not None
    ]
    return [*views, *made]


def publish(spec: SweepSpec, home: Path) -> int:
    """Complete the tracker from the store, and return how many runs this sweep has.

    Runs that are already complete are not changed. Raises TrackingError, StoreError.
    """
    services = start_services(spec, home)
    store = services.place.open_store()
    runs = stored_runs(store, spec)
    tracker = open_tracker(spec, services)
    _index(tracker, runs, find_record(store, _in_store(spec, CHAMPION), Champion))
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for path in store.list(layout.results(spec.name)):
            name = path.rpartition("/")[2]
            if name in SHOWN:
                files.append(Path(folder, name))
                files[-1].write_bytes(read_view(store, path))
        tracker.attach(spec.name, files)
    return len(runs)


def stored_runs(store: Store, spec: SweepSpec) -> list[TrackedRun]:
    """Return all runs of a sweep that are in the store, parents first. Raises NotFound."""
    state = find_state(store, spec)
    if state is None:
        raise NotFound(f"nothing was swept with this spec ({spec.name}) in {store.url}.")
    manifests = state.manifests
    runs = {r.key: r for r in (trial_run(spec, m) for m in manifests)}
    souped: list[TrackedRun] | None = find_record(store, _in_store(spec, RUNS), list[TrackedRun])
    for run in souped or []:
        if run.parent != spec.name or not run.key.startswith(f"{spec.name}/"):
            raise CheckpointError(
                f"{_in_store(spec, RUNS)} in {store.url} has the run {run.key!r}, which is not one "
                f"of {spec.name}: it was copied there, or edited. Run `soupray soup` again."
            )
        runs[run.key] = run
    started = min((m.started for m in manifests), default=0.0)
    finished = max((m.finished for m in manifests), default=None)
    return [sweep_run(spec, started, finished), *runs.values()]


def publish_soup(result: SoupResult, spec: SweepSpec, files: list[Path]) -> None:
    """Write the runs and figures of a soup into the tracker. Raises TrackingError.

    Args:
        result: the results of the run.
        spec: the spec of the sweep.
        files: local files; those in SHOWN are attached.
    """
    tracker = open_tracker(spec, result.services)
    runs = stored_runs(result.services.place.open_store(), spec)
    _index(tracker, runs, _champion(result, spec))
    tracker.attach(spec.name, [p for p in files if p.name in SHOWN])


def _champion(result: SoupResult, spec: SweepSpec) -> Champion:
    """Return the best soup as an entry of the model registry, with the URL of its weights."""
    return Champion(
        model=f"soupray-{spec.name}",
        entry=entry_key(spec, result.soup.name),
        candidate=result.soup.candidate.digest,
        weights=f"{result.services.place.storage}/{layout.weights(result.weights.sha256)}",
        sha256=result.weights.sha256,
        size_bytes=result.weights.size_bytes,
    )


def _index(tracker: Tracker, runs: list[TrackedRun], champion: Champion | None) -> None:
    """Write `runs`, and remove entries of an earlier leaderboard, whose ranks are outdated."""
    tracker.write(runs)
    tracker.keep("entry", {run.key for run in runs})
    if champion is not None:
        tracker.register(champion)


def tracked_runs(result: SoupResult, spec: SweepSpec) -> list[TrackedRun]:
    """Return the runs of the entries, and of the ingredients with their test and shift scores."""
    runs = []
    for ingredient in result.pool.ingredients:
        candidate = mean_of([ingredient.checkpoint.sha256])
        shifts = {
            s.name: result.reported[candidate, s.name]
            for s in result.basis.reported
            if s.role == "shift"
        }
        test = result.reported[candidate, "test"]
        runs.append(trial_run(spec, ingredient, test, shifts))
    by_name = {o.name: o for o in result.outcomes}
    for rank, entry in enumerate(result.entries, 1):
        runs.append(entry_run(spec, entry, by_name[entry.name], rank, result.made))
    return runs


def _recipe(outcome: Outcome, result: SoupResult, spec: SweepSpec) -> RecipeFile:
    names = names_of(result.pool)
    return RecipeFile(
        name=outcome.name,
        recipe=outcome.recipe,
        options=outcome.options,
        candidate=outcome.candidate,
        ingredients={sha: names[sha] for sha in outcome.candidate.checkpoints},
        statistics={
            m.digest: result.statistics[m.digest]
            for m in outcome.candidate.members
            if m.digest in result.statistics
        },
        sha256=result.weights.sha256 if outcome.name == result.soup.name else None,
        spec=spec.model_dump(mode="json"),
        foreign=_foreign(outcome, result),
    )


def _foreign(outcome: Outcome, result: SoupResult) -> tuple[Foreign, ...]:
    """Return the checkpoints of an outcome that come from other pools, grouped by spec."""
    found: dict[str, Foreign] = {}
    for sha in outcome.candidate.checkpoints:
        spec = result.foreign.get(sha)
        if spec is not None:
            known = found[spec.name].checkpoints if spec.name in found else ()
            found[spec.name] = Foreign(checkpoints=(*known, sha), spec=spec.model_dump(mode="json"))
    return tuple(found.values())


def _in_store(spec: SweepSpec, name: str) -> str:
    return layout.results_file(spec.name, name)


def _copy_weights(place: Place, sha256: str, name: str, output: Path) -> Path:
    checkpoints = Checkpoints(place.open_store(), place.folder / "weights")
    target = inside(output, f"{slug(name)}.safetensors")
    shutil.copyfile(checkpoints.fetch(sha256), target)
    return target
